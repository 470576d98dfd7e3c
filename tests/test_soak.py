"""The soak's judgement: right and wrong answers, losses with a cause and without one."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator

import pytest

from ndxdp.ndp.message import Host, Solicitation, advertise
from ndxdp.rules.address import parse_address
from tests.soak import __main__ as soak
from tests.soak.router import SOURCE, Group, Link

MAC, FAR_MAC = bytes.fromhex("020000000201"), bytes.fromhex("020000000101")
TARGET = parse_address("2001:db8::1")
LATER = 10.0  # seconds, longer than the wait for an answer


@pytest.fixture
def link() -> Iterator[Link]:
    """Yield a link whose solicitations are discarded."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    made = Link("up0", "eth0", FAR_MAC, MAC)
    made._socket = ours
    with ours, theirs:
        yield made


def solicit_at(link: Link, *, answered: bool | None) -> Group:
    group = Group("some", lambda rng: TARGET, answered, changed=-LATER)
    link.groups = [group]
    link.ask(random.Random(0))
    return group


def answer(link: Link, mac: bytes = MAC, target: bytes = TARGET) -> None:
    ns = Solicitation(SOURCE, target, FAR_MAC, FAR_MAC)
    link._judge(advertise(ns, Host(mac)))


def faults(link: Link) -> tuple[int, int]:
    """Let the time for answers pass; return the numbers of wrong and of unexplained results."""
    link.expire(time.monotonic() + LATER)
    return link.tally.wrong, link.tally.unexplained


@pytest.mark.parametrize("expected", [True, None])
def test_a_right_answer(link: Link, expected: bool | None) -> None:
    solicit_at(link, answered=expected)
    answer(link)
    assert faults(link) == (0, 0)
    assert link.tally.answered == link.tally.sent == 1


@pytest.mark.parametrize("expected", [False, None])
def test_right_silence(link: Link, expected: bool | None) -> None:
    solicit_at(link, answered=expected)
    assert faults(link) == (0, 0)
    assert link.tally.silent == 1


def test_a_missing_answer(link: Link) -> None:
    solicit_at(link, answered=True)
    assert faults(link) == (0, 1)


def test_a_missing_answer_with_a_cause(link: Link) -> None:
    with link.window("a flap"):
        solicit_at(link, answered=True)
    assert faults(link) == (0, 0)
    assert link.tally.lost == {"a flap": 1}


def test_an_answer_that_must_not_come(link: Link) -> None:
    solicit_at(link, answered=False)
    answer(link)
    assert faults(link) == (1, 0)


def test_another_mac(link: Link) -> None:
    solicit_at(link, answered=True)
    answer(link, FAR_MAC)
    assert faults(link) == (1, 0)


def test_an_unsolicited_answer(link: Link) -> None:
    solicit_at(link, answered=False)
    answer(link, target=parse_address("2001:db8::2"))
    assert faults(link) == (1, 0)


def test_a_rule_that_changes_meanwhile(link: Link) -> None:
    solicit_at(link, answered=False).become(True)
    answer(link)
    assert faults(link) == (0, 0)


def test_a_run_that_fails() -> None:
    good = dict.fromkeys(("wrong", "unexplained", "tracebacks"), 0)
    settled = {"start": 30000.0, "median": 30100.0, "end": 30200.0, "slope": 3.0}
    rest = {"unexpected_ends": [], "problems": [], "growth": {"memory": settled, "threads": None}}
    assert soak.faults(good | rest) == []
    grown = rest | {"growth": {"memory": settled | {"end": 90000.0}}}
    for fault in ({"wrong": 1}, {"tracebacks": 2}, {"unexpected_ends": [1]}, {"problems": ["x"]}):
        assert len(soak.faults(good | rest | fault)) == 1
    assert len(soak.faults(good | grown)) == 1
