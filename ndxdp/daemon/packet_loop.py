"""The loop that answers in userspace, by the maps in files.

In userspace mode the daemon's process does the program's work. It reads rules and settings from the
same maps that commands write, and counts in the same maps that commands read. ndp/decision.py
judges the frames. A packet socket gets copies: the kernel has had each frame before. A rate limit
can withhold an answer, but not drop a frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor

from ndxdp.boot_clock import boot_ns
from ndxdp.errors import NdxdpError
from ndxdp.kernel import abi, jiffies
from ndxdp.ndp.decision import Match, validate
from ndxdp.ndp.frame import target_of
from ndxdp.ndp.limiter import Limiter
from ndxdp.ndp.message import Host, Solicitation
from ndxdp.ndp.reason import Reason
from ndxdp.ndp.templates import Judge, Judged
from ndxdp.netlink.fib import Fib
from ndxdp.netlink.refusal import refusal
from ndxdp.sockets.packet import BATCH, QUEUED_MAX, PacketSocket
from ndxdp.sockets.trace_socket import EventSender
from ndxdp.store.directories import TRACER
from ndxdp.store.live_table import LiveTable
from ndxdp.store.maps import Maps

log = logging.getLogger(__name__)

_ROUNDS = 16
"""Batches that are answered in a row before the event loop continues with other work."""

_TRACER_PAUSE = 2_000_000
"""ns for which a tracer without room gets no events: an event takes half an answer's time."""

_LASTING, _CALM, _SPREAD_AGAIN = 500_000_000, 1_000_000_000, 10_000_000_000
"""Durations in ns. Overflows for _LASTING are a flood, and not a burst. A flood is over after _CALM
without an overflow. The queues are spread again after _SPREAD_AGAIN at the earliest."""

_FAILED, _UNKNOWN, _LAPSED = Reason.SEND_FAILED, Reason.NO_NEIGHBOUR, Reason.LAPSED
_LAST_ANSWER = list(abi.CLASS_COUNT.fields).index("last_answer")
_FIRST = bytes(4)  # the key of an array's first element


class PacketLoop:
    """Answers on one interface: when an event loop finds its packet socket readable, see serving().

    on_readable() and finish() raise no exception.
    """

    def __init__(
        self,
        maps: Maps,
        packets: PacketSocket,
        fib: Fib,
        unresolved: Callable[[Solicitation, Match], None] = lambda ns, rule: None,
    ) -> None:
        """Read settings and rules.

        Args:
            maps: The interface's maps in files, which must outlive this object.
            packets: The interface's packet socket, which must outlive this object.
            fib: The kernel's tables.
            unresolved: Called with a solicitation for a neighbour that the kernel does not know.
        """
        self._maps, self._packets, self._fib = maps, packets, fib
        self._unresolved = unresolved
        self._spread: Callable[[], None] = lambda: None
        self._flood_began = self._overflowed = 0  # ns of CLOCK_MONOTONIC
        self._flood_reported = -_SPREAD_AGAIN
        self._reasons = maps.file("reasons")
        self._classes = maps.file("group_counters")
        self._own = maps.file("userspace")
        self._settings_file = maps.file("settings")
        self._settings = maps.settings()
        self._seen_settings: bytes | None = None
        self._leased_until: int | None = None  # of the present batch, ns of boot_ns()
        self._host = Host(bytes(6))
        self._rules = LiveTable(maps)
        self._some_unknown = False
        self._limiter = Limiter(self._settings.limits, time.monotonic_ns)
        self._judge = self._new_judge()
        self._verdicts: Counter[tuple[Reason, int | None]] = Counter()
        self._errors = 0
        self._tracer = EventSender(maps.directory / TRACER)
        self._tracer_pause = 0
        self._seen_by_tracer = 0
        self._refresh()

    @contextlib.contextmanager
    def serving(self, executor: Executor) -> Iterator[None]:
        """Answer in the running event loop during the block, at last all frames that have arrived.

        Args:
            executor: Has a thread in which the packet socket can be spread.
        """
        loop, packets = asyncio.get_running_loop(), self._packets
        watched = packets.fileno()

        def on_spread(_: object) -> None:
            nonlocal watched
            if watched >= 0:
                loop.remove_reader(watched)
                watched = packets.fileno()
                loop.add_reader(watched, self.on_readable)

        def spread() -> None:
            loop.run_in_executor(executor, packets.spread).add_done_callback(on_spread)

        self._spread = spread
        loop.add_reader(watched, self.on_readable)
        try:
            yield
        finally:
            loop.remove_reader(watched)
            watched = -1
            self.finish()  # queued frames came before the next attachment answers

    def on_readable(self) -> None:
        """Answer the frames that have arrived, up to a thousand of them."""
        self._work(_ROUNDS)

    def finish(self) -> None:
        """Answer all frames that arrived before the call."""
        self._work(QUEUED_MAX // BATCH)

    def _work(self, rounds: int) -> None:
        """Answer up to `rounds` batches, and count."""
        packets, overflows = self._packets, 0
        try:
            for _ in range(rounds):
                frames = packets.receive()
                if frames:
                    self._refresh()
                    self._answer(frames)
                if len(frames) < BATCH:
                    break
            overflows = packets.overflows()
            if overflows:
                self._detect_flood(time.monotonic_ns())
        except OSError as error:  # the interface went down
            self._errors += 1
            log.debug("packet socket: %s", error)
        self._count(overflows)

    def _detect_flood(self, now: int) -> None:
        """Note an overflow, and report a flood if overflows have lasted."""
        if now - self._overflowed > _CALM:
            self._flood_began = now
        self._overflowed = now
        lasting = now - self._flood_began >= _LASTING
        if lasting and now - self._flood_reported >= _SPREAD_AGAIN:
            self._flood_reported = now
            self._spread()

    def _answer(self, frames: list[bytes]) -> None:
        """Judge frames, and send the answers."""
        verdicts = self._judge.judge(frames)
        if self._leased_until is not None and self._has_lapsed():
            # This process may have been stopped since it judged the first of these frames.
            verdicts = [_without_lease(verdict) for verdict in verdicts]
        replies = [reply for _, reply, _ in verdicts if reply is not None]
        failed = self._packets.send(replies) if replies else {}
        if failed:
            verdicts = self._without(verdicts, failed)
        if self._settings.trace_until:
            self._trace(frames, verdicts)
        if self._some_unknown:
            self._some_unknown = False
            self._report_unresolved(frames, verdicts)
        self._verdicts.update(
            [(reason, None if rule is None else rule.rule_class) for reason, _, rule in verdicts]
        )

    def _report_unresolved(self, frames: list[bytes], verdicts: list[Judged]) -> None:
        """Report the solicitations for neighbours that the kernel does not know."""
        for frame, (reason, _, rule) in zip(frames, verdicts, strict=True):
            if reason is _UNKNOWN:
                ns = validate(frame, self._host.mac, self._rules.table.match)
                if isinstance(ns, Solicitation) and rule:
                    self._unresolved(ns, rule)

    def _trace(self, frames: list[bytes], verdicts: list[Judged]) -> None:
        """Send events to the tracer if there is one, and count those that it has no room for."""
        now, until = time.monotonic_ns(), self._settings.trace_until
        if now > until:
            return
        every = self._settings.trace_every or 1
        chosen = range(-self._seen_by_tracer % every, len(frames), every)
        self._seen_by_tracer += len(frames)
        sent = not chosen
        if chosen and now >= self._tracer_pause:
            sent = self._tracer.send([self._event(now, frames[n], verdicts[n]) for n in chosen])
            self._tracer_pause = 0 if sent else now + _TRACER_PAUSE
        try:
            self._own.add(0, 0, 0, 0, len(frames), 0 if sent else len(chosen))
        except (OSError, NdxdpError) as error:
            log.debug("cannot count: %s", error)

    def _event(self, now: int, frame: bytes, verdict: Judged) -> bytes:
        """Encode a trace event in the BPF program's layout."""
        reason, reply, matched = verdict
        found = self._rules.table.lookup(target_of(frame)) if matched else None
        explained: tuple[int, ...] = (0, reason, 0, 0, 0, 0)
        if matched and found:
            prefix, rule = found
            owned = 0 if rule.is_applied else abi.RuleFlag.OWNED
            explained = (matched.rule_class, reason, 1, rule.answer, owned, prefix.length)
        return abi.EVENT.pack_all(
            now,
            len(frame),
            min(len(frame), abi.EVENT_FRAME),
            abi.EXPLAINED.pack_all(*explained, 0),
            frame[: abi.EVENT_FRAME],
            reply or b"",
            b"",
        )

    def _refuse(self, target: bytes, rule: Match, defends: bool) -> Reason | None:
        """Return the reason for which the kernel's tables rule an answer out; None if none."""
        try:
            reason = refusal(self._fib, self._settings.l3_ifindex, target, rule, defends)
        except OSError as error:
            self._errors += 1
            log.debug("routes: %s", error)
            return Reason.NO_ROUTE
        self._some_unknown = self._some_unknown or reason is _UNKNOWN
        return reason

    def _count(self, overflows: int) -> None:
        """Add the verdicts since the last call to the counters in the maps."""
        counted, errors = self._verdicts, self._errors
        self._verdicts, self._errors = Counter(), 0
        try:
            # Classes first: a reader that sees a reason counted also sees its class counted, even
            # if this process is killed in between.
            for (reason, rule_class), count in counted.items():
                if rule_class is not None:
                    self._classes.add(rule_class, count, count if reason.is_answer else 0)
                    if reason.is_answer:
                        self._classes.put(rule_class, _LAST_ANSWER, jiffies.now())
            for (reason, _), count in counted.items():
                self._reasons.add(reason, count)
            if overflows or errors:
                self._own.add(0, 0, overflows, errors, 0, 0)
        except (OSError, NdxdpError) as error:
            log.error("cannot write the counters: %s", error)

    def _without(self, verdicts: list[Judged], failed: Mapping[int, int]) -> list[Judged]:
        """Return the verdicts, where answers that were not sent count as SEND_FAILED."""
        self._errors += len(failed)
        corrected: list[Judged] = []
        nth = 0
        for verdict in verdicts:
            _, reply, rule = verdict
            if reply is not None:
                if nth in failed:
                    verdict = _FAILED, None, rule
                nth += 1
            corrected.append(verdict)
        return corrected

    def _refresh(self) -> None:
        """Read settings and rules if they have changed; keep the former ones if that fails."""
        self._leased_until = None
        try:
            settings = self._settings_file.lookup(_FIRST)
            if settings != self._seen_settings:
                self._seen_settings = settings
                self._read_settings()
                self._judge = self._new_judge()
            if self._rules.refresh(expired=self._settings.daemon_dead):
                self._judge = self._new_judge()
        except (OSError, NdxdpError) as error:  # the files were removed or damaged
            log.debug("cannot read settings or rules: %s", error)

    def _read_settings(self) -> None:
        before, settings = self._settings, self._maps.settings()
        self._settings = settings
        self._host = Host(settings.mac, settings.link_local, settings.paused)
        if settings.limits != before.limits:
            gateways = self._limiter.gateways
            self._limiter = Limiter(settings.limits, time.monotonic_ns)
            self._limiter.gateways = gateways

    def set_gateways(self, macs: frozenset[bytes]) -> None:
        """Set the gateways' MACs (6 bytes each), to which other limits apply."""
        self._limiter.gateways = macs

    def _new_judge(self) -> Judge:
        admit = self._limiter.charge if self._settings.limits else None
        return Judge(self._host, self._rules.table.match, admit, self._refuse, self._has_lapsed)

    def _has_lapsed(self) -> bool:
        """Return True if leased rules do not answer at the time of the call.

        The first call in a batch reads the end of the lease, and each call reads the clock.
        """
        if self._leased_until is None:
            try:
                self._leased_until = self._maps.lease()
            except (OSError, NdxdpError) as error:  # the file was removed or damaged
                log.debug("cannot read the lease: %s", error)
                self._leased_until = 0
        return boot_ns() >= self._leased_until


def _without_lease(verdict: Judged) -> Judged:
    """Return a verdict as it is once the host's lease has lapsed."""
    _, reply, rule = verdict
    return (_LAPSED, None, rule) if reply is not None and rule and rule.leased else verdict
