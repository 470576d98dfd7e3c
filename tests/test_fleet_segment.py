"""The decisions of one host about the shared addresses of a segment."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from ndxdp.config.shared_value import SharedValueReader
from ndxdp.fleet.assignment import Candidates
from ndxdp.fleet.decision import Decision
from ndxdp.fleet.records import Holder, Member
from ndxdp.fleet.segment import Segment
from ndxdp.fleet.shared_address import SharedAddress
from ndxdp.fleet.takeover_rate import TakeoverRate
from ndxdp.fleet.view import Holding
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from ndxdp.runtime.daemon_status import SegmentStatus
from tests.fixtures.work import assert_in_proportion, work

ME, LEASE, TURN = "h1", 5.0, 6.0
OURS, THEIRS = 7001, 7002
PREFIX = Prefix(b"\x20\x01\x0d\xb8" + bytes(12), 128)


def address(number: int) -> bytes:
    return b"\x20\x01\x0d\xb8" + number.to_bytes(12, "big")


class Host:
    """The host h1, with its keys written by short texts."""

    def __init__(self, *members: str, joined: bool = True, lease: int | None = OURS) -> None:
        self.now, self.revision = 100.0, 10
        self.segment = Segment("vlan7", ME, LEASE, TakeoverRate())
        self.read = SharedValueReader("vlan7").read
        if lease is not None:
            self.segment.set_lease(lease)
        self.segment.set_joined(joined)
        self.segment.view.begin()
        self.segment.view.end(self.tick())
        self.join(*((ME, *members) if joined else members))

    def tick(self) -> int:
        self.revision += 1
        return self.revision

    def put(self, name: str, number: int, *, created: int = 0, **more: object) -> None:
        value = json.dumps({"prefix": f"2001:db8::{number:x}", **more}).encode()
        revision = self.tick()
        self.segment.view.put_shared(name, self.read(value), created or revision, revision)

    def join(self, *hosts: str) -> None:
        for host in hosts:
            self.segment.view.put_member(Member(host, "1", 0.0, ""))

    def leave(self, *hosts: str) -> None:
        for host in hosts:
            self.segment.view.delete_member(host)

    def hold(self, name: str, number: int, host: str = ME, lease: int = OURS) -> None:
        holding = Holding(Holder(host, 1.0, f"2001:db8::{number:x}"), lease)
        self.segment.view.put_holder(name, holding, self.tick())

    def free(self, *names: str) -> None:
        for name in names:
            self.segment.view.delete_holder(name, self.tick())

    def move(self, name: str, host: str) -> None:
        self.segment.view.put_move(name, host, self.tick())

    def decide(self, after: float = 0.0) -> Decision:
        self.now += after
        return self.segment.decide(self.now)

    def takes(self, after: float = 0.0) -> list[str]:
        decision = self.decide(after)
        assert not decision.release
        return [each.name for each in decision.acquire]

    def gives_up(self, after: float = 0.0) -> list[str]:
        decision = self.decide(after)
        assert not decision.acquire
        return decision.release

    def answers(self) -> str:
        """Return the last digits of the addresses that this host answers for."""
        rules, _ = self.segment.rules()
        assert all(rule.leased or rule.answer.name == "NEVER" for rule in rules.values())
        return " ".join(
            sorted(f"{int.from_bytes(p.address[8:]):x}" for p, rule in rules.items() if rule.leased)
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
    host = Host()
    host.put("a", 1)
    host.segment.set_joined(False)
    assert host.takes(10) == []
    host.segment.set_joined(True)
    assert host.takes() == ["a"]


# ---- releases and acquisitions on their way ------------------------------------------------------


def test_what_is_released_is_not_acquired_before_its_key_is_gone() -> None:
    host = Host()
    host.put("a", 1)
    host.hold("a", 1)
    host.segment.set_joined(False)
    assert host.gives_up() == ["a"]
    host.segment.set_joined(True)
    assert host.decide(0.5) == Decision([], [], 106.0)
    host.segment.released("a")
    assert host.answers() == ""
    assert host.decide(0.5).acquire == []
    host.free("a")
    assert host.takes(0.5) == ["a"]


def test_the_stream_may_be_before_the_answer_to_a_release() -> None:
    host = Host()
    host.put("a", 1)
    host.hold("a", 1)
    host.segment.set_joined(False)
    assert host.gives_up() == ["a"]
    host.segment.set_joined(True)
    host.free("a")
    assert host.decide(0.1).acquire == []  # the answer is to come
    host.segment.released("a")
    assert host.takes(0.1) == ["a"]


def test_a_release_of_unknown_result_may_still_be_carried_out() -> None:
    """The release would delete the key that this host creates now."""
    host = Host()
    host.put("a", 1)
    host.hold("a", 1)
    host.segment.set_joined(False)
    assert host.gives_up() == ["a"]
    host.segment.set_joined(True)
    host.segment.refused("a", host.now)
    host.free("a")
    assert host.takes(TURN - 0.1) == []
    assert host.takes(0.1) == ["a"]


def test_a_release_of_unknown_result_is_repeated() -> None:
    host = Host()
    host.put("a", 1)
    host.hold("a", 1)
    host.segment.set_joined(False)
    assert host.gives_up() == ["a"]
    host.segment.set_joined(True)
    host.segment.refused("a", host.now)
    assert host.gives_up(0.9) == []
    assert host.answers() == ""
    assert host.gives_up(0.1) == ["a"]
    assert host.gives_up(TURN - 0.1) == []
    assert host.gives_up(0.1) == ["a"]  # nobody has reported a result


def test_an_acquisition_without_effect_is_tried_again() -> None:
    host = Host()
    host.put("a", 1)
    assert host.takes() == ["a"]
    assert host.takes(TURN - 0.1) == []
    assert host.takes(0.1) == ["a"]
    host.segment.refused("a", host.now)
    assert host.takes(0.9) == []
    assert host.takes(0.1) == ["a"]
    host.segment.refused("a", host.now)
    host.hold("a", 1, "h2", THEIRS)
    assert host.takes(0.1) == []
    host.free("a")
    assert host.takes(0.1) == ["a"]  # the keys have changed


def test_an_acquisition_that_another_host_won_ends_with_its_key() -> None:
    host = Host()
    host.put("a", 1)
    assert host.takes() == ["a"]
    host.hold("a", 1, "h2", THEIRS)
    assert host.takes() == []
    host.segment.refused("a", host.now)
    host.free("a")
    assert host.takes(0.1) == ["a"]


def test_an_answer_is_ahead_of_the_stream() -> None:
    host = Host()
    host.put("a", 1)
    ((acquisition,), _, _) = host.decide()
    old = host.tick()
    host.segment.acquired(acquisition, 7.0, OURS, host.tick())
    assert host.answers() == "1"
    assert [each.since for each in host.segment.addresses()] == [7.0]
    theirs = Holding(Holder("h2", 1.0, "2001:db8::1"), THEIRS)
    host.segment.view.put_holder("a", theirs, old - 1)
    host.segment.view.delete_holder("a", old)
    assert host.answers() == "1"
    host.hold("a", 1)
    host.free("a")
    assert host.answers() == ""


def test_a_stream_that_has_passed_knows_better_than_an_answer() -> None:
    host = Host()
    host.put("a", 1)
    ((acquisition,), _, _) = host.decide()
    host.hold("a", 1)
    created = host.revision
    host.free("a")
    host.segment.acquired(acquisition, 7.0, OURS, created)
    assert host.answers() == ""
    assert host.takes() == ["a"]


def test_an_answer_of_a_former_lease_counts_for_nothing() -> None:
    host = Host()
    host.put("a", 1)
    ((acquisition,), _, _) = host.decide()
    host.segment.set_lease(OURS + 5)
    host.segment.acquired(acquisition, 7.0, OURS, host.tick())
    assert host.answers() == ""


def test_an_answer_of_a_former_history_counts_for_nothing() -> None:
    """Its revision may be greater than all that are to come for a long time."""
    host = Host()
    host.put("a", 1)
    ((acquisition,), _, _) = host.decide()
    host.segment.new_history(host.now)
    host.revision = 1
    host.segment.view.begin()
    host.put("a", 1)
    host.join(ME)
    host.segment.view.end(host.tick())
    host.segment.set_lease(OURS + 1)
    host.segment.acquired(acquisition, 7.0, OURS, 500)
    assert [each.holder for each in host.segment.addresses()] == [""]
    host.hold("a", 1, "h2", THEIRS)
    assert [each.holder for each in host.segment.addresses()] == ["h2"]
    host.free("a")
    assert host.takes() == ["a"]


def test_an_answer_while_all_keys_are_read() -> None:
    host = Host()
    host.put("a", 1)
    host.put("b", 2)
    ((one, two), _, _) = host.decide()
    view = host.segment.view
    view.begin()
    read = host.tick()
    later = host.tick()
    host.segment.acquired(one, 7.0, OURS, read)
    host.segment.acquired(two, 7.0, OURS, later)
    host.put("a", 1)
    host.put("b", 2)
    view.put_member(Member(ME, "", 0.0, ""))
    view.end(read)
    assert host.answers() == "2"  # the keys of that revision are without the first


# ---- the lease -----------------------------------------------------------------------------------


def test_only_the_present_lease_counts() -> None:
    host = Host()
    for name, number, owner, lease in (
        ("a", 1, ME, OURS),
        ("b", 2, ME, THEIRS),
        ("c", 3, "h2", OURS),
        ("d", 4, "h2", THEIRS),
    ):
        host.put(name, number)
        host.hold(name, number, owner, lease)
    assert host.answers() == "1"
    assert host.decide() == Decision([], [], None)
    host.segment.lease_lost()
    assert host.answers() == ""
    assert host.decide() == Decision([], [], None)
    host.segment.set_lease(THEIRS)
    assert host.answers() == "2"
    host.segment.set_lease(OURS)
    assert host.answers() == "1"
    assert host.segment.lease == OURS


def test_without_a_lease_nothing_is_taken() -> None:
    host = Host(lease=None)
    host.put("a", 1)
    assert host.takes() == []
    host.segment.set_lease(OURS)
    assert host.takes() == ["a"]
    host.segment.lease_lost()
    host.segment.refused("a", host.now)
    assert host.takes(2) == []


def test_a_lease_that_comes_back_has_its_addresses_but_those_on_their_way_out() -> None:
    host = Host("h2")
    host.put("a", 1)
    host.put("b", 2)
    host.hold("a", 1)
    host.hold("b", 2)
    host.move("a", "h2")
    assert host.gives_up() == ["a"]
    host.segment.lease_lost()
    assert host.answers() == ""
    host.segment.set_lease(OURS)
    assert host.answers() == "2"  # the deletion of a's key may be on its way
    assert host.segment.status("").given_up == 2


def test_a_new_lease_ends_what_was_on_its_way_out() -> None:
    host = Host("h2")
    host.put("a", 1)
    host.hold("a", 1)
    host.move("a", "h2")
    assert host.gives_up() == ["a"]
    host.segment.lease_lost()
    host.segment.set_lease(OURS + 1)
    host.hold("a", 1, lease=OURS + 1)
    assert host.answers() == "1"


def test_counting() -> None:
    host = Host("h2")
    host.put("a", 1)
    host.put("b", 2)
    host.put("c", 3)
    host.hold("a", 1)
    host.hold("b", 2, "h2", THEIRS)
    host.segment.view.put_shared("d", "bad", 1, 1)
    host.decide()
    status = host.segment.status("why")
    assert status == SegmentStatus("vlan7", True, "why", ["h1", "h2"], 3, 1, 1, 0, 0)
    host.leave("h2")
    host.free("b")
    assert set(host.takes(TURN)) == {"b", "c"}
    host.hold("b", 2)
    assert host.segment.rules()
    assert host.segment.status("").taken == 1
    host.segment.set_joined(False)
    assert host.gives_up() == ["b", "a"]
    status = host.segment.status("")
    assert status == SegmentStatus("vlan7", False, "", ["h1"], 3, 0, 1, 1, 2)


# ---- moves ---------------------------------------------------------------------------------------


def test_a_move_to_this_host() -> None:
    host = Host("h2")
    host.put("a", 1, hosts=["h2", "h1"], failback=True)
    host.hold("a", 1, "h2", THEIRS)
    host.move("a", ME)
    assert host.takes() == []
    host.free("a")
    ((acquisition,), _, _) = host.decide()
    assert acquisition.ends_move
    assert acquisition.holder.moved
    host.segment.acquired(acquisition, 1.0, OURS, host.tick())
    host.segment.view.delete_move("a")
    assert host.gives_up() == []  # it does not fail back
    assert host.answers() == "1"


@pytest.mark.parametrize("target", ["h9", "h3", "", ME])
def test_a_move_without_effect(target: str) -> None:
    """Move to a dead host, to one that may not have the address, to none, and to the holder."""
    host = Host("h2", "h3")
    host.put("a", 1, hosts=["h1", "h2", "h9"])
    host.hold("a", 1)
    host.move("a", target)
    assert host.decide() == Decision([], [], None)
    assert host.answers() == "1"


def test_a_move_begins_when_its_host_comes() -> None:
    host = Host()
    host.put("a", 1)
    host.hold("a", 1)
    host.move("a", "h9")
    assert host.gives_up() == []
    host.join("h9")
    assert host.gives_up() == ["a"]


def test_a_move_puts_its_host_first_and_the_others_behind() -> None:
    host = Host("h2", "h3")
    host.put("a", 1, hosts=["h1", "h2", "h3"])
    host.move("a", "h3")
    assert host.takes() == []
    assert host.takes(TURN - 0.1) == []
    assert host.takes(0.1) == ["a"]


def test_a_move_to_the_holder_keeps_it_from_failing_back() -> None:
    host = Host()
    host.put("a", 1, hosts=["h2", "h1"], failback=True)
    host.hold("a", 1)
    host.move("a", ME)
    host.join("h2")
    assert host.gives_up() == []
    host.segment.view.delete_move("a")
    assert host.gives_up() == ["a"]


# ---- hosts that do not take what is theirs -------------------------------------------------------


def unable() -> Host:
    """Return a host that has given an address back to h2, which did not take it."""
    host = Host("h2")
    host.put("a", 1, hosts=["h2", "h1"], failback=True)
    host.hold("a", 1)
    assert host.gives_up() == ["a"]
    host.free("a")
    host.segment.released("a")
    assert host.takes() == []
    assert host.takes(TURN) == ["a"]
    host.hold("a", 1)
    assert host.decide().release == []
    return host


def test_a_host_that_does_not_take_it_does_not_get_it_back_at_once() -> None:
    host = unable()
    assert host.decide(60).release == []
    assert host.answers() == "1"
    assert host.decide(600).release == ["a"]


def test_what_was_passed_over_is_forgotten_with_the_lease() -> None:
    host = unable()
    host.segment.lease_lost()
    assert host.answers() == ""
    host.segment.set_lease(OURS + 1)
    host.hold("a", 1, lease=OURS + 1)
    assert host.decide().release == ["a"]


def test_a_host_that_has_come_again_gets_it_back() -> None:
    host = unable()
    host.leave("h2")
    assert host.decide().release == []
    host.join("h2")
    assert host.decide().release == ["a"]


def test_another_host_ahead_gets_it_back() -> None:
    host = unable()
    host.put("a", 1, hosts=["h3", "h2", "h1"], failback=True, created=12)
    host.join("h3")
    assert host.decide().release == ["a"]


def test_what_was_passed_over_is_forgotten_with_the_address() -> None:
    host = unable()
    host.segment.set_joined(False)
    assert host.decide().release == ["a"]
    host.segment.released("a")
    host.free("a")
    host.segment.set_joined(True)
    host.hold("a", 1)
    assert host.decide().release == ["a"]


def test_a_move_in_vain_is_not_repeated_but_a_new_one_is_tried() -> None:
    host = Host("h2")
    host.put("a", 1, hosts=["h1", "h2"])
    host.hold("a", 1)
    host.move("a", "h2")
    assert host.gives_up() == ["a"]
    host.free("a")
    host.segment.released("a")
    assert host.takes() == []
    assert host.takes(TURN) == ["a"]
    host.hold("a", 1)
    assert host.decide().release == []
    host.move("a", "h2")
    assert host.decide().release == ["a"]


# ---- prefixes ------------------------------------------------------------------------------------


def test_a_new_prefix_is_acquired_anew() -> None:
    host = Host()
    host.put("a", 1, created=5)
    host.hold("a", 1)
    assert host.answers() == "1"
    host.put("a", 2, created=5)
    assert host.answers() == ""
    assert host.gives_up() == ["a"]
    host.free("a")
    host.segment.released("a")
    ((acquisition,), _, _) = host.decide()
    assert acquisition.holder.prefix == "2001:db8::2"


def test_a_prefix_waits_for_the_holder_of_its_former_name() -> None:
    host = Host()
    host.put("a", 1)
    host.hold("a", 1, "h2", THEIRS)
    host.segment.view.delete_shared("a", host.tick())
    host.put("b", 1)
    assert host.takes() == []
    assert host.takes(100) == []
    host.free("a")
    assert host.takes() == ["b"]


def test_a_prefix_waits_for_holders_that_are_not_known_yet() -> None:
    host = Host()
    host.put("a", 1)
    host.segment.view.delete_shared("a", host.tick())
    host.put("b", 1)
    assert host.takes() == []
    assert host.takes(TURN - 0.1) == []
    assert host.takes(0.1) == ["b"]


def test_a_prefix_does_not_wait_if_the_stream_of_holders_has_passed() -> None:
    host = Host()
    host.put("a", 1)
    host.put("c", 3, hosts=["h9"])
    host.segment.view.delete_shared("a", host.tick())
    host.put("b", 1)
    host.hold("c", 3, "h9", THEIRS)
    assert host.takes() == ["b"]


def test_a_prefix_comes_back_to_its_name_at_once() -> None:
    host = Host()
    host.put("a", 1)
    host.segment.view.put_shared("a", "bad", 12, host.tick())
    assert host.takes() == []
    host.put("a", 1)
    assert host.takes() == ["a"]


def test_a_prefix_does_not_wait_after_all_keys_were_read() -> None:
    host = Host()
    host.put("a", 1)
    host.segment.view.begin()
    host.put("b", 1)
    host.join(ME)
    host.segment.view.end(host.tick())
    assert host.takes() == ["b"]


def test_a_younger_key_that_goes_changes_nothing() -> None:
    host = Host()
    host.put("b", 1, created=5)
    host.put("a", 1, created=7)
    host.segment.view.delete_shared("a", host.tick())
    assert host.takes() == ["b"]


def test_an_older_key_waits_for_hosts_that_do_not_know_it() -> None:
    """Other hosts may still acquire the younger key, which has not changed."""
    host = Host()
    host.put("b", 1, created=5)
    host.put("a", 1, created=3)
    host.put("c", 3)
    host.hold("c", 3, "h9", THEIRS)
    assert host.takes() == []
    assert host.takes(TURN - 0.1) == []
    assert host.takes(0.1) == ["a"]


def test_the_older_of_two_keys_with_one_prefix_is_in_force() -> None:
    host = Host()
    host.put("b", 1, created=5)
    host.put("a", 1, created=7)
    assert host.takes() == ["b"]
    host.hold("b", 1)
    assert {each.name: each.problem for each in host.segment.addresses()} == {
        "b": "",
        "a": "b has 2001:db8::1 already",
    }
    assert host.segment.view.refused == {"a": "b has 2001:db8::1 already"}
    host.segment.view.delete_shared("b", host.tick())
    assert host.gives_up() == ["b"]
    host.free("b")
    assert host.takes() == ["a"]
    assert host.segment.view.refused == {}


# ---- reading, and another history ----------------------------------------------------------------


def test_nothing_is_decided_while_keys_are_read() -> None:
    host = Host()
    host.put("a", 1)
    host.put("b", 2)
    host.hold("b", 2)
    host.move("b", "h2")
    host.segment.view.put_drained("h7")
    host.join("h2")
    view = host.segment.view
    view.begin()
    assert host.decide() == Decision([], [], None)
    assert host.answers() == "2"
    host.put("c", 3)
    assert host.decide() == Decision([], [], None)
    view.end(host.tick())
    assert set(view.entries) == {"c"}
    assert not view.members
    assert not view.drained
    assert host.answers() == ""
    assert host.takes() == ["c"]


def test_keys_that_are_read_again_stay() -> None:
    host = Host("h2")
    host.put("a", 1)
    host.hold("a", 1)
    view = host.segment.view
    view.begin()
    host.put("a", 1, created=12)
    host.hold("a", 1)
    host.join(ME, "h2")
    view.put_drained("h2")
    host.move("a", "h2")
    view.end(host.tick())
    assert host.answers() == "1"
    assert view.entries["a"].move == "h2"
    assert set(view.members) == {ME, "h2"}
    assert view.drained == {"h2"}
    assert host.decide() == Decision([], [], None)


def test_nothing_is_decided_before_keys_were_read() -> None:
    segment = Segment("vlan7", ME, LEASE, TakeoverRate())
    segment.set_lease(OURS)
    segment.set_joined(True)
    segment.view.put_shared("a", SharedAddress(PREFIX, Rule()), 1, 1)
    assert segment.decide(0.0) == Decision([], [], None)


def test_after_another_history_all_is_quiet_for_a_while() -> None:
    host = Host()
    host.put("a", 1)
    host.put("b", 2)
    host.hold("a", 1)
    host.hold("b", 2, "h2", THEIRS)
    host.segment.new_history(host.now + TURN)
    assert host.answers() == ""
    assert host.segment.lease is None
    view = host.segment.view
    host.revision = 1
    view.begin()
    host.put("a", 1)
    host.put("b", 2)
    host.put("c", 3)
    host.join(ME)
    view.end(host.tick())
    host.segment.set_lease(OURS + 1)
    decision = host.decide()
    assert decision == Decision([], [], host.now + TURN)
    assert host.takes(TURN - 0.1) == []
    assert sorted(host.takes(0.1)) == ["a", "b", "c"]
    host.hold("a", 1, lease=OURS + 1)
    assert host.answers() == "1"


def test_another_history_forgets_what_this_host_wrote_in_the_former() -> None:
    host = Host()
    host.put("a", 1)
    ((acquisition,), _, _) = host.decide()
    host.segment.acquired(acquisition, 1.0, OURS, 100)
    host.segment.new_history(host.now)
    host.revision = 1
    host.segment.view.begin()
    host.put("a", 1)
    host.hold("a", 1, "h2", THEIRS)
    host.segment.view.end(host.tick())
    assert [each.holder for each in host.segment.addresses()] == ["h2"]


def test_another_history_forgets_how_far_the_stream_was() -> None:
    host = Host()
    host.put("a", 1)
    host.revision = 100
    host.hold("a", 1)
    host.segment.new_history(host.now)
    host.revision = 1
    host.segment.view.begin()
    host.put("a", 1)
    host.join(ME)
    host.segment.view.end(host.tick())
    host.segment.set_lease(OURS)
    ((acquisition,), _, _) = host.decide()
    host.segment.acquired(acquisition, 1.0, OURS, host.tick())
    assert host.answers() == "1"


# ---- bounds --------------------------------------------------------------------------------------


def test_a_hundred_at_once_and_a_thousand_a_second() -> None:
    host = Host()
    for number in range(1300):
        host.put(f"n{number}", number + 1)
    taken = []
    for _ in range(10):
        decision = host.decide()
        assert len(decision.acquire) == 100
        taken += [each.name for each in decision.acquire]
        again = decision.again
    assert again == host.now + 0.1
    assert host.takes() == []
    for _ in range(3):
        some = host.takes(0.1)
        assert 99 <= len(some) <= 100
        taken += some
    assert len(taken) == len(set(taken))


def test_all_segments_share_the_rate() -> None:
    rate = TakeoverRate(burst=150)
    segments = []
    for name in ("s1", "s2"):
        segment = Segment(name, ME, LEASE, rate)
        segment.set_lease(OURS)
        segment.set_joined(True)
        segment.view.begin()
        segment.view.end(1)
        for number in range(100):
            value = SharedAddress(Prefix(address(number + 1), 128), Rule())
            segment.view.put_shared(f"n{number}", value, 2, 2)
        segments.append(segment)
    assert [len(each.decide(5.0).acquire) for each in segments] == [100, 50]


def test_a_rate_fills_up_to_its_burst() -> None:
    rate = TakeoverRate(per_second=10, burst=20)
    assert rate.admitted(100.0) == 20
    rate.charge(20)
    assert rate.again(100.0) == 100.1
    assert rate.admitted(100.0) == 0
    assert rate.admitted(100.5) == 5
    assert rate.admitted(100.4) == 5  # no time has passed
    assert rate.admitted(200.0) == 20
    rate.charge(19)
    assert rate.again(200.0) == 200.0


def handed_over() -> Host:
    """Return a host that has 250 addresses, and gives them up for h2."""
    host = Host("h2")
    for number in range(250):
        host.put(f"n{number}", number + 1)
        host.hold(f"n{number}", number + 1)
    host.decide()
    host.segment.view.put_drained(ME)
    return host


def test_only_so_many_wait_for_their_next_holder() -> None:
    host = handed_over()
    given_up = host.gives_up()
    assert len(given_up) == 100
    decision = host.decide()
    assert decision.release == []
    assert decision.again == host.now + TURN
    assert len(host.answers().split()) == 150
    host.free(*given_up)
    assert host.gives_up() == []
    for name in given_up[:30]:
        host.hold(name, int(name[1:]) + 1, "h2", THEIRS)
    assert len(host.gives_up()) == 30
    for name in given_up[30:]:
        host.segment.view.delete_shared(name, host.tick())
    assert len(host.gives_up()) == 70


def test_a_change_of_what_is_on_its_way_makes_no_room() -> None:
    host = handed_over()
    for name in host.gives_up():
        host.put(name, int(name[1:]) + 1, created=1)
    assert host.gives_up() == []


def test_what_is_to_stay_again_is_not_given_up() -> None:
    host = handed_over()
    host.leave("h2")
    assert len(host.gives_up()) == 100
    host.segment.view.delete_drained(ME)
    assert host.gives_up() == []
    assert len(host.answers().split()) == 150


def test_a_thousand_a_second_are_given_up() -> None:
    host = Host()
    for number in range(1100):
        host.put(f"n{number}", number + 1)
        host.hold(f"n{number}", number + 1)
    host.segment.set_joined(False)
    assert [len(host.gives_up()) for _ in range(11)] == [*[100] * 10, 0]
    assert 99 <= len(host.gives_up(0.1)) <= 100


def test_the_rest_follows_a_turn_later_if_they_are_not_taken() -> None:
    host = handed_over()
    given_up = host.gives_up()
    host.free(*given_up)
    for name in given_up:
        host.segment.released(name)
    assert host.gives_up(TURN - 0.1) == []
    assert len(host.gives_up(0.1)) == 100


def test_without_another_host_nobody_is_waited_for() -> None:
    host = handed_over()
    host.leave("h2")
    assert [len(host.gives_up()) for _ in range(4)] == [100, 100, 50, 0]


def test_a_great_many_are_judged_in_parts() -> None:
    host = Host("h2")
    for number in range(6000):
        host.put(f"n{number}", number + 1, hosts=["h2"] if number < 5500 else ["h1"])
    decision = host.decide()
    assert decision.again == host.now
    assert len(decision.acquire) == 0
    assert len(host.takes()) == 100


# ---- reports -------------------------------------------------------------------------------------


def test_addresses_as_they_are_reported() -> None:
    host = Host("h2")
    host.put("a", 1, hosts=["h2", "h1"], failback=True)
    host.put("b", 2, hosts=["h8", "h9"])
    host.put("c", 3)
    host.put("d", 4)
    host.segment.view.put_shared("e", "why\n", 1, 1)
    host.hold("a", 1, "h2", THEIRS)
    host.hold("z", 9, "h2", THEIRS)
    host.decide()
    nobody = "none of its hosts is a member: h8, h9"
    assert list(host.segment.addresses()) == [
        ("a", "2001:db8::1", ("h2", "h1"), True, "h2", 1.0, ""),
        ("b", "2001:db8::2", ("h8", "h9"), False, "", 0.0, nobody),
        ("c", "2001:db8::3", (), False, "", 0.0, ""),
        ("d", "2001:db8::4", (), False, "", 0.0, ""),
        ("e", "", (), False, "", 0.0, "why\\n"),
    ]
    host.join("h8")
    host.segment.view.put_drained("h8")
    host.decide()
    problems = {each.name: each.problem for each in host.segment.addresses()}
    assert problems["b"] == "all of its hosts that are members are drained: h8"
    host.leave("h2", "h8")
    host.segment.set_joined(False)
    host.decide()
    problems = {each.name: each.problem for each in host.segment.addresses()}
    assert problems["c"] == "no host is a member of the segment"
    assert problems["a"] == ""


# ---- what it costs -------------------------------------------------------------------------------


def fleet(members: int, addresses: int) -> Segment:
    """Return the segment of h0, where each member holds as many addresses."""
    segment = Segment("vlan7", "h0", LEASE, TakeoverRate())
    segment.set_lease(OURS)
    segment.set_joined(True)
    view, rule = segment.view, Rule(origin="shared", label="vlan7")
    view.begin()
    for number in range(members):
        view.put_member(Member(f"h{number}", "", 0.0, ""))
    for number in range(addresses):
        prefix = Prefix(address(number), 128)
        view.put_shared(f"n{number}", SharedAddress(prefix, rule), number + 1, number + 1)
        owner = number % members
        holding = Holding(Holder(f"h{owner}", 0.0, str(prefix)), OURS + owner)
        view.put_holder(f"n{number}", holding, addresses + number)
    view.end(2 * addresses)
    assert segment.decide(1.0) == Decision([], [], None)
    segment.rules()
    return segment


def lose_a_member(segment: Segment, members: int, addresses: int) -> None:
    segment.view.delete_member("h1")
    for number in range(1, addresses, members):
        segment.view.delete_holder(f"n{number}", 2 * addresses + 1)
    segment.decide(2.0)
    segment.rules()


def test_the_loss_of_a_member_costs_its_addresses_only() -> None:
    def with_others(addresses: int) -> int:
        segment = fleet(addresses // 10, addresses)
        return work(lambda: lose_a_member(segment, addresses // 10, addresses))

    assert with_others(2000) < 1.5 * with_others(500)

    def its_own(addresses: int) -> Callable[[], object]:
        segment = fleet(10, addresses)
        return lambda: lose_a_member(segment, 10, addresses)

    assert_in_proportion(its_own, 500)


def test_one_more_key_costs_the_same_beside_many() -> None:
    def cost(addresses: int) -> int:
        segment = fleet(10, addresses)

        def add() -> None:
            value = SharedAddress(Prefix(address(addresses), 128), Rule())
            segment.view.put_shared("one", value, 2, 2)
            segment.decide(2.0)
            segment.rules()

        return work(add)

    assert cost(4000) <= cost(400) + 10


def test_a_member_that_joins_costs_what_this_host_holds() -> None:
    def cost(addresses: int) -> int:
        segment = fleet(addresses // 10, addresses)

        def join() -> None:
            segment.view.put_member(Member("new", "", 0.0, ""))
            segment.decide(2.0)

        return work(join)

    assert cost(4000) <= cost(400) + 10


def test_a_cold_start_costs_few_hashes_for_each_address() -> None:
    def prepare(addresses: int) -> Callable[[], object]:
        segment = fleet(addresses, addresses)
        segment.view.forget_holders()
        return lambda: segment.decide(2.0)

    assert_in_proportion(prepare, 300)
