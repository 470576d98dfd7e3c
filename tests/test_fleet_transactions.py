"""The requests of one host to etcd: on their way, under its lease, and ahead of the stream."""

from __future__ import annotations

from ndxdp.fleet.decision import Decision
from ndxdp.fleet.records import Holder, Member
from ndxdp.fleet.segment import Segment
from ndxdp.fleet.shared_address import SharedAddress
from ndxdp.fleet.takeover_rate import TakeoverRate
from ndxdp.fleet.view import Holding
from ndxdp.rules.rule import Rule
from ndxdp.runtime.daemon_status import SegmentStatus
from tests.fixtures.segment_host import (
    LEASE,
    ME,
    OURS,
    PREFIX,
    THEIRS,
    TURN,
    Host,
    holding,
    wanting,
)


def releasing() -> Host:
    """Return h1 while it releases the address a, although it may hold it again."""
    host = holding()
    host.segment.set_joined(False)
    assert host.gives_up() == ["a"]
    host.segment.set_joined(True)
    return host


# ---- releases and acquisitions on their way ------------------------------------------------------


def restore_etcd(host: Host) -> None:
    """Give etcd another history, in which the revision is small, with the address a."""
    host.segment.new_history(host.now)
    host.revision = 1
    host.segment.view.begin()
    host.put("a", 1)
    host.join(ME)
    host.segment.view.end(host.tick())


def test_what_is_released_is_not_acquired_before_its_key_is_gone() -> None:
    host = releasing()
    assert host.decide(0.5) == Decision([], [], 106.0)
    host.segment.released("a")
    assert host.answers() == ""
    assert host.decide(0.5).acquire == []
    host.free("a")
    assert host.takes(0.5) == ["a"]


def test_the_stream_may_be_before_the_answer_to_a_release() -> None:
    host = releasing()
    host.free("a")
    assert host.decide(0.1).acquire == []  # the answer is to come
    host.segment.released("a")
    assert host.takes(0.1) == ["a"]


def test_a_release_of_unknown_result_may_still_be_carried_out() -> None:
    """The release would delete the key that this host creates now."""
    host = releasing()
    host.segment.refused("a", host.now)
    host.free("a")
    assert host.takes(TURN - 0.1) == []
    assert host.takes(0.1) == ["a"]


def test_a_release_of_unknown_result_is_repeated() -> None:
    host = releasing()
    host.segment.refused("a", host.now)
    assert host.gives_up(0.9) == []
    assert host.answers() == ""
    assert host.gives_up(0.1) == ["a"]
    assert host.gives_up(TURN - 0.1) == []
    assert host.gives_up(0.1) == ["a"]  # nobody has reported a result


def test_an_acquisition_without_effect_is_tried_again() -> None:
    host = wanting()
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
    host = wanting()
    assert host.takes() == ["a"]
    host.hold("a", 1, "h2", THEIRS)
    assert host.takes() == []
    host.segment.refused("a", host.now)
    host.free("a")
    assert host.takes(0.1) == ["a"]


def test_an_answer_is_ahead_of_the_stream() -> None:
    host = wanting()
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
    host = wanting()
    ((acquisition,), _, _) = host.decide()
    host.hold("a", 1)
    created = host.revision
    host.free("a")
    host.segment.acquired(acquisition, 7.0, OURS, created)
    assert host.answers() == ""
    assert host.takes() == ["a"]


def test_an_answer_of_a_former_lease_counts_for_nothing() -> None:
    host = wanting()
    ((acquisition,), _, _) = host.decide()
    host.segment.set_lease(OURS + 5)
    host.segment.acquired(acquisition, 7.0, OURS, host.tick())
    assert host.answers() == ""


def test_an_answer_of_a_former_history_counts_for_nothing() -> None:
    """Its revision may be greater than all that are to come for a long time."""
    host = wanting()
    ((acquisition,), _, _) = host.decide()
    restore_etcd(host)
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
    host = holding("h2")
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
    host = holding("h2")
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
    host = wanting()
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
    host = wanting()
    host.revision = 100
    host.hold("a", 1)
    restore_etcd(host)
    host.segment.set_lease(OURS)
    ((acquisition,), _, _) = host.decide()
    host.segment.acquired(acquisition, 1.0, OURS, host.tick())
    assert host.answers() == "1"
