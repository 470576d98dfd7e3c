"""The host routes of one share: what the learner wants, brought into the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable, Iterable, Mapping

from ndxdp.netlink.fib import Fib
from ndxdp.netlink.host_routes import HostRoute, HostRouteMonitor, HostRoutes
from ndxdp.rules.address import address_text

log = logging.getLogger(__name__)

_GONE = (errno.ENODEV, errno.ENETDOWN, errno.EINVAL)
"""The kernel's refusals of a route by an interface that has just disappeared or gone down."""


class ShareRoutes:
    """Adds, moves and removes host routes, and notices when another program removes one.

    Call the methods in the event loop's thread: a change of a route takes some 30 µs.
    """

    def __init__(self, removed: Callable[[set[bytes]], None]) -> None:
        """Open the sockets in a running event loop.

        Args:
            removed: Called with the addresses whose routes another program has removed, or which
                the kernel has removed with their interface.
        """
        self._removed = removed
        self._present: dict[bytes, int] = {}  # by address: the interface of our route
        self._others: dict[bytes, int] = {}  # those that another program routes, so far
        with contextlib.ExitStack() as opened:
            self._monitor = opened.enter_context(contextlib.closing(HostRouteMonitor()))
            self._routes = opened.enter_context(contextlib.closing(HostRoutes()))
            self._fib = opened.enter_context(Fib())
            loop = asyncio.get_running_loop()
            loop.add_reader(self._monitor.fileno(), self._on_removals)
            opened.callback(loop.remove_reader, self._monitor.fileno())
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close the sockets; the routes stay."""
        self._opened.close()

    def adopt(self, ifindexes: Iterable[int]) -> list[HostRoute]:
        """Return the routes by these interfaces that an earlier daemon has left, and keep them."""
        wanted = frozenset(ifindexes)
        found = [
            route
            for route in self._routes.read()
            if route.ifindex in wanted and route.address not in self._present
        ]
        self._present.update(found)
        return found

    def remove_by(self, names: list[str]) -> None:
        """Remove the routes by interfaces that the share had under an earlier daemon."""
        try:
            if names:
                self._routes.remove_by(names)
        except OSError as error:
            log.error("cannot remove the routes by %s: %s", ", ".join(names), error.strerror)

    def bind(self, address: bytes, ifindex: int) -> bool:
        """Route an address to an interface, whichever it was routed to; return False if refused."""
        route = HostRoute(address, ifindex)
        former = self._present.get(address)
        try:
            if former is None:
                if not self._routes.add(route):
                    log.debug("%s has another program's route", address_text(address))
                    self._others[address] = ifindex
                    return True
            elif former != ifindex:
                self._routes.move(HostRoute(address, former), route)
                self._forget_neighbour(address, former)
        except OSError as error:
            level = logging.DEBUG if error.errno in _GONE else logging.ERROR
            log.log(level, "cannot add the route to %s: %s", address_text(address), error.strerror)
            return False
        self._present[address] = ifindex
        self._others.pop(address, None)
        return True

    def has(self, address: bytes) -> bool:
        """Return True if an address has a route, ours or another program's."""
        return address in self._present or address in self._others

    def unbind(self, address: bytes) -> None:
        """Remove the route to an address, if there is one."""
        self._others.pop(address, None)
        ifindex = self._present.pop(address, None)
        if ifindex is None:
            return
        try:
            self._routes.remove(HostRoute(address, ifindex))
            self._forget_neighbour(address, ifindex)
        except OSError as error:
            text = address_text(address)
            log.error("cannot remove the route to %s: %s", text, error.strerror)

    def verify(self, address: bytes) -> None:
        """Have the kernel forget its entry for an address, and solicit the address."""
        ifindex = self._present.get(address)
        if ifindex is None:
            return
        try:
            self._fib.forget(ifindex, address)
            self._fib.solicit(ifindex, address)
        except OSError as error:  # the interface has gone, or the kernel's table is full
            log.debug("cannot solicit %s: %s", address_text(address), error.strerror)

    def audit(self) -> None:
        """Compare with the kernel's routes, and report those that are missing.

        A host whose route was another program's gets one of ours once that one is deleted.
        """
        for address, ifindex in list(self._others.items()):
            if not self.bind(address, ifindex):
                del self._others[address]
                self._removed({address})
        present = self._routes.read()
        missing = {
            address
            for address, ifindex in self._present.items()
            if HostRoute(address, ifindex) not in present
        }
        for address in missing:
            del self._present[address]
        if missing:
            self._removed(missing)

    def _forget_neighbour(self, address: bytes, ifindex: int) -> None:
        """Remove the kernel's entry for a host that does not live there any more."""
        with contextlib.suppress(OSError):
            self._fib.forget(ifindex, address)

    def _on_removals(self) -> None:
        removed = self._monitor.drain()
        # A route that this object removed itself may be there again by now.
        if removed is None or any(
            self._present.get(each.address) == each.ifindex or each.address in self._others
            for each in removed
        ):
            self.audit()

    @property
    def interfaces(self) -> Mapping[bytes, int]:
        """The interface of each route, by address."""
        return self._present
