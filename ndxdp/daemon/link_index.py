"""An index of what concerns whom: the uplinks by their links. Pure."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class LinkIndex(Generic[_T]):
    """Followers by the indexes of the links that they follow. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._links: dict[_T, frozenset[int]] = {}
        self._followers: dict[int, set[_T]] = {}

    def assign(self, follower: _T, links: frozenset[int]) -> None:
        """Have a follower follow these links, and no others."""
        with self._lock:
            before = self._links.pop(follower, frozenset())
            for link in before - links:
                followers = self._followers[link]
                followers.remove(follower)
                if not followers:
                    del self._followers[link]
            for link in links - before:
                self._followers.setdefault(link, set()).add(follower)
            if links:
                self._links[follower] = links

    def of(self, links: Iterable[int]) -> set[_T]:
        """Return the followers of these links."""
        with self._lock:
            found = (self._followers.get(link) for link in links)
            return set().union(*(followers for followers in found if followers))

    def all(self) -> set[_T]:
        """Return the followers of any link."""
        with self._lock:
            return set(self._links)
