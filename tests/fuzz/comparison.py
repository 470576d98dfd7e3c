"""The native and the tc program on frames of the caller, and ndp.py on the same frames."""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from ndxdp.boot_clock import boot_ns
from ndxdp.kernel import abi, bpf_maps, bpf_programs
from ndxdp.kernel.abi import Mode
from ndxdp.ndp.decision import Verdict, decide
from ndxdp.ndp.frame import VERSION_AT, untagged
from ndxdp.ndp.reason import Reason
from ndxdp.rules.difference import difference
from ndxdp.rules.ruleset import Rules
from ndxdp.rules.table import Table
from ndxdp.session.detach import detach_interface
from ndxdp.session.request import AttachOptions, AttachRequest
from ndxdp.session.session import Session
from ndxdp.store.directories import Trees
from ndxdp.store.instance import KernelInstance, open_pinned
from tests.fixtures.pair import RECEIVER, pair
from tests.fuzz.frames import Case
from tests.packets import HOST, show

MODES = (Mode.NATIVE, Mode.TC)

_TC_MIN = 54  # bytes of the shortest frame that the kernel test-runs a tc program on
_TIMEOUT = 10_000_000_000  # ns without a heartbeat after which dynamic rules expire
_PASS = {Mode.NATIVE: 2, Mode.TC: 0xFFFFFFFF}  # XDP_PASS, TC_ACT_UNSPEC
_SEND = {Mode.NATIVE: 3, Mode.TC: 7}  # XDP_TX, TC_ACT_REDIRECT


class Disagreement(NamedTuple):
    """A frame that a program treats differently from ndp.py; `frame` and `became` are frames."""

    mode: str
    frame: bytes
    wanted: str
    got: str
    became: bytes

    def __str__(self) -> str:
        return (
            f"{self.mode}: {self.got} instead of {self.wanted}: {show(self.frame)}\n"
            f"  became {show(self.became)}"
        )


@dataclass
class Program:
    """A loaded program with maps of its own, made for the interface `ifindex`."""

    mode: Mode
    pinned: KernelInstance
    ifindex: int

    def __post_init__(self) -> None:
        self._explained = self.pinned.maps.fds["explained"]
        self._rules = Rules()

    def set_up(self, case: Case) -> None:
        """Write the case's rules and settings into the maps."""
        maps = self.pinned.maps
        maps.apply(difference(case.rules, self._rules), self._rules)
        self._rules = case.rules
        now = time.monotonic_ns()
        settings = replace(
            maps.settings(),
            link_local=case.host.link_local,
            paused=case.host.paused,
            heartbeat=now - _TIMEOUT - 1 if case.expired else now + 3600 * _TIMEOUT,
            heartbeat_timeout=_TIMEOUT,
        )
        maps.set_settings(settings)
        maps.write_lease(boot_ns() + (0 if case.lapsed else 3600 * _TIMEOUT))

    def takes(self, frame: bytes) -> bool:
        """Return False for a frame that the kernel refuses to test-run this program on."""
        return self.mode is not Mode.TC or len(frame) >= _TC_MIN

    def wanted(self, frame: bytes, verdict: Verdict) -> Verdict:
        """Return the verdict on a frame in a test run, which strips no VLAN tag for tc."""
        if self.mode is Mode.TC and untagged(frame) is not frame:
            return Verdict(Reason.NOT_NS)
        return verdict

    def disagreement(self, frame: bytes, verdict: Verdict) -> Disagreement | None:
        """Judge one frame, uncounted; return how the program differs from `verdict`."""
        number = frame[VERSION_AT : VERSION_AT + 4].ljust(4)
        run = bpf_programs.run_once(self.pinned.prog_fd, frame)
        explained = bpf_maps.lookup(self._explained, number, abi.EXPLAINED.size)
        reason = Reason.NOT_NS
        if explained is not None:
            reason = Reason(abi.EXPLAINED.unpack(explained)["reason"])
            bpf_maps.delete(self._explained, len(number), number)
        return self._compare(frame, verdict, reason, run)

    def counted(self, judged: Iterable[tuple[bytes, Verdict]]) -> str:
        """Run frames as if they came in on the interface; return the errors of the counters.

        The programs count only such frames. The result is empty if the counters agree with the
        verdicts.
        """
        maps = self.pinned.maps
        before, wanted = Counter(maps.reasons()), Counter[Reason]()
        for frame, verdict in judged:
            run = bpf_programs.run_often(self.pinned.prog_fd, frame, 1, self._context(frame))
            wrong = self._compare(frame, verdict, verdict.reason, run)
            if wrong is not None:
                return str(wrong)
            wanted[verdict.reason] += 1
        del wanted[Reason.NOT_NS]
        found = Counter(maps.reasons())
        found.subtract(before)
        differ = {
            reason.label: (found[reason], wanted[reason])
            for reason in Reason
            if found[reason] != wanted[reason]
        }
        return f"{self.mode.label}: counted, and wanted: {differ}" if differ else ""

    def _context(self, frame: bytes) -> bytes:
        """Return a struct xdp_md or __sk_buff that names the interface."""
        if self.mode is Mode.NATIVE:
            return struct.pack("=6I", 0, len(frame), 0, self.ifindex, 0, 0)
        return struct.pack("=11I", *bytes(10), self.ifindex).ljust(192, b"\0")

    def _compare(
        self, frame: bytes, verdict: Verdict, reason: Reason, run: bpf_programs.Run
    ) -> Disagreement | None:
        code = (_SEND if reason.is_answer else _PASS)[self.mode]
        if (reason, run.retval, run.data) == (verdict.reason, code, verdict.reply or frame):
            return None
        got = f"{reason.label} (code {run.retval})"
        return Disagreement(self.mode.label, frame, verdict.reason.label, got, run.data)


class Programs:
    """The pair of programs, and the case that both are set up for."""

    def __init__(self, programs: dict[Mode, Program]) -> None:
        self.by_mode = programs
        self._case = Case(Rules(), HOST, expired=False, lapsed=False)
        self._table = Table.of(self._case.rules)

    def set_up(self, case: Case) -> None:
        self._case, self._table = case, Table.of(case.rules, expired=case.expired)
        for program in self.by_mode.values():
            program.set_up(case)

    def judge(self, frame: bytes) -> Verdict:
        """Return the verdict of ndp.py."""
        case = self._case
        return decide(frame, case.host, self._table.match, lapsed=lambda: case.lapsed)

    def disagreements(self, frame: bytes, verdict: Verdict) -> Iterator[Disagreement]:
        for program in self.by_mode.values():
            if program.takes(frame):
                wrong = program.disagreement(frame, program.wanted(frame, verdict))
                if wrong is not None:
                    yield wrong

    def miscounts(self, judged: list[tuple[bytes, Verdict]]) -> Iterator[str]:
        """Yield the disagreements of the programs' counters with the verdicts on some frames."""
        for program in self.by_mode.values():
            wrong = program.counted(
                (frame, program.wanted(frame, verdict))
                for frame, verdict in judged
                if program.takes(frame)
            )
            if wrong:
                yield wrong


@contextmanager
def programs(trees: Trees) -> Iterator[Programs]:
    """Load both programs, one after the other on the same link."""
    made: dict[Mode, Program] = {}
    with pair(HOST.mac):
        ifindex = socket.if_nametoindex(RECEIVER)
        try:
            for mode in reversed(MODES):
                if made:
                    detach_interface(trees, RECEIVER)  # its maps remain, because they are open
                request = AttachRequest(RECEIVER, options=AttachOptions(mode))
                Session.attach(trees, request).close()
                made[mode] = Program(mode, open_pinned(trees.pins, RECEIVER), ifindex)
            # The native program stays attached: otherwise the driver has no XDP queue to name in a
            # context.
            yield Programs({mode: made[mode] for mode in MODES})
        finally:
            for program in made.values():
                program.pinned.close()
            detach_interface(trees, RECEIVER)
