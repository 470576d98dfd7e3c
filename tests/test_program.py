"""The kernel's programs against the table of packets: test runs, and real frames over veth."""

from __future__ import annotations

import os
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ndxdp.kernel import abi, bpf_maps, bpf_programs, libbpf
from ndxdp.kernel.abi import Mode
from ndxdp.kernel.loader import Loader
from ndxdp.ndp.frame import VERSION_AT, eth_source_of
from ndxdp.ndp.message import solicit
from ndxdp.ndp.profile import Answer
from ndxdp.ndp.reason import Reason
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.rules.difference import difference
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.session.detach import detach_interface
from ndxdp.session.request import AttachOptions, AttachRequest
from ndxdp.session.session import Session
from ndxdp.store.directories import Trees
from ndxdp.store.instance import KernelInstance, open_pinned
from ndxdp.store.records import Settings
from tests.fixtures.class_counts import check_class_counts
from tests.fixtures.features import needs
from tests.fixtures.network import call
from tests.fixtures.pair import RECEIVER, Pair, pair
from tests.packets import BURST, CASES, CREDIT, HOST, INTERVAL, RULES, Case, show

_PASS = {Mode.NATIVE: 2, Mode.GENERIC: 2, Mode.TC: 0xFFFFFFFF}  # XDP_PASS, TC_ACT_UNSPEC
_DROP = {Mode.NATIVE: 1, Mode.GENERIC: 1, Mode.TC: 2}  # XDP_DROP, TC_ACT_SHOT
_TX = {Mode.NATIVE: 3, Mode.GENERIC: 3, Mode.TC: 7}  # XDP_TX, TC_ACT_REDIRECT

ROUTER, SOURCE = parse_mac("02:00:00:00:00:aa"), parse_address("fe80::aa")
RANDOM = Prefix(parse_address("2001:db8:dead:beef::"), 64)


def number_of(frame: bytes) -> bytes:
    """Return the number under which a dry run on a frame leaves its verdict."""
    return frame[VERSION_AT : VERSION_AT + 4]


@dataclass
class Bench:
    """An attached program, and the link it is attached to."""

    mode: Mode
    ends: Pair
    instance: KernelInstance
    settings: Settings

    def set_up(self, case: Case) -> None:
        """Apply the settings of a case."""
        self.instance.maps.set_settings(case.settings(self.settings))
        self.instance.maps.write_lease(case.lease)
        self.instance.maps.set_gateways(case.gateways)


MOST_VERIFIED = {Loader.PREBUILT: 40_000, Loader.BCC: 100_000}
"""Instructions that the verifier may follow for a program; it gives up at a million. Compilers
vary: without CAP_PERFMON it follows 24 000 of clang 14, and 66 000 of bcc, which has no
subprograms."""

_LOAD = """
import sys
from ndxdp.kernel import loader
from ndxdp.kernel.abi import Mode
from ndxdp.store.maps import Maps

with Maps.create() as maps:
    fd = loader.load(loader.Loader(sys.argv[1]), Mode[sys.argv[2]], maps.fds)
    print(open(f"/proc/self/fdinfo/{fd}").read())
"""
_TWO_CAPABILITIES = ("setpriv", "--bounding-set=-all,+bpf,+net_admin", "--inh-caps=-all")


@needs("verified")
@pytest.mark.parametrize("origin", Loader, ids=lambda each: each.value)
@pytest.mark.parametrize("rights", [(), _TWO_CAPABILITIES], ids=["root", "without CAP_PERFMON"])
@pytest.mark.parametrize("mode", [Mode.NATIVE, Mode.TC], ids=lambda each: each.label)
def test_the_work_of_the_verifier(origin: Loader, rights: tuple[str, ...], mode: Mode) -> None:
    """Keep the program far from the limit of the verifier, whose work takes most of a start."""
    loaded = call(*rights, sys.executable, "-c", _LOAD, origin.value, mode.name)
    if rights and "CAP_PERFMON" in loaded.err:
        release = tuple(int(n) for n in re.findall(r"\d+", os.uname().release)[:2])
        assert release < (6, 18), loaded.err
        return
    assert loaded.code == 0, loaded.err
    (followed,) = re.findall(r"verified_insns:\s*(\d+)", loaded.out)
    assert 1000 < int(followed) < MOST_VERIFIED[origin]


@pytest.fixture(
    scope="module",
    params=[(mode, loader) for mode in _PASS for loader in Loader],
    ids=lambda param: f"{param[0].label}-{param[1].value}",
)
def bench(request: pytest.FixtureRequest, trees: Trees) -> Iterator[Bench]:
    mode, loader = request.param
    with pair(HOST.mac) as ends:
        attaching = AttachRequest(RECEIVER, options=AttachOptions(mode, loader))
        Session.attach(trees, attaching).close()
        with open_pinned(trees.pins, RECEIVER) as instance:
            instance.maps.apply(difference(RULES, {}), Rules())
            yield Bench(mode, ends, instance, instance.maps.settings())
        detach_interface(trees, RECEIVER)


def test_rules_read_back_as_written(bench: Bench) -> None:
    assert bench.instance.maps.rules() == RULES


@pytest.mark.parametrize("most_hints", [1 << 14, 100], ids=["hinted", "all-hinted"])
def test_every_address_is_found(
    bench: Bench, most_hints: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answer for none of the random holes in a prefix: the program finds each exact address."""
    monkeypatch.setattr("ndxdp.store.rule_tables.MOST_HINTS", most_hints)
    rng = random.Random(most_hints)
    holes = {
        Prefix(RANDOM.address[:8] + rng.randbytes(8), 128): Rule(Answer.NEVER) for _ in range(500)
    }
    maps = bench.instance.maps
    bench.set_up(next(case for case in CASES if case.reply))
    actual = maps.rules()
    more = actual | {RANDOM: Rule(Answer.ALWAYS)} | holes
    maps.apply(difference(more, actual), actual)
    try:
        for hole in holes:
            beside = hole.address[:15] + bytes([hole.address[15] ^ 1])
            for target, reason in ((hole.address, Reason.DENIED), (beside, Reason.ANSWERED)):
                frame = solicit(ROUTER, target, source=SOURCE, sllao=ROUTER)
                bpf_programs.run_once(bench.instance.prog_fd, frame)
                found = maps.take_explained(number_of(frame))
                assert found is not None
                assert found.reason is reason, target.hex()
    finally:
        maps.apply(difference(RULES, more), more)
    assert maps.rules() == RULES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_run(bench: Bench, case: Case) -> None:
    """Run BPF_PROG_TEST_RUN, a dry run; `explained` returns reason and rule."""
    instance, mode = bench.instance, bench.mode
    bench.set_up(case)
    if case.rate_exceeded:  # a dry run charges no rate, so the test empties the bucket
        empty = time.monotonic_ns() + CREDIT + INTERVAL
        source = eth_source_of(case.frame) + bytes(2)
        bpf_maps.update(instance.maps.fds["limiter"], source, empty.to_bytes(8, "little"))
        if case.gateway:
            share = abi.SHARE.pack(answers=empty)
            bpf_maps.update(instance.maps.fds["gateways"], source, share)

    if mode is Mode.TC and case.frame[12:14] in (b"\x81\x00", b"\x88\xa8"):
        # A test run keeps the tag that the kernel strips from the frame; test_real_frame has these
        # cases.
        run = bpf_programs.run_once(instance.prog_fd, case.frame)
        assert (run.retval, run.data) == (_PASS[mode], case.frame)
        return
    if mode is Mode.TC and len(case.frame) < 54 and case.frame[12:14] == b"\x86\xdd":
        with pytest.raises(libbpf.BpfError, match="Invalid argument"):  # net/bpf/test_run.c
            bpf_programs.run_once(instance.prog_fd, case.frame)
        return

    before = instance.maps.reasons()
    run = bpf_programs.run_once(instance.prog_fd, case.frame)
    verdict = instance.maps.take_explained(number_of(case.frame))

    reason = verdict.reason if verdict else Reason.NOT_NS
    assert reason is case.reason, show(case.frame)
    if case.reply:
        assert run.retval == _TX[mode]
        assert run.data == case.reply, f"{show(run.data)}\n  wanted\n{show(case.reply)}"
    else:
        dropped = case.reason is Reason.RATE_LIMITED
        assert run.retval == (_DROP if dropped else _PASS)[mode]
        assert dropped or run.data == case.frame, show(run.data)
    assert instance.maps.reasons() == before, "a dry run was counted"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_real_frame(bench: Bench, case: Case) -> None:
    """Send a frame on the link; receive its answer, or the unchanged frame behind the program."""
    bench.set_up(case)
    if case.rate_exceeded:
        source = eth_source_of(case.frame) + bytes(2)
        bpf_maps.delete(bench.instance.maps.fds["limiter"], 8, source)
        for _ in range(BURST):
            bench.ends.send(case.frame)
            assert any(bench.ends.outcome())
    before = bench.instance.maps.reasons()
    dropped = case.reason is Reason.RATE_LIMITED

    bench.ends.send(case.frame)
    reply, passed = bench.ends.outcome(nothing=dropped)

    assert reply == case.reply, f"{show(case.frame)}\n  brought\n{reply and show(reply)}"
    if reply or dropped:
        assert passed is None
    else:
        assert passed == case.frame, f"{show(case.frame)}\n  became\n{passed and show(passed)}"
    assert bench.ends.is_silent()
    counted = {
        reason: count - before[reason]
        for reason, count in bench.instance.maps.reasons().items()
        if count != before[reason]
    }
    assert counted == ({} if case.reason is Reason.NOT_NS else {case.reason: 1})


def test_rate_is_charged_to_the_ethernet_source(bench: Bench) -> None:
    """Charge the Ethernet source, not the SLLAO, which a flooder can change for each frame."""
    case = next(case for case in CASES if case.rate_exceeded)
    bench.set_up(case)
    limiter = bench.instance.maps.fds["limiter"]
    source = eth_source_of(case.frame)
    bpf_maps.delete(limiter, 8, source + bytes(2))

    bench.ends.send(case.frame)

    assert bench.ends.outcome()[0] is not None
    paid = bpf_maps.lookup(limiter, source + bytes(2), 8)
    assert paid is not None
    now = time.monotonic_ns()
    assert now < int.from_bytes(paid, "little") <= now + INTERVAL


def test_rule_classes_count_their_solicitations(bench: Bench) -> None:
    def send(case: Case) -> None:
        bench.set_up(case)
        bench.ends.send(case.frame)
        bench.ends.outcome()

    check_class_counts(bench.instance, send)


def test_a_debt_of_another_rate_is_forgiven(bench: Bench) -> None:
    """Forgive a debt that only a slower, earlier rate can have caused."""
    case = next(case for case in CASES if case.rate_exceeded)
    bench.set_up(case)
    owed = time.monotonic_ns() + 2 * CREDIT + 2 * INTERVAL
    source = eth_source_of(case.frame) + bytes(2)
    bpf_maps.update(bench.instance.maps.fds["limiter"], source, owed.to_bytes(8, "little"))
    bench.ends.send(case.frame)
    assert bench.ends.outcome()[0] is not None
