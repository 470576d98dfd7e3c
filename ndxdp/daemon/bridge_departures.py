"""The MACs that bridges forget, followed at a bounded pace."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ndxdp.netlink.bridge_monitor import BridgeMonitor
from ndxdp.resting_reader import RestingReader

_PAUSE = 0.1
"""Seconds between two reports."""


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
        self._reader = RestingReader(self._monitor.fileno(), self._read, _PAUSE)

    def close(self) -> None:
        """Follow nothing any more."""
        self._reader.close()
        self._monitor.close()

    def _read(self) -> bool:
        gone = self._monitor.drain()
        if gone:
            self._departed(gone)
        return bool(gone)
