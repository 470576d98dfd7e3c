"""The learned hosts of a share: where each address lives. Pure.

Times are seconds of one monotonic clock, addresses have 16 bytes, MACs 6, and an interface is named
by its index.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class HostLimits(NamedTuple):
    """The limits of a share's table of hosts; config.model.Share has the defaults.

    Attributes:
        max_hosts: The most addresses that are learned.
        max_hosts_per_mac: The most addresses that are learned of one MAC.
        expire: Seconds without a sign of life after which an address is forgotten.
    """

    max_hosts: int
    max_hosts_per_mac: int
    expire: float


@dataclass(slots=True)
class LearnedHost:
    """An address and the downstream link that it lives on.

    Attributes:
        address: The address.
        ifindex: The interface that it lives on: its binding anchor (RFC 6620 section 3.1).
        mac: The source MAC of its last claim; None while it is unknown. A change of the MAC does
            not move the host.
        since: When it was learned; a move to another interface does not change it.
        seen: When it showed a sign of life.
        asked: How often it was asked for one since; 0 unless it is about to expire.
    """

    address: bytes
    ifindex: int
    mac: bytes | None
    since: float
    seen: float
    asked: int = 0


class Hosts(Mapping[bytes, LearnedHost]):
    """Learned hosts by address, the one without a sign of life for longest first."""

    def __init__(self, limits: HostLimits) -> None:
        self._limits = limits
        self._hosts: OrderedDict[bytes, LearnedHost] = OrderedDict()
        self._by_mac: dict[bytes, int] = {}
        self._is_sorted = True

    def __getitem__(self, address: bytes) -> LearnedHost:
        return self._hosts[address]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._hosts)

    def __len__(self) -> int:
        return len(self._hosts)

    def addresses_of(self, mac: bytes) -> int:
        """Return how many addresses a MAC has."""
        return self._by_mac.get(mac, 0)

    def refusal(self, address: bytes, mac: bytes | None) -> str | None:
        """Return the limit that a binding of an address to a MAC would exceed.

        Args:
            address: The address, which may have a host already.
            mac: The MAC; None while it is unknown.

        Returns:
            `limit` or `mac_limit`, as in runtime.share_report.REFUSALS; None if there is room.
        """
        host = self._hosts.get(address)
        if host is None and len(self._hosts) >= self._limits.max_hosts:
            return "limit"
        if mac is None or (host is not None and host.mac == mac):
            return None
        return "mac_limit" if self.addresses_of(mac) >= self._limits.max_hosts_per_mac else None

    def add(self, host: LearnedHost) -> None:
        """Add a host whose address has none; the caller has asked refusal()."""
        last = next(reversed(self._hosts.values()), None)
        if last is not None and host.seen < last.seen:
            self._is_sorted = False
        self._hosts[host.address] = host
        self._count(host.mac, 1)

    def remove(self, address: bytes) -> LearnedHost | None:
        """Remove and return the host of an address; return None if there is none."""
        host = self._hosts.pop(address, None)
        if host is not None:
            self._count(host.mac, -1)
        return host

    def touch(self, host: LearnedHost, now: float) -> None:
        """Record a sign of life of a host."""
        host.seen, host.asked = now, 0
        self._hosts.move_to_end(host.address)

    def change_mac(self, host: LearnedHost, mac: bytes) -> None:
        """Record the MAC of a host; the caller has asked refusal()."""
        self._count(host.mac, -1)
        host.mac = mac
        self._count(mac, 1)

    def oldest(self) -> LearnedHost | None:
        """Return the host without a sign of life for longest; None without hosts."""
        if not self._is_sorted:
            ordered = sorted(self._hosts.values(), key=lambda host: host.seen)
            self._hosts = OrderedDict((host.address, host) for host in ordered)
            self._is_sorted = True
        return next(iter(self._hosts.values()), None)

    def _count(self, mac: bytes | None, change: int) -> None:
        """Add to the number of addresses of a MAC."""
        if mac is None:
            return
        count = self._by_mac.get(mac, 0) + change
        if count:
            self._by_mac[mac] = count
        else:
            del self._by_mac[mac]
