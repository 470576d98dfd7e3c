"""Pauses between attempts at something that fails, and the log lines about it."""

from __future__ import annotations

import logging
import random

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
