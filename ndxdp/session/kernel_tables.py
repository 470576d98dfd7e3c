"""The maps' copies of kernel tables that a program cannot read.

- The prefixes that end at this host. bpf_fib_lookup() reports no local routes.
- The neighbours on the answering interface itself. bpf_fib_lookup() finds neighbours only where a
  route leads. Yet the program must not defend a neighbour's address against that neighbour's own
  Duplicate Address Detection, and it keeps a share of the answers for the gateways, whose MACs it
  needs.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable

from ndxdp.ndp.profile import Answer
from ndxdp.netlink.fib import Fib, Neighbour
from ndxdp.netlink.neighbour_monitor import NeighbourChange
from ndxdp.rules.rule import Rule
from ndxdp.store.maps import Maps

log = logging.getLogger(__name__)

_GATEWAY_TIMEOUT = 0.5  # seconds for a gateway to answer


def reads_local_routes(rules: Iterable[Rule], ifindex: int, *, solicits: bool) -> bool:
    """Return True if the copy of the local routes matters for an answer.

    Args:
        rules: The rules of the interface, or those that differ from one another.
        ifindex: The interface by which packets come in for the FIB.
        solicits: The daemon solicits gateways from addresses behind this host.
    """
    rules = list(rules)
    if solicits or any(rule.answer.asks_kernel for rule in rules):
        return True
    # Where the kernel forwards nothing, `always` defends only addresses of this host against DAD.
    if not any(rule.answer is Answer.ALWAYS and rule.profile.defend for rule in rules):
        return False
    with Fib() as fib:
        return not fib.forwards(ifindex)


def sync_local_routes(maps: Maps) -> None:
    """Write the prefixes that end at this host into the maps that a program reads.

    Without a daemon, the program does not learn of later changes.
    """
    if maps.in_kernel:
        with Fib() as fib:
            maps.set_locals(fib.local_prefixes())


def sync_neighbours(maps: Maps, ifindex: int, gateways: set[bytes], *, solicit: bool) -> None:
    """Write the present neighbours and gateways into the maps.

    Args:
        maps: The maps of the answering interface.
        ifindex: The interface by which packets come in for the FIB: of a bridge's port, the bridge.
        gateways: The gateways on it.
        solicit: Have the kernel solicit gateways whose MACs it does not know, and wait for their
            answers for up to half a second.
    """
    with Fib() as fib:
        present = _with_gateways(fib, ifindex, gateways) if solicit else fib.neighbours(ifindex)
    maps.set_on_link(alive(present))
    maps.set_gateways(each.mac for each in present if each.mac and each.address in gateways)


def alive(neighbours: Iterable[Neighbour]) -> list[bytes]:
    """Return the addresses (16 bytes each) of the neighbours that the kernel would send to."""
    return [each.address for each in neighbours if each.state.is_valid]


def _with_gateways(fib: Fib, ifindex: int, gateways: set[bytes]) -> list[Neighbour]:
    """Return the neighbours on an interface once the gateways are among them, or time is up."""
    give_up = time.monotonic() + _GATEWAY_TIMEOUT
    solicited: set[bytes] = set()
    while True:
        present = fib.neighbours(ifindex)
        unknown = gateways - {each.address for each in present if each.mac}
        if not unknown or time.monotonic() > give_up:
            return present
        for gateway in unknown - solicited:
            if not _solicit(fib, ifindex, gateway):
                return present
        solicited |= unknown
        time.sleep(_GATEWAY_TIMEOUT / 50)


def _solicit(fib: Fib, ifindex: int, gateway: bytes) -> bool:
    """Have the kernel solicit a gateway; return False if it does not."""
    try:
        fib.solicit(ifindex, gateway)
    except OSError as error:  # the link is down, or the neighbour table is full
        log.debug("cannot solicit a gateway: %s", error)
        return False
    return True


class LinkNeighbours:
    """Keeps the maps in step with one interface's neighbours, in a running event loop.

    All methods are for the loop's thread; close() when done.
    """

    def __init__(
        self,
        maps: Maps,
        fib: Fib,
        follow: Callable[[int, Callable[[list[NeighbourChange] | None], None]], Callable[[], None]],
        on_gateways: Callable[[frozenset[bytes]], None],
        on_failure: Callable[[], None],
    ) -> None:
        """Follow nothing until follow().

        Args:
            maps: The maps, which must outlive this object.
            fib: The kernel's tables, which must outlive this object.
            follow: Has a function called with the changes of an interface's neighbours, or None
                where changes were lost; returns a function that ends that.
            on_gateways: Called with the gateways' MACs (6 bytes each) whenever these change.
            on_failure: Called when a change could not be written: follow() reads all neighbours.
        """
        self._maps, self._fib = maps, fib
        self._on_gateways, self._on_failure = on_gateways, on_failure
        self._follow, self._unfollow = follow, _nothing
        self._ifindex = 0
        self._outdated = False
        self._alive: set[bytes] = set()
        self._macs: dict[bytes, bytes] = {}  # of the gateways, by address
        self._gateways: frozenset[bytes] = frozenset()

    def close(self) -> None:
        """Stop following; the maps stay as they are."""
        self._unfollow()

    def follow(self, ifindex: int, gateways: frozenset[bytes], *, solicit: bool) -> None:
        """Follow the neighbours of an interface.

        Args:
            ifindex: The interface by which packets come in for the FIB, as in sync_neighbours().
            gateways: Addresses (16 bytes each) of the gateways on it.
            solicit: Have the kernel solicit gateways whose MACs it does not know.
        """
        if ifindex != self._ifindex:
            self._unfollow()
            self._unfollow = _nothing
            self._unfollow = self._follow(ifindex, self._on_changes)
            self._ifindex, self._outdated = ifindex, True
        if gateways != self._gateways:
            self._gateways, self._outdated = gateways, True
        if self._outdated:  # still, if that fails
            self._read_all()
            self._outdated = False
        for gateway in gateways - set(self._macs) if solicit else ():
            _solicit(self._fib, ifindex, gateway)

    def _read_all(self) -> None:
        """Read the kernel's table, and write it into the maps."""
        present = self._fib.neighbours(self._ifindex)
        self._alive = set(alive(present))
        self._macs = {
            each.address: each.mac
            for each in present
            if each.mac and each.address in self._gateways
        }
        with self._maps.opened():
            self._maps.set_on_link(self._alive)
            self._write_gateways()

    def _on_changes(self, changes: list[NeighbourChange] | None) -> None:
        try:
            if changes is None:
                self._read_all()
                return
            with self._maps.opened():
                for change in changes:
                    self._follow_change(change)
        except OSError as error:
            log.debug("cannot follow neighbours: %s", error)
            if error.errno != errno.E2BIG:  # not a full map, but a lack of memory or descriptors
                self._outdated = True
                self._on_failure()

    def _follow_change(self, change: NeighbourChange) -> None:
        _, address, state, mac = change
        if address[0] == 0xFF:
            return
        if state.is_valid is not (address in self._alive):
            (self._alive.add if state.is_valid else self._alive.discard)(address)
            self._maps.set_neighbour(address, alive=state.is_valid)
        if address in self._gateways and mac and self._macs.get(address) != mac:
            self._macs[address] = mac
            self._write_gateways()

    def _write_gateways(self) -> None:
        macs = frozenset(self._macs.values())
        self._maps.set_gateways(macs)
        self._on_gateways(macs)


def _nothing() -> None:
    pass
