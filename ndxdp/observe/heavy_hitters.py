"""Which keys come most often, in bounded memory, however many different ones there are. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from ndxdp.ndp.reason import Reason

_K = TypeVar("_K", bound=Hashable)


class Busy(NamedTuple, Generic[_K]):
    """A key, how often it came at least, and with which reasons."""

    key: _K
    total: int
    reasons: Counter[Reason]


class Busiest(Generic[_K]):
    """Misra and Gries' algorithm: of `size` keys that are remembered, those that come often stay.

    Beyond 2 * size keys, what the size-th has is taken off all, and who has nothing left is
    forgotten: a key that came more often than error_bound is there.
    """

    def __init__(self, size: int = 1024) -> None:
        self.error_bound = 0
        """How many of a key's occurrences may be missing, at most."""
        self._size = size
        self._left: Counter[_K] = Counter()
        self._reasons: dict[_K, Counter[Reason]] = {}

    def add(self, key: _K, reason: Reason) -> None:
        self._left[key] += 1
        reasons = self._reasons.get(key)
        if reasons is None:
            reasons = self._reasons[key] = Counter()
            if len(self._left) > 2 * self._size:
                self._forget()
        reasons[reason] += 1

    def _forget(self) -> None:
        taken = self._left.most_common(self._size)[-1][1]
        self.error_bound += taken
        self._left = Counter({key: n - taken for key, n in self._left.items() if n > taken})
        self._reasons = {key: self._reasons[key] for key in self._left}

    def __len__(self) -> int:
        return len(self._left)

    def most(self, rows: int) -> list[Busy[_K]]:
        """The busiest that came more often than error_bound, the first one first."""
        counted = (
            Busy(key, sum(reasons.values()), reasons) for key, reasons in self._reasons.items()
        )
        certain = (one for one in counted if one.total > self.error_bound)
        return sorted(certain, key=lambda one: -one.total)[:rows]
