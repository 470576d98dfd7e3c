"""Docker's networks: the IPv6 addresses of running containers, and which are to be answered for.

Podman's Docker-compatible socket serves as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import (
    AsyncGenerator,
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from ndxdp.errors import UsageError
from ndxdp.ndp.profile import DEFAULT_PROFILE, Profile
from ndxdp.rules.prefix import Prefix, mask
from ndxdp.rules.rule import DOCKER_ORIGIN, Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.sources.answers import (
    Endpoint as Endpoint,
)
from ndxdp.sources.answers import (
    Labels,
    Network,
    endpoints_of,
    networks_of,
    versions,
)
from ndxdp.sources.http import NoAnswer, get
from ndxdp.sources.json_pieces import Objects

log = logging.getLogger(__name__)

_T = TypeVar("_T")

SOCKET = "/run/docker.sock"
"""Where Docker listens; Podman: /run/podman/podman.sock."""

# ---- which are answered for ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Selector:
    """Picks endpoints, by exactly one of four; UsageError for none or several.

    network: the name of their network. network_label, container_label: `key`, or `key=value`.
    within: their address is in this prefix, and so is one of their network's subnets, whole.
    except_label: not those where the container or the network has this label. profile: how the
    picked ones are answered for.
    """

    network: str | None = None
    network_label: str | None = None
    container_label: str | None = None
    within: Prefix | None = None
    except_label: str | None = None
    profile: Profile = DEFAULT_PROFILE

    def __post_init__(self) -> None:
        one_of = (self.network, self.network_label, self.container_label, self.within)
        if sum(given is not None for given in one_of) != 1:
            raise UsageError(
                "containers are picked by one of network, network label, container label, prefix",
                "write a selector for each",
            )
        words = (self.network, self.network_label, self.container_label, self.except_label)
        if any(word is not None and not word.partition("=")[0] for word in words):
            raise UsageError("the name of a network or label is empty", "leave it out")

    def __str__(self) -> str:
        """What its rules are counted under."""
        if self.network is not None:
            return self.network
        if self.network_label is not None:
            return f"network:{self.network_label}"
        if self.container_label is not None:
            return f"container:{self.container_label}"
        return str(self.within)

    def picks(self, endpoint: Endpoint) -> bool:
        if self.except_label is not None and (
            _has(endpoint.container_labels, self.except_label)
            or _has(endpoint.network_labels, self.except_label)
        ):
            return False
        if self.network is not None:
            return endpoint.network == self.network
        if self.network_label is not None:
            return _has(endpoint.network_labels, self.network_label)
        if self.container_label is not None:
            return _has(endpoint.container_labels, self.container_label)
        assert self.within is not None
        around, length = self.within
        return mask(endpoint.address, length) == around and any(
            subnet.length >= length and mask(subnet.address, length) == around
            for subnet in endpoint.subnets
        )


def _has(labels: Labels, wanted: str) -> bool:
    """Whether there is a label `key`, or `key=value`."""
    key, equals, value = wanted.partition("=")
    return any(key == name and (not equals or value == found) for name, found in labels)


def label_keys(selectors: Iterable[Selector]) -> frozenset[str]:
    """Keys of the labels that these selectors look at."""
    return frozenset(
        label.partition("=")[0]
        for selector in selectors
        for label in (selector.network_label, selector.container_label, selector.except_label)
        if label is not None
    )


def rules(endpoints: Iterable[Endpoint], selectors: Sequence[Selector]) -> Rules:
    """A rule for each address that a selector picks, its /128; the first that does wins.

    All of a selector are one Rule, labelled with the network's name or the selector's text.
    """
    made: dict[Prefix, Rule] = {}
    # Sorted: two networks may use an address twice, and the outcome shall not be a set's whim.
    ordered = sorted(endpoints, key=lambda one: (one.address, one.network, one.container))
    for selector in selectors:
        rule = Rule(
            profile=selector.profile, origin=DOCKER_ORIGIN, label=str(selector), dynamic=True
        )
        for endpoint in ordered:
            prefix = Prefix(endpoint.address, 128)
            if prefix not in made and selector.picks(endpoint):
                made[prefix] = rule
    return Rules.of(made)


# ---- what there is -------------------------------------------------------------------------------

_SENSELESS = "what it says makes no sense"

_API = (1, 44)
"""The newest version of the API whose answers are known here. The unversioned paths mean the
engine's newest, which may have changed them; engines keep old versions for years."""

_ACTIONS = ("start", "die", "died", "destroy", "remove", "rename", "connect", "disconnect")
"""Events after which addresses are others. Podman's filter knows `died` and `remove`, where
Docker says `die` and `destroy`. Pausing is none: the kernel answers for a paused container."""

_MOST = 131072
"""Addresses, or networks, that one engine may have: as many as there is room for by default."""

_LIST_MAX = 1 << 28
"""Bytes of a list: 10 000 containers are 12 MB."""

_WITHIN = 30.0  # seconds for the engine to begin an answer, or to go on with it: it may be loaded
_HEAD = 0.2  # seconds: engines may not say a word on the stream before the first event
_BURST = 0.03  # seconds from the first event of a burst to the look that serves it
_BURST_MAX = 0.3  # the same, where looks take long: they shall not take all the time
_AGAIN = (0.5, 1.5)
"""Seconds to another look, and to the one after it. Docker tells of a network's `connect` before
its list has the address (ConnectToNetwork sends the event, then makes the checkpoint), and
sends the head of the stream before it has subscribed (getEvents)."""

_DELAY_MIN, _DELAY_MAX = 0.1, 30.0  # seconds between two attempts to connect
_SOUND = 2.0  # seconds that a good connection must have lasted for the next one to be early again
_GLANCE_MIN, _GLANCE_MAX = 0.25, 1.0
"""Seconds between two glances at the socket's file. Each wakes the process, for 0.25 ms of CPU: it
may be years until there is an engine."""


class Docker:
    """The engine behind a socket.

    connected: it was listed, and its stream of events holds; on_change is called when that has
    changed. label_keys: of the labels that
    endpoints are to have, as label_keys() says; None for all. They are most of an endpoint's
    memory, 1 kB with those of Compose.
    """

    def __init__(
        self,
        socket_path: str = SOCKET,
        label_keys: Container[str] | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.socket_path = socket_path
        self.connected = False
        self._label_keys = label_keys
        self._known: frozenset[Endpoint] | None = None
        self._told_lost = False
        self._on_change = on_change

    async def watch(self) -> AsyncGenerator[frozenset[Endpoint], None]:
        """All endpoints of running containers: when first listed, and after every change.

        Never ends, and never raises. As long as the engine is away nothing comes, so what came
        last goes on to hold; afterwards there is a set if it is another one.

        Attempts to connect are 0.1 s apart, then twice as long each time, up to 30 s. Every 0.25 s,
        every second when the attempts are further apart than 8 s, there is a glance at the socket's
        file (one stat(2)), and an attempt at once if it is new, or has new permissions.
        """
        self._known = None
        delay = _DELAY_MIN
        while True:
            began, tried = time.monotonic(), self._file()
            was_listed = False
            try:
                async with contextlib.aclosing(self._looks()) as looks:
                    async for found in looks:
                        was_listed = True
                        self._back(len(found))
                        if found != self._known:
                            self._known = found
                            yield found
            except NoAnswer as reason:
                self._lost(reason)
            finally:
                self._set_connected(False)
            if was_listed and time.monotonic() - began > _SOUND:
                delay = _DELAY_MIN
            early = await self._pause(delay, tried)
            delay = _DELAY_MIN if early else min(delay * 2, _DELAY_MAX)

    def _back(self, count: int) -> None:
        if not self.connected:
            log.info("%s: connected, IPv6 addresses of containers: %d", self.socket_path, count)
        self._told_lost = False
        self._set_connected(True)

    def _set_connected(self, connected: bool) -> None:
        if connected is not self.connected:
            self.connected = connected
            self._on_change()

    def _lost(self, reason: NoAnswer) -> None:
        if self._told_lost:
            log.debug("%s: %s", self.socket_path, reason)
            return
        log.warning("%s: %s; trying again, rules stay meanwhile", self.socket_path, reason)
        self._told_lost = True

    async def _pause(self, delay: float, tried: object) -> bool:
        """Wait, but no longer than the socket's file is the one that was tried: True then."""
        until = time.monotonic() + delay
        glance = min(max(delay / 8, _GLANCE_MIN), _GLANCE_MAX)
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, glance))
            if self._file() != tried:
                return True
        return False

    def _file(self) -> object:
        """What tells one socket's file from the next, and from itself with other permissions."""
        try:
            found = os.stat(self.socket_path)
        except (OSError, ValueError):  # a zero byte in the path
            return None
        return found.st_dev, found.st_ino, found.st_ctime_ns

    async def _looks(self) -> AsyncGenerator[frozenset[Endpoint], None]:
        """What there is: at first, and after events. Ends with NoAnswer."""
        api = await self._version()
        changed = asyncio.Event()
        # First the events, then the list: so nothing is lost in between.
        listening = asyncio.create_task(self._listen(api, changed))
        listening.add_done_callback(lambda _: changed.set())
        to_come: tuple[float, ...] = (_HEAD,)
        took = 0.0
        try:
            while True:
                if await _happens(changed, to_come[0] if to_come else None):
                    await asyncio.sleep(max(_BURST, min(took, _BURST_MAX)))
                    changed.clear()
                    to_come = _AGAIN
                else:
                    to_come = to_come[1:]
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
                listening.exception()  # or asyncio complains that nobody asked

    async def _listen(self, api: str, changed: asyncio.Event) -> None:
        """Set `changed` when the stream stands, and for each event. Ends with NoAnswer."""
        filters = {"type": ("container", "network"), "event": _ACTIONS}
        target = f"{api}/events?filters={_filters(filters)}"
        async with get(self.socket_path, target, within=None, silence=None) as response:
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
        """How paths begin, `/v1.44`."""
        for newest, oldest in await self._get("/version", versions, array=False):
            return "/v{}.{}".format(*max(oldest, min(newest, _API)))
        raise NoAnswer(_SENSELESS)

    async def _list(self, api: str) -> frozenset[Endpoint]:
        """Two requests, however many containers there are."""
        # Else Podman leaves out paused ones. What is stopped, dead or restarting has no address.
        running = _filters({"status": ("running", "paused")})
        known = {endpoint: endpoint for endpoint in self._known or ()}
        keys = self._label_keys
        networks: dict[str, Network] = {}

        def parse(container: dict[str, Any]) -> Iterator[Endpoint]:
            # What is in memory already need not be there twice.
            for endpoint in endpoints_of(container, networks, keys):
                yield known.get(endpoint, endpoint)

        for _ in range(2):
            for network in await self._get(f"{api}/networks", lambda said: networks_of(said, keys)):
                networks[network.id] = network
                networks.setdefault(network.name, network)
            found = await self._get(f"{api}/containers/json?filters={running}", parse)
            # A network that was made after the networks were listed, and joined at once.
            if all(endpoint.network in networks for endpoint in found):
                break
        return frozenset(found)

    async def _get(
        self, target: str, parse: Callable[[dict[str, Any]], Iterator[_T]], *, array: bool = True
    ) -> list[_T]:
        """What `parse` finds in each object of the answer; no more of it is kept."""
        objects = Objects(array=array)
        parsed: list[_T] = []
        length = 0
        async with get(self.socket_path, target, within=_WITHIN, silence=_WITHIN) as response:
            more = True
            while more:
                piece = await response.read()
                more = piece != b""
                length += len(piece)
                if length > _LIST_MAX:
                    raise NoAnswer(f"it lists more than {_LIST_MAX >> 20} MB")
                with _readable():
                    for found in objects.feed(piece) if more else objects.end():
                        parsed += parse(found)
                        if len(parsed) > _MOST:
                            raise NoAnswer(f"it lists more than {_MOST} addresses or networks")
        return parsed


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """NoAnswer for what the block cannot read."""
    try:
        yield
    except (ValueError, UsageError) as error:
        raise NoAnswer(f"{_SENSELESS} ({str(error)[:100]})") from None


async def _happens(event: asyncio.Event, within: float | None) -> bool:
    """Wait for an event; False if it does not happen within so many seconds."""
    try:
        async with asyncio.timeout(within):
            return await event.wait()
    except TimeoutError:
        return False


def _filters(wanted: Mapping[str, Sequence[str]]) -> str:
    return quote(json.dumps(wanted, separators=(",", ":")), safe="")
