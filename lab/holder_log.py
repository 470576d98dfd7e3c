"""The record of who held the shared addresses of a cluster of etcd, and when."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from lab.etcd_member import CLIENT_PORT, after, decode, encode
from lab.etcd_nodes import EtcdNode, EtcdNodes, value_of


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

    def _follow(self, member: EtcdNode) -> None:
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
            value: dict[str, Any] = {} if event.get("type") == "DELETE" else value_of(pair)
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
