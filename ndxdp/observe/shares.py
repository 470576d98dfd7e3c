"""Shares at one moment, from the reports of daemons and the kernel's routes: data and problems."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ndxdp.netlink.netns import netns
from ndxdp.observe import hosts
from ndxdp.observe.hosts import Host, by_interface, host_data, moment
from ndxdp.observe.units import elapsed
from ndxdp.rules.interface_name import natural_order
from ndxdp.runtime import share_report
from ndxdp.runtime.report import Daemon
from ndxdp.runtime.share_report import COUNTERS, IGNORED, REFUSALS, HeardRouter, ShareReport

_NEARLY_FULL = 0.8


@dataclass(frozen=True, slots=True)
class ShareStatus:
    """A share at one moment.

    Attributes:
        report: The report of its daemon.
        is_running: The daemon that wrote the report is running.
        hosts: Its hosts: those that the kernel has a route for, or if its routes cannot be read,
            those of the report.
        now: time.time() of the moment.
    """

    report: ShareReport
    is_running: bool
    hosts: tuple[Host, ...]
    now: float

    @property
    def routers(self) -> list[HeardRouter]:
        """The routers whose lifetime has not ended (RFC 4861 section 6.2.1)."""
        return [each for each in self.report.routers if each.heard + each.lifetime > self.now]


def read(
    directory: Path, daemons: Iterable[Daemon], interface: str | None = None
) -> list[ShareStatus]:
    """Return the shares of this network namespace, in natural order of their upstream interfaces.

    Args:
        directory: The run directory.
        daemons: The running daemons.
        interface: Return only the share that has this interface; None for all.
    """
    running, now = tuple(daemons), time.time()
    reports = share_report.reports(directory, netns())
    if not reports:
        return []
    try:
        found = hosts.read(reports)
    except OSError:  # the sandbox of an exporter may exclude netlink
        found = hosts.of_reports(reports)
    return [
        ShareStatus(
            report,
            share_report.is_running(report, running),
            tuple(each for each in found if each.upstream == report.upstream),
            now,
        )
        for report in sorted(reports, key=lambda each: natural_order(each.upstream))
        if interface is None or interface in {link.interface for link in report.links}
    ]


def problems(share: ShareStatus) -> Iterator[str]:
    """Yield a sentence on each problem of a share."""
    report = share.report
    upstream, count = report.upstream, sum(each.learned for each in share.hosts)
    if not share.is_running:
        yield (
            "the daemon of this share does not run: no host is learned or forgotten"
            + (f", and the routes to {count} of them stay" if count else "")
        )
        return
    for link in report.links:
        if link.problem:
            yield f"{link.interface}: {link.problem}"
    if not report.prefixes:
        yield f"no prefix is shared yet: no router on {upstream} has advertised an on-link prefix"
    if report.routers and not share.routers:
        last = share.now - max(each.heard for each in report.routers)
        yield f"no default router is on {upstream}: the last advertisement came {elapsed(last)} ago"
    if report.max_hosts and count >= report.max_hosts:
        yield f"there are {count} hosts, as many as max_hosts allows: new ones are refused"
    elif count > _NEARLY_FULL * report.max_hosts:
        yield f"the share is nearly full: it has room for {report.max_hosts - count} more hosts"


def share_data(share: ShareStatus) -> dict[str, Any]:
    """Return a share as `shares` of `ndxdp status --json` has it (docs/json.md)."""
    report, counts = share.report, by_interface(share.hosts)
    return {
        "upstream": report.upstream,
        "running": share.is_running,
        "pid": report.pid,
        "relay": report.relay,
        "max_hosts": report.max_hosts,
        "links": [link._asdict() | {"hosts": counts[link.interface]} for link in report.links],
        "prefixes": [
            {"prefix": each.prefix, "until": moment(each.until)} for each in report.prefixes
        ],
        "routers": [each._asdict() | {"heard": moment(each.heard)} for each in report.routers],
        "hosts": [host_data(each) for each in share.hosts],
        "counters": _counts(COUNTERS, report.counters),
        "refused": _counts(REFUSALS, report.refused),
        "ignored": _counts(IGNORED, report.ignored),
        "warnings": list(problems(share)),
    }


def _counts(names: Iterable[str], found: dict[str, int]) -> dict[str, int]:
    """Return a count for each name; an older daemon may not have counted all of them."""
    return {name: found.get(name, 0) for name in names}
