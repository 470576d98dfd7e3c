"""The hosts of a share that the kernel does not reach, or whose bridge has forgotten them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from ndxdp.daemon.bridge_departures import BridgeDepartures
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.netlink.fib import NudState
from ndxdp.netlink.neighbour_monitor import NeighbourChange


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
            departed: As BridgeDepartures takes it.
        """
        self._shared, self._routes, self._lost = shared, routes, lost
        self._ends: dict[int, Callable[[], None]] = {}
        self._upstream = 0
        self._bridges = BridgeDepartures(departed)

    def close(self) -> None:
        """Follow nothing any more."""
        self.follow(frozenset())
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
