"""The delay of an uplink between two attempts to answer on its interface."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial

from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.daemon.uplink_state import UplinkState
from ndxdp.netlink import links
from ndxdp.netlink.links import Link

log = logging.getLogger(__name__)

ATTEMPT_PERIOD = 1.0  # seconds between the beginnings of two attempts, even after changes


class Waiting:
    """Waits until an attempt to answer may succeed.

    That is when the delay is over, when another uplink has released an interface, and when the
    interface differs from what the last attempt found. Each attempt causes netlink messages itself,
    and so do other processes: these are ignored.

    Changes of other interfaces make no attempt succeed, so that the uplink wakes only if a link
    changes that is called like its interface, or that the last attempt found.
    """

    def __init__(self, state: UplinkState, shared: Shared) -> None:
        self._state, self._shared = state, shared
        self._configured = state.spec.interface  # perhaps an alternative name
        self.is_active = self._other_released = False

    def other_released(self) -> None:
        """Try again soon: another uplink has released an interface, perhaps this uplink's."""
        if self.is_active and self._state.own_links:
            self._other_released = True
            self._state.changed.set()

    async def find(self) -> Link | None:
        """Return the interface, without what this process and the cable change; None if absent."""
        try:
            link = await self._shared.call(partial(links.find_link, self._configured))
        except Exception as error:
            log.debug("interface not found: %s", error)
            return None
        if link is None:
            return None
        return link._replace(allmulti=False, mcast_router=0, operational=False, carrier_ups=0)

    async def until_change(
        self, seen: Link | None, earliest: float, check: Callable[[], None]
    ) -> None:
        """Wait until an attempt may succeed, or for the end.

        Args:
            seen: The interface as the last attempt found it; None if it was absent.
            earliest: The earliest time for the next attempt, in s of time.monotonic().
            check: Raises an exception if an attempt cannot succeed.
        """
        state = self._state
        self.is_active, self._other_released = True, False
        state.follow_links(frozenset((seen.ifindex,) if seen else ()))
        state.changed.set()
        try:
            async for _ in state.rounds():
                if state.health.beginning.is_due:
                    return
                link = await self.find()
                if link is None or (link == seen and not self._other_released):
                    continue
                self._other_released = False
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(state.stop.wait(), earliest - time.monotonic())
                try:
                    await self._shared.call(check)
                    return
                except Exception as error:
                    log.debug("not yet: %s", error)
                seen = link
                state.follow_links(frozenset((link.ifindex,)))
        finally:
            self.is_active = False
