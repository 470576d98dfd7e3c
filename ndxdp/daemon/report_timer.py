"""The report of a burst of changes: one, soon after the first of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_AFTER = 0.5  # seconds from a change to the report that has it


class ReportTimer:
    """Has a report written soon after each change. For the event loop's thread only."""

    def __init__(self, write: Callable[[], None]) -> None:
        """Write nothing before note().

        Args:
            write: Writes the report.
        """
        self._write = write
        self._timer: asyncio.TimerHandle | None = None

    def note(self) -> None:
        """Note a change."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_AFTER, self._elapsed)

    def cancel(self) -> None:
        """Write nothing of the changes so far."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _elapsed(self) -> None:
        self._timer = None
        self._write()
