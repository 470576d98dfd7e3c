"""Names to look at again at some time. Pure."""

from __future__ import annotations

import heapq


class Alarms:
    """The next alarm of each name."""

    def __init__(self) -> None:
        """Have no alarms yet."""
        self._heap: list[tuple[float, str]] = []
        self._next: dict[str, float] = {}

    def set(self, name: str, when: float) -> None:
        """Have an alarm for a name at a time at the latest."""
        present = self._next.get(name)
        if present is None or when < present:
            self._next[name] = when
            heapq.heappush(self._heap, (when, name))

    def due(self, now: float) -> list[str]:
        """Return the names whose alarms are due, and forget these alarms."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            when, name = heapq.heappop(self._heap)
            if self._next.get(name) == when:
                del self._next[name]
                found.append(name)
        return found

    @property
    def first(self) -> float | None:
        """When the next alarm is due; None without one."""
        return self._heap[0][0] if self._heap else None
