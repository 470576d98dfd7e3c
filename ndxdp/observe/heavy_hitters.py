"""The most frequent keys of a stream, in bounded memory. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from ndxdp.ndp.reason import Reason

_K = TypeVar("_K", bound=Hashable)


class HeavyHitter(NamedTuple, Generic[_K]):
    """A frequent key, with lower bounds of its occurrences: in total, and with each reason."""

    key: _K
    total: int
    reasons: Counter[Reason]


class HeavyHitters(Generic[_K]):
    """Counter of the most frequent keys, by the algorithm of Misra and Gries.

    It stores up to 2 * size keys. One more key reduces all counts by the size-th largest count, and
    removes the keys whose count is 0 or less then. Every key that occurred more often than
    error_bound is stored.
    """

    def __init__(self, size: int = 1024) -> None:
        self.error_bound = 0
        """How many occurrences of a key may be missing, at most."""
        self._size = size
        self._left: Counter[_K] = Counter()
        self._reasons: dict[_K, Counter[Reason]] = {}

    def add(self, key: _K, reason: Reason) -> None:
        """Count one occurrence of a key."""
        self._left[key] += 1
        reasons = self._reasons.get(key)
        if reasons is None:
            reasons = self._reasons[key] = Counter()
            if len(self._left) > 2 * self._size:
                self._forget()
        reasons[reason] += 1

    def _forget(self) -> None:
        reduction = self._left.most_common(self._size)[-1][1]
        self.error_bound += reduction
        self._left = Counter({key: n - reduction for key, n in self._left.items() if n > reduction})
        self._reasons = {key: self._reasons[key] for key in self._left}

    def __len__(self) -> int:
        return len(self._left)

    def most(self, rows: int) -> list[HeavyHitter[_K]]:
        """Return the keys that occurred more often than error_bound, the most frequent first."""
        counted = (
            HeavyHitter(key, sum(reasons.values()), reasons)
            for key, reasons in self._reasons.items()
        )
        certain = (each for each in counted if each.total > self.error_bound)
        return sorted(certain, key=lambda each: -each.total)[:rows]
