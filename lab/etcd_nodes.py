"""A cluster of etcd whose members are nodes of a network: real processes in namespaces.

Requests go over HTTP to etcd's JSON gateway, from the namespace of the caller.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lab.nodes import wait_until
from lab.topology import LabError, enter

CLIENT_PORT, PEER_PORT = 2379, 2380
_TIMEOUT = 2.0  # seconds for a request to one member


class EtcdMember:
    """A member: a process in a namespace of its own.

    Attributes:
        name: Of the member and its namespace.
        address: Its IPv4 address.
    """

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address = name, address
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"http://{self.address}:{CLIENT_PORT}"

    @property
    def peer_url(self) -> str:
        """The URL for other members."""
        return f"http://{self.address}:{PEER_PORT}"

    @property
    def is_running(self) -> bool:
        """True between `start` and `kill`."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The process. Raises LabError if the member does not run."""
        if self._process is None:
            raise LabError(f"The member {self.name} of etcd does not run.")
        return self._process.pid

    def start(self, members: list[EtcdMember]) -> None:
        """Start the process, with the data that it had before; let a stopped one run on.

        It does not wait for the cluster.

        Args:
            members: All members of the cluster.
        """
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            return
        every = ",".join(f"{each.name}={each.peer_url}" for each in members)
        words = ["etcd", "--name", self.name, "--data-dir", str(self._folder / self.name)]
        words += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        words += ["--listen-peer-urls", self.peer_url]
        words += ["--initial-advertise-peer-urls", self.peer_url, "--initial-cluster", every]
        with open(self._folder / f"{self.name}.log", "ab") as log:
            self._process = subprocess.Popen(
                enter(self.name, words), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def suspend(self) -> None:
        """Stop the process by SIGSTOP, until it is started."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """End the process by SIGKILL; its data stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def call(self, target: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            OSError, http.client.HTTPException: There is none.
            LabError: The member refuses the request.
        """
        connection = http.client.HTTPConnection(self.address, CLIENT_PORT, timeout=_TIMEOUT)
        with contextlib.closing(connection):
            connection.request("POST", target, json.dumps(asked))
            response = connection.getresponse()
            body = response.read()
        if response.status != 200:
            raise LabError(f"etcd refuses {target}: {body.decode(errors='replace')[:300]}")
        answer: dict[str, Any] = json.loads(body)
        return answer


class HolderEvent(NamedTuple):
    """A change of the key that names the holder of a shared address.

    Attributes:
        time: time.monotonic() when the lab saw it.
        name: Of the address.
        host: The holder; "" if nobody holds the address any more.
        created: True if the key did not exist before: the address was acquired.
        address: The address; "" if nobody holds it any more.
    """

    time: float
    name: str
    host: str
    created: bool
    address: str


class EtcdNodes:
    """A cluster.

    Attributes:
        members: Its members.
    """

    def __init__(self, members: list[EtcdMember]) -> None:
        self.members = members

    def start(self) -> None:
        """Start all members that do not run, or are stopped; wait until the cluster answers."""
        if not shutil.which("etcd"):
            raise LabError("The lab needs etcd.", "Debian: apt install etcd-server")
        for member in self.members:
            member.start(self.members)
        wait_until(self.answers, "etcd does not answer", 30)

    def kill(self) -> None:
        """End all members by SIGKILL."""
        for member in self.members:
            member.kill()

    def answers(self) -> bool:
        """Return True if the cluster has a leader, and answers."""
        try:
            self.call("/v3/kv/range", {"key": encode("x")}, within=0)
        except LabError:
            return False
        return True

    def call(self, target: str, asked: dict[str, Any], *, within: float = 15) -> dict[str, Any]:
        """Return the answer of the first member that gives one, trying for `within` seconds.

        Raises:
            LabError: There is none.
        """
        give_up = time.monotonic() + within
        problem = "no member runs"
        while True:
            for member in [each for each in self.members if each.is_running]:
                try:
                    return member.call(target, asked)
                except (OSError, http.client.HTTPException, LabError) as error:
                    problem = f"{member.name}: {error}"
            if time.monotonic() > give_up:
                raise LabError(f"etcd does not answer {target}.", problem)
            time.sleep(0.1)

    def put(self, key: str, value: object) -> int:
        """Write an object as JSON; return the revision."""
        asked = {"key": encode(key), "value": encode(json.dumps(value))}
        return int(self.call("/v3/kv/put", asked)["header"]["revision"])

    def delete(self, key: str) -> None:
        """Delete a key."""
        self.call("/v3/kv/deleterange", {"key": encode(key)})

    def read(self, prefix: str) -> dict[str, Any]:
        """Return the values, which are JSON, of all keys that begin with `prefix`, without it."""
        asked = {"key": encode(prefix), "range_end": encode(after(prefix))}
        found = self.call("/v3/kv/range", asked).get("kvs") or []
        return {decode(each["key"])[len(prefix) :]: _value(each) for each in found}

    def revision(self) -> int:
        """Return the revision of the store."""
        return int(self.call("/v3/kv/range", {"key": encode("x")})["header"]["revision"])

    def compact(self) -> None:
        """Forget all revisions but the last one."""
        asked = {"revision": str(self.revision()), "physical": True}
        self.call("/v3/kv/compaction", asked)

    def leader(self) -> EtcdMember:
        """Return the leader. Raises LabError if there is none for 20 s."""
        found: list[EtcdMember] = []

        def is_found() -> bool:
            for member in [each for each in self.members if each.is_running]:
                with contextlib.suppress(OSError, http.client.HTTPException, LabError):
                    status = member.call("/v3/maintenance/status", {})
                    if status.get("leader") == status["header"]["member_id"]:
                        found.append(member)
                        return True
            return False

        wait_until(is_found, "etcd has no leader", 20)
        return found[0]


class HolderLog:
    """A record of all changes of keys with holders, from construction until `close`.

    It follows etcd from member to member. A compaction that comes while no member answers would
    cost it events: compact only while etcd answers.

    Attributes:
        events: The events so far, in the order of etcd's revisions.
    """

    def __init__(self, nodes: EtcdNodes, prefix: str) -> None:
        self.events: list[HolderEvent] = []
        self._nodes, self._prefix = nodes, prefix
        self._next = nodes.revision() + 1
        self._stopped = threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the record."""
        self._stopped.set()
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(2)
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stopped.is_set():
            for member in [each for each in self._nodes.members if each.is_running]:
                with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
                    self._follow(member)
                if self._stopped.is_set():
                    return
            time.sleep(0.1)

    def _follow(self, member: EtcdMember) -> None:
        """Follow one member to the end of its stream, or a minute of silence."""
        connection = http.client.HTTPConnection(member.address, CLIENT_PORT, timeout=5)
        with contextlib.closing(connection):
            asked = {"key": encode(self._prefix), "range_end": encode(after(self._prefix))}
            request = {"create_request": asked | {"start_revision": str(self._next)}}
            headers = {"Grpc-Metadata-hasleader": "true"}
            connection.request("POST", "/v3/watch", json.dumps(request), headers)
            self._connection = connection
            response = connection.getresponse()
            if connection.sock is not None:
                connection.sock.settimeout(60)
            for line in response:
                if not self._note(json.loads(line)):
                    return

    def _note(self, answer: dict[str, Any]) -> bool:
        """Note the events of an answer; return False if the stream ends with it."""
        result = answer.get("result", {})
        if result.get("compact_revision"):
            self._next = int(result["compact_revision"])
        if "error" in answer or result.get("canceled"):
            return False
        now = time.monotonic()
        for event in result.get("events") or []:
            pair = event["kv"]
            value: dict[str, Any] = {} if event.get("type") == "DELETE" else _value(pair)
            host, address = value.get("host", ""), value.get("prefix", "")
            name = decode(pair["key"])[len(self._prefix) :]
            created = bool(host) and pair.get("create_revision") == pair["mod_revision"]
            self.events.append(HolderEvent(now, name, host, created, address))
            self._next = int(pair["mod_revision"]) + 1
        return True


@contextlib.contextmanager
def holder_log(nodes: EtcdNodes, prefix: str) -> Iterator[HolderLog]:
    """Record the changes of holders during the block."""
    log = HolderLog(nodes, prefix)
    try:
        yield log
    finally:
        log.close()


def after(prefix: str) -> str:
    """Return the key after all keys that begin with `prefix`, an ASCII text."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def encode(text: str) -> str:
    """Return a text as etcd's gateway wants it."""
    return base64.b64encode(text.encode()).decode()


def decode(text: str) -> str:
    """Return a text of an answer of etcd's gateway."""
    return base64.b64decode(text).decode()


def _value(pair: dict[str, Any]) -> Any:
    return json.loads(decode(pair.get("value") or "") or "null")
