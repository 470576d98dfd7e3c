"""The report of a share by an earlier daemon, in the terms of this process."""

from __future__ import annotations

import contextlib
import time
from typing import NamedTuple

from ndxdp.errors import UsageError
from ndxdp.rules.address import address_text, parse_mac
from ndxdp.rules.prefix import Prefix, parse_prefix
from ndxdp.runtime.share_report import ShareReport


class FormerHost(NamedTuple):
    """A learned host whose route is adopted.

    Attributes:
        mac: Its MAC, 6 bytes; None if it is unknown.
        age: Seconds since it was learned.
        idle: Seconds since its last sign of life.
    """

    mac: bytes | None = None
    age: float = 0.0
    idle: float = 0.0


class FormerShare:
    """The report of an earlier daemon, or none."""

    def __init__(self, report: ShareReport | None) -> None:
        """Take the report; None without one."""
        self.links = report.links if report else []
        self._prefixes = report.prefixes if report else []
        self._hosts = {each.address: each for each in report.hosts} if report else {}

    def prefixes(self, now: float) -> dict[Prefix, float | None]:
        """Return the prefixes that are still valid, with the end of the valid lifetime.

        Args:
            now: The time of the monotonic clock, which the ends are of, too; None is for no end.
        """
        clock = time.time() - now
        known: dict[Prefix, float | None] = {}
        for each in self._prefixes:
            until = None if each.until is None else each.until - clock
            if until is None or until > now:
                with contextlib.suppress(UsageError):
                    known[parse_prefix(each.prefix)] = until
        return known

    def host(self, address: bytes, interface: str) -> FormerHost:
        """Return what is known of the host of an address on an interface."""
        host = self._hosts.get(address_text(address))
        if host is None or host.interface != interface:
            return FormerHost()
        mac = None
        with contextlib.suppress(UsageError):
            mac = parse_mac(host.mac) if host.mac else None
        now = time.time()
        return FormerHost(mac, max(now - host.since, 0), max(now - host.seen, 0))
