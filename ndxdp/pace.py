"""A bounded rate: of frames that are sent or read, of lines in the log. Pure but for the clock."""

from __future__ import annotations

from collections.abc import Callable


class Pace:
    """A token bucket as one number (GCRA): the time at which the next frame is due."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        """Start with a full bucket.

        Args:
            rate: Frames per second.
            burst: Frames that may be sent without a pause.
            clock: Returns the time in seconds, monotonic.
        """
        self._interval = 1 / rate
        self._credit = (burst - 1) / rate
        self._clock = clock
        self._due = clock()

    def delay(self) -> float:
        """Return the seconds until the next frame may be sent; 0 if it may be sent now."""
        return max(0.0, self._due - self._credit - self._clock())

    def charge(self, frames: int = 1) -> None:
        """Count frames as sent."""
        self._due = max(self._due, self._clock()) + frames * self._interval
