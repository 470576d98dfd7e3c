"""The decisions of one host about the shared addresses of a segment."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ndxdp.fleet.assignment import Candidates
from ndxdp.fleet.decision import Decision
from ndxdp.fleet.records import Holder
from ndxdp.fleet.shared_address import SharedAddress
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from tests.fixtures.segment_host import (
    ME,
    OURS,
    PREFIX,
    THEIRS,
    TURN,
    Host,
    address,
    wanting,
)


def test_the_only_member_takes_everything_at_once() -> None:
    host = Host()
    host.put("a", 1)
    host.put("b", 2)
    acquire, release, again = host.decide()
    assert [each.name for each in acquire] == ["a", "b"]
    assert acquire[0].holder == Holder(ME, 0.0, "2001:db8::1", False)
    assert acquire[0].changed == host.revision - 1
    assert not acquire[0].ends_move
    assert not release
    assert again == host.now + TURN
    assert host.answers() == ""
    assert len(host.segment.rules()[0]) == 2
    host.segment.acquired(acquire[0], 5.0, OURS, host.tick())
    assert host.answers() == "1"
    host.hold("b", 2)
    assert host.answers() == "1 2"
    assert host.takes() == []
    assert host.decide(TURN) == Decision([], [], None)


def test_the_rules_of_a_segment() -> None:
    host = Host()
    host.put("a", 1, answer="routed", force=True)
    host.put("b", 2, count=False)
    host.hold("a", 1)
    host.hold("b", 2, "h2", THEIRS)
    rules, forced = host.segment.rules()
    held, other = (rules[Prefix(address(number), 128)] for number in (1, 2))
    assert (held.answer.name, held.leased, held.origin, held.label) == (
        "ROUTED",
        True,
        "shared",
        "vlan7",
    )
    assert (other.answer.name, other.leased, other.origin, other.label) == (
        "NEVER",
        False,
        "shared",
        "vlan7",
    )
    assert {str(each) for each in forced} == {"2001:db8::1"}
    host.free("a")
    rules, forced = host.segment.rules()
    assert set(rules.values()) == {other}
    assert not forced
    host.segment.view.delete_shared("a", host.tick())
    host.segment.view.delete_shared("b", host.tick())
    assert len(host.segment.rules()[0]) == 0


# ---- whose turn it is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "turns"),
    [
        (["h1"], 0),
        (["h1", "h2"], 0),
        (["h2", "h1"], 1),
        (["h2", "h3", "h1", "h4"], 2),
        (["h9", "h1"], 0),
        (["h9", "h2", "h8", "h1"], 1),
        (["h2", "h3"], None),
        (["h9"], None),
    ],
)
def test_each_host_has_its_turn(hosts: list[str], turns: int | None) -> None:
    host = Host("h2", "h3", "h4")
    host.put("a", 1, hosts=hosts)
    if turns is None:
        assert host.decide() == Decision([], [], None)
        assert host.takes(100 * TURN) == []
        return
    for number in range(turns):
        decision = host.decide()
        assert not decision.acquire
        assert decision.again == host.now + TURN
        assert host.takes(TURN - 0.001) == [], number
        host.now += 0.001
    assert host.takes() == ["a"]


def test_without_hosts_the_greatest_score_takes_it() -> None:
    host = Host("h2", "h3")
    others = Candidates("vlan7")
    for each in ("h1", "h2", "h3"):
        others.add(each, 0.0)
    ranks: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for number in range(60):
        host.put(f"n{number}", number + 1)
        order = others.order(f"n{number}", SharedAddress(PREFIX, Rule()))
        ranks[order.index(ME)].append(f"n{number}")
    assert all(len(some) > 5 for some in ranks.values())
    assert host.takes() == ranks[0]
    assert set(host.takes(TURN)) == {*ranks[0], *ranks[1]}  # the first had no result
    assert set(host.takes(TURN)) == {*ranks[0], *ranks[1], *ranks[2]}


def test_the_loss_of_the_first_choice_is_no_reason_to_wait() -> None:
    host = Host("h2", "h3")
    host.put("a", 1, hosts=["h2", "h3", "h1"])
    assert host.takes() == []
    host.leave("h2")
    assert host.takes(1.0) == []
    host.segment.view.put_drained("h3")
    assert host.takes(1.0) == ["a"]


def test_a_host_that_has_just_come_gets_a_whole_turn() -> None:
    host = Host()
    host.put("a", 1, hosts=["h2", "h1"])
    host.segment.view.put_drained(ME)
    assert host.takes() == []
    host.now += 50
    host.join("h2")
    host.segment.view.delete_drained(ME)
    assert host.takes() == []
    assert host.takes(TURN - 0.1) == []
    assert host.takes(0.1) == ["a"]


def test_this_host_waits_from_when_it_was_able_to() -> None:
    host = Host("h2", joined=False)
    host.put("a", 1, hosts=["h2", "h1"])
    assert host.takes() == []
    host.now += 50
    host.segment.set_joined(True)
    assert host.takes() == []
    assert host.takes(TURN - 0.1) == []
    assert host.takes(0.1) == ["a"]


def test_this_host_waits_anew_when_it_was_not_able_to_for_a_while() -> None:
    host = Host("h2")
    host.put("a", 1, hosts=["h2", "h1"])
    assert host.takes() == []
    host.segment.view.put_drained(ME)
    assert host.takes() == []
    host.now += 50
    host.segment.view.delete_drained(ME)
    assert host.takes() == []
    assert host.takes(TURN - 0.1) == []
    assert host.takes(0.1) == ["a"]


def test_a_host_that_comes_while_others_wait_gets_a_whole_turn() -> None:
    host = Host("h2")
    host.put("a", 1, hosts=["h2", "h3", "h1"])
    assert host.takes() == []
    host.leave("h2")
    host.join("h3")
    assert host.takes(5.0) == []
    assert host.takes(TURN - 0.1) == []
    assert host.takes(0.1) == ["a"]


def test_a_host_ahead_that_comes_and_goes_delays_its_turn_only() -> None:
    host = Host("h2")
    host.put("a", 1, hosts=["h2", "h1"])
    assert host.takes() == []
    host.leave("h2")
    host.join("h2")  # before the next decision: no difference
    assert host.takes(TURN) == ["a"]
    host = Host()
    host.put("a", 1, hosts=["h2", "h1"])
    assert host.takes() == ["a"]
    host.segment.refused("a", host.now)
    host.join("h2")
    assert host.takes(1.0) == []
    assert host.takes(TURN) == ["a"]


def test_a_new_candidate_ahead_takes_what_was_not_acquired_yet() -> None:
    host = Host()
    for number in range(150):
        host.put(f"n{number:03}", number + 1, hosts=["h2", "h1"])
    host.put("z", 200, hosts=["h1", "h2"])
    assert len(host.takes()) == 100
    host.join("h2")
    assert host.takes() == ["z"]


def test_an_address_that_is_not_held_is_unheld_since_it_was_seen_so() -> None:
    host = Host("h2")
    host.put("a", 1, hosts=["h2", "h1"])
    host.hold("a", 1, "h2", THEIRS)
    assert host.decide(20) == Decision([], [], None)
    host.free("a")
    assert host.takes() == []
    assert host.takes(TURN - 0.1) == []
    host.hold("a", 1, "h2", THEIRS)
    assert host.takes(0.1) == []
    host.free("a")
    assert host.takes() == []
    assert host.takes(TURN) == ["a"]


# ---- what a host keeps ---------------------------------------------------------------------------


def test_a_holder_keeps_its_addresses() -> None:
    host = Host()
    host.put("a", 1, hosts=["h2", "h1"])
    host.put("b", 2)
    host.hold("a", 1)
    host.hold("b", 2)
    host.join("h2", "h3", "h4", "h5")
    assert host.decide() == Decision([], [], None)
    host.leave("h2", "h3")
    assert host.decide() == Decision([], [], None)
    assert host.answers() == "1 2"


@pytest.mark.parametrize("hosts", [["h2", "h1"], None])
def test_the_first_choice_gets_it_back(hosts: list[str] | None) -> None:
    host = Host()
    if hosts:
        host.put("x1", 1, failback=True, hosts=hosts)
    else:
        host.put("x1", 1, failback=True)
    host.hold("x1", 1)
    candidates = Candidates("vlan7")
    candidates.add(ME, 0.0)
    better = "h2"
    if not hosts:
        address = SharedAddress(PREFIX, Rule())
        better, worse = sorted(
            (f"h{number}" for number in range(2, 60)),
            key=lambda each: -candidates.precedes(each, ME, "x1", address),
        )[::57]
        host.join(worse)
        assert host.gives_up() == []
    host.join(better)
    assert host.gives_up() == ["x1"]
    assert host.answers() == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda host: host.segment.set_joined(False),
        lambda host: host.segment.view.put_drained(ME),
        lambda host: host.put("a", 1, hosts=["h2"], created=12),
        lambda host: host.put("a", 9, created=12),
        lambda host: host.segment.view.put_shared("a", "bad", 12, host.tick()),
        lambda host: host.segment.view.delete_shared("a", host.tick()),
        lambda host: host.put("b", 1, created=1),
        lambda host: host.move("a", "h2"),
    ],
    ids=["carrier", "drained", "hosts", "prefix", "refused", "deleted", "older", "move"],
)
def test_a_holder_gives_up(change: Callable[[Host], None]) -> None:
    host = Host("h2")
    host.put("a", 1, created=12)
    host.hold("a", 1)
    assert host.decide() == Decision([], [], None)
    assert host.answers() == "1"
    change(host)
    decision = host.decide()
    assert decision.release == ["a"]
    assert decision.again == host.now + TURN
    assert host.answers() == ""
    assert host.segment.status("").held == 0
    assert host.segment.status("").given_up == 1
    assert host.decide().release == []


def test_a_carrier_that_is_back_takes_again() -> None:
    host = wanting()
    host.segment.set_joined(False)
    assert host.takes(10) == []
    host.segment.set_joined(True)
    assert host.takes() == ["a"]
