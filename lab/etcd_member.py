"""A member of etcd: its process, and requests to its JSON gateway."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import signal
import ssl
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from lab.commands import LabError

CLIENT_PORT, PEER_PORT = 2379, 2380


class EtcdMember:
    """A member of a cluster.

    Attributes:
        name: Of the member.
        address: Its IPv4 address.
        folder: The folder of the cluster: it has the member's data, and its log NAME.log.
        scheme: Of the URL for clients: http or https.
    """

    def __init__(self, name: str, address: str, folder: Path, scheme: str = "http") -> None:
        self.name, self.address, self.folder, self.scheme = name, address, folder, scheme
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"{self.scheme}://{self.address}:{CLIENT_PORT}"

    @property
    def peer_url(self) -> str:
        """The URL for other members."""
        return f"http://{self.address}:{PEER_PORT}"

    @property
    def data(self) -> Path:
        """The folder with its data."""
        return self.folder / self.name

    @property
    def is_running(self) -> bool:
        """True between `launch` and `kill`."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The process. Raises LabError if the member does not run."""
        if self._process is None:
            raise LabError(f"The member {self.name} of etcd does not run.")
        return self._process.pid

    def launch(
        self,
        members: Iterable[EtcdMember],
        options: Iterable[str] = (),
        within: Sequence[str] = (),
        descriptors: Sequence[int] = (),
    ) -> None:
        """Start the process, with the data that it had before; continue a stopped one.

        It does not wait for the cluster.

        Args:
            members: All members of the cluster.
            options: More options of etcd.
            within: A command that runs the command after it, such as nsenter and its options.
            descriptors: Open files that the process inherits.
        """
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            return
        words = ["etcd", "--name", self.name, "--data-dir", str(self.data)]
        words += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        words += ["--listen-peer-urls", self.peer_url]
        words += ["--initial-advertise-peer-urls", self.peer_url]
        words += ["--initial-cluster", initial_cluster(members), *options]
        with open(self.folder / f"{self.name}.log", "ab") as log:
            self._process = subprocess.Popen(
                [*within, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
            )

    def signal(self, number: int) -> None:
        """Send the process a signal; do nothing if it does not run."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End the process by SIGKILL, even if it is stopped; its data stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def send(
        self,
        target: str,
        asked: object = None,
        *,
        timeout: float,
        token: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> tuple[int, bytes]:
        """Send a request; return the status and the body of the answer.

        Args:
            target: The path of the request.
            asked: The object to send as JSON, by POST; None for a GET.
            timeout: Seconds until the answer begins, and for each further part.
            token: Of the user; "" for none.
            tls: The certificates of a member whose scheme is https.

        Raises:
            OSError, http.client.HTTPException: There is no answer.
        """
        connection = (
            http.client.HTTPSConnection(self.address, CLIENT_PORT, timeout=timeout, context=tls)
            if tls
            else http.client.HTTPConnection(self.address, CLIENT_PORT, timeout=timeout)
        )
        headers = {"Authorization": token} if token else {}
        body = None if asked is None else json.dumps(asked)
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", target, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()


def initial_cluster(members: Iterable[EtcdMember]) -> str:
    """Return the value of etcd's option --initial-cluster."""
    return ",".join(f"{each.name}={each.peer_url}" for each in members)


def after(prefix: str) -> str:
    """Return the key after all keys that begin with `prefix`, an ASCII text."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def encode(text: str | bytes) -> str:
    """Return a text or bytes as etcd's gateway wants them, in base64."""
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def decode(text: str) -> str:
    """Return a text of an answer of etcd's gateway."""
    return base64.b64decode(text).decode()
