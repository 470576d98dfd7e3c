"""The requests to a container engine: its version, its events, its networks and containers.

Lists of containers and of networks are filtered by id where only some are wanted: with the same
paths and the same objects as whole lists, a container that no longer exists is not listed and is no
error, and one request is about many containers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Collection, Container, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from ndxdp.errors import UsageError
from ndxdp.sources.answers import Listed, Network, endpoints_of, networks_of, versions
from ndxdp.sources.http import NoAnswer, get
from ndxdp.sources.json_pieces import Objects

_T = TypeVar("_T")

_MALFORMED = "the answer is malformed"

_API = (1, 44)
"""The newest version of the API that this module knows.

Unversioned paths select the engine's newest version, which may differ. Engines support old versions
for years.
"""

ACTIONS = ("start", "die", "died", "destroy", "remove", "rename", "connect", "disconnect")
"""Events that change addresses.

Podman's filter has `died` and `remove` where Docker has `die` and `destroy`. Pausing is not among
them: the kernel answers for a paused container.
"""

_RUNNING = ("running", "paused")
"""The states of containers that have addresses. Podman lists paused ones only on request."""

_ADDRESSES_MAX = 131072
"""Addresses, or networks, that one engine may have: the default room for exact addresses."""

_LIST_MAX = 1 << 28
"""Bytes that a list may have. The list of 10 000 containers has 12 MB."""

_IDS_MAX = 64
"""Ids in one request, which take 5 kB of its first line. A proxy may read only 8 kB (nginx)."""

_TIMEOUT = 30.0  # seconds for the engine to begin or continue an answer; it may be under load


class EngineApi:
    """The requests of one connection to an engine, and the networks that it has listed so far.

    Every method raises NoAnswer if the engine gives no answer, or a malformed one.
    """

    def __init__(
        self,
        socket_path: str,
        label_keys: Container[str] | None,
        reuse: Callable[[Listed], Listed],
    ) -> None:
        """Send nothing yet.

        Args:
            socket_path: The path of the engine's socket.
            label_keys: The keys of the labels that endpoints keep; None for all.
            reuse: Returns an equal object that is in memory already.
        """
        self._socket_path, self._label_keys, self._reuse = socket_path, label_keys, reuse
        self._version = ""
        self._networks: dict[str, Network] = {}  # by id and by name

    async def negotiate(self) -> None:
        """Choose the version of the API, which is the beginning of all other paths."""
        for newest, oldest in await self._get("/version", versions, array=False):
            self._version = "/v{}.{}".format(*max(oldest, min(newest, _API)))
            return
        raise NoAnswer(_MALFORMED)

    @contextlib.asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Open the stream of events; it ends when the engine ends it."""
        filters = _filters({"type": ("container", "network"), "event": ACTIONS})
        target = f"{self._version}/events?filters={filters}"
        async with get(self._socket_path, target, timeout=None, silence=None) as response:

            async def each() -> AsyncIterator[dict[str, Any]]:
                objects = Objects(array=False)
                while piece := await response.read():
                    with _readable():
                        found = list(objects.feed(piece))
                    for event in found:
                        if event.get("Action") in ACTIONS:
                            yield event

            yield each()

    def forget_networks(self) -> None:
        """Ask for networks again when a container has one of them: one was removed.

        In Podman's lists a network's id is its name, which a new network may have.
        """
        self._networks.clear()

    async def endpoints(self, ids: Collection[str] | None = None) -> list[Listed]:
        """Return the endpoints of the containers with these ids, or of all containers.

        Two requests list any number of containers. For a few ids whose networks are known, it is
        one request.
        """
        if ids is None:
            await self._learn_networks()
        found = await self._containers(ids)
        unknown = self._unknown_networks(found)
        if not unknown:
            return found
        # A network may have been created and joined after the networks were listed.
        if ids is not None and len(unknown) <= _IDS_MAX:
            await self._learn_networks(unknown)
        if self._unknown_networks(found):
            await self._learn_networks()
        again = {each.container_id for each in found if each.network_id in unknown}
        kept = [each for each in found if each.container_id not in again]
        return kept + await self._containers(again)

    def _unknown_networks(self, found: list[Listed]) -> set[str]:
        return {each.network_id for each in found} - self._networks.keys()

    async def _learn_networks(self, ids: Collection[str] | None = None) -> None:
        """Take the networks with these ids, or all networks, instead of the former ones."""
        wanted = f"?filters={_filters({'id': sorted(ids)})}" if ids is not None else ""
        listed = await self._get(
            f"{self._version}/networks{wanted}",
            lambda network: networks_of(network, self._label_keys),
        )
        if ids is None:
            self._networks.clear()
        for network in listed:
            self._networks[network.id] = network
            self._networks.setdefault(network.name, network)

    async def _containers(self, ids: Collection[str] | None) -> list[Listed]:
        """List the endpoints of the containers with these ids, or of all containers."""
        if ids is None:
            return await self._containers_that({"status": _RUNNING})
        found: list[Listed] = []
        ordered = sorted(ids)
        for at in range(0, len(ordered), _IDS_MAX):
            some = ordered[at : at + _IDS_MAX]
            found += await self._containers_that({"status": _RUNNING, "id": some})
        return found

    async def _containers_that(self, filters: Mapping[str, Collection[str]]) -> list[Listed]:
        def parse(container: dict[str, Any]) -> Iterator[Listed]:
            return map(self._reuse, endpoints_of(container, self._networks, self._label_keys))

        target = f"{self._version}/containers/json?filters={_filters(filters)}"
        return await self._get(target, parse)

    async def _get(
        self, target: str, parse: Callable[[dict[str, Any]], Iterator[_T]], *, array: bool = True
    ) -> list[_T]:
        """Return what `parse` yields for each object of the answer; keep nothing else in memory."""
        objects = Objects(array=array)
        parsed: list[_T] = []
        length = 0
        async with get(self._socket_path, target, timeout=_TIMEOUT, silence=_TIMEOUT) as response:
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


def _filters(wanted: Mapping[str, Collection[str]]) -> str:
    """Return the value of the parameter `filters`, percent-encoded."""
    return quote(json.dumps(wanted, separators=(",", ":")), safe="")
