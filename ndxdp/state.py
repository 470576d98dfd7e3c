"""What a running daemon knows beside the maps, for those who show it.

Its parts leave here how they are asked; nothing is copied until somebody asks. All of it may be
read from another thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Announced(NamedTuple):
    """Frames that told the upstream of addresses: sent, and not taken by the interface."""

    sent: int
    failed: int


class GatewayNews(NamedTuple):
    """silent: it did not answer the last time that it was solicited. seen: s since it did, None
    if it never has."""

    silent: bool
    seen: float | None


@dataclass(slots=True)
class Attended:
    """One interface that the daemon attends to. None: nobody does that there at present.

    unanswered: why nothing is to be answered there, "" where something is.
    """

    announced: Callable[[], Announced] | None = None
    gateways: Callable[[], list[GatewayNews]] | None = None
    unanswered: str = ""


@dataclass(slots=True)
class State:
    """reloaded: time.time() when the configuration in force was read. reload_ok: the last attempt
    to read it anew succeeded. docker_connected: None if no container is answered for."""

    reload_ok: bool = True
    reloaded: float = field(default_factory=time.time)
    docker_connected: Callable[[], bool] | None = None
    interfaces: dict[str, Attended] = field(default_factory=dict)

    def note_reload(self, ok: bool) -> None:
        self.reload_ok = ok
        if ok:
            self.reloaded = time.time()

    @contextlib.contextmanager
    def attending(
        self,
        interface: str,
        announced: Callable[[], Announced] | None,
        gateways: Callable[[], list[GatewayNews]] | None,
    ) -> Iterator[None]:
        """While the block lasts, these are asked about the interface."""
        attended = self.interfaces.setdefault(interface, Attended())
        attended.announced, attended.gateways = announced, gateways
        try:
            yield
        finally:
            attended.announced = attended.gateways = None

    @contextlib.contextmanager
    def not_answering(self, interface: str, why: str) -> Iterator[None]:
        """While the block lasts, nothing is to be answered on the interface."""
        attended = self.interfaces.setdefault(interface, Attended())
        attended.unanswered = why
        try:
            yield
        finally:
            attended.unanswered = ""
