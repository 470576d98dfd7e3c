"""The targets that wait for room in the kernel's neighbour table, and the table's size.

tests/scenarios/many_guests.py fills a real table, in the virtual machine of lab/vm.py.
"""

from __future__ import annotations

import re
import subprocess

from ndxdp.daemon.neighbour_room import KNOWN_MAX, WAITING_MAX, WaitingTargets
from ndxdp.ndp.decision import Match
from ndxdp.ndp.message import Solicitation
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.netlink import neighbour_table

RULE = Match(Answer.NEIGHBOUR, Profile())


def target(number: int) -> bytes:
    return b"\x20\x01\x0d\xb8" + number.to_bytes(12, "big")


def ask(waiting: WaitingTargets, *numbers: int) -> None:
    for number in numbers:
        waiting.add(Solicitation(bytes(16), target(number), bytes(6), bytes(6)), RULE, 0.0)


def taken(waiting: WaitingTargets) -> list[bytes]:
    return [each.solicitation.target for each in waiting.take()]


def test_found_before_goes_first_then_asked_for_most() -> None:
    waiting = WaitingTargets()
    waiting.found(target(4))
    ask(waiting, 1, 2, 3, 3, 2, 3, 4)
    assert taken(waiting) == [target(4), target(3), target(2), target(1)]
    assert len(waiting) == 0


def test_a_found_target_waits_no_longer() -> None:
    waiting = WaitingTargets()
    ask(waiting, 1, 2)
    waiting.found(target(1))
    assert taken(waiting) == [target(2)]
    assert waiting.guests == 1
    waiting.lost(target(1))
    assert not waiting.was_found(target(1))


def test_a_scan_takes_no_place_of_a_guest() -> None:
    waiting = WaitingTargets()
    waiting.found(target(0))
    ask(waiting, *range(1, WAITING_MAX + 100))
    assert len(waiting) == WAITING_MAX
    ask(waiting, 0)
    assert len(waiting) == WAITING_MAX
    assert taken(waiting)[0] == target(0)


def test_memory_is_bounded() -> None:
    waiting = WaitingTargets()
    for number in range(KNOWN_MAX + 10):
        waiting.found(target(number))
    assert waiting.guests == KNOWN_MAX
    assert not waiting.was_found(target(9))
    assert waiting.was_found(target(10))


def test_targets_that_found_no_room_wait_on() -> None:
    waiting = WaitingTargets()
    ask(waiting, 1, 2)
    several = waiting.take()
    ask(waiting, 2, 2)
    waiting.wait_again(several)
    assert taken(waiting) == [target(2), target(1)]


def test_the_size_is_the_kernels() -> None:
    """Read the same limit as `ip ntable`; all network namespaces share it."""
    shown = subprocess.run(
        ["ip", "-s", "ntable", "show", "name", "ndisc_cache"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    table = neighbour_table.read()
    assert table is not None
    assert [str(table.most)] == re.findall(r"thresh3 (\d+)", shown)[:1]
    (overflows,) = re.findall(r"table_fulls (\d+)", shown)[:1]
    assert table.overflows >= int(overflows)


def test_the_settings_leave_room_for_all() -> None:
    """Make gc_thresh1, below which the kernel removes no entry, as large as the need."""
    name = "net.ipv6.neigh.default.gc_thresh"
    assert neighbour_table.settings_for(5000) == [
        f"{name}3=32768",
        f"{name}2=16384",
        f"{name}1=8192",
    ]
    assert neighbour_table.settings_for(1) == [f"{name}3=4", f"{name}2=2", f"{name}1=1"]
