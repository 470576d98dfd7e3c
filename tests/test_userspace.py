"""The userspace path against the table of packets, on a real socket, and with random frames.

A packet socket gets a copy of each frame before the bridge does. So when a frame has passed to the
tap, the socket's queue has it, or will never have it.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from ndxdp.daemon.packet_loop import PacketLoop
from ndxdp.kernel.abi import Mode
from ndxdp.ndp.decision import decide
from ndxdp.ndp.frame import eth_source_of, lladdr_of, source_of, target_of
from ndxdp.ndp.message import solicit
from ndxdp.ndp.reason import Reason
from ndxdp.netlink.fib import Fib
from ndxdp.rules.difference import difference
from ndxdp.rules.rule import RUN_ORIGIN
from ndxdp.rules.ruleset import Rules
from ndxdp.rules.table import Table
from ndxdp.session.request import AttachOptions, AttachRequest
from ndxdp.session.session import Session
from ndxdp.sockets.packet import BATCH, PacketSocket, solicitation_filter
from ndxdp.store.directories import Trees
from ndxdp.store.instance import Instance
from ndxdp.store.records import Settings
from tests.fixtures.class_counts import check_class_counts
from tests.fixtures.network import eventually
from tests.fixtures.pair import RECEIVER, Pair, pair
from tests.fuzz import frames as fuzz
from tests.packets import BURST, CASES, HOST, RULES, Case, show

SEED, FRAMES = 7527, 3000
SOL_PACKET, STATISTICS = 263, 6


@dataclass
class Bench:
    """The path at one end of a link. Tests run it by calls, so that none has to wait."""

    ends: Pair
    packets: PacketSocket
    path: PacketLoop
    instance: Instance
    settings: Settings

    def set_up(self, case: Case) -> None:
        self.instance.maps.set_settings(case.settings(self.settings))
        self.instance.maps.write_lease(case.lease)
        self.path._refresh()  # other limits create another limiter
        self.path.set_gateways(case.gateways)

    def put(self, frame: bytes) -> bytes | None:
        """Put a frame on the link and run the path; return the frame that the kernel receives."""
        self.ends.send(frame)
        passed = self.ends.passed()
        self.path.on_readable()
        return passed

    def counted(self, before: dict[Reason, int]) -> dict[Reason, int]:
        after = self.instance.maps.reasons()
        return {reason: after[reason] - n for reason, n in before.items() if after[reason] != n}


@contextmanager
def opened(trees: Trees) -> Iterator[Bench]:
    """Answer from userspace at one end of a link, by the rules of the packet cases."""
    request = AttachRequest(
        RECEIVER, options=AttachOptions(Mode.USERSPACE), origin=RUN_ORIGIN, lock=True
    )
    with (
        pair(HOST.mac) as ends,
        Session.attach(trees, request) as session,
        Fib() as fib,
    ):
        packets, maps = session.packets, session.maps
        assert packets
        there = maps.rules()
        maps.apply(difference(RULES, there), there)
        path = PacketLoop(maps, packets, fib)
        yield Bench(ends, packets, path, session.instance, maps.settings())
        session.detach()


@pytest.fixture(scope="module")
def bench(trees: Trees) -> Iterator[Bench]:
    with opened(trees) as bench:
        bench.packets.spread()
        yield bench


def test_rules_read_back_as_written(bench: Bench) -> None:
    assert bench.instance.maps.rules() == RULES
    assert bench.settings.mode is Mode.USERSPACE


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_real_frame(bench: Bench, case: Case) -> None:
    """Give the same bytes and reasons as the program; the frame itself always passes."""
    bench.set_up(case)
    if case.rate_exceeded:
        for _ in range(BURST):
            bench.put(case.frame)
            limited = case.reason in (Reason.RATE_LIMITED, Reason.GATEWAY_LIMITED)
            assert (bench.ends.reply(nothing=not limited) is not None) == limited
    before = bench.instance.maps.reasons()

    passed = bench.put(case.frame)

    assert passed == case.frame, f"{show(case.frame)}\n  became\n{passed and show(passed)}"
    reply = bench.ends.reply(nothing=case.reply is None)
    assert reply == case.reply, f"{show(case.frame)}\n  brought\n{reply and show(reply)}"
    assert bench.ends.is_silent()
    assert bench.counted(before) == ({} if case.reason is Reason.NOT_NS else {case.reason: 1})


def test_rule_classes_count_their_solicitations(bench: Bench) -> None:
    def send(case: Case) -> None:
        bench.set_up(case)
        bench.put(case.frame)
        bench.ends.reply(nothing=case.reply is None)

    check_class_counts(bench.instance, send)


def test_a_rule_holds_from_the_next_frame_on(bench: Bench) -> None:
    """Notice changed rules when the next frame comes, without a notification."""
    case = next(case for case in CASES if case.reason is Reason.ANSWERED)
    bench.set_up(case)
    maps = bench.instance.maps
    for _ in range(2):  # the second answer is made by the first one's template
        bench.put(case.frame)
        assert bench.ends.reply() == case.reply
    maps.apply(difference({}, RULES), RULES)
    bench.put(case.frame)
    assert bench.ends.reply(nothing=True) is None
    maps.apply(difference(RULES, {}), Rules())
    bench.put(case.frame)
    assert bench.ends.reply() == case.reply


def test_settings_hold_from_the_next_frame_on(bench: Bench) -> None:
    """Answer with the present settings, though earlier answers made templates."""
    case = next(case for case in CASES if case.reason is Reason.ANSWERED)
    bench.set_up(case)
    maps, other = bench.instance.maps, b"\2\0\0\0\0\x42"
    settings = maps.settings()
    for _ in range(2):
        bench.put(case.frame)
        assert bench.ends.reply() == case.reply
    maps.set_settings(replace(settings, paused=True))
    bench.put(case.frame)
    assert bench.ends.reply(nothing=True) is None
    maps.set_settings(replace(settings, mac=other))
    bench.put(case.frame)
    reply = bench.ends.reply()
    assert reply is not None
    assert lladdr_of(reply) == eth_source_of(reply) == other
    maps.set_settings(settings)


def test_waiting_frames_are_answered_at_the_end(bench: Bench) -> None:
    """Answer all waiting frames, more than one batch, when another process takes over."""
    case = next(case for case in CASES if case.reason is Reason.ANSWERED)
    bench.set_up(case)
    before, sent, waiting = bench.instance.maps.reasons(), 0, 0
    for mac in (HOST.mac[:5] + bytes([n]) for n in range(128, 192)):
        asked = solicit(mac, target_of(case.frame), source=source_of(case.frame), sllao=mac)
        for _ in range(20):
            bench.ends.send(asked)
            sent += 1

    def all_wait() -> bool:
        nonlocal waiting
        for queue in bench.packets._sockets.values():
            packets, drops = struct.unpack("=II", queue.getsockopt(SOL_PACKET, STATISTICS, 8))
            waiting += packets - drops
        return waiting >= sent

    eventually(all_wait)
    bench.path.finish()
    assert bench.counted(before) == {Reason.ANSWERED: sent}
    while not bench.ends.is_silent():
        bench.ends.outcome()


# ---- damaged and random frames ------------------------------------------------------------------


def test_frames_cut_anywhere(bench: Bench) -> None:
    """Handle all lengths, from the link's minimum to a whole solicitation and 4 bytes more."""
    case = next(case for case in CASES if case.reason is Reason.ANSWERED and len(case.frame) == 86)
    bench.set_up(case)
    for length in range(15, 91):
        frame = (case.frame + bytes(4))[:length]
        before = bench.instance.maps.reasons()
        bench.put(frame)
        wanted = decide(frame, HOST, Table.of(RULES).match)
        assert bench.ends.reply(nothing=wanted.reply is None) == wanted.reply, length
        expected = {} if wanted.reason is Reason.NOT_NS else {wanted.reason: 1}
        assert bench.counted(before) == expected, length
    assert wanted.reply is not None, "garbage behind a whole solicitation is padding"


def test_random_frames(bench: Bench) -> None:
    """Count each random NS once, and send the answers that ndp.py decides."""
    rng, table = random.Random(SEED), Table.of(RULES)
    case = next(case for case in CASES if case.reason is Reason.ANSWERED)
    before = bench.instance.maps.reasons()
    expected: dict[Reason, int] = {}
    source = fuzz.Frames(rng, fuzz.Case(RULES, case.host, expired=False, lapsed=False))
    # A bridge drops frames from a group's MAC.
    random_frames = (frame for frame in iter(source.frame, None) if not frame[6] & 1)
    for _ in range(FRAMES // BATCH):
        bench.set_up(case)  # a heartbeat, before dynamic rules expire
        frames = [next(random_frames)[:1990] for _ in range(BATCH + 7)]
        wanted = [decide(frame, case.host, table.match, lapsed=lambda: False) for frame in frames]
        for frame in frames:
            bench.ends.send(frame)
        for _ in frames:
            bench.ends.passed()
        bench.path.on_readable()
        for verdict in wanted:
            if verdict.reason is not Reason.NOT_NS:
                expected[verdict.reason] = expected.get(verdict.reason, 0) + 1
        # The order is certain only for answers to one soliciting MAC.
        due = Counter(verdict.reply for verdict in wanted if verdict.reply is not None)
        for _ in range(due.total()):
            reply = bench.ends.reply()
            assert reply is not None
            assert reply in due, show(reply)
            due -= Counter([reply])
        assert bench.ends.is_silent()
    assert bench.counted(before) == expected
    assert len(expected) > 10, expected
    assert bench.instance.maps.socket_counts() == {"overflows": 0, "errors": 0}


def test_filter_is_small(bench: Bench) -> None:
    """Keep the filter small, because it runs for every packet of the interface."""
    assert len(solicitation_filter()) // 8 <= 21
