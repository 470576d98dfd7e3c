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
from ndxdp.kernel.maps import Group, Maps, Settings
from ndxdp.ndp import Host, Limiter, Reason, Verdict
from ndxdp.policy import Rule, Table
from ndxdp.wire.packet import BATCH, PacketSocket

log = logging.getLogger(__name__)

_ROUNDS = 16
"""Batches in a row before others in the process get their turn."""

_FAILED = Reason.SEND_FAILED


class Userspace:
    """Answers on one interface. Socket and maps are the caller's, and are to outlive it.

    on_readable() is for an event loop to call; it never raises.
    """

    def __init__(self, maps: Maps, packets: PacketSocket) -> None:
        self._maps, self._packets = maps, packets
        # Plain memory that the commands share: nothing is written back, nothing can be lost.
        self._reasons = maps.file("reasons").numbers()
        self._groups = maps.file("group_counters").numbers()
        self._own = maps.file("userspace").numbers()
        self._settings_memory = maps.file("settings").memory
        self._settings = maps.settings()
        self._seen_settings = b""
        self._seen_changes = -1
        self._seen_dead = False
        self._host = Host(bytes(6))
        self._table = Table()
        self._limiter = Limiter(
            self._settings.rate_interval, self._settings.rate_credit, time.monotonic_ns
        )

    def close(self) -> None:
        for memory in (self._reasons, self._groups, self._own):
            memory.release()

    def on_readable(self) -> None:
        """Answer what has come, up to a thousand frames."""
        packets = self._packets
        try:
            for _ in range(_ROUNDS):
                frames = packets.receive()
                if frames:
                    self._refresh()
                    self._answer(frames)
                if len(frames) < BATCH:
                    break
            self._own[1] += packets.overflows()
        except (OSError, NdxdpError) as error:  # the interface went down, or somebody's rm -r
            self._own[2] += 1
            log.debug("the userspace path: %s", error)

    def _answer(self, frames: list[bytes]) -> None:
        judge, host, match = ndp.judge, self._host, self._table.match
        admit = self._limiter.admit if self._settings.rate_interval else None
        verdicts = [judge(frame, host, match, admit) for frame in frames]
        replies = [verdict[1] for verdict in verdicts if verdict[1] is not None]
        failed = self._packets.send(replies) if replies else {}
        if failed:
            verdicts = self._without(verdicts, failed)
        for reason, count in Counter([verdict[0] for verdict in verdicts]).items():
            self._reasons[reason] += count
        matched = [(rule.group, reply is None) for _, reply, rule in verdicts if rule is not None]
        for (group, silent), count in Counter(matched).items():
            self._groups[2 * group] += count
            self._groups[2 * group + 1] += 0 if silent else count

    def _without(self, verdicts: list[Verdict], failed: Mapping[int, int]) -> list[Verdict]:
        """The same, where the answers that could not be sent are no answers."""
        self._own[2] += len(failed)
        corrected, nth = [], 0
        for verdict in verdicts:
            if verdict.reply is not None:
                if nth in failed:
                    verdict = Verdict(_FAILED, None, verdict.rule)
                nth += 1
            corrected.append(verdict)
        return corrected

    def _refresh(self) -> None:
        """Take over what has changed in settings and rules; nothing to do costs next to nothing."""
        if self._settings_memory[:] != self._seen_settings:
            self._read_settings()
        changes = self._own[0]
        daemon_dead = self._settings.daemon_dead
        if changes != self._seen_changes or daemon_dead != self._seen_dead:
            rules, ids = self._maps.rules(), self._maps.group_ids()

            def group(rule: Rule) -> int:
                return ids.get(Group.of(rule), 0)

            self._table = Table.of(rules, group=group, expired=daemon_dead)
            self._seen_changes, self._seen_dead = changes, daemon_dead

    def _read_settings(self) -> None:
        self._seen_settings = self._settings_memory[:]
        before, settings = self._settings, Settings.unpack(self._seen_settings)
        self._settings = settings
        self._host = Host(settings.mac, settings.link_local, settings.paused)
        interval, credit = settings.rate_interval, settings.rate_credit
        if (interval, credit) != (before.rate_interval, before.rate_credit):
            self._limiter = Limiter(interval, credit, time.monotonic_ns)
