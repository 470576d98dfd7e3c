"""The userspace path: ndp.py answers what a packet socket receives, by the maps in files.

A process is the program here. It reads rules and settings where every command writes them, and
counts where every command looks. What it does not answer, the kernel has had already: a packet
socket gets copies, so that a rate limit can keep an answer back, but drop nothing.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping

from ndxdp import ndp
from ndxdp.errors import NdxdpError
from ndxdp.kernel.maps import Group, Maps
from ndxdp.ndp import Host, Limiter, Reason, Verdict
from ndxdp.policy import Rule, Table
from ndxdp.wire.packet import BATCH, PacketSocket

log = logging.getLogger(__name__)

_ROUNDS = 16
"""Batches in a row before others in the process get their turn."""

_FAILED = Reason.SEND_FAILED
_FIRST = bytes(4)  # the key of an array's first element


class Userspace:
    """Answers on one interface. Socket and maps are the caller's, and are to outlive it.

    on_readable() is for an event loop to call; it never raises.
    """

    def __init__(self, maps: Maps, packets: PacketSocket) -> None:
        self._maps, self._packets = maps, packets
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
        self._limiter = Limiter(
            self._settings.rate_interval, self._settings.rate_credit, time.monotonic_ns
        )
        self._verdicts: Counter[tuple[Reason, int | None]] = Counter()
        self._errors = 0
        self._refresh()

    def on_readable(self) -> None:
        """Answer what has come, up to a thousand frames."""
        packets, overflows = self._packets, 0
        try:
            for _ in range(_ROUNDS):
                frames = packets.receive()
                if frames:
                    self._refresh()
                    self._answer(frames)
                if len(frames) < BATCH:
                    break
            overflows = packets.overflows()
        except OSError as error:  # the interface went down
            self._errors += 1
            log.debug("packet socket: %s", error)
        self._count(overflows)

    def _answer(self, frames: list[bytes]) -> None:
        judge, host, match = ndp.judge, self._host, self._table.match
        admit = self._limiter.admit if self._settings.rate_interval else None
        verdicts = [judge(frame, host, match, admit) for frame in frames]
        replies = [verdict[1] for verdict in verdicts if verdict[1] is not None]
        failed = self._packets.send(replies) if replies else {}
        if failed:
            verdicts = self._without(verdicts, failed)
        self._verdicts.update(
            [(reason, None if rule is None else rule.group) for reason, _, rule in verdicts]
        )

    def _count(self, overflows: int) -> None:
        """Write down what has been counted since the last time."""
        counted, errors = self._verdicts, self._errors
        self._verdicts, self._errors = Counter(), 0
        try:
            for (reason, group), count in counted.items():
                self._reasons.add(reason, count)
                if group is not None:
                    self._groups.add(group, count, count if reason.is_answer else 0)
            if overflows or errors:
                self._own.add(0, 0, overflows, errors)
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
        interval, credit = settings.rate_interval, settings.rate_credit
        if (interval, credit) != (before.rate_interval, before.rate_credit):
            self._limiter = Limiter(interval, credit, time.monotonic_ns)

    def _read_rules(self) -> None:
        rules, ids = self._maps.rules(), self._maps.group_ids()

        def group(rule: Rule) -> int:
            return ids.get(Group.of(rule), 0)

        self._table = Table.of(rules, group=group, expired=self._seen_dead)
