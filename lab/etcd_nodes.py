"""A cluster of etcd whose members are nodes of a network: real processes in namespaces.

Requests go over HTTP to etcd's JSON gateway, from the namespace of the caller.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import time
from collections.abc import Iterable
from typing import Any

from lab.commands import LabError, enter
from lab.etcd_member import EtcdMember, after, decode, encode
from lab.nodes import wait_until

_TIMEOUT = 2.0  # seconds for a request to one member


class EtcdNode(EtcdMember):
    """A member in a namespace that has its name."""

    def start(self, members: Iterable[EtcdMember]) -> None:
        """Start the process in its namespace; continue a stopped one.

        Args:
            members: All members of the cluster.
        """
        self.launch(members, within=enter(self.name, []))

    def suspend(self) -> None:
        """Stop the process by SIGSTOP, until it is started."""
        self.signal(signal.SIGSTOP)

    def call(self, target: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            OSError, http.client.HTTPException: There is none.
            LabError: The member refuses the request.
        """
        status, body = self.send(target, asked, timeout=_TIMEOUT)
        if status != 200:
            raise LabError(f"etcd refuses {target}: {body.decode(errors='replace')[:300]}")
        answer: dict[str, Any] = json.loads(body)
        return answer


class EtcdNodes:
    """A cluster.

    Attributes:
        members: Its members.
    """

    def __init__(self, members: list[EtcdNode]) -> None:
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
        return {decode(each["key"])[len(prefix) :]: value_of(each) for each in found}

    def revision(self) -> int:
        """Return the revision of the store."""
        return int(self.call("/v3/kv/range", {"key": encode("x")})["header"]["revision"])

    def compact(self) -> None:
        """Forget all revisions but the last one."""
        asked = {"revision": str(self.revision()), "physical": True}
        self.call("/v3/kv/compaction", asked)

    def leader(self) -> EtcdNode:
        """Return the leader. Raises LabError if there is none for 20 s."""
        found: list[EtcdNode] = []

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


def value_of(pair: dict[str, Any]) -> Any:
    """Return the value of a key, which is JSON; None for an empty one."""
    return json.loads(decode(pair.get("value") or "") or "null")
