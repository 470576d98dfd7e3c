"""The report of a share: made of its parts, and written at a bounded rate when it has changed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ndxdp.config.model import Share
from ndxdp.daemon.share_links import ShareLinks
from ndxdp.errors import NdxdpError
from ndxdp.rules.address import address_text
from ndxdp.rules.interface_name import is_pattern
from ndxdp.rules.prefix import Prefix
from ndxdp.runtime import share_report
from ndxdp.runtime.share_report import (
    HeardRouter,
    SharedHost,
    SharedLink,
    SharedPrefix,
    ShareReport,
)
from ndxdp.sharing.learning import Learner
from ndxdp.sharing.relay import Relay

log = logging.getLogger(__name__)

_PERIODS = (1.0, 5.0, 30.0)
"""Seconds between two reports after a change of hosts, links or prefixes; of counters; and of the
times of the last signs of life alone."""

_PER_HOST = 0.001
"""Seconds added for each host: a report of 4096 hosts takes some 20 ms to write."""


class ShareReporter:
    """Makes and writes the reports of one share in the run directory."""

    def __init__(self, share: Share, directory: Path, netns: int) -> None:
        """Write nothing yet.

        Args:
            share: The share.
            directory: The run directory.
            netns: The inode number of the network namespace.
        """
        self._share, self._directory, self._netns = share, directory, netns
        self._written: ShareReport | None = None
        self._at = self._looked = self._later = float("-inf")
        self._is_touched = False
        self._problem = ""

    def former(self) -> ShareReport | None:
        """Return the report that an earlier daemon has left; None without one."""
        found = share_report.reports(self._directory, self._netns)
        return next((each for each in found if each.upstream == self._share.upstream), None)

    def remove(self) -> None:
        """Remove the report: the share is no longer configured."""
        share_report.remove(self._directory, self._netns, self._share.upstream)

    def report(
        self,
        now: float,
        links: ShareLinks,
        prefixes: Mapping[Prefix, float | None],
        learner: Learner,
        relay: Relay,
    ) -> ShareReport:
        """Return the present state.

        Args:
            now: The time of the monotonic clock that the other arguments use.
            links: The interfaces.
            prefixes: The shared prefixes, with the end of the valid lifetime.
            learner: The learned hosts.
            relay: The routers.
        """
        clock = time.time() - now  # add it to a time of the monotonic clock
        names = {link.ifindex: link.name for link in links.all}
        return ShareReport(
            self._share.upstream,
            self._netns,
            os.getpid(),
            now + clock,
            _links_of(self._share, links),
            [
                SharedPrefix(str(prefix), None if until is None else round(until + clock))
                for prefix, until in prefixes.items()
            ],
            [
                HeardRouter(address_text(each.address), round(each.heard + clock), each.lifetime)
                for each in relay.routers(now)
            ],
            self._share.relay,
            self._share.max_hosts,
            [
                SharedHost(
                    address_text(host.address),
                    names.get(host.ifindex, "?"),
                    host.mac.hex(":") if host.mac else None,
                    round(host.since + clock),
                    round(host.seen + clock),
                )
                for host in learner.hosts.values()
            ],
            {**learner.counters, "relayed": relay.relayed, "solicited": relay.solicited},
            dict(learner.refused),
            dict(relay.ignored),
        )

    def touch(self) -> None:
        """Note that there may be news."""
        self._is_touched = True

    def write_if_due(self, now: float, make: Callable[[], ShareReport]) -> None:
        """Make and write a report, if there may be news and the time for them has come.

        Args:
            now: Seconds of a monotonic clock.
            make: Returns the present state.
        """
        if now < self.next():
            return
        self._looked, self._is_touched = now, False
        report = make()
        if self._written is None:
            self.write(now, report)
            return
        period = _PERIODS[_difference(self._written, report)]
        if now >= self._at + period:
            self.write(now, report)
        else:
            self._later = self._at + period

    def next(self) -> float:
        """Return the time at which write_if_due() has something to do."""
        if not self._is_touched:
            return self._later
        size = _PER_HOST * len(self._written.hosts) if self._written else 0
        return min(self._later, self._looked + _PERIODS[0] + size)

    def write(self, now: float, report: ShareReport) -> None:
        """Write a report; log a failure once."""
        self._written, self._at, self._later = report, now, now + _PERIODS[-1]
        try:
            share_report.write(self._directory, report)
        except (NdxdpError, OSError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.warning("share of %s: cannot write a report: %s", report.upstream, error)
        else:
            self._problem = ""


def _links_of(share: Share, links: ShareLinks) -> list[SharedLink]:
    """Return the interfaces, the upstream one first even while it is absent."""
    upstream, absent = links.upstream, "it is absent"
    found = [SharedLink(share.upstream, "upstream", upstream.problem if upstream else absent)]
    for link in links.downstream:
        kind = "neighbors" if link.has_discovery else "routes"
        found.append(SharedLink(link.name, kind, link.problem))
    present = {name for link in links.downstream for name in (link.name, *link.altnames)}
    return found + [
        SharedLink(name, "neighbors", absent)
        for name in share.downstream
        if not is_pattern(name) and name not in present
    ]


def _difference(former: ShareReport, report: ShareReport) -> int:
    """Return how important the difference of two reports is, as an index of _PERIODS."""
    if (former.links, former.prefixes) != (report.links, report.prefixes):
        return 0
    if [each[:3] for each in former.hosts] != [each[:3] for each in report.hosts]:
        return 0
    counted = former.counters, former.refused, former.ignored, len(former.routers)
    return (
        1
        if counted != (report.counters, report.refused, report.ignored, len(report.routers))
        else 2
    )
