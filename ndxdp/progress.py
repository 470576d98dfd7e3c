"""Progress of long work in a command: what is done, and how much of it so far.

Code that works through many entries calls advance(), and code that knows what the entries are opens
a step() around that. Nothing happens unless a command has installed a watcher, as for a terminal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Watcher(Protocol):
    """A display of progress."""

    def begin(self, what: str, total: int | None) -> None:
        """Begin a step: `what` is a plural such as `rules written`, `total` how many of them."""

    def advance(self, count: int) -> None:
        """Note that the present step has made `count` more of them."""

    def end(self) -> None:
        """End the present step."""


_watcher: Watcher | None = None
_is_in_step = False


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Report the steps of the block to a watcher."""
    global _watcher
    _watcher = watcher
    try:
        yield
    finally:
        _watcher = None


@contextlib.contextmanager
def step(what: str, total: int | None = None) -> Iterator[None]:
    """Report the calls of advance() in the block as one step; a step within a step is ignored.

    Args:
        what: The plural that is counted, such as `rules written`.
        total: How many of them there are, if that is known.
    """
    global _is_in_step
    if _watcher is None or _is_in_step:
        yield
        return
    _is_in_step = True
    _watcher.begin(what, total)
    try:
        yield
    finally:
        _watcher.end()
        _is_in_step = False


def advance(count: int) -> None:
    """Note that the present step, if there is one, has done `count` more."""
    if _is_in_step and _watcher is not None:
        _watcher.advance(count)
