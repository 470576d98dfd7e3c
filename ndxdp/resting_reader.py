"""A reader of a descriptor that rests after a burst, so that a flood takes a part of a CPU only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class RestingReader:
    """Has a descriptor read in the running event loop, and not for a while after a burst."""

    def __init__(self, fd: int, read: Callable[[], bool], pause: float) -> None:
        """Begin.

        Args:
            fd: The descriptor. The caller closes it, after close().
            read: Called when the descriptor is readable; returns True to rest before the next call.
                If it fails, it rests, too.
            pause: Seconds of a rest.
        """
        self._fd, self._read, self._pause = fd, read, pause
        self._loop = asyncio.get_running_loop()
        self._rest: asyncio.TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        """End, also if called by `read`."""
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._fd)

    def _resume(self) -> None:
        self._rest = None
        self._loop.add_reader(self._fd, self._on_readable)

    def _on_readable(self) -> None:
        rests = True
        try:
            rests = self._read()
        finally:
            # After close() there is no reader to remove.
            if rests and self._loop.remove_reader(self._fd):
                self._rest = self._loop.call_later(self._pause, self._resume)
