"""The MACs that bridges forget, followed at a bounded pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from ndxdp.netlink.bridge_monitor import BridgeMonitor

_PAUSE = 0.1
"""Seconds between two reports: a flood of MACs takes a bounded part of a CPU."""


class BridgeDepartures:
    """Reports what bridges have forgotten, in a running event loop and by its thread only."""

    def __init__(self, departed: Callable[[Collection[tuple[int, bytes]]], None]) -> None:
        """Begin to follow the bridges.

        Args:
            departed: Called with indexes of bridges, of any on this host, and MACs (6 bytes) that
                they have forgotten: a port has left, or was silent for long.
        """
        self._departed = departed
        self._monitor = BridgeMonitor()
        self._pause: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._monitor.fileno(), self._read)

    def close(self) -> None:
        """Follow nothing any more."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._monitor.fileno())
        self._monitor.close()

    def _read(self) -> None:
        gone = self._monitor.drain()
        if gone:
            self._loop.remove_reader(self._monitor.fileno())
            self._pause = self._loop.call_later(_PAUSE, self._resume)
            self._departed(gone)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._monitor.fileno(), self._read)
