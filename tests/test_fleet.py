"""Exactly one of three hosts answers for an address under every fault, with a real etcd.

`make test-fleet` runs the same faults on five hosts at random for half an hour, and compares the
times with the bounds. Here no time is compared with a bound that a slow machine could miss.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from lab import private
from lab.fleet import KEYS, ROUTER, SEGMENT, Fleet, shared_address, shared_name
from lab.fleet_host import FleetHost
from lab.holder_log import HolderLog, holder_log
from lab.judge import Judge
from lab.verdict import gaps, unexplained
from tests.fixtures.network import NDXDP, eventually
from tests.scenarios.fleet import acquisitions
from tests.scenarios.fleet_faults import Faults, Outcome, problems

SHORT, LONG = 3, 40
"""Leases in seconds: for tests that wait for the end of one, and for those that do not."""
ADDRESSES, RATE = 12, 100
HANDOVER = LONG / 2
"""Seconds for a handover that does not wait for the end of a long lease."""


class Watched:
    """A fleet under a judge.

    Attributes:
        fleet: The fleet.
        judge: The judge.
        log: The record of the holders.
        faults: Faults of the fleet.
    """

    def __init__(self, fleet: Fleet, judge: Judge, log: HolderLog, lease: int) -> None:
        self.fleet, self.judge, self.log = fleet, judge, log
        self.faults = Faults(fleet, judge, lease, random.Random(1))

    def fail(self, name: str) -> Outcome:
        """Make a fault, and return what it has cost, if nothing was answered wrongly."""
        outcome = self.faults.make(name)
        print(outcome)
        assert outcome.problems == []
        self.check()
        return outcome

    def check(self) -> None:
        """Fail if two hosts have ever answered for one address."""
        report = self.judge.report()
        assert report.doubles == []
        assert problems(report) == []
        assert unexplained(report, acquisitions(self.fleet, self.log)) == []
        assert report.answered > report.sent / 10


def watched(mode: str, hosts: int, lease: int) -> Iterator[Watched]:
    """Yield a fleet whose addresses all have holders."""
    assert private.inside(), "these tests need namespaces of their own: run `make test`"
    with Fleet(NDXDP, hosts=hosts) as fleet:
        fleet.configure(mode=mode, lease=lease)
        for number in range(1, ADDRESSES + 1):
            fleet.share(number)
        with holder_log(fleet.etcd, f"{KEYS}holders/{SEGMENT}/") as log:
            fleet.start()
            fleet.settle()
            addresses = [shared_address(number) for number in range(1, ADDRESSES + 1)]
            with Judge(ROUTER, addresses, RATE) as judge:
                made = Watched(fleet, judge, log, lease)
                eventually(lambda: all(judge.answering(each) for each in addresses), within=20)
                yield made


@pytest.fixture(scope="module")
def site(privacy: None, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """Return a fleet by its mode, its number of hosts, and the lease."""
    yield from watched(*request.param)


def on(mode: str, hosts: int, lease: int) -> pytest.MarkDecorator:
    """Mark a test that runs on such a fleet; tests on equal fleets share one."""
    return pytest.mark.parametrize(
        "site",
        [pytest.param((mode, hosts, lease), id=f"{mode}-{lease}")],
        indirect=True,
        scope="module",
    )


@on("tc", 3, SHORT)
@pytest.mark.parametrize(
    "fault", ["kill -9", "SIGSTOP", "cut from etcd", "cut from the segment", "etcd: leader killed"]
)
def test_a_failure(site: Watched, fault: str) -> None:
    """Another host takes over, and the host that failed answers for nothing when it is back."""
    outcome = site.fail(fault)
    assert outcome.takeovers or fault == "etcd: leader killed"


@on("tc", 3, LONG)
@pytest.mark.parametrize("fault", ["orderly stop", "drain", "move"])
def test_a_handover(site: Watched, fault: str) -> None:
    """The host that gives up an address does so first, and the other one does not wait long."""
    outcome = site.fail(fault)
    assert outcome.takeovers
    assert max(outcome.takeovers) < HANDOVER
    assert max(outcome.silences) < HANDOVER
    assert outcome.others == []


@on("tc", 3, LONG)
def test_a_restart(site: Watched) -> None:
    """A daemon that is killed and started again before its lease ends loses no answer."""
    holders = site.fleet.settle()
    host = site.fleet.host(holders[shared_name(1)])
    since = time.monotonic()
    time.sleep(0.5)
    host.kill()
    host.start()
    assert site.fleet.settle() == holders
    time.sleep(1)
    site.check()
    assert gaps(site.judge.report(since)) == []


def move_unless_there(fleet: Fleet, number: int, host: FleetHost) -> None:
    """Move an address to a host that may hold it already."""
    if fleet.holders().get(shared_name(number)) != host.name:
        fleet.move(number, host, host)


@on("tc", 3, LONG)
def test_failback(site: Watched) -> None:
    """The preferred host gets the address back when it is there again; otherwise it stays."""
    fleet = site.fleet
    fleet.settle()
    for number, failback in ((1, True), (2, False)):
        fleet.share(number, hosts=["h2", "h3"], failback=failback)
        move_unless_there(fleet, number, fleet.host("h2"))
    one, two = shared_name(1), shared_name(2)
    host = fleet.host("h2")
    host.end()
    fleet.await_holders(lambda found: found.get(one) == found.get(two) == "h3", "h3 takes over")
    since = time.monotonic()
    host.start()
    fleet.await_holders(lambda found: found.get(one) == "h2", "h2 gets the address back")
    assert fleet.settle()[two] == "h3"
    time.sleep(1)
    site.check()
    found = [gap for gap in gaps(site.judge.report(since)) if gap.target == shared_address(1)]
    assert max((gap.seconds for gap in found), default=0.0) < HANDOVER


@on("userspace", 2, SHORT)
def test_a_stopped_process_that_answers_from_userspace(site: Watched) -> None:
    """The daemon finds thousands of solicitations when it goes on, and answers none of them."""
    outcome = site.fail("SIGSTOP")
    assert outcome.takeovers
