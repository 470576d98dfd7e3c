"""Progress of long commands: one line on a terminal, which is cleared at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

import click

from ndxdp import progress
from ndxdp.printable import printable

_DELAY = 0.5  # seconds of a step before it is shown
_PERIOD = 0.1  # seconds between two changes of the line
_CLEAR = "\r\x1b[K"


class TerminalProgress:
    """A progress.Watcher that shows the present step in a line of a terminal."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        """Show nothing until a step has begun.

        Args:
            stream: The terminal.
            clock: Returns the time in seconds.
        """
        self._stream, self._clock = stream, clock
        self._what, self._total, self._done = "", "", 0
        self._next = 0.0
        self._is_shown = False

    def begin(self, what: str, total: int | None) -> None:
        """Begin a step."""
        self._what, self._done = printable(what), 0
        self._total = "" if total is None else f" of {_grouped(total)}"
        self._next = self._clock() + _DELAY

    def advance(self, count: int) -> None:
        """Count, and show the count now and then."""
        self._done += count
        now = self._clock()
        if now < self._next:
            return
        self._next, self._is_shown = now + _PERIOD, True
        self._write(f"{_CLEAR}ndxdp: {_grouped(self._done)}{self._total} {self._what}")

    def end(self) -> None:
        """Clear the line."""
        if self._is_shown:
            self._is_shown = False
            self._write(_CLEAR)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def show_progress() -> None:
    """Show the progress of the present command, if stderr is a terminal, and not with -q."""
    if _is_shown():
        watched = progress.watched(TerminalProgress(sys.stderr))
        click.get_current_context().with_resource(watched)


@contextlib.contextmanager
def notice(what: str) -> Iterator[None]:
    """Show what the command does during the block, where show_progress() would show progress.

    Args:
        what: The activity, as in `measuring the rates`.
    """
    if not _is_shown():
        yield
        return
    sys.stderr.write(f"{_CLEAR}ndxdp: {what} …")
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()


def _is_shown() -> bool:
    """Return True if stderr is a terminal that can clear a line, and -q is not given."""
    quiet = logging.getLogger("ndxdp").getEffectiveLevel() >= logging.ERROR
    return not quiet and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")
