"""Each decision is one event for a tracer, in every mode: the table of packets, in process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from ndxdp.daemon.packet_loop import PacketLoop
from ndxdp.kernel import abi, bpf_maps
from ndxdp.kernel.abi import Mode
from ndxdp.ndp.frame import OTHER_VLAN_LEN, eth_source_of, source_of, target_of, untagged
from ndxdp.ndp.reason import Reason
from ndxdp.netlink.fib import Fib
from ndxdp.observe.trace import Event, Tracer
from ndxdp.rules.difference import difference
from ndxdp.rules.rule import RUN_ORIGIN
from ndxdp.rules.table import Table
from ndxdp.session.detach import detach_interface
from ndxdp.session.request import AttachOptions, AttachRequest
from ndxdp.session.session import Session
from ndxdp.store.directories import Trees
from ndxdp.store.instance import Instance, open_instance
from ndxdp.store.records import Settings
from tests.fixtures.pair import RECEIVER, Pair, pair
from tests.packets import BURST, CASES, HOST, RULES, Case, show

MINUTE = 60_000_000_000


@dataclass
class Bench:
    """A responder and its tracer. put: process a frame."""

    instance: Instance
    tracer: Tracer
    put: Callable[[bytes, bool], None]
    settings: Settings
    set_gateways: Callable[[frozenset[bytes]], None]

    def set_up(self, case: Case) -> None:
        self.set_gateways(case.gateways)
        until = time.monotonic_ns() + MINUTE
        self.instance.maps.write_lease(case.lease)
        self.instance.maps.set_settings(
            replace(case.settings(self.settings), trace_until=until, trace_every=1)
        )

    def events(self, count: int) -> list[Event]:
        """Return the events, at most `count` and no more than there are."""
        found: list[Event] = []
        for _ in range(100):
            found += self.tracer.wait(0.02)[0]
            if len(found) >= count:
                break
        return found + self.tracer.wait(0)[0]


@pytest.fixture(scope="module", params=list(Mode), ids=lambda mode: mode.label)
def bench(request: pytest.FixtureRequest, trees: Trees) -> Iterator[Bench]:
    open_bench = _userspace if request.param is Mode.USERSPACE else _program
    with pair(HOST.mac) as ends, open_bench(trees, request.param, ends) as opened:
        instance, put, set_gateways = opened
        actual = instance.maps.rules()
        instance.maps.apply(difference(RULES, actual), actual)
        with Tracer(trees, [RECEIVER]) as tracer:
            yield Bench(instance, tracer, put, instance.maps.settings(), set_gateways)


Opened = tuple[Instance, Callable[[bytes, bool], None], Callable[[frozenset[bytes]], None]]


@contextlib.contextmanager
def _program(trees: Trees, mode: Mode, ends: Pair) -> Iterator[Opened]:
    request = AttachRequest(RECEIVER, options=AttachOptions(mode))
    Session.attach(trees, request).close()

    def put(frame: bytes, dropped: bool) -> None:
        ends.send(frame)
        assert any(ends.outcome(nothing=dropped)) is not dropped

    with open_instance(trees.pins, RECEIVER) as instance:
        yield instance, put, instance.maps.set_gateways
    detach_interface(trees, RECEIVER)


@contextlib.contextmanager
def _userspace(trees: Trees, mode: Mode, ends: Pair) -> Iterator[Opened]:
    request = AttachRequest(RECEIVER, options=AttachOptions(mode), origin=RUN_ORIGIN, lock=True)
    with Session.attach(trees, request) as session, Fib() as fib:
        assert session.packets
        path = PacketLoop(session.maps, session.packets, fib)

        def put(frame: bytes, dropped: bool) -> None:
            ends.send(frame)
            assert ends.passed() == frame
            path.on_readable()
            while ends.reply(nothing=True) is not None:
                pass

        yield session.instance, put, path.set_gateways
        session.detach()


def as_seen(case: Case, mode: Mode) -> bytes:
    """Return the frame as the mode's responder sees it: its tag may be missing."""
    if case.reason is not Reason.OTHER_VLAN:
        return untagged(case.frame)
    if mode in (Mode.NATIVE, Mode.GENERIC):
        return case.frame
    frame = untagged(case.frame)
    return frame[:OTHER_VLAN_LEN] if mode is Mode.USERSPACE else frame


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_solicitation_is_one_event(bench: Bench, case: Case) -> None:
    bench.set_up(case)
    if case.rate_exceeded:
        if bench.instance.maps.in_kernel:
            limiter = bench.instance.maps.fds["limiter"]
            bpf_maps.delete(limiter, 8, eth_source_of(case.frame) + bytes(2))
        for _ in range(BURST):
            bench.put(case.frame, False)
        bench.events(BURST)
    before, began = bench.tracer.counts(), time.time_ns()

    bench.put(case.frame, case.reason is Reason.RATE_LIMITED)
    if case.reason is Reason.NOT_NS:
        assert bench.tracer.wait(0)[0] == []
        assert bench.tracer.counts() == before
        return
    (event,) = bench.events(1)

    assert event.reason is case.reason, show(case.frame)
    seen = as_seen(case, bench.settings.mode)
    assert (event.frame, event.length) == (seen[: abi.EVENT_FRAME], len(seen))
    assert event.reply == case.reply, show(event.reply or b"")
    assert event.interface == RECEIVER
    frame = untagged(case.frame)
    assert (event.source, event.mac) == (source_of(frame), eth_source_of(frame))
    matched = None
    if event.reason >= Reason.DENIED:
        matched = Table.of(RULES).lookup(target_of(frame))
    assert (event.prefix, event.rule) == (matched or (None, None))
    assert began - MINUTE < event.time < time.time_ns() + MINUTE, "that is no wall-clock time"
    after = bench.tracer.counts()
    assert (after.seen - before.seen, after.lost) == (1, 0)


def test_every_tenth(bench: Bench) -> None:
    """Sample every tenth solicitation of each CPU; this test uses one."""
    case = next(case for case in CASES if case.reason is Reason.NO_RULE)
    bench.set_up(case)
    settings = replace(bench.instance.maps.settings(), trace_every=10)
    bench.instance.maps.set_settings(settings)
    before = bench.tracer.counts().seen
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        for _ in range(50):
            bench.put(case.frame, False)
    finally:
        os.sched_setaffinity(0, cpus)
    assert len(bench.events(5)) == 5
    assert bench.tracer.counts().seen - before == 50


def test_no_events_without_a_tracer(bench: Bench) -> None:
    """Make no events if no tracer ever ran, or if its time is over."""
    case = next(case for case in CASES if case.reason is Reason.ANSWERED)
    for until in (0, time.monotonic_ns()):
        bench.set_up(case)
        settings = replace(bench.instance.maps.settings(), trace_until=until)
        bench.instance.maps.set_settings(settings)
        before = bench.tracer.counts()
        bench.put(case.frame, False)
        assert bench.tracer.wait(0)[0] == []
        assert bench.tracer.counts() == before


def test_a_dry_run_is_no_event(bench: Bench) -> None:
    case = next(case for case in CASES if case.reason is Reason.ANSWERED)
    bench.set_up(case)
    assert bench.instance.verdict(case.frame)[1] == case.reply
    assert bench.tracer.wait(0)[0] == []


def test_a_deleted_rule_is_not_guessed(bench: Bench) -> None:
    """Show no rule in an event if it was deleted before the event is read."""
    case = next(case for case in CASES if case.reason is Reason.DENIED)
    bench.set_up(case)
    maps = bench.instance.maps
    bench.put(case.frame, False)
    packed = maps._packed_classes()
    maps.slots("groups").clear(packed)
    try:
        bench.tracer._extend()
        (event,) = bench.events(1)
        assert (event.reason, event.prefix, event.rule) == (Reason.DENIED, None, None)
    finally:
        maps.slots("groups").update(packed.items())
        bench.tracer._extend()
        maps.apply(difference(RULES, {}), maps.rules())
