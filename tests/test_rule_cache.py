"""The daemon's copy of the rules: it reads the maps only if a command may have changed them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from ndxdp.daemon import reconcile
from ndxdp.daemon.rule_cache import RuleCache
from ndxdp.errors import NdxdpError
from ndxdp.rules.address import parse_address
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.rule import DOCKER_ORIGIN, MANUAL_ORIGIN, Rule
from ndxdp.rules.rule_lists import compile_rules
from ndxdp.rules.ruleset import Rules
from ndxdp.session.rule_changes import add_rules, delete_rules
from ndxdp.session.session import Session
from ndxdp.store.directories import Trees
from ndxdp.store.instance import open_pinned
from tests.fixtures.network import UPLINK, Network

DOCKER = Rule(origin=DOCKER_ORIGIN, label="six", dynamic=True)
FIRST, SECOND, BY_HAND = (f"2001:db8::c:0:0:{number}" for number in range(1, 4))


class Daemon:
    """The part of a daemon that writes the rules of containers, with a count of its reads."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.session = RuleCache(session), session
        self.reads = 0
        read = session.maps.rules

        def counted() -> Rules:
            self.reads += 1
            return read()

        monkeypatch.setattr(session.maps, "rules", counted)
        self.read = read

    def write(self, *addresses: str) -> Rules:
        """Write the rules of containers; check that what is remembered is in the maps."""
        some = AddressSet.of(map(parse_address, addresses))
        rules = reconcile.apply_rules(
            self.session, {}, {DOCKER_ORIGIN: Rules({DOCKER: some})}, self.cache
        )
        assert rules == self.read()
        return rules


@pytest.fixture
def daemon(attached: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    tree = Trees().pins
    with Session(tree, open_pinned(tree, UPLINK)) as session:
        time.sleep(0.15)  # a directory that was changed just now may be changed again unnoticed
        yield Daemon(session, monkeypatch)


def test_one_read_serves_for_many_writes(daemon: Daemon) -> None:
    for addresses in ((FIRST,), (FIRST, SECOND), (SECOND,), ()):
        daemon.write(*addresses)
    assert daemon.reads == 1


@pytest.mark.parametrize("pause", [0, 0.15])
def test_a_command_is_noticed(daemon: Daemon, pause: float) -> None:
    """Notice a command at once, even before the notification, and read only its rules."""
    rule = Rule(origin=MANUAL_ORIGIN)
    daemon.write(FIRST)
    add_rules(Trees().pins, UPLINK, compile_rules([BY_HAND, SECOND], rule=rule))
    time.sleep(pause)
    rules = daemon.write(FIRST, SECOND)
    assert len(rules.where(lambda rule: rule.origin == MANUAL_ORIGIN).addresses) == 2
    delete_rules(Trees().pins, UPLINK, compile_rules([SECOND]), MANUAL_ORIGIN)
    time.sleep(pause)
    rules = daemon.write(FIRST, SECOND)
    assert len(rules.exact[DOCKER]) == 2
    assert daemon.reads == 1


def test_what_is_not_written_is_not_remembered(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.write(FIRST)
    with monkeypatch.context() as patched:
        error = NdxdpError("no room", "")

        def fail(*_: object) -> None:
            raise error

        patched.setattr(daemon.session.maps, "apply", fail)
        with pytest.raises(NdxdpError, match="no room"):
            daemon.write(FIRST, SECOND)
    daemon.write(FIRST)
    assert daemon.reads == 2


def test_a_directory_that_was_removed_is_read(daemon: Daemon) -> None:
    daemon.write(FIRST)
    tree = Trees().pins
    tree.path(UPLINK).rename(tree.path("elsewhere"))
    try:
        daemon.write(FIRST)
        daemon.write(FIRST)
        assert daemon.reads == 3
    finally:
        tree.path("elsewhere").rename(tree.path(UPLINK))


def test_a_clock_that_was_set_back_is_not_trusted(daemon: Daemon) -> None:
    daemon.write(FIRST)
    future = time.time() + 1000
    os.utime(Trees().pins.path(UPLINK), (future, future))
    daemon.write(FIRST)
    assert daemon.reads == 2
    Trees().pins.notify(UPLINK)
    daemon.write(FIRST)
    assert daemon.reads == 3
