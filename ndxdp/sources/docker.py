"""A container engine's running containers: a stream of the changes of their IPv6 addresses.

The engine is Docker, or Podman with its Docker-compatible socket. An event makes the watcher list
the container that the event is about. All containers are listed only when the connection is new,
after events that name no container or come by the hundred, and seldom as a check: Docker drops
events for a reader that is 1024 events behind (its pubsub), and a proxy may lose some.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Set

from ndxdp.sources.agenda import ALL, Agenda
from ndxdp.sources.answers import Endpoint, container_of
from ndxdp.sources.engine_api import EngineApi
from ndxdp.sources.http import NoAnswer
from ndxdp.sources.inventory import Change, Inventory
from ndxdp.sources.selector import ENGINE_SOCKET

log = logging.getLogger(__name__)

_FIRST_LIST = 0.2  # seconds; an engine may send nothing on the stream before the first event
_BURST = 0.03  # seconds from the first event of a burst to the list that covers the burst
_BURST_MAX = 0.3  # the same if listing is slow, so that listing does not take all the time

_SOME_MAX = 512
"""Up to so many containers are listed by id. For more, all are: events may have been lost."""

_CHECK_AFTER = 300.0
"""Seconds from one list of all containers to the next one, which is a check."""

_CHECK_SHARE = 1000
"""Such a list takes at most this fraction of the time: 1.5 s of work follow 25 minutes."""

_DELAY_MIN, _DELAY_MAX = 0.1, 30.0  # seconds between two attempts to connect
_STABLE = 2.0  # seconds; after a connection that lasted so long, the delay starts at its minimum
_CHECK_MIN, _CHECK_MAX = 0.25, 1.0
"""Seconds between two checks of the socket's file.

Each check wakes the process for 0.25 ms of CPU, and an engine may be absent for years.
"""


class Docker:
    """A container engine behind a unix socket.

    Attributes:
        socket_path: The path of the socket.
        connected: True if the engine's containers were listed, and its stream of events continues.
    """

    def __init__(
        self,
        socket_path: str = ENGINE_SOCKET,
        label_keys: Set[str] | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Watch nothing yet.

        Args:
            socket_path: The path of the socket.
            label_keys: The keys of the labels that endpoints keep; None for all. Labels take most
                of an endpoint's memory: 1 kB with those of Compose.
            on_change: Called when `connected` has changed.
        """
        self.socket_path = socket_path
        self.connected = False
        self._label_keys = label_keys
        self._inventory: Inventory | None = None
        self._loss_logged = False
        self._on_change = on_change

    @property
    def endpoints(self) -> Mapping[bytes, tuple[Endpoint, ...]] | None:
        """The endpoints of each address that a container has; None if they were never listed."""
        return None if self._inventory is None else self._inventory.by_address

    def has_labels(self, keys: Set[str]) -> bool:
        """Return True if the endpoints keep their labels with these keys."""
        return self._label_keys is None or keys <= self._label_keys

    def serves(self, socket_path: str, label_keys: Set[str]) -> bool:
        """Return True if a watcher of this socket, for these labels, would yield the same."""
        return socket_path == self.socket_path and self.has_labels(label_keys)

    async def watch(self) -> AsyncGenerator[Change, None]:
        """Yield the endpoints of all running containers at first, and then every change.

        The generator never ends and never raises. While the engine is disconnected it yields
        nothing, so that the endpoints stay valid; after a reconnection it yields the difference.

        The delay between attempts to connect starts at 0.1 s and doubles up to 30 s. Every 0.25 s,
        and more rarely in a long delay, but at least every second, the generator checks the
        socket's file with one stat(2), and connects at once if the file is new or has new
        permissions.
        """
        inventory, self._inventory = Inventory(), None
        delay = _DELAY_MIN
        while True:
            began, file = time.monotonic(), self._file()
            was_listed = False
            try:
                async with contextlib.aclosing(self._changes(inventory)) as changes:
                    async for change in changes:
                        was_listed = True
                        self._mark_connected(len(inventory.by_address))
                        if change or self._inventory is None:
                            self._inventory = inventory
                            yield change
            except NoAnswer as reason:
                self._mark_lost(reason)
            finally:
                self._set_connected(False)
            if was_listed and time.monotonic() - began > _STABLE:
                delay = _DELAY_MIN
            early = await self._wait_for_change(delay, file)
            delay = _DELAY_MIN if early else min(delay * 2, _DELAY_MAX)

    def _mark_connected(self, count: int) -> None:
        if not self.connected:
            log.info("%s: connected, IPv6 addresses of containers: %d", self.socket_path, count)
        self._loss_logged = False
        self._set_connected(True)

    def _set_connected(self, connected: bool) -> None:
        if connected is not self.connected:
            self.connected = connected
            self._on_change()

    def _mark_lost(self, reason: NoAnswer) -> None:
        """Log the reason why the engine is disconnected, as a warning only once."""
        if self._loss_logged:
            log.debug("%s: %s", self.socket_path, reason)
            return
        log.warning("%s: %s; retrying, container rules are kept", self.socket_path, reason)
        self._loss_logged = True

    async def _wait_for_change(self, delay: float, file: object) -> bool:
        """Wait for the delay; return True as soon as the socket's file is another one."""
        until = time.monotonic() + delay
        interval = min(max(delay / 8, _CHECK_MIN), _CHECK_MAX)
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, interval))
            if self._file() != file:
                return True
        return False

    def _file(self) -> object:
        """Return the identity of the socket's file; new permissions change it (st_ctime)."""
        try:
            found = os.stat(self.socket_path)
        except (OSError, ValueError):  # ValueError: a NUL in the path
            return None
        return found.st_dev, found.st_ino, found.st_ctime_ns

    async def _changes(self, inventory: Inventory) -> AsyncGenerator[Change, None]:
        """List all containers, and then those of events; yield what changed, until NoAnswer."""
        api = EngineApi(self.socket_path, self._label_keys, inventory.known)
        await api.negotiate()
        agenda, woken = Agenda(), asyncio.Event()
        took = {True: 0.0, False: 0.0}  # seconds for the last list of all, and of some containers

        def list_soon(key: str) -> None:
            agenda.add(key, time.monotonic() + max(_BURST, min(took[key == ALL], _BURST_MAX)))
            woken.set()

        # Listening starts before the first list, so that no event is lost in between.
        listening = asyncio.create_task(self._listen(api, list_soon))
        listening.add_done_callback(lambda _: woken.set())
        agenda.add(ALL, time.monotonic() + _FIRST_LIST)
        try:
            while True:
                await _wait(woken, agenda.next_due)
                woken.clear()
                if listening.done():
                    listening.result()
                began = time.monotonic()
                if keys := agenda.take(began):
                    some = None if ALL in keys or len(keys) > _SOME_MAX else keys
                    listed = await api.endpoints(some)
                    now = time.monotonic()
                    took[some is None] = now - began
                    if some is None:
                        check_after = max(_CHECK_AFTER, (now - began) * _CHECK_SHARE)
                        agenda.add_once(ALL, now + check_after)
                    yield inventory.update(listed, some)
        finally:
            listening.cancel()
            await asyncio.wait({listening})
            if not listening.cancelled():
                listening.exception()  # asyncio logs exceptions that are never retrieved

    async def _listen(self, api: EngineApi, list_soon: Callable[[str], None]) -> None:
        """Have containers listed when the stream is open and for each event, until NoAnswer.

        Args:
            api: The engine.
            list_soon: Called with the id of a container, or with ALL.
        """
        async with api.events() as events:
            list_soon(ALL)
            async for event in events:
                action, container = event["Action"], container_of(event)
                log.debug("%s: event %s %s", self.socket_path, action, container)
                if event.get("Type") == "network" and action in ("destroy", "remove"):
                    api.forget_networks()
                else:
                    list_soon(container or ALL)
        raise NoAnswer("the stream of events has ended")


async def _wait(event: asyncio.Event, until: float | None) -> None:
    """Wait for an event, or until a time of the loop, which is monotonic."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(until):
            await event.wait()
