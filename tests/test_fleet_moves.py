"""Moves of shared addresses, hosts that do not take theirs, and the bounds of handovers."""

from __future__ import annotations

import pytest

from ndxdp.fleet.decision import Decision
from ndxdp.fleet.segment import Segment
from ndxdp.fleet.shared_address import SharedAddress
from ndxdp.fleet.takeover_rate import TakeoverRate
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from tests.fixtures.segment_host import LEASE, ME, OURS, THEIRS, TURN, Host, address, holding

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
    host = holding()
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


def give_up_in_vain(host: Host) -> None:
    """Let a host give the address a up; take it back, because no other host takes it."""
    assert host.gives_up() == ["a"]
    host.free("a")
    host.segment.released("a")
    assert host.takes() == []
    assert host.takes(TURN) == ["a"]
    host.hold("a", 1)
    assert host.decide().release == []


def unable() -> Host:
    """Return a host that has given an address back to h2, which did not take it."""
    host = Host("h2")
    host.put("a", 1, hosts=["h2", "h1"], failback=True)
    host.hold("a", 1)
    give_up_in_vain(host)
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
    give_up_in_vain(host)
    host.move("a", "h2")
    assert host.decide().release == ["a"]


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
