"""A scripted Docker engine, for what a real one (tests/engine.py) does not do on demand."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.network import eventually

Say = Callable[[socket.socket], None]


class Fake:
    """An engine on a unix socket. `containers` and `networks` are what it lists.

    says: by path, what to do instead of answering. slices: bytes that are sent at once. asked: the
    paths of all requests.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.containers: list[dict[str, Any]] = []
        self.networks: list[dict[str, Any]] = [network()]
        self.says: dict[str, Say] = {}
        self.slices: int | None = None
        self.asked: list[str] = []
        self.streams: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.open()

    def open(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.cut()

    def cut(self) -> None:
        while self.streams:
            with contextlib.suppress(OSError):
                self.streams.pop().shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65536)
            path = head.split()[1].decode().partition("?")[0]
            self.asked.append(path)
            name = path.rpartition("/")[2]
            if name in self.says:
                self.says[name](connection)
            elif name == "events":
                self.streams.append(connection)
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                return
            else:
                lists = {"json": self.containers, "networks": self.networks}
                versions = {"ApiVersion": "1.51", "MinAPIVersion": "1.24"}
                self.send(connection, json.dumps(lists.get(name, versions)).encode())
            connection.close()

    def send(self, connection: socket.socket, body: bytes) -> None:
        """Send a good answer, in chunks that end anywhere."""
        chunks = [body[at : at + 1000] for at in range(0, len(body), 1000)] or [b""]
        parts = [b"%x;ext=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks if chunk]
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        raw = head + b"".join(parts) + b"0\r\nTrailer: x\r\n\r\n"
        size = self.slices or len(raw)
        for at in range(0, len(raw), size):
            connection.sendall(raw[at : at + size])

    def tell(self, event: dict[str, Any] | None = None) -> None:
        """Send an event to all that listen."""
        eventually(lambda: self.streams)
        raw = json.dumps(event or {"Type": "container", "Action": "start"}).encode() + b"\n"
        for stream in [*self.streams]:
            try:
                stream.sendall(b"%x\r\n%s\r\n" % (len(raw), raw))
            except OSError:  # whoever listened there has gone
                self.streams.remove(stream)

    def lists(self) -> int:
        return sum(path.endswith("/containers/json") for path in self.asked)


def network(name: str = "six", subnet: str = "2001:db8::/64", **labels: str) -> dict[str, Any]:
    config = [{"Subnet": "172.17.0.0/16"}, {"Subnet": subnet}]
    return {"Name": name, "Id": f"id-{name}", "IPAM": {"Config": config}, "Labels": labels}


def container(number: int, name: str = "six", **labels: str) -> dict[str, Any]:
    joined = {"GlobalIPv6Address": f"2001:db8::{number:x}", "NetworkID": f"id-{name}"}
    return {
        "Names": [f"/other/link{number}", f"/web{number}"],
        "Labels": labels,
        "NetworkSettings": {"Networks": {name: joined}},
    }
