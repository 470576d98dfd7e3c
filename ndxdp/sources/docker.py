"""A container engine's running containers: a stream of their IPv6 addresses.

The engine is Docker, or Podman with its Docker-compatible socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Container, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from ndxdp.errors import UsageError
from ndxdp.sources.answers import Endpoint, Network, endpoints_of, networks_of, versions
from ndxdp.sources.http import NoAnswer, get
from ndxdp.sources.json_pieces import Objects
from ndxdp.sources.selector import ENGINE_SOCKET

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_MALFORMED = "the answer is malformed"

_API = (1, 44)
"""The newest version of the API that this module knows.

Unversioned paths select the engine's newest version, which may differ. Engines support old versions
for years.
"""

_ACTIONS = ("start", "die", "died", "destroy", "remove", "rename", "connect", "disconnect")
"""Events that change addresses.

Podman's filter has `died` and `remove` where Docker has `die` and `destroy`. Pausing is not among
them: the kernel answers for a paused container.
"""

_ADDRESSES_MAX = 131072
"""Addresses, or networks, that one engine may have: the default room for exact addresses."""

_LIST_MAX = 1 << 28
"""Bytes that a list may have. The list of 10 000 containers has 12 MB."""

_TIMEOUT = 30.0  # seconds for the engine to begin or continue an answer; it may be under load
_FIRST_LIST = 0.2  # seconds; an engine may send nothing on the stream before the first event
_BURST = 0.03  # seconds from the first event of a burst to the list that covers the burst
_BURST_MAX = 0.3  # the same if listing is slow, so that listing does not take all the time
_REPEAT = (0.5, 1.5)
"""Seconds from a list to its repetition, and from that to the second one.

Docker sends a network's `connect` event before its list has the address (ConnectToNetwork sends the
event, then makes the checkpoint), and the head of the stream before it has subscribed (getEvents).
"""

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
        label_keys: Container[str] | None = None,
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
        self._known: frozenset[Endpoint] | None = None
        self._loss_logged = False
        self._on_change = on_change

    async def watch(self) -> AsyncGenerator[frozenset[Endpoint], None]:
        """Yield the endpoints of all running containers at first, and after every change.

        The generator never ends and never raises. While the engine is disconnected it yields
        nothing, so that the last set stays valid; after a reconnection it yields a changed set.

        The delay between attempts to connect starts at 0.1 s and doubles up to 30 s. Every 0.25 s,
        or every second once the delay exceeds 8 s, the generator checks the socket's file with one
        stat(2), and connects at once if the file is new or has new permissions.
        """
        self._known = None
        delay = _DELAY_MIN
        while True:
            began, file = time.monotonic(), self._file()
            was_listed = False
            try:
                async with contextlib.aclosing(self._lists()) as lists:
                    async for found in lists:
                        was_listed = True
                        self._mark_connected(len(found))
                        if found != self._known:
                            self._known = found
                            yield found
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

    async def _lists(self) -> AsyncGenerator[frozenset[Endpoint], None]:
        """Yield the endpoints at first and after events, until NoAnswer is raised."""
        api = await self._version()
        changed = asyncio.Event()
        # Listening starts before the first list, so that no event is lost in between.
        listening = asyncio.create_task(self._listen(api, changed))
        listening.add_done_callback(lambda _: changed.set())
        pauses: tuple[float, ...] = (_FIRST_LIST,)
        took = 0.0
        try:
            while True:
                if await _happens(changed, pauses[0] if pauses else None):
                    await asyncio.sleep(max(_BURST, min(took, _BURST_MAX)))
                    changed.clear()
                    pauses = _REPEAT
                else:
                    pauses = pauses[1:]
                if listening.done():
                    listening.result()
                began = time.monotonic()
                found = await self._list(api)
                took = time.monotonic() - began
                yield found
        finally:
            listening.cancel()
            await asyncio.wait({listening})
            if not listening.cancelled():
                listening.exception()  # asyncio logs exceptions that are never retrieved

    async def _listen(self, api: str, changed: asyncio.Event) -> None:
        """Set `changed` when the stream is open and for each event; raise NoAnswer at the end."""
        filters = {"type": ("container", "network"), "event": _ACTIONS}
        target = f"{api}/events?filters={_filters(filters)}"
        async with get(self.socket_path, target, timeout=None, silence=None) as response:
            changed.set()
            events = Objects(array=False)
            while piece := await response.read():
                with _readable():
                    for event in events.feed(piece):
                        if str(event.get("Action")) in _ACTIONS:
                            log.debug("%s: event %s", self.socket_path, event["Action"])
                            changed.set()
        raise NoAnswer("the stream of events has ended")

    # ---- requests

    async def _version(self) -> str:
        """Return the beginning of versioned paths, such as `/v1.44`."""
        for newest, oldest in await self._get("/version", versions, array=False):
            return "/v{}.{}".format(*max(oldest, min(newest, _API)))
        raise NoAnswer(_MALFORMED)

    async def _list(self, api: str) -> frozenset[Endpoint]:
        """Return all endpoints, with two requests for any number of containers."""
        # Podman lists paused containers only on request. Containers that are stopped, dead or
        # restarting have no address.
        running = _filters({"status": ("running", "paused")})
        known = {endpoint: endpoint for endpoint in self._known or ()}
        keys = self._label_keys
        networks: dict[str, Network] = {}

        def parse(container: dict[str, Any]) -> Iterator[Endpoint]:
            # Reusing known endpoints keeps one copy in memory.
            for endpoint in endpoints_of(container, networks, keys):
                yield known.get(endpoint, endpoint)

        for _ in range(2):
            for network in await self._get(
                f"{api}/networks", lambda network: networks_of(network, keys)
            ):
                networks[network.id] = network
                networks.setdefault(network.name, network)
            found = await self._get(f"{api}/containers/json?filters={running}", parse)
            # A network may have been created and joined after the networks were listed.
            if all(endpoint.network in networks for endpoint in found):
                break
        return frozenset(found)

    async def _get(
        self, target: str, parse: Callable[[dict[str, Any]], Iterator[_T]], *, array: bool = True
    ) -> list[_T]:
        """Return what `parse` yields for each object of the answer; keep nothing else in memory."""
        objects = Objects(array=array)
        parsed: list[_T] = []
        length = 0
        async with get(self.socket_path, target, timeout=_TIMEOUT, silence=_TIMEOUT) as response:
            more = True
            while more:
                piece = await response.read()
                more = piece != b""
                length += len(piece)
                if length > _LIST_MAX:
                    raise NoAnswer(f"the list exceeds {_LIST_MAX >> 20} MB")
                with _readable():
                    for found in objects.feed(piece) if more else objects.end():
                        parsed += parse(found)
                        if len(parsed) > _ADDRESSES_MAX:
                            raise NoAnswer(
                                f"the list exceeds {_ADDRESSES_MAX} addresses or networks"
                            )
        return parsed


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Turn an error of the block, which parses an answer, into NoAnswer."""
    try:
        yield
    except (ValueError, UsageError) as error:
        raise NoAnswer(f"{_MALFORMED} ({str(error)[:100]})") from None


async def _happens(event: asyncio.Event, timeout: float | None) -> bool:
    """Wait for an event; return False after the timeout, in seconds."""
    try:
        async with asyncio.timeout(timeout):
            return await event.wait()
    except TimeoutError:
        return False


def _filters(wanted: Mapping[str, Sequence[str]]) -> str:
    """Return the value of the parameter `filters`, percent-encoded."""
    return quote(json.dumps(wanted, separators=(",", ":")), safe="")
