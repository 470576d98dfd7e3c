"""Metrics of shares, from the reports that their daemons write."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ndxdp.netlink.netns import netns
from ndxdp.observe import hosts
from ndxdp.runtime import report as daemon_report
from ndxdp.runtime import share_report
from ndxdp.runtime.share_report import COUNTERS, IGNORED, REFUSALS, ShareReport

_NAMES = {
    "defended": "conflicts_defended",
    "relayed": "advertisements_relayed",
    "solicited": "router_solicitations_answered",
}
"""Counters whose metric has another name."""


class Sample(NamedTuple):
    """A value of a metric; its labels are in the order of KINDS."""

    name: str
    value: float
    labels: tuple[str, ...]


def samples(directory: Path) -> Iterator[Sample]:
    """Yield the metrics of the shares of this network namespace.

    Each share has all of its series from the start on, with 0.

    Args:
        directory: The run directory.
    """
    reports = share_report.reports(directory, netns())
    if not reports:
        return
    daemons = daemon_report.daemons(directory, netns())
    others: Counter[str] = Counter()
    with contextlib.suppress(OSError):  # the sandbox of an exporter may exclude netlink
        others.update(name for _, name in hosts.routed(reports))
    for report in reports:
        counts = others + Counter(each.interface for each in report.hosts)
        yield from _share(report, counts, is_running=share_report.is_running(report, daemons))


def _share(report: ShareReport, on: Counter[str], *, is_running: bool) -> Iterator[Sample]:
    upstream, now = report.upstream, time.time()
    yield Sample("ndxdp_share_running", is_running, (upstream,))
    for link in report.links:
        labels = (upstream, link.interface)
        yield Sample("ndxdp_share_link_working", not link.problem, (*labels, link.kind))
        if link.kind != "upstream":
            yield Sample("ndxdp_share_hosts", on[link.interface], labels)
    routers = sum(each.heard + each.lifetime > now for each in report.routers)
    for name, value in (
        ("hosts_limit", report.max_hosts),
        ("routers", routers),
        ("prefixes", len(report.prefixes)),
    ):
        yield Sample(f"ndxdp_share_{name}", value, (upstream,))
    for key in COUNTERS:
        name = f"ndxdp_share_{_NAMES.get(key, key)}_total"
        yield Sample(name, report.counters.get(key, 0), (upstream,))
    for metric, reasons, counts in (
        ("refused", REFUSALS, report.refused),
        ("advertisements_ignored", IGNORED, report.ignored),
    ):
        for reason in reasons:
            name = f"ndxdp_share_{metric}_total"
            yield Sample(name, counts.get(reason, 0), (upstream, reason))
