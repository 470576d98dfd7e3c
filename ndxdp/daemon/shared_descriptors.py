"""Resources that all interfaces of a daemon share, so that one more takes few of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar

from ndxdp.daemon.host_tables import HostTables
from ndxdp.daemon.queriers import Queriers
from ndxdp.errors import NdxdpError
from ndxdp.fleet.lease_clock import LeaseClock
from ndxdp.kernel.inotify import Watch
from ndxdp.netlink.fib import Fib
from ndxdp.netlink.neighbour_monitor import NeighbourChange, NeighbourMonitor
from ndxdp.sockets.cbpf import packet_socket
from ndxdp.sockets.multicast import Allmulti

_T = TypeVar("_T")

_BUFFER = 1 << 20
"""Bytes of changes of all neighbours that may wait, of which each takes about a thousand."""

_FILTERED_AT_ONCE = 16
"""Interfaces up to which the filter for their neighbours is made at once."""

_NARROWING = 1.0  # seconds until it is made for more interfaces

OnChanges = Callable[[list[NeighbourChange] | None], None]
"""Takes the changes of an interface's neighbours; None where changes were lost."""


class Shared:
    """The executor, sockets and watches of a daemon.

    Sockets and watches are opened when they are first used, in a running event loop. All methods
    are for the loop's thread, except for `allmulti`.

    Attributes:
        executor: One thread, for everything that reads or writes kernel objects.
        tables: The host's tables of which programs read copies.
        lease: The end of the host's lease, for frames of shared addresses.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.lease = LeaseClock()
        # Uplinks take turns. If all their tasks queued in the executor, the proof that the executor
        # works would come last.
        self._turn = asyncio.Lock()
        self._open = contextlib.ExitStack()
        self._monitor: NeighbourMonitor | None = None
        self._followers: dict[int, list[OnChanges]] = {}
        self._narrowing: asyncio.TimerHandle | None = None
        self._all_monitor: NeighbourMonitor | None = None
        self._all_followers: list[OnChanges] = []
        self._reserved: dict[str, str] = {}
        self.tables = HostTables(self.call)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close everything; no interface uses it any more."""
        self.tables.close()
        if self._narrowing is not None:
            self._narrowing.cancel()
        self._open.close()

    async def call(self, function: Callable[[], _T]) -> _T:
        """Call a function in the executor's thread, once the calls before have returned."""
        async with self._turn:
            return await asyncio.get_running_loop().run_in_executor(self.executor, function)

    @cached_property
    def fib(self) -> Fib:
        """The kernel's tables."""
        return self._open.enter_context(Fib())

    @cached_property
    def allmulti(self) -> Allmulti:
        """The memberships that keep interfaces in allmulti."""
        return self._open.enter_context(contextlib.closing(Allmulti()))

    @cached_property
    def queriers(self) -> Queriers:
        """The MLD queriers of the interfaces' links."""
        return self._open.enter_context(contextlib.closing(Queriers()))

    @cached_property
    def sender(self) -> socket.socket:
        """A packet socket to send by; NdxdpError without CAP_NET_RAW."""
        return self._open.enter_context(
            packet_socket("answers for neighbours that were just found")
        )

    @cached_property
    def _watch(self) -> Watch:
        watch = self._open.enter_context(contextlib.closing(Watch()))
        self._read(watch.fileno(), watch.dispatch)
        return watch

    def _read(self, fd: int, readable: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(fd, readable)
        self._open.callback(loop.remove_reader, fd)

    def follow_neighbours(self, ifindex: int, on_changes: OnChanges) -> Callable[[], None]:
        """Call back after changes of an interface's neighbours; return a function that ends it."""
        if self._monitor is None:
            monitor = NeighbourMonitor(ifindex)
            self._open.callback(monitor.close)
            self._read(monitor.fileno(), self._on_changes)
            self._monitor = monitor
        followers = self._followers.setdefault(ifindex, [])
        followers.append(on_changes)
        self._limit_neighbours()

        def end() -> None:
            followers.remove(on_changes)
            if not followers and self._followers.get(ifindex) is followers:
                # Its messages are ignored until limit_to() is called again.
                del self._followers[ifindex]

        return end

    def _limit_neighbours(self) -> None:
        """Have only the neighbours on followed interfaces reported.

        A filter has each interface. So while many interfaces begin, it is made once for several,
        and lets all neighbours through until then.
        """
        assert self._monitor is not None
        if len(self._followers) <= _FILTERED_AT_ONCE:
            self._monitor.limit_to(*self._followers)
        elif self._narrowing is None:
            self._monitor.limit_to()
            self._narrowing = asyncio.get_running_loop().call_later(_NARROWING, self._narrow)

    def _narrow(self) -> None:
        assert self._monitor is not None
        self._narrowing = None
        self._monitor.limit_to(*self._followers)

    def follow_all_neighbours(self, on_changes: OnChanges) -> Callable[[], None]:
        """Call back after changes of neighbours on any interface; return a function that ends it.

        The socket is not that of follow_neighbours(): a flood of changes behind the host does no
        harm to the neighbours on the uplinks.
        """
        if self._all_monitor is None:
            monitor = NeighbourMonitor(buffer=_BUFFER)
            asyncio.get_running_loop().add_reader(monitor.fileno(), self._on_all_changes)
            self._all_monitor = monitor
        self._all_followers.append(on_changes)

        def end() -> None:
            self._all_followers.remove(on_changes)
            if not self._all_followers and self._all_monitor is not None:
                asyncio.get_running_loop().remove_reader(self._all_monitor.fileno())
                self._all_monitor.close()
                self._all_monitor = None

        return end

    def _on_all_changes(self) -> None:
        assert self._all_monitor is not None
        changes = self._all_monitor.drain()
        for on_changes in list(self._all_followers):
            on_changes(changes)

    def _on_changes(self) -> None:
        assert self._monitor is not None
        changes = self._monitor.drain()
        if changes is None:
            for on_changes in [each for some in self._followers.values() for each in some]:
                on_changes(None)
            return
        here: dict[int, list[NeighbourChange]] = {}
        for change in changes:
            here.setdefault(change.ifindex, []).append(change)
        for ifindex, some_changes in here.items():
            for on_changes in list(self._followers.get(ifindex, ())):
                on_changes(some_changes)

    @contextlib.contextmanager
    def reserving(self, interface: str, configured: str) -> Iterator[None]:
        """Reserve an interface, which may be configured by two names, for one uplink.

        Args:
            interface: The interface's name.
            configured: The configured name, which may be an alternative one.

        Raises:
            NdxdpError: Another uplink has reserved it.
        """
        other = self._reserved.setdefault(interface, configured)
        if other != configured:
            raise NdxdpError(
                f"{configured} and {other} are names of one interface", "remove one of them"
            )
        try:
            yield
        finally:
            del self._reserved[interface]

    @contextlib.contextmanager
    def watching(self, directory: Path, changed: Callable[[], None]) -> Iterator[None]:
        """Call back during the block when a directory is touched, or something in it is removed.

        Raises:
            OSError: inotify is not available, or its limits are reached.
        """
        number = self._watch.add(directory, changed)
        try:
            yield
        finally:
            self._watch.remove(number)
