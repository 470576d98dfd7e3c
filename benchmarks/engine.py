"""A container engine that has any number of containers and starts none, for measurements.

Its answers are made beforehand: its own CPU is a copy of bytes. They are as long as Docker's for
containers that Compose has started, and the events of a start are Docker's.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab import engine_requests

NETWORK = "ipv6exposed"
"""The network of all containers."""

_NETWORK_ID = "f" * 64
_SUBNET = "2001:db8:0:1:d::/80"
_VERSIONS = {"ApiVersion": "1.41", "MinAPIVersion": "1.12"}
_HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


class Engine:
    """An engine on a unix socket, during a `with` block.

    Attributes:
        sent: Bytes of all answers, without their heads and without events.
        requests: The number of requests.
    """

    def __init__(self, path: Path, count: int) -> None:
        """Have containers, and listen from now on.

        Args:
            path: The path of the socket.
            count: The number of containers that run at first.
        """
        self.sent = self.requests = 0
        self._containers = {id_of(number): _container(number) for number in range(count)}
        self._streams: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()

    def __enter__(self) -> Self:
        accepting = (self._listener, self._serve)
        threading.Thread(target=engine_requests.accept, args=accepting, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for stream in self._streams:
            stream.close()

    def start(self, number: int) -> None:
        """Start a container, with Docker's events."""
        self._containers[id_of(number)] = _container(number)
        joined = {"container": id_of(number), "name": NETWORK, "type": "bridge"}
        self._tell("network", "connect", _NETWORK_ID, joined)
        self._tell("container", "start", id_of(number), {"name": f"web{number}", "image": "tiny"})

    def stop(self, number: int) -> None:
        """End a container, with Docker's events."""
        del self._containers[id_of(number)]
        joined = {"container": id_of(number), "name": NETWORK, "type": "bridge"}
        self._tell("container", "die", id_of(number), {"name": f"web{number}", "exitCode": "0"})
        self._tell("network", "disconnect", _NETWORK_ID, joined)

    def _tell(self, kind: str, action: str, ident: str, attributes: dict[str, str]) -> None:
        actor = {"ID": ident, "Attributes": attributes}
        event = {"Type": kind, "Action": action, "Actor": actor, "scope": "local"}
        for stream in [*self._streams]:
            try:
                stream.sendall(json.dumps(event).encode() + b"\n")
            except OSError:
                self._streams.remove(stream)

    def _serve(self, connection: socket.socket) -> None:
        path, filters = engine_requests.read_request(connection)
        if path.endswith("/events"):
            connection.sendall(_STREAM)
            self._streams.append(connection)
            return
        body = b"".join(self._body(path, filters.get("id")))
        self.requests += 1
        self.sent += len(body)
        connection.sendall(_HEAD.format(len(body)).encode() + body)
        connection.close()

    def _body(self, path: str, ids: list[str] | None) -> Iterator[bytes]:
        if path.endswith("/version"):
            yield json.dumps(_VERSIONS).encode()
        elif path.endswith("/networks"):
            yield json.dumps([_network()]).encode()
        else:
            wanted = self._containers.keys() if ids is None else ids
            found = (self._containers[one] for one in wanted if one in self._containers)
            yield b"[" + b",".join(found) + b"]\n"


def address_of(number: int) -> str:
    """Return the address of a container; each has a solicited-node group of its own."""
    return f"2001:db8:0:1:d:0:{number >> 16:x}:{number & 0xFFFF:x}"


def id_of(number: int) -> str:
    """Return the id of a container."""
    return f"{number + 1:064x}"


def _network() -> dict[str, Any]:
    config = [{"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}, {"Subnet": _SUBNET}]
    ipam = {"Driver": "default", "Config": config}
    return {"Name": NETWORK, "Id": _NETWORK_ID, "IPAM": ipam, "Labels": {}, "EnableIPv6": True}


def _container(number: int) -> bytes:
    """Return an element of /containers/json, of 1.8 kB."""
    compose = {
        "config-hash": "0123456789abcdef" * 4,
        "container-number": "1",
        "depends_on": "db:service_started:false,cache:service_healthy:true",
        "image": f"sha256:{'0123456789abcdef' * 4}",
        "oneoff": "False",
        "project": "shop",
        "project.config_files": "/srv/shop/docker-compose.yml",
        "project.working_dir": "/srv/shop",
        "service": f"web{number}",
        "version": "2.29.1",
    }
    joined = {
        "IPAMConfig": {"IPv6Address": address_of(number)},
        "Links": None,
        "Aliases": [f"web{number}"],
        "NetworkID": _NETWORK_ID,
        "EndpointID": id_of(number),
        "Gateway": "172.18.0.1",
        "IPAddress": "172.18.0.2",
        "IPPrefixLen": 16,
        "IPv6Gateway": "2001:db8:0:1:d::1",
        "GlobalIPv6Address": address_of(number),
        "GlobalIPv6PrefixLen": 80,
        "MacAddress": "02:42:ac:12:00:02",
        "DriverOpts": None,
    }
    mount = {
        "Type": "volume",
        "Name": f"shop_data{number}",
        "Source": f"/var/lib/docker/volumes/shop_data{number}/_data",
        "Destination": "/var/lib/shop",
        "Driver": "local",
        "Mode": "z",
        "RW": True,
        "Propagation": "",
    }
    found = {
        "Id": id_of(number),
        "Names": [f"/web{number}"],
        "Image": "tiny:1",
        "ImageID": f"sha256:{'0123456789abcdef' * 4}",
        "Command": "/usr/local/bin/docker-entrypoint.sh nginx -g 'daemon off;'",
        "Created": 1764000000,
        "Ports": [{"PrivatePort": 80, "Type": "tcp"}],
        "Labels": {f"com.docker.compose.{key}": value for key, value in compose.items()},
        "State": "running",
        "Status": "Up 3 hours",
        "HostConfig": {"NetworkMode": NETWORK},
        "NetworkSettings": {"Networks": {NETWORK: joined}},
        "Mounts": [mount],
    }
    return json.dumps(found, separators=(",", ":")).encode()
