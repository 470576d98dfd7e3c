"""Pauses between failing attempts, and their log lines."""

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
    """The delays of an action that is tried until it succeeds.

    The first delay is 5 s. Each further failure doubles the delay, up to 60 s. A random tenth is
    added or subtracted, so that actions that fail together are not tried again together. A cause is
    logged once, until the cause changes or an attempt succeeds; repetitions are logged at debug
    level.

    Attributes:
        cause: The sentence for the last failure; "" after a success.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._delay = _FIRST
        self.cause = ""

    def failed(self, cause: str, level: int = logging.ERROR) -> float:
        """Note a failure, and log its cause unless the last failure had the same cause.

        Returns:
            The seconds to wait before the next attempt.
        """
        self._log.log(logging.DEBUG if cause == self.cause else level, "%s", cause)
        self.cause = cause
        delay, self._delay = self._delay, min(2 * self._delay, _LONGEST)
        return delay * random.uniform(1 - _JITTER, 1 + _JITTER)

    def succeeded(self) -> bool:
        """Reset the delay; return True if the last attempt had failed."""
        failed, self._delay, self.cause = bool(self.cause), _FIRST, ""
        return failed


async def persist(
    log: logging.Logger, interface: str, work: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Run a coroutine until it returns; when it raises, run it again after a delay.

    Args:
        log: Where causes are logged.
        interface: The interface's name, for the log.
        work: Makes the coroutine of each attempt.
    """
    backoff = Backoff(log)
    while True:
        try:
            await work()
            return
        except Exception as error:
            delay = backoff.failed(f"{interface}: {problem_of(error)}")
        await asyncio.sleep(delay)


class Retry:
    """An action that an event loop tries again after the delays of a Backoff.

    Attributes:
        problem: The sentence for the present failure; "" after a success.
    """

    def __init__(self, log: logging.Logger, wake: Callable[[], None]) -> None:
        """Create an action without a failure.

        Args:
            log: Where causes are logged.
            wake: Called in the loop's thread when the next attempt is due.
        """
        self._backoff, self._wake = Backoff(log), wake
        self._timer: asyncio.TimerHandle | None = None
        self.problem = ""

    @property
    def is_due(self) -> bool:
        """True unless the delay after a failure is running."""
        return self._timer is None

    def failed(self, problem: str, sentence: str, level: int = logging.ERROR) -> None:
        """Note a failure, and start the delay.

        Args:
            problem: The sentence for `problem`.
            sentence: The sentence for the log, which is logged once for each cause.
            level: The log level of that line.
        """
        self.problem = problem
        self.hurry()
        delay = self._backoff.failed(sentence, level)
        self._timer = asyncio.get_running_loop().call_later(delay, self._elapsed)

    def succeeded(self) -> bool:
        """Note a success; return True if the last attempt had failed."""
        self.problem = ""
        self.hurry()
        return self._backoff.succeeded()

    def hurry(self) -> None:
        """End the delay without calling `wake`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _elapsed(self) -> None:
        self._timer = None
        self._wake()
