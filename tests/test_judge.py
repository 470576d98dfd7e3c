"""The judge of a fleet: it counts what it shall find, and says so if it cannot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest

from lab import private
from lab.commands import LabError
from lab.fleet import KEYS, ROUTER, SEGMENT, Fleet, shared_address
from lab.holder_log import holder_log
from lab.judge import Judge
from lab.verdict import (
    Announcement,
    Report,
    Span,
    changes,
    gaps,
    longest_gap,
    unexplained,
    wrong_announcements,
)
from tests.fixtures.network import NDXDP, eventually

A, B = "02:00:00:00:01:01", "02:00:00:00:01:02"
TARGET = "2001:db8:1:0:c::1"


def seen(*parts: tuple[str, int], announced: tuple[tuple[float, str], ...] = ()) -> Report:
    """Return a report of one target, solicited each second: by whom, and how often, answered."""
    spans, at = [], 0.0
    for mac, number in parts:
        spans.append(Span(tuple(mac.split()), at, at + number - 1, number))
        at += number
    heard = [Announcement(when, TARGET, mac, True) for when, mac in announced]
    return Report({TARGET: spans}, [], heard, int(at), 0, 0, 0, 0, 0.0)


def test_gaps() -> None:
    report = seen(("", 3), (A, 5), ("", 1), (A, 5), ("", 4), (B, 5), ("", 3))
    found = [(gap.begin, gap.seconds, gap.before, gap.after) for gap in gaps(report)]
    assert found == [(0, 3, "", A), (14, 4, A, B), (23, 2, B, "")]
    assert longest_gap(report) == 4
    assert longest_gap(report, ["another"]) == 0
    assert longest_gap(seen((A, 5), ("", 1), (A, 5))) == 0


def test_changes() -> None:
    report = seen((A, 5), ("", 2), (B, 5), (f"{A} {B}", 1), (A, 5))
    assert [(change.last, change.first, change.after) for change in changes(report)] == [
        (4, 7, B),
        (11, 12, A),
        (12, 13, A),
    ]


def test_a_change_needs_an_acquisition() -> None:
    report = seen((A, 5), (B, 1), (A, 5))
    assert unexplained(report, [(TARGET, A), (TARGET, B), (TARGET, A)]) == []
    (sentence,) = unexplained(report, [(TARGET, A), (TARGET, B)])
    assert sentence == f"{A} answered for {TARGET} in 2 periods, and acquired it 1 times"
    assert len(unexplained(report, [])) == 2


def test_announcements() -> None:
    """The former and the next host may announce an address, and no other host."""
    report = seen((A, 5), ("", 5), (B, 5), announced=((2, A), (7, B), (7, A), (11, B)))
    assert wrong_announcements(report) == []
    report = seen((A, 5), ("", 5), (B, 5), announced=((2, B), (11, A)))
    assert [each.time for each in wrong_announcements(report)] == [2, 11]


# ---- on the wire ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet(privacy: None) -> Iterator[Fleet]:
    """Return a fleet of two hosts whose daemons run."""
    assert private.inside(), "these tests need namespaces of their own: run `make test`"
    with Fleet(NDXDP, hosts=2, members=1) as made:
        made.configure(mode="userspace")
        made.start()
        yield made


def answer_by(fleet: Fleet, host: int, number: int) -> None:
    """Let a host answer for an address, even if another one does."""
    key = f"{KEYS}hosts/h{host}/{SEGMENT}/a{number}"
    fleet.etcd.put(key, {"prefix": shared_address(number)})


def test_what_the_judge_sees(fleet: Fleet) -> None:
    """Two hosts that answer for one address, one that answers late, and a silent address."""
    one, two, three = (shared_address(number) for number in (1, 2, 3))
    first, second = fleet.hosts
    answer_by(fleet, 1, 1)
    answer_by(fleet, 1, 2)
    with Judge(ROUTER, [one, two, three]) as judge:
        eventually(partial(judge.answering, two))
        began = time.monotonic()
        time.sleep(1)
        report = judge.report(began)
        assert report.doubles == []
        assert {mac for span in report.spans[one] for mac in span.macs} <= {first.mac}
        assert [span.macs for span in report.spans[three]] == [()]
        answer_by(fleet, 2, 1)
        eventually(lambda: judge.report().doubles)
        report = judge.report(began)
        assert {each.target for each in report.doubles} == {one}
        assert {frozenset(each.macs) for each in report.doubles} == {
            frozenset({first.mac, second.mac})
        }
        # A host that is stopped, and answers all solicitations when it goes on.
        number = len(report.doubles)
        second.suspend()
        time.sleep(1)
        second.resume()
        eventually(lambda: len(judge.report().doubles) > number + 50)
        assert max(each.at - each.sent for each in judge.report().doubles) > 0.5
        report = judge.report()
        assert (report.dropped, report.unsent, report.odd) == (0, 0, 0)
        assert report.sent == sum(s.number for spans in report.spans.values() for s in spans)


def test_holders_are_recorded_across_a_failure_of_etcd(fleet: Fleet) -> None:
    key = f"{KEYS}holders/{SEGMENT}/"
    with holder_log(fleet.etcd, key) as log:
        fleet.etcd.put(f"{key}a", {"host": "h1"})
        fleet.etcd.put(f"{key}a", {"host": "h2"})
        eventually(lambda: len(log.events) == 2)
        fleet.etcd.kill()
        fleet.etcd.start()
        fleet.etcd.delete(f"{key}a")
        eventually(lambda: len(log.events) == 3, within=20)
    found = [(event.name, event.host, event.created) for event in log.events]
    assert found == [("a", "h1", True), ("a", "h2", False), ("a", "", False)]


def test_an_etcd_that_is_away(fleet: Fleet) -> None:
    fleet.etcd.kill()
    assert not fleet.etcd.answers()
    with pytest.raises(LabError, match="etcd does not answer /v3/kv/range"):
        fleet.etcd.call("/v3/kv/range", {"key": "eA=="}, within=0)
    fleet.etcd.start()
    assert fleet.etcd.leader() is fleet.etcd.members[0]
