"""The host's tables of which programs read copies: local routes, and the names of interfaces.

Each address that the host gets or loses changes a local route, of whichever interface. So the
tables are read once for all uplinks after a burst of changes, and only copies that an answer
depends on are brought in step.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

from ndxdp.netlink.fib import Fib
from ndxdp.netlink.link_monitor import Changes
from ndxdp.rules.prefix import Prefix

_BURST_TIME = 0.01  # seconds: changes come in bursts, and one look serves a burst
_PAUSE = 0.1  # seconds between two looks while changes keep coming

_T = TypeVar("_T")


class Copies(NamedTuple):
    """The tables that an answer on an interface depends on."""

    local_routes: bool = False
    names: bool = False


class Reader(Protocol):
    """An uplink whose program reads copies of the tables."""

    @property
    def copies(self) -> Copies:
        """The copies that an answer depends on."""

    def sync_tables(self) -> None:
        """Bring these copies in step, in the executor's thread."""


class Table(Generic[_T]):
    """A table that is read again only after a change.

    Attributes:
        looks: How often the table was read.
    """

    def __init__(self, read: Callable[[], _T]) -> None:
        self._read = read
        self._version = 0
        self._held: tuple[int, _T] | None = None
        self.looks = 0

    def note_change(self) -> None:
        """Have the table read again when it is needed."""
        self._version += 1

    def get(self) -> _T:
        """Return the table: the same object as before, if nothing in it has changed."""
        held, version = self._held, self._version
        if held is not None and held[0] == version:
            return held[1]
        self.looks += 1
        value = self._read()
        if held is not None and held[1] == value:
            value = held[1]
        self._held = version, value  # a change during the look makes this one outdated
        return value


class HostTables:
    """The tables, and the uplinks that have copies of them.

    Call the methods in the event loop's thread. The tables are read in the executor's thread.

    Attributes:
        local_routes: The prefixes that this host receives.
        names: The index and the name of each interface.
    """

    def __init__(self, call: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """Read nothing yet.

        Args:
            call: Calls a function in the executor's thread.
        """
        self._call = call
        self._readers: list[Reader] = []
        self._wanted = False
        self._following: asyncio.Task[None] | None = None
        self.local_routes: Table[set[Prefix]] = Table(_local_prefixes)
        self.names: Table[list[tuple[int, str]]] = Table(socket.if_nameindex)

    def close(self) -> None:
        """Follow the tables no more."""
        if self._following is not None:
            self._following.cancel()

    @contextlib.contextmanager
    def serving(self, reader: Reader) -> Iterator[None]:
        """Keep the copies of an uplink in step during the block."""
        self._readers.append(reader)
        try:
            yield
        finally:
            self._readers.remove(reader)

    def network_changed(self, changes: Changes) -> None:
        """Bring the copies in step soon, if they may be outdated."""
        local_routes = changes.local_routes or changes.anything
        names = bool(changes.names) or changes.anything
        if local_routes:
            self.local_routes.note_change()
        if names:
            self.names.note_change()
        if not self._wanted and any(
            (local_routes and reader.copies.local_routes) or (names and reader.copies.names)
            for reader in self._readers
        ):
            self._wanted = True
            if self._following is None or self._following.done():
                self._following = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        """Look once for each burst of changes, until there is none."""
        while self._wanted:
            await asyncio.sleep(_BURST_TIME)
            self._wanted = False
            await self._call(self._sync)
            await asyncio.sleep(_PAUSE)

    def _sync(self) -> None:
        for reader in list(self._readers):
            if any(reader.copies):
                reader.sync_tables()


def _local_prefixes() -> set[Prefix]:
    with Fib() as fib:
        return fib.local_prefixes()
