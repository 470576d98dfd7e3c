"""Log lines about the hosts of a share, at a bounded rate."""

from __future__ import annotations

import logging
import time

from ndxdp.pace import Pace

_RATE = 0.5  # lines per second, after the first _BURST
_BURST = 100


class ShareLog:
    """Logs what happens to hosts; when too much happens, it logs how many lines it left out."""

    def __init__(self, log: logging.Logger, upstream: str) -> None:
        """Begin; upstream: the interface that names the share."""
        self._log, self._upstream = log, upstream
        self._pace = Pace(_RATE, _BURST, time.monotonic)
        self._left_out = 0

    def info(self, text: str, *arguments: object) -> None:
        """Log a line at level info."""
        if self._pace.delay():
            self._left_out += 1
            self._log.debug(text, *arguments)
            return
        self._pace.charge()
        if self._left_out:
            self._log.info("share of %s: %d lines left out", self._upstream, self._left_out)
            self._left_out = 0
        self._log.info(text, *arguments)
