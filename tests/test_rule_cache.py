"""The daemon's copy of the rules: it reads the maps only if a command may have changed them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from ndxdp.daemon import reconcile
from ndxdp.daemon.rule_cache import RuleCache
from ndxdp.errors import NdxdpError
from ndxdp.kernel.abi import Mode
from ndxdp.rules.address import parse_address
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.rule import DOCKER_ORIGIN, MANUAL_ORIGIN, RUN_ORIGIN, Rule
from ndxdp.rules.rule_lists import compile_rules
from ndxdp.rules.ruleset import Rules
from ndxdp.session.request import AttachOptions, AttachRequest
from ndxdp.session.rule_changes import add_rules, delete_rules
from ndxdp.session.session import Session
from ndxdp.store.directories import Trees
from ndxdp.store.instance import open_pinned
from ndxdp.store.rule_file import FEW
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


@pytest.fixture
def in_userspace(net: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    options = AttachOptions(Mode.USERSPACE)
    request = AttachRequest(UPLINK, options=options, origin=RUN_ORIGIN, lock=True)
    with Session.attach(Trees(), request) as session:
        yield Daemon(session, monkeypatch)
        session.detach()


@pytest.fixture(params=["daemon", "in_userspace"])
def each(request: pytest.FixtureRequest) -> Daemon:
    """Return a daemon in one of the kernel's modes, or in userspace mode."""
    found: Daemon = request.getfixturevalue(request.param)
    return found


def test_one_read_serves_for_many_writes(each: Daemon) -> None:
    for addresses in ((FIRST,), (FIRST, SECOND), (SECOND,), ()):
        each.write(*addresses)
    assert each.reads == 1


@pytest.mark.parametrize("pause", [0, 0.15])
def test_a_command_is_noticed(each: Daemon, pause: float) -> None:
    """Notice a command at once, even before the notification, and read only its rules."""
    rule = Rule(origin=MANUAL_ORIGIN)
    each.write(FIRST)
    add_rules(each.session.tree, UPLINK, compile_rules([BY_HAND, SECOND], rule=rule))
    time.sleep(pause)
    rules = each.write(FIRST, SECOND)
    assert len(rules.where(lambda rule: rule.origin == MANUAL_ORIGIN).addresses) == 2
    delete_rules(each.session.tree, UPLINK, compile_rules([SECOND]), MANUAL_ORIGIN)
    time.sleep(pause)
    rules = each.write(FIRST, SECOND)
    assert len(rules.exact[DOCKER]) == 2
    assert each.reads == 1


def test_the_log_says_who_owns_an_address_with_a_rule(
    each: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="ndxdp")
    rules = compile_rules([BY_HAND], rule=Rule(origin=MANUAL_ORIGIN, label="by hand"))
    add_rules(each.session.tree, UPLINK, rules)
    owned = {next(iter(rules)): "gateway"}
    assert reconcile.apply_rules(each.session, owned, None, each.cache)[next(iter(rules))].owned
    assert f"added a hole for {BY_HAND}: gateway" in caplog.messages


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0), (1, 0, 1)], ids=str)
def test_an_older_command_beside_present_ones(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
) -> None:
    """Miss no rule of a command that hands nothing over, between commands that do."""
    daemon.write(FIRST)
    for number, hands_over in enumerate(order):
        rules = compile_rules([f"2001:db8::d:0:0:{number}"], rule=Rule(origin=MANUAL_ORIGIN))
        with monkeypatch.context() as older:
            if not hands_over:
                older.setattr("ndxdp.store.handover.announce", lambda *_: None)
            add_rules(Trees().pins, UPLINK, rules)
    daemon.write(FIRST, SECOND)
    assert daemon.reads == 2


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("reached", ["apply_at", "notify"])
def test_a_command_that_is_killed(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, reached: str, others: int
) -> None:
    """Read what a command has written that ended before its notification."""
    daemon.write(FIRST)

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    place = "ndxdp.store.directories.Tree.notify"
    if reached == "apply_at":
        place = "ndxdp.store.rule_tables.RuleTables.apply_at"
    one, other = (compile_rules([f"2001:db8::d:0:0:{number}"]) for number in range(2))
    with monkeypatch.context() as patched:
        patched.setattr(place, kill)
        with pytest.raises(Killed):
            add_rules(Trees().pins, UPLINK, one)
    if others:
        add_rules(Trees().pins, UPLINK, other)
    daemon.write(FIRST, SECOND)
    assert daemon.reads == 2


def test_what_is_not_written_is_not_remembered(
    each: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    each.write(FIRST)
    with monkeypatch.context() as patched:
        error = NdxdpError("no room", "")

        def fail(*_: object) -> None:
            raise error

        patched.setattr(each.session.maps, "apply", fail)
        with pytest.raises(NdxdpError, match="no room"):
            each.write(FIRST, SECOND)
    each.write(FIRST)
    assert each.reads == 2


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


def test_in_userspace_mode_a_command_that_is_killed_is_noticed(
    in_userspace: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read only what a command has written that ended before its notification."""
    in_userspace.write(FIRST)

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr("ndxdp.store.directories.Tree.notify", kill)
    with pytest.raises(Killed):
        add_rules(Trees().files, UPLINK, compile_rules([BY_HAND]))
    rules = in_userspace.write(FIRST, SECOND)
    assert len(rules.where(lambda rule: rule.origin == MANUAL_ORIGIN).addresses) == 1
    assert in_userspace.reads == 1


def test_in_userspace_mode_large_changes_are_read_anew(in_userspace: Daemon) -> None:
    """Read all rules after a change that is not in the log, except after one of the daemon."""
    many = [f"2001:db8::d:0:{number:x}:1" for number in range(FEW + 1)]
    in_userspace.write(*many)
    add_rules(Trees().files, UPLINK, compile_rules([BY_HAND]))
    in_userspace.write(*many, FIRST)
    assert in_userspace.reads == 1
    others = [f"2001:db8::e:0:{number:x}:1" for number in range(FEW + 1)]
    add_rules(Trees().files, UPLINK, compile_rules(others))
    in_userspace.write(*many)
    assert in_userspace.reads == 2
