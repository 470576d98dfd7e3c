"""Reports of the judge of a fleet, and conclusions from them. Pure.

All times are of time.monotonic(), in seconds. MACs are texts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Span(NamedTuple):
    """A sequence of solicitations of one target that the same MACs answered.

    Attributes:
        macs: The MACs; none if nobody answered, more than one after a double answer.
        first, last: When the first and the last of them were sent.
        number: Of solicitations.
    """

    macs: tuple[str, ...]
    first: float
    last: float
    number: int


class Double(NamedTuple):
    """A solicitation that more than one MAC answered.

    Attributes:
        target: Its target.
        sent: When it was sent.
        at: When the answer of another MAC came.
        macs: The MACs.
    """

    target: str
    sent: float
    at: float
    macs: tuple[str, ...]


class Announcement(NamedTuple):
    """An unsolicited advertisement.

    Attributes:
        time: When it came.
        target: Its target.
        mac: The MAC that sent it.
        override: The O flag.
    """

    time: float
    target: str
    mac: str
    override: bool


class Report(NamedTuple):
    """The observations of the judge since a time.

    Attributes:
        spans: The solicitations, by target.
        doubles: The double answers of the judge's whole life.
        announcements: The unsolicited advertisements.
        sent, answered: The numbers of solicitations, and of those that were answered.
        dropped: Frames that the judge's socket has lost. Without 0, the report is worth nothing.
        unsent: Solicitations that could not be sent.
        odd: Answers for a target other than the one that was solicited.
        stall: The longest time, in seconds, by which a round of solicitations was late.
    """

    spans: Mapping[str, list[Span]]
    doubles: list[Double]
    announcements: list[Announcement]
    sent: int
    answered: int
    dropped: int
    unsent: int
    odd: int
    stall: float


class Gap(NamedTuple):
    """A period without an answer.

    Attributes:
        target: The address.
        begin: When the first solicitation without an answer was sent.
        seconds: The time from it to the next solicitation with an answer, or to the last one.
        before, after: The MACs that answered before and after it; "" if nobody did.
    """

    target: str
    begin: float
    seconds: float
    before: str
    after: str


class Change(NamedTuple):
    """A change of the MAC that answers for a target.

    Attributes:
        target: The address.
        last: When the last solicitation was sent that the former MAC answered.
        first: When the first solicitation was sent that the new MAC answered.
        before, after: The MACs.
    """

    target: str
    last: float
    first: float
    before: str
    after: str


def gaps(report: Report, least: int = 2) -> list[Gap]:
    """Return the times in which at least `least` solicitations in sequence had no answer."""
    found = []
    for target, spans in report.spans.items():
        for at, span in enumerate(spans):
            if span.macs or span.number < least:
                continue
            before = spans[at - 1].macs if at else ()
            after = spans[at + 1] if at + 1 < len(spans) else None
            end = after.first if after else span.last
            names = (before[0] if before else "", after.macs[0] if after else "")
            found.append(Gap(target, span.first, end - span.first, *names))
    return sorted(found, key=lambda gap: gap.begin)


def longest_gap(report: Report, targets: Iterable[str] = ()) -> float:
    """Return the seconds of the longest gap of some targets, of all by default; 0 without one."""
    wanted = set(targets) or set(report.spans)
    return max((gap.seconds for gap in gaps(report) if gap.target in wanted), default=0.0)


def changes(report: Report) -> list[Change]:
    """Return all changes of the answering MAC, also those across a gap."""
    found = []
    for target, spans in report.spans.items():
        answered = [span for span in spans if span.macs]
        for former, latter in itertools.pairwise(answered):
            if former.macs[-1] != latter.macs[0]:
                names = (former.macs[-1], latter.macs[0])
                found.append(Change(target, former.last, latter.first, *names))
    return sorted(found, key=lambda change: change.first)


def unexplained(report: Report, acquired: Iterable[tuple[str, str]]) -> list[str]:
    """Return a sentence for each pair of address and MAC that answered more often than it may.

    Args:
        report: The report.
        acquired: The address and the MAC of each time when a host acquired an address, also before
            the report began.
    """
    allowed = Counter(acquired)
    seen: Counter[tuple[str, str]] = Counter()
    for target, spans in report.spans.items():
        first = next((span.macs[0] for span in spans if span.macs), "")
        if first:
            seen[target, first] += 1
    for change in changes(report):
        seen[change.target, change.after] += 1
    return [
        f"{mac} answered for {target} in {count} periods, and acquired it {allowed[target, mac]}"
        " times"
        for (target, mac), count in sorted(seen.items())
        if count > allowed[target, mac]
    ]


def wrong_announcements(report: Report) -> list[Announcement]:
    """Return the announcements of a MAC while another one answers.

    An announcement is right if its MAC gave the last answer before it, or the first one after it.
    """
    return [each for each in report.announcements if not _is_right(report, each)]


def _is_right(report: Report, announcement: Announcement) -> bool:
    answered = [span for span in report.spans.get(announcement.target, []) if span.macs]
    before = [span for span in answered if span.first <= announcement.time]
    after = [span for span in answered if span.last >= announcement.time]
    around = [*(before[-1].macs if before else ()), *(after[0].macs if after else ())]
    return not around or announcement.mac in around
