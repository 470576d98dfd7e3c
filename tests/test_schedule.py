"""The order of announcements, and sets of any size that are taken without delay."""

from __future__ import annotations

import random

import pytest

from ndxdp.ndp.profile import DEFAULT_PROFILE, Profile
from ndxdp.rules.address_set import AddressSet
from ndxdp.upstream.schedule import PAUSES, SLICE, Schedule, Turn

OTHER = Profile(router=False)
MANY = 100_000
LAST = len(PAUSES)


class Clocked(Schedule):
    """A schedule with a clock that tests set."""

    def __init__(self, room: int = 2 * MANY) -> None:
        super().__init__(room, lambda: self.now)
        self.now = 0.0

    def take_some(self, count: int = 2 * MANY) -> list[tuple[int, int]]:
        """Take turns; return the number of each address, and its transmissions before."""
        found: list[tuple[int, int]] = []
        while len(found) < count and (turn := self.take()):
            self.repeat(turn)
            found.append((number_of(turn), turn.before))
        return found


def address(number: int) -> bytes:
    return bytes.fromhex("20010db8") + number.to_bytes(12, "big")


def number_of(turn: Turn) -> int:
    return int.from_bytes(turn.address[4:], "big")


def addresses(*numbers: int) -> AddressSet:
    return AddressSet.of(map(address, numbers))


def test_a_series() -> None:
    schedule = Clocked()
    assert (schedule.take(), schedule.due) == (None, None)
    schedule.begin(addresses(1, 2), DEFAULT_PROFILE)
    assert (schedule.waiting, schedule.repeating, schedule.due) == (2, 0, 0)
    for before in range(LAST + 1):
        assert schedule.take_some() == [(1, before), (2, before)]
        if before < LAST:
            assert (schedule.waiting, schedule.repeating) == (0, 2)
            schedule.now += PAUSES[before]
            assert schedule.due == schedule.now
    assert (schedule.waiting, schedule.repeating, schedule.due) == (0, 0, None)
    assert schedule.known == 2


def test_new_addresses_go_first_and_few_before_many() -> None:
    schedule = Clocked()
    schedule.begin(addresses(9), DEFAULT_PROFILE)
    schedule.take_some()
    schedule.restart()
    schedule.begin(addresses(*range(1000, 3000)), DEFAULT_PROFILE)
    assert schedule.take_some(3) == [(1000, 0), (1001, 0), (1002, 0)]
    schedule.begin(addresses(5), DEFAULT_PROFILE)
    found = schedule.take_some()
    assert found.index((5, 0)) < SLICE
    assert [number for number, _ in found if number >= 1000] == [*range(1003, 3000)]
    assert found[-1] == (9, 0)


@pytest.mark.parametrize("change", ["announced", "removed", "restarted", "refreshed", "moved"])
def test_a_large_set_stays_packed(change: str) -> None:
    """Make no object for each address, so that other tasks of the event loop are not delayed."""
    schedule, many = Clocked(), addresses(*range(MANY))
    schedule.begin(many, DEFAULT_PROFILE)
    if change == "announced":
        schedule.begin(many, DEFAULT_PROFILE)
    elif change == "removed":
        schedule.remove(addresses(*range(10, MANY)))
    elif change == "restarted":
        schedule.take()
        schedule.restart()
    elif change == "refreshed":
        while schedule.take():
            pass
        schedule.refresh()
    else:
        schedule.begin(many, OTHER)
    assert schedule.waiting == (10 if change == "removed" else MANY)
    assert schedule.unpacked <= SLICE
    schedule.take_some(1000)
    assert schedule.unpacked <= SLICE + 1000


def test_room() -> None:
    schedule = Clocked(room=3)
    schedule.begin(addresses(1, 2), DEFAULT_PROFILE)
    schedule.begin(addresses(2, 3, 4, 5), DEFAULT_PROFILE)
    assert (schedule.known, schedule.waiting, schedule.dropped) == (3, 3, 2)
    schedule.remove(addresses(1))
    schedule.begin(addresses(4), DEFAULT_PROFILE)
    assert [number for number, _ in schedule.take_some()] == [2, 3, 4]


def test_a_profile_that_changes() -> None:
    schedule = Clocked()
    schedule.begin(addresses(1, 2), DEFAULT_PROFILE)
    schedule.begin(addresses(2), OTHER)
    profiles = [schedule.profile(address(number)) for number in (1, 2, 3)]
    assert profiles == [DEFAULT_PROFILE, OTHER, None]
    assert schedule.known == 2


def test_a_round_that_takes_longer_than_its_interval() -> None:
    """Give every address its turn: the next round does not begin at the first one again."""
    schedule = Clocked()
    schedule.begin(addresses(*range(1000)), DEFAULT_PROFILE)
    while schedule.take():
        pass
    found: set[int] = set()
    for _ in range(20):
        schedule.refresh()
        found.update(number for number, _ in schedule.take_some(100))
    assert found == set(range(1000))


def test_an_address_in_the_middle_of_its_turn() -> None:
    schedule = Clocked()
    schedule.begin(addresses(1), DEFAULT_PROFILE)
    turn = schedule.take()
    assert turn is not None
    schedule.begin(addresses(2), DEFAULT_PROFILE)
    assert not schedule.is_over(turn)
    schedule.retry(turn)
    schedule.retry(turn)
    assert schedule.waiting == 2
    schedule.remove(addresses(2))
    again = schedule.take()
    assert again is not None
    assert not schedule.is_over(again)
    schedule.begin(addresses(1), OTHER)
    assert schedule.is_over(again)  # another series begins
    assert (again.profile, schedule.profile_now(again)) == (DEFAULT_PROFILE, OTHER)
    schedule.take()
    schedule.remove(addresses(1))
    assert schedule.is_over(again)
    assert schedule.profile_now(again) is None
    schedule.retry(again)
    assert schedule.waiting == 0


def test_against_a_model() -> None:
    """Change the schedule at random: each address has its series, and no other has a turn."""
    random.seed(11)
    schedule = Clocked()
    known: set[int] = set()
    expected: dict[int, int] = {}  # by address, the transmissions before its next one
    for _ in range(3000):
        some = random.sample(range(2000), random.choice([1, 1, 1, 5, 600]))
        action = random.randrange(12)
        if action == 0:
            schedule.begin(addresses(*some), random.choice([DEFAULT_PROFILE, OTHER]))
            known.update(some)
            expected.update(dict.fromkeys(some, 0))
        elif action == 1:
            schedule.remove(addresses(*some))
            known.difference_update(some)
            expected = {number: turn for number, turn in expected.items() if number in known}
        elif action == 2 and random.random() < 0.1:
            schedule.restart()
            expected = dict.fromkeys(known, 0)
        else:
            schedule.now += 0.5
            for number, before in schedule.take_some(random.randrange(100)):
                assert expected.pop(number) == before
                if before < LAST:
                    expected[number] = before + 1
        assert schedule.known == len(known)
        assert schedule.waiting == sum(not before for before in expected.values())
        assert schedule.waiting + schedule.repeating == len(expected)


def test_transient_addresses_are_left_to_the_caller() -> None:
    """restart() and refresh() announce other addresses again; add() announces each once."""
    schedule = Clocked()
    schedule.begin(addresses(1), DEFAULT_PROFILE)
    schedule.begin(addresses(2), DEFAULT_PROFILE, transient=True)
    assert schedule.new == 2
    assert schedule.take_some() == [(1, 0), (2, 0)]
    schedule.restart()
    assert schedule.take_some() == [(1, 0)]
    schedule.refresh()
    assert schedule.take_some() == [(1, 0)]
    for _ in range(2):
        schedule.add(addresses(2, 3), DEFAULT_PROFILE)
    schedule.begin(addresses(4), DEFAULT_PROFILE)
    assert schedule.take_some() == [(4, 0), (2, 0), (3, 0)]
    schedule.now += PAUSES[0]
    assert schedule.take_some() == [(4, 1), (1, 1)]
    schedule.remove(addresses(2, 3))
    schedule.begin(addresses(2), DEFAULT_PROFILE)
    schedule.restart()
    assert (2, 0) in schedule.take_some(), "it is not transient any more"
    assert schedule.known == 3


def test_an_address_that_is_new_is_not_announced_once_more() -> None:
    schedule = Clocked()
    schedule.begin(addresses(1), DEFAULT_PROFILE, transient=True)
    schedule.add(addresses(1), DEFAULT_PROFILE)
    assert schedule.take_some() == [(1, 0)]
