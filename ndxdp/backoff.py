"""Pauses between attempts at something that fails, and the log lines about it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

from ndxdp.errors import problem_of

_FIRST = 5.0
_LONGEST = 60.0
_JITTER = 0.1


class Backoff:
    """The pauses of one thing that is tried until it succeeds.

    A pause is 5 s at first and twice as long after each further failure, 60 s at most. It differs
    by up to a tenth, so that what failed at the same moment is not tried again at the same moment.
    A cause is logged once, until another one takes its place or an attempt succeeds; repetitions
    are logged at debug level.

    Attributes:
        cause: The sentence about the last failure; "" after a success.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._pause = _FIRST
        self.cause = ""

    def failed(self, cause: str, level: int = logging.ERROR) -> float:
        """Note a failure, and log its cause unless that was the cause of the last one, too.

        Returns:
            The seconds to wait before the next attempt.
        """
        self._log.log(logging.DEBUG if cause == self.cause else level, "%s", cause)
        self.cause = cause
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST)
        return pause * random.uniform(1 - _JITTER, 1 + _JITTER)

    def succeeded(self) -> bool:
        """Go back to the shortest pause; return True if the last attempt had failed."""
        failed, self._pause, self.cause = bool(self.cause), _FIRST, ""
        return failed


async def persist(
    log: logging.Logger, interface: str, work: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Do work of an interface until it returns; when it fails, do it again after a pause.

    Args:
        log: Where causes are logged.
        interface: The interface's name, for the log.
        work: Called for each attempt.
    """
    backoff = Backoff(log)
    while True:
        try:
            await work()
            return
        except Exception as error:
            pause = backoff.failed(f"{interface}: {problem_of(error)}")
        await asyncio.sleep(pause)


class Retry:
    """An action that an event loop tries again after the pauses of a Backoff.

    Attributes:
        problem: What is wrong at present, as a sentence; "" after a success.
    """

    def __init__(self, log: logging.Logger, wake: Callable[[], None]) -> None:
        """Begin without a failure.

        Args:
            log: Where causes are logged.
            wake: Called in the loop's thread when the next attempt is due.
        """
        self._backoff, self._wake = Backoff(log), wake
        self._timer: asyncio.TimerHandle | None = None
        self.problem = ""

    @property
    def is_due(self) -> bool:
        """True unless the pause after a failure still lasts."""
        return self._timer is None

    def failed(self, problem: str, sentence: str, level: int = logging.ERROR) -> None:
        """Note a failure, and pause.

        Args:
            problem: What is wrong.
            sentence: The same for the log, where it is written once for each cause.
            level: The log level of that line.
        """
        self.problem = problem
        self.hurry()
        pause = self._backoff.failed(sentence, level)
        self._timer = asyncio.get_running_loop().call_later(pause, self._elapsed)

    def succeeded(self) -> bool:
        """Note a success; return True if the last attempt had failed."""
        self.problem = ""
        self.hurry()
        return self._backoff.succeeded()

    def hurry(self) -> None:
        """End the pause without waking anybody."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _elapsed(self) -> None:
        self._timer = None
        self._wake()
