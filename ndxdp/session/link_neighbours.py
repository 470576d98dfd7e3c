"""The maps' copy of the neighbours that the host has on the answering interface itself.

The program cannot ask the kernel for the neighbours of one interface: bpf_fib_lookup() finds them
only where a route leads. Yet it must not defend a neighbour's address against that neighbour's own
Duplicate Address Detection, and it keeps a share of the answers for the gateways, which it knows by
their MACs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from ndxdp.netlink.fib import Fib, Neighbour
from ndxdp.netlink.neighbour_monitor import NeighbourChange
from ndxdp.store.maps import Maps

log = logging.getLogger(__name__)

_PATIENCE = 0.5  # seconds for a gateway to answer


class LinkNeighbours:
    """Keeps the maps in step with one interface's neighbours, in a running event loop.

    Of the loop's thread only; close() when done.
    """

    def __init__(
        self,
        maps: Maps,
        fib: Fib,
        follow: Callable[[int, Callable[[list[NeighbourChange] | None], None]], Callable[[], None]],
        on_gateways: Callable[[frozenset[bytes]], None],
    ) -> None:
        """Follow nothing until follow().

        Args:
            maps: The maps, which must outlive this.
            fib: The kernel's tables, which must, too.
            follow: Has a function called with the news of an interface's neighbours, None where
                some were lost; returns a function that ends it.
            on_gateways: Called with the gateways' MACs (6 bytes each) whenever these change.
        """
        self._maps, self._fib, self._on_gateways = maps, fib, on_gateways
        self._follow, self._unfollow = follow, _nothing
        self._ifindex = 0
        self._alive: set[bytes] = set()
        self._macs: dict[bytes, bytes] = {}  # of the gateways, by address
        self._gateways: frozenset[bytes] = frozenset()

    def close(self) -> None:
        """Stop following; the maps stay as they are."""
        self._unfollow()

    def follow(self, ifindex: int, gateways: frozenset[bytes], *, seek: bool) -> None:
        """Follow the neighbours of an interface.

        Args:
            ifindex: The interface that packets come in by for the FIB: of a bridge's port, the
                bridge.
            gateways: Addresses (16 bytes each) of the gateways behind it.
            seek: True to have the kernel solicit gateways whose MACs it does not know.
        """
        if ifindex != self._ifindex:
            self._unfollow()
            self._unfollow = _nothing
            self._unfollow = self._follow(ifindex, self._on_news)
            self._ifindex = ifindex
            self._gateways = gateways
            self._look()
        elif gateways != self._gateways:
            self._gateways = gateways
            self._look()
        for gateway in gateways - set(self._macs) if seek else ():
            _seek(self._fib, ifindex, gateway)

    def _look(self) -> None:
        there = self._fib.neighbours(self._ifindex)
        self._alive = set(alive(there))
        self._maps.set_on_link(self._alive)
        self._macs = {
            each.address: each.mac for each in there if each.mac and each.address in self._gateways
        }
        self._note_gateways()

    def _on_news(self, news: list[NeighbourChange] | None) -> None:
        try:
            if news is None:
                self._look()
                return
            for _, address, state, mac in news:
                if address[0] == 0xFF:
                    continue
                if state.is_valid is not (address in self._alive):
                    (self._alive.add if state.is_valid else self._alive.discard)(address)
                    self._maps.set_neighbour(address, alive=state.is_valid)
                if address in self._gateways and mac and self._macs.get(address) != mac:
                    self._macs[address] = mac
                    self._note_gateways()
        except OSError as error:  # the map is full, or memory short
            log.debug("neighbours are not followed: %s", error)

    def _note_gateways(self) -> None:
        macs = frozenset(self._macs.values())
        self._maps.set_gateways(macs)
        self._on_gateways(macs)


def _nothing() -> None:
    pass


def alive(neighbours: Iterable[Neighbour]) -> list[bytes]:
    """Return the addresses (16 bytes each) of the neighbours that the kernel would send to."""
    return [each.address for each in neighbours if each.state.is_valid]


def sync_neighbours(maps: Maps, ifindex: int, *, seek: bool = False) -> None:
    """Let the maps have the neighbours and gateways that there are now.

    Args:
        maps: The maps of the answering interface.
        ifindex: See LinkNeighbours.follow().
        seek: True to have the kernel solicit gateways whose MACs it does not know, and to wait for
            their answers for up to half a second.
    """
    with Fib() as fib:
        gateways = fib.gateways(ifindex)
        there = _look_for(fib, ifindex, gateways) if seek else fib.neighbours(ifindex)
    maps.set_on_link(alive(there))
    maps.set_gateways(each.mac for each in there if each.mac and each.address in gateways)


def _look_for(fib: Fib, ifindex: int, gateways: set[bytes]) -> list[Neighbour]:
    """Return the neighbours on an interface once the gateways are among them, or time is up."""
    give_up = time.monotonic() + _PATIENCE
    sought: set[bytes] = set()
    while True:
        there = fib.neighbours(ifindex)
        unknown = gateways - {each.address for each in there if each.mac}
        if not unknown or time.monotonic() > give_up:
            return there
        for gateway in unknown - sought:
            if not _seek(fib, ifindex, gateway):
                return there
        sought |= unknown
        time.sleep(_PATIENCE / 50)


def _seek(fib: Fib, ifindex: int, gateway: bytes) -> bool:
    """Have the kernel solicit a gateway; False if it does not."""
    try:
        fib.solicit(ifindex, gateway)
    except OSError as error:  # the link is down, or the table full
        log.debug("a gateway is not solicited: %s", error)
        return False
    return True
