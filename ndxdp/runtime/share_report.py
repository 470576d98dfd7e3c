"""Reports of shares for other processes, each a file in the run directory.

    <run directory>/share-<inode number of the network namespace>-<upstream interface>.json

The daemon writes the file when something has changed, and at the end. The file stays when the
daemon ends: the next one reads from it since when a host is known. The kernel's routes say which
hosts there are.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ndxdp.runtime import report_fields as fields
from ndxdp.runtime import report_file
from ndxdp.runtime.report import Daemon


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
    "announced": "unsolicited advertisements of learned hosts that were sent upstream",
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
    "limit": "there were more routers, or more prefixes, than are remembered",
    "prefix": "one of its prefixes was not taken: link-local, multicast, or too short",
}
"""Why a router message, or a prefix in it, is ignored."""

# ---- files ---------------------------------------------------------------------------------------


def path_of(directory: Path, netns: int, upstream: str) -> Path:
    """Return the path of the report of a share in the run directory."""
    return directory / f"share-{netns}-{upstream}.json"


def write(directory: Path, report: ShareReport) -> None:
    """Write a report: readers find either the former one or all of this one.

    The file can be read by its owner and group only. The run directory is made if it is absent.

    Raises:
        NdxdpError: The file cannot be written, or another user can change the run directory; the
            former report stays.
    """
    path = path_of(directory, report.netns, report.upstream)
    report_file.write(path, [json.dumps(report_data(report)).encode()])


def reports(directory: Path, netns: int | None = None) -> list[ShareReport]:
    """Return the reports of shares, as far as this process may read them.

    Those of daemons that have ended are included; is_running() tells them apart. A file that is
    damaged, that belongs to another user than root and this one, or that is no regular file is
    ignored. A field that an older version did not write has the value of a share without news.

    Args:
        directory: The run directory.
        netns: Return only the reports of this network namespace; None for all.
    """
    found = []
    for path in directory.glob("share-*.json"):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            report = report_of(json.loads(report_file.read(path)))
            if path == path_of(directory, report.netns, report.upstream):
                found.append(report)
    return sorted(each for each in found if netns in (None, each.netns))


def remove(directory: Path, netns: int, upstream: str) -> None:
    """Remove the report of a share, if there is one, and the run directory if it is empty then."""
    report_file.remove(path_of(directory, netns, upstream))


def is_running(report: ShareReport, daemons: Iterable[Daemon]) -> bool:
    """Return True if the daemon that wrote a report is among the running daemons.

    Args:
        report: The report of a share.
        daemons: The running daemons, as ndxdp.runtime.report.daemons() returns them.
    """
    return any((each.pid, each.netns) == (report.pid, report.netns) for each in daemons)


def report_data(report: ShareReport) -> dict[str, Any]:
    """Return a report as JSON has it."""
    return report._asdict() | {
        key: [each._asdict() for each in getattr(report, key)]
        for key in ("links", "prefixes", "routers", "hosts")
    }


def report_of(data: Any) -> ShareReport:
    """Return the report that JSON has.

    Raises:
        ValueError: A value has another type, or the share, its namespace or its daemon is missing.
    """
    try:
        return _report_of(data)
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError) as error:
        raise ValueError(f"the report of a share is damaged: {error}") from error


def _report_of(data: Any) -> ShareReport:
    upstream, netns, pid = (
        fields.text(data["upstream"]),
        fields.whole(data["netns"]),
        fields.whole(data["pid"]),
    )
    written = fields.moment(data.get("written", 0))
    return ShareReport(
        upstream,
        netns,
        pid,
        written,
        [
            SharedLink(
                fields.text(each["interface"]),
                fields.text(each["kind"]),
                fields.text(each.get("problem", "")),
            )
            for each in data.get("links", ())
        ],
        [
            SharedPrefix(
                fields.prefix(each["prefix"]), fields.maybe(fields.moment, each.get("until"))
            )
            for each in data.get("prefixes", ())
        ],
        [
            HeardRouter(
                fields.address(each["address"]),
                fields.moment(each.get("heard", written)),
                fields.whole(each.get("lifetime", 0)),
            )
            for each in data.get("routers", ())
        ],
        bool(data.get("relay", False)),
        fields.whole(data.get("max_hosts", 0)),
        [
            SharedHost(
                fields.address(each["address"]),
                fields.text(each["interface"]),
                fields.maybe(fields.text, each.get("mac")),
                fields.moment(each.get("since", written)),
                fields.moment(each.get("seen", written)),
            )
            for each in data.get("hosts", ())
        ],
        *(
            {fields.text(name): fields.whole(count) for name, count in data.get(key, {}).items()}
            for key in ("counters", "refused", "ignored")
        ),
    )
