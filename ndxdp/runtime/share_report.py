"""Reports of shares for other processes, each a file in the run directory.

    <run directory>/share-<inode number of the network namespace>-<upstream interface>.json

The daemon writes the file when something has changed, and at the end. The file stays when the
daemon ends: the next one reads from it since when a host is known. The kernel's routes say which
hosts there are.
"""

from __future__ import annotations

from typing import NamedTuple


class SharedHost(NamedTuple):
    """A learned host.

    Attributes:
        address: The address, as text.
        interface: The downstream interface that it lives on.
        mac: Its MAC, as text; None while it is unknown.
        since: time.time() when it was learned.
        seen: time.time() of its last sign of life.
    """

    address: str
    interface: str
    mac: str | None
    since: float
    seen: float


class SharedLink(NamedTuple):
    """An interface of a share.

    Attributes:
        interface: The name.
        kind: `upstream`; `neighbors`, a downstream link with Neighbor Discovery; or `routes`, one
            without MACs, whose hosts are those that the kernel has routes for.
        problem: Why the share does not work there yet; "" if it does.
    """

    interface: str
    kind: str
    problem: str = ""


class SharedPrefix(NamedTuple):
    """A prefix of a share.

    Attributes:
        prefix: The prefix, as text.
        until: time.time() at the end of its valid lifetime; None for no end.
    """

    prefix: str
    until: float | None = None


class HeardRouter(NamedTuple):
    """A router on the upstream link that sends advertisements.

    Attributes:
        address: Its link-local address, as text.
        heard: time.time() of its last advertisement.
        lifetime: Seconds for which it is a default router, by that advertisement.
    """

    address: str
    heard: float
    lifetime: int


class ShareReport(NamedTuple):
    """The state of one share.

    Attributes:
        upstream: The name of the upstream interface.
        netns: The inode number of the network namespace.
        pid: The daemon's process id, in its own process namespace.
        written: time.time() of this report.
        links: The interfaces, the upstream one first.
        prefixes: The shared prefixes.
        routers: The routers that were heard.
        relay: Router advertisements are relayed.
        max_hosts: The most hosts that are learned.
        hosts: The learned hosts.
        counters: Counters since the daemon's start, by name: those of COUNTERS.
        refused: Claims that were refused, by reason: those of REFUSALS.
        ignored: Router messages that were not relayed, by reason: those of IGNORED.
    """

    upstream: str
    netns: int
    pid: int
    written: float
    links: list[SharedLink]
    prefixes: list[SharedPrefix]
    routers: list[HeardRouter]
    relay: bool
    max_hosts: int
    hosts: list[SharedHost]
    counters: dict[str, int]
    refused: dict[str, int]
    ignored: dict[str, int]


COUNTERS = {
    "learned": "addresses that were learned",
    "moved": "addresses that moved to another interface",
    "expired": "addresses that were forgotten without a sign of life",
    "forgotten": "addresses whose route another program removed, or whose prefix or link went away",
    "defended": "attempts to take an address (DAD) that lives on another link, which were answered",
    "asked": "solicitations that were sent to find, check or verify an address",
    "found": "solicitations that were answered by the daemon once their target was found",
    "relayed": "router advertisements that were relayed",
    "solicited": "router solicitations from downstream that were answered",
}
"""Counters of a share, and what they count."""

REFUSALS = {
    "limit": "there are as many hosts as max_hosts allows",
    "mac_limit": "the MAC has as many addresses as max_hosts_per_mac allows",
    "rate": "the MAC, or all of them, claim more addresses a second than are checked",
    "own_address": "the address is this host's own",
    "router": "the address is that of a router on the upstream link",
    "outside": "the address is outside the shared prefixes",
    "elsewhere": "the address lives on another link, and answers there",
    "unstable": "the address has moved too often",
}
"""Why a claim is refused."""

IGNORED = {
    "downstream": "a router advertisement came by a downstream interface",
    "hop_limit": "its hop limit was below 255",
    "source": "its source was not link-local",
    "invalid": "its code, length, checksum or options were wrong",
    "proxied": "another proxy had relayed it (RFC 4389 section 4.1.3.3)",
    "rate": "there were more than are relayed a second",
    "prefix": "one of its prefixes was not taken: link-local, multicast, or too short",
}
"""Why a router message, or a prefix in it, is ignored."""
