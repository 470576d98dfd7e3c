"""The containers to list after events of an engine, and the times to do so. Pure."""

from __future__ import annotations

ALL = ""
"""The key of the whole list; no container has it as its id."""

_REPEAT = (0.5, 1.5)
"""Seconds from a list to its repetition, and from that to the second one.

Docker sends a network's `connect` event before its list has the address (ConnectToNetwork sends the
event, then makes the checkpoint), and the stream's head before the stream gets events (getEvents).
"""

_TOGETHER = 0.03
"""Seconds by which a list may be early, so that one request is about several containers."""


class Agenda:
    """The ids of containers, each with the time of its next list and the number of lists so far.

    Times are in seconds, monotonic.
    """

    def __init__(self) -> None:
        self._due: dict[str, tuple[float, int]] = {}

    def add(self, key: str, due: float) -> None:
        """List a container, or ALL, by a time, and repeat that twice.

        A container that is reported again and again is not put off.
        """
        before, lists = self._due.get(key, (due, 0))
        self._due[key] = (due if lists else min(before, due)), 0

    def add_once(self, key: str, due: float) -> None:
        """List a container, or ALL, by a time; its next list that is due anyway suffices."""
        self._due.setdefault(key, (due, len(_REPEAT)))

    @property
    def next_due(self) -> float | None:
        """The time of the next list; None if there is none."""
        return min((due for due, _ in self._due.values()), default=None)

    def take(self, now: float) -> set[str]:
        """Return the keys that are due, and have each one repeated later."""
        keys = {key for key, (due, _) in self._due.items() if due <= now + _TOGETHER}
        for key in keys:
            _, lists = self._due.pop(key)
            if lists < len(_REPEAT):
                self._due[key] = now + _REPEAT[lists], lists + 1
        return keys
