"""The userspace path: ndp/decision.py answers what a packet socket receives, by the maps in files.

A process is the program here. It reads rules and settings where every command writes them, and
counts where every command looks. What it does not answer, the kernel has had already: a packet
socket gets copies, so that a rate limit can keep an answer back, but drop nothing.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping

from ndxdp.errors import NdxdpError
from ndxdp.kernel import abi, jiffies
from ndxdp.ndp import decision
from ndxdp.ndp.decision import Match, Verdict, validate
from ndxdp.ndp.frame import target_of
from ndxdp.ndp.limiter import Limiter
from ndxdp.ndp.message import Host, Solicitation
from ndxdp.ndp.reason import Reason
from ndxdp.netlink.fib import Fib, refusal
from ndxdp.rules.table import Table
from ndxdp.sockets.packet import BATCH, QUEUED_MAX, PacketSocket
from ndxdp.sockets.trace_socket import EventSender
from ndxdp.store.directories import TRACER
from ndxdp.store.maps import Maps

log = logging.getLogger(__name__)

_ROUNDS = 16
"""Batches in a row before others in the process get their turn."""

_TRACER_REST = 2_000_000
"""ns for a tracer to make room, before it is told more: an event takes half an answer's time."""

_LASTING, _CALM, _SPREAD_AGAIN = 500_000_000, 1_000_000_000, 10_000_000_000
"""ns: who finds no room for so long is in a flood, and not in a burst; without an overflow for so
long it is over; a flood's neighbours share its queue for so long at most."""

_FAILED, _UNKNOWN = Reason.SEND_FAILED, Reason.NO_NEIGHBOUR
_LAST_ANSWER = list(abi.CLASS_COUNT.fields).index("last_answer")
_FIRST = bytes(4)  # the key of an array's first element


class Userspace:
    """Answers on one interface. Sockets and maps are the caller's, and are to outlive it.

    unresolved: called with a solicitation for a neighbour that the kernel does not know. flooded:
    called when solicitations have found no room for a while, to have `packets` spread().
    on_readable() is for an event loop to call; it and finish() never raise.
    """

    def __init__(
        self,
        maps: Maps,
        packets: PacketSocket,
        fib: Fib,
        unresolved: Callable[[Solicitation, Match], None] = lambda ns, rule: None,
        flooded: Callable[[], object] = lambda: None,
    ) -> None:
        self._maps, self._packets, self._fib = maps, packets, fib
        self._unresolved, self._flooded = unresolved, flooded
        self._flood_began = self._overflowed = 0  # ns of CLOCK_MONOTONIC
        self._told_flooded = -_SPREAD_AGAIN
        self._reasons = maps.file("reasons")
        self._groups = maps.file("group_counters")
        self._own = maps.file("userspace")
        self._settings_file = maps.file("settings")
        self._settings = maps.settings()
        self._seen_settings: bytes | None = None
        self._seen_changes = -1
        self._seen_dead = False
        self._host = Host(bytes(6))
        self._table = Table()
        self._some_unknown = False
        self._limiter = Limiter(self._settings.limits, time.monotonic_ns)
        self._verdicts: Counter[tuple[Reason, int | None]] = Counter()
        self._errors = 0
        self._tracer = EventSender(maps.directory / TRACER)
        self._tracer_rests = 0
        self._seen_by_tracer = 0
        self._refresh()

    def on_readable(self) -> None:
        """Answer what has come, up to a thousand frames."""
        self._work(_ROUNDS)

    def finish(self) -> None:
        """Answer all that had come when this was called."""
        self._work(QUEUED_MAX // BATCH)

    def _work(self, rounds: int) -> None:
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
                self._look_for_flood(time.monotonic_ns())
        except OSError as error:  # the interface went down
            self._errors += 1
            log.debug("packet socket: %s", error)
        self._count(overflows)

    def _look_for_flood(self, now: int) -> None:
        """Called when some found no room."""
        if now - self._overflowed > _CALM:
            self._flood_began = now
        self._overflowed = now
        lasting = now - self._flood_began >= _LASTING
        if lasting and now - self._told_flooded >= _SPREAD_AGAIN:
            self._told_flooded = now
            self._flooded()

    def _answer(self, frames: list[bytes]) -> None:
        judge, host, match = decision.judge, self._host, self._table.match
        admit = self._limiter.charge if self._settings.limits else None
        refuse = self._refuse
        verdicts = [judge(frame, host, match, admit, refuse) for frame in frames]
        replies = [verdict[1] for verdict in verdicts if verdict[1] is not None]
        failed = self._packets.send(replies) if replies else {}
        if failed:
            verdicts = self._without(verdicts, failed)
        if self._settings.trace_until:
            self._trace(frames, verdicts)
        if self._some_unknown:
            self._some_unknown = False
            self._tell_unresolved(frames, verdicts)
        self._verdicts.update(
            [(reason, None if rule is None else rule.rule_class) for reason, _, rule in verdicts]
        )

    def _tell_unresolved(self, frames: list[bytes], verdicts: list[Verdict]) -> None:
        for frame, (reason, _, rule) in zip(frames, verdicts, strict=True):
            if reason is _UNKNOWN:
                ns = validate(frame, self._host.mac, self._table.match)
                if isinstance(ns, Solicitation) and rule:  # as it was a moment ago
                    self._unresolved(ns, rule)

    def _trace(self, frames: list[bytes], verdicts: list[Verdict]) -> None:
        """Tell the tracer, if there is one; what it has no room for is counted."""
        now, until = time.monotonic_ns(), self._settings.trace_until
        if now > until:
            return
        every = self._settings.trace_every or 1
        chosen = range(-self._seen_by_tracer % every, len(frames), every)
        self._seen_by_tracer += len(frames)
        told = not chosen
        if chosen and now >= self._tracer_rests:
            told = self._tracer.send([self._event(now, frames[n], verdicts[n]) for n in chosen])
            self._tracer_rests = 0 if told else now + _TRACER_REST
        try:
            self._own.add(0, 0, 0, 0, len(frames), 0 if told else len(chosen))
        except (OSError, NdxdpError) as error:
            log.debug("not counted: %s", error)

    def _event(self, now: int, frame: bytes, verdict: Verdict) -> bytes:
        """As the program makes it."""
        reason, reply, matched = verdict
        found = self._table.lookup(target_of(frame)) if matched else None
        told: tuple[int, ...] = (0, reason, 0, 0, 0, 0)
        if matched and found:
            prefix, rule = found
            owned = abi.RuleFlag.OWNED if rule.owned else 0
            told = (matched.rule_class, reason, 1, rule.answer, owned, prefix.length)
        return abi.EVENT.pack_all(
            now,
            len(frame),
            min(len(frame), abi.EVENT_FRAME),
            abi.EXPLAINED.pack_all(*told, 0),
            frame[: abi.EVENT_FRAME],
            reply or b"",
            b"",
        )

    def _refuse(self, target: bytes, rule: Match, defends: bool) -> Reason | None:
        try:
            reason = refusal(self._fib, self._settings.l3_ifindex, target, rule, defends)
        except OSError as error:
            self._errors += 1
            log.debug("routes: %s", error)
            return Reason.NO_ROUTE
        self._some_unknown = self._some_unknown or reason is _UNKNOWN
        return reason

    def _count(self, overflows: int) -> None:
        """Write down what has been counted since the last time."""
        counted, errors = self._verdicts, self._errors
        self._verdicts, self._errors = Counter(), 0
        try:
            # Groups first: who sees a reason counted sees its group counted, also if we are killed.
            for (reason, group), count in counted.items():
                if group is not None:
                    self._groups.add(group, count, count if reason.is_answer else 0)
                    if reason.is_answer:
                        self._groups.put(group, _LAST_ANSWER, jiffies.now())
            for (reason, _), count in counted.items():
                self._reasons.add(reason, count)
            if overflows or errors:
                self._own.add(0, 0, overflows, errors, 0, 0)
        except (OSError, NdxdpError) as error:
            log.error("the counters could not be written: %s", error)

    def _without(self, verdicts: list[Verdict], failed: Mapping[int, int]) -> list[Verdict]:
        """The same, where the answers that could not be sent are no answers."""
        self._errors += len(failed)
        corrected, nth = [], 0
        for verdict in verdicts:
            if verdict.reply is not None:
                if nth in failed:
                    verdict = Verdict(_FAILED, None, verdict.rule)
                nth += 1
            corrected.append(verdict)
        return corrected

    def _refresh(self) -> None:
        """Take over what has changed in settings and rules; what cannot be read stays as it was."""
        try:
            settings = self._settings_file.lookup(_FIRST)
            if settings != self._seen_settings:
                self._seen_settings = settings
                self._read_settings()
            changes, daemon_dead = self._own.number(0, 0), self._settings.daemon_dead
            if changes != self._seen_changes or daemon_dead != self._seen_dead:
                self._seen_changes, self._seen_dead = changes, daemon_dead
                self._read_rules()
        except (OSError, NdxdpError) as error:  # somebody's rm -r, or nonsense
            log.debug("not read: %s", error)

    def _read_settings(self) -> None:
        before, settings = self._settings, self._maps.settings()
        self._settings = settings
        self._host = Host(settings.mac, settings.link_local, settings.paused)
        if settings.limits != before.limits:
            gateways = self._limiter.gateways
            self._limiter = Limiter(settings.limits, time.monotonic_ns)
            self._limiter.gateways = gateways

    def set_gateways(self, macs: frozenset[bytes]) -> None:
        """Let these MACs (6 bytes each) be the gateways', which have limits of their own."""
        self._limiter.gateways = macs

    def _read_rules(self) -> None:
        self._table = self._maps.table(expired=self._seen_dead)
