"""The rules of containers: what the selectors of all uplinks make of one engine's containers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import chain

from ndxdp.backoff import persist
from ndxdp.daemon.uplink import Uplink
from ndxdp.rules.rule import DOCKER_ORIGIN
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.sources.docker import Docker
from ndxdp.sources.inventory import Change
from ndxdp.sources.selector import Selector, label_keys, rules_after, rules_of

log = logging.getLogger(__name__)


class ContainerRules:
    """Watches the container engine for the uplinks that select containers.

    Call the methods in the event loop's thread.
    """

    def __init__(self, status: DaemonStatus, uplinks: Callable[[], Iterable[Uplink]]) -> None:
        """Watch nothing yet.

        Args:
            status: The daemon's status, which shows whether the engine is connected.
            uplinks: Returns the present uplinks.
        """
        self._status, self._uplinks = status, uplinks
        self._engine: Docker | None = None
        self._watching: asyncio.Task[None] | None = None

    def watch(self, socket_path: str, selectors: Collection[Selector]) -> None:
        """Watch the engine with this socket if there are selectors of containers.

        A connection that serves them already is kept.

        Args:
            socket_path: The engine's socket.
            selectors: The selectors of the configuration. Those of a pattern are here even while no
                interface matches it.
        """
        keys = label_keys(selectors)
        if selectors and self._engine and self._engine.serves(socket_path, keys):
            return
        self.end()
        if selectors:
            engine = Docker(socket_path, keys, self._status.changed)
            self._engine, self._status.docker_connected = engine, lambda: engine.connected
            self._watching = asyncio.ensure_future(
                persist(log, socket_path, partial(self._watch, engine))
            )
        self._status.changed()

    def end(self) -> None:
        """Watch nothing any more; the uplinks keep their rules."""
        if self._watching:
            self._watching.cancel()
        self._watching = self._engine = self._status.docker_connected = None

    async def _watch(self, engine: Docker) -> None:
        """Give the uplinks the rules of all containers, and then those of each change."""
        async with contextlib.aclosing(engine.watch()) as changes:
            await anext(changes)
            for uplink in self._uplinks():
                self.apply_to(uplink)
            async for change in changes:
                for uplink in self._uplinks():
                    self._apply_change(engine, uplink, change)

    def apply_to(self, uplink: Uplink) -> None:
        """Give an uplink the rules that its selectors make of all containers.

        Until an engine has listed them with the labels that the selectors compare, the uplink keeps
        the rules of the selectors that it had before.
        """
        selectors, engine = uplink.spec.selectors, self._engine
        if not selectors:
            uplink.rules.set(DOCKER_ORIGIN, Rules())
        elif engine and engine.endpoints is not None and engine.has_labels(label_keys(selectors)):
            endpoints = chain.from_iterable(engine.endpoints.values())
            uplink.rules.set(DOCKER_ORIGIN, rules_of(endpoints, selectors))
        elif (before := uplink.rules.get(DOCKER_ORIGIN)) is not None:
            rules = {selector.rule for selector in selectors}
            uplink.rules.set(DOCKER_ORIGIN, before.where(rules.__contains__))

    def _apply_change(self, engine: Docker, uplink: Uplink, change: Change) -> None:
        """Give an uplink the rules that its selectors make of changed containers.

        Without the labels that the selectors compare, a container that is excluded by its label
        would be chosen. A reload that is in progress then lists all containers again.
        """
        selectors, before = uplink.spec.selectors, uplink.rules.get(DOCKER_ORIGIN)
        if selectors and before is not None and engine.has_labels(label_keys(selectors)):
            uplink.rules.set(DOCKER_ORIGIN, rules_after(change, before, selectors))
