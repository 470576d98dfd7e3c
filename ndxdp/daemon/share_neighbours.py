"""The hosts of a share that the kernel does not reach, or whose bridge has forgotten them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.netlink.bridge_monitor import BridgeMonitor
from ndxdp.netlink.fib import NudState
from ndxdp.netlink.neighbour_monitor import NeighbourChange

_BRIDGES_PAUSE = 0.1
"""Seconds between two looks for the MACs that bridges have forgotten: a flood of MACs takes a
bounded part of a CPU."""


class ShareNeighbours:
    """Follows the kernel's neighbours on the interfaces of a share, and the MACs of its bridges.

    For use in a running event loop, and by its thread only.
    """

    def __init__(
        self,
        shared: Shared,
        routes: Mapping[bytes, int],
        lost: Callable[[bytes], None],
        departed: Callable[[Collection[tuple[int, bytes]]], None],
    ) -> None:
        """Follow no interface yet.

        Args:
            shared: What all interfaces of the daemon share.
            routes: A view of the interfaces that addresses are routed to.
            lost: Called with each address that the kernel has solicited in vain where its route
                leads to: to a downstream interface for a learned host, upstream for all others.
            departed: Called with indexes of bridges, of any on this host, and MACs that they have
                forgotten: a port has left, or was silent for long.
        """
        self._shared, self._routes = shared, routes
        self._lost, self._departed = lost, departed
        self._ends: dict[int, Callable[[], None]] = {}
        self._upstream = 0
        self._bridges = BridgeMonitor()
        self._pause: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._bridges.fileno(), self._on_bridges)

    def close(self) -> None:
        """Follow nothing any more."""
        self.follow(frozenset())
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._bridges.fileno())
        self._bridges.close()

    def follow(self, ifindexes: frozenset[int], upstream: int = 0) -> None:
        """Follow the neighbours on these interfaces, and on no others.

        Args:
            ifindexes: The downstream interfaces.
            upstream: The upstream interface; 0 without one.
        """
        self._upstream = upstream
        ifindexes = ifindexes | {upstream} - {0}
        for ifindex in self._ends.keys() - ifindexes:
            self._ends.pop(ifindex)()
        for ifindex in ifindexes - self._ends.keys():
            self._ends[ifindex] = self._shared.follow_neighbours(ifindex, self._on_changes)

    def _on_changes(self, changes: list[NeighbourChange] | None) -> None:
        for change in changes or ():  # lost news do no harm: a claim, or the expiry, follows
            if (
                change.state is NudState.FAILED
                and self._routes.get(change.address, self._upstream) == change.ifindex
            ):
                self._lost(change.address)

    def _on_bridges(self) -> None:
        gone = self._bridges.drain()
        if gone:
            self._loop.remove_reader(self._bridges.fileno())
            self._pause = self._loop.call_later(_BRIDGES_PAUSE, self._resume)
            self._departed(gone)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._bridges.fileno(), self._on_bridges)
