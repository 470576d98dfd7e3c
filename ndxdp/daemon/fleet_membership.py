"""This host's membership of its segments: keys in etcd that go with the host's lease."""

from __future__ import annotations

import time
from pathlib import Path

from ndxdp import __version__
from ndxdp.daemon.fleet_keys import FleetKeys
from ndxdp.fleet.keys import MEMBERS, FleetKey
from ndxdp.fleet.records import Member, encode
from ndxdp.netlink.netns import netns
from ndxdp.sources.etcd_client import EtcdClient
from ndxdp.sources.etcd_settings import Etcd

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def identity() -> str:
    """Return what tells this host from another one that has its name by mistake.

    The daemons of one network namespace have the same, until the machine is booted again.
    """
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        boot = ""
    return f"{boot}:{netns()}"


class Membership:
    """The keys `members/SEGMENT/HOST` of this host.

    Attributes:
        problems: Why the host is no member, by segment; "" while it is to be none.
    """

    def __init__(self, settings: Etcd, client: EtcdClient, keys: FleetKeys) -> None:
        """Be no member yet.

        Args:
            settings: The table [etcd].
            client: Sends the requests.
            keys: The keys as etcd has them.
        """
        self.problems: dict[str, str] = {}
        self._settings, self._client, self._keys = settings, client, keys
        self._identity = identity()

    def former_lease(self) -> int:
        """Return the lease under which an earlier daemon of this host is a member; 0 for none."""
        ours = (lease for member, lease in self._keys.own.values() if self._is_ours(member))
        return next(ours, 0)

    def is_joined(self, segment: str, lease: int) -> bool:
        """Return True if etcd has the host as a member under its present lease."""
        found = self._keys.own.get(segment)
        return found is not None and found[1] == lease and self._is_ours(found[0])

    async def join(self, segment: str, lease: int) -> bool:
        """Become a member; return True if the host is one.

        Raises:
            NoAnswer: etcd does not take the key. LeaseLost: etcd does not have the lease.
        """
        found = self._keys.own.get(segment)
        if found is not None and not self._is_ours(found[0]):
            self.problems[segment] = (
                f"another host has the name {self._settings.host}, and is a member"
            )
            return False
        key, since = self._key(segment), time.time()
        value = encode(version=__version__, since=since, identity=self._identity)
        if not await self._client.call(lambda etcd: etcd.acquire({key: value}, lease)):
            self.problems[segment] = "a former lease of this host has not expired yet"
            return False
        member = Member(self._settings.host, __version__, since, self._identity)
        self._keys.own[segment] = (member, lease)
        self.problems.pop(segment, None)
        return True

    async def leave(self, segment: str, lease: int) -> None:
        """Be no member any more; raise NoAnswer if etcd does not answer."""
        key = self._key(segment)
        await self._client.call(lambda etcd: etcd.release([key], lease))
        self._keys.own.pop(segment, None)

    def _is_ours(self, member: Member) -> bool:
        return member.identity == self._identity

    def _key(self, segment: str) -> str:
        return f"{self._settings.root}{FleetKey(MEMBERS, segment, self._settings.host)}"
