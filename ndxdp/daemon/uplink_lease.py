"""An interface's part in shared addresses: its fence, and whether its rules are in the maps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ndxdp.boot_clock import boot_ns
from ndxdp.daemon.uplink_state import UplinkState
from ndxdp.errors import problem_of
from ndxdp.fleet.lease_clock import LeaseClock
from ndxdp.fleet.rivals import Rival
from ndxdp.rules.rule import SHARED_ORIGIN
from ndxdp.store.maps import Maps

log = logging.getLogger(__name__)

UNKNOWN = 1 << 62
"""A time that never comes, in nanoseconds."""


class UplinkLease:
    """Writes the end of the host's lease into one interface's maps.

    The maps may have leased rules of a lease that has lapsed, also of an earlier daemon. So no end
    is written until the shared rules are known and in the maps, each time after forbid() and after
    begin().

    Call the methods in the event loop's thread.

    Attributes:
        written: The end that the maps have at most, in nanoseconds of CLOCK_BOOTTIME; UNKNOWN
            before this process has opened them.
    """

    def __init__(
        self,
        state: UplinkState,
        clock: LeaseClock,
        began: asyncio.Event,
        on_change: Callable[[], None],
    ) -> None:
        """Write nothing yet.

        Args:
            state: The uplink's state.
            clock: The end of the host's lease.
            began: Set when the first attempt to answer has succeeded or failed.
            on_change: Called when the property `may_join` has changed.
        """
        self.written = UNKNOWN
        self._began, self._has_looked = began, False
        self._state, self._clock, self._on_change = state, clock, on_change
        self._maps: Maps | None = None
        self._is_held_back, self._might_join = True, False
        self._waiting: list[asyncio.Future[bool]] = []

    @property
    def may_join(self) -> bool:
        """True if solicitations reach the interface, and the rules of the daemon answer them."""
        state = self._state
        is_in_step = self._maps is not None and not state.health.rules.problem
        return is_in_step and state.reachable and not state.stop.is_set()

    @property
    def is_undecided(self) -> bool:
        """True in the beginning, while it is not known yet what `may_join` will be."""
        is_looking = self._maps is not None and not self._has_looked
        return is_looking or not self._began.is_set()

    @property
    def rivals(self) -> int:
        """Advertisements of other nodes for shared addresses that this host answers for."""
        return self._state.rivals

    @property
    def rivals_seen(self) -> list[Rival]:
        """Some of the nodes that have sent them."""
        return self._state.rivals_seen

    def renewed(self) -> None:
        """Write the end of the lease: it was renewed."""
        if not self._is_held_back:
            self._open(was_closed=boot_ns() >= self.written)

    def forbid(self) -> bool:
        """Let leased rules answer no more, at once: this host has no lease.

        Returns:
            True if none answers on the interface any more; otherwise they do until `written`.
        """
        self._is_held_back = True
        self._state.write_rules()
        return self._write(0)

    def begin(self, maps: Maps) -> None:
        """Write into these maps from now on."""
        if maps is not self._maps:
            self._maps, self._is_held_back = maps, True
            self._state.write_rules()

    def end(self) -> None:
        """Write nothing any more: this process does not answer on the interface now."""
        if self._maps is not None:
            self._write(0)
            self._maps = None
            self._note_written(False)
            self._note_change()

    async def rules_written(self) -> bool:
        """Wait until the rules as they are wanted now are in the maps.

        Returns:
            False if they are not: the daemon does not answer on the interface, or failed to write.
        """
        if self._maps is None:
            return False
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(written)
        self._state.write_rules()
        return await written

    def round_ended(self) -> None:
        """Notify those who wait for the rules, after a round of the uplink."""
        is_first, self._has_looked = not self._has_looked, True
        state = self._state
        if not state.pending.rules:
            may_open = state.wanted.get(SHARED_ORIGIN) is not None and not state.stop.is_set()
            if self._is_held_back and may_open:
                self._is_held_back = False
                self._open(was_closed=True)
            self._note_written(True)
        elif not state.health.rules.is_due:
            self._note_written(False)
        self._note_change(is_first)

    def _note_change(self, is_first: bool = False) -> None:
        if self.may_join is not self._might_join or is_first:
            self._might_join = self.may_join
            self._on_change()

    def _note_written(self, written: bool) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(written)

    def _open(self, *, was_closed: bool) -> None:
        """Write the end of the host's lease; announce the leased addresses if none was in force.

        Announcements that were due before were not sent (daemon/lease_guard.py).
        """
        until = self._clock.until
        if self._write(until) and was_closed and boot_ns() < until:
            self._state.pending.leased = True
            self._state.changed.set()

    def _write(self, until: int) -> bool:
        """Write the end of the lease; return False if that failed. Then leased rules end alone."""
        if self._maps is None:
            return boot_ns() >= self.written
        self.written = max(self.written, until)
        try:
            self._maps.write_lease(until)
        except Exception as error:
            name = self._state.spec.interface
            log.warning("%s: cannot write the end of the lease: %s", name, problem_of(error))
            return False
        self.written = until
        return True
