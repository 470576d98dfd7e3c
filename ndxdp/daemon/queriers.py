"""MLD queriers of the links: a switch that snoops MLD filters groups while there is a querier."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from ndxdp.resting_reader import RestingReader
from ndxdp.sockets.mld import LISTENER_INTERVAL, QuerySocket

log = logging.getLogger(__name__)

_FLOOD_PAUSE = 1.0  # seconds without reading after a full batch of queries


class Querier(Enum):
    """The MLD querier of a link, as far as known. The values are those of `querier` in JSON."""

    UNKNOWN = None
    HEARD = True
    SILENT = False


@dataclass(slots=True)
class _Link:
    """A link whose querier is known or awaited.

    Attributes:
        querier: The present state.
        until: The time of the loop at which the state becomes SILENT without another query.
        timer: The timer for that time; None if it has passed.
        wakes: Functions to call when the state changes.
    """

    querier: Querier = Querier.UNKNOWN
    until: float = 0.0
    timer: asyncio.TimerHandle | None = None
    wakes: list[Callable[[], None]] = field(default_factory=list)


class Queriers:
    """The queriers that are heard on the links of a daemon's interfaces.

    A querier is present for the Multicast Listener Interval after its last query. Before the first
    query, the state is UNKNOWN for the default of that interval. Without permission to receive
    queries the state stays UNKNOWN. Call all methods in the event loop's thread.
    """

    def __init__(self) -> None:
        """Begin to receive queries."""
        self._loop = asyncio.get_running_loop()
        self._links: dict[int, _Link] = {}
        self._socket: QuerySocket | None = None
        try:
            self._socket = QuerySocket()
        except OSError as error:
            log.info(
                "cannot receive MLD queries: %s; groups are joined as if there were a querier",
                error.strerror,
            )
            return
        self._reader = RestingReader(self._socket.fileno(), self._receive, _FLOOD_PAUSE)

    def close(self) -> None:
        """Receive no more queries, and cancel all timers."""
        for link in self._links.values():
            if link.timer:
                link.timer.cancel()
        self._links.clear()
        if self._socket:
            self._reader.close()
            self._socket.close()

    def watch(self, ifindex: int, wake: Callable[[], None]) -> Callable[[], None]:
        """Watch a link; what is known of the link outlives the watch, as a renewal ends it.

        Args:
            ifindex: The interface by which queries arrive: of a port, the bridge or bond.
            wake: Called when the link's state changes.

        Returns:
            A function that ends the watch, and may be called again.
        """
        link = self._links.get(ifindex)
        if link is None:
            link = self._links[ifindex] = _Link()
            self._wait(ifindex, link, LISTENER_INTERVAL)
        link.wakes.append(wake)

        def end() -> None:
            with contextlib.suppress(ValueError):
                link.wakes.remove(wake)
            if not link.wakes and link.timer is None and self._links.get(ifindex) is link:
                del self._links[ifindex]

        return end

    def state(self, ifindex: int) -> Querier:
        """Return whether a watched link has a querier."""
        return self._links[ifindex].querier

    def note(self, ifindex: int, interval: float = LISTENER_INTERVAL) -> None:
        """Note a querier of a watched link.

        A query never shortens the time that an earlier query of the link has set.

        Args:
            ifindex: The interface.
            interval: The querier's Multicast Listener Interval, in seconds.
        """
        link = self._links.get(ifindex)
        if link is None:
            return
        if link.querier is Querier.HEARD:
            link.until = max(link.until, self._loop.time() + interval)
            return
        log.debug("an MLD querier is heard on interface %d, for %g s", ifindex, interval)
        link.querier = Querier.HEARD
        self._wait(ifindex, link, interval)
        self._wake(link)

    def forget(self, ifindex: int) -> None:
        """Treat a watched link as new: it may lead to another switch after an interruption."""
        link = self._links.get(ifindex)
        if link and link.querier is Querier.SILENT:
            link.querier = Querier.UNKNOWN
            self._wait(ifindex, link, LISTENER_INTERVAL)
            self._wake(link)

    def _wait(self, ifindex: int, link: _Link, seconds: float) -> None:
        """Let the link's state become SILENT after some time."""
        link.until = self._loop.time() + seconds
        if link.timer:
            link.timer.cancel()
        if self._socket:
            link.timer = self._loop.call_at(link.until, self._expire, ifindex, link)

    def _expire(self, ifindex: int, link: _Link) -> None:
        link.timer = None
        if link.until > self._loop.time():  # another query has arrived
            link.timer = self._loop.call_at(link.until, self._expire, ifindex, link)
            return
        log.debug("no MLD querier is heard on interface %d", ifindex)
        link.querier = Querier.SILENT
        if not link.wakes:
            del self._links[ifindex]
        self._wake(link)

    @staticmethod
    def _wake(link: _Link) -> None:
        for wake in list(link.wakes):
            wake()

    def _receive(self) -> bool:
        """Note the queries that have arrived; pause after a full batch, which is a flood."""
        assert self._socket
        queries, has_more = self._socket.receive()
        for query in queries:
            self.note(query.ifindex, query.interval)
        return has_more
