"""The report of shared addresses, written at a bounded rate when it has changed."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ndxdp.errors import NdxdpError
from ndxdp.runtime import fleet_report
from ndxdp.runtime.fleet_report import FleetReport, SharedAddressEntry

log = logging.getLogger(__name__)

_PERIOD = 1.0  # seconds between two reports

_PER_ADDRESS = 0.0005
"""Seconds added for each address: a report of 10 000 addresses takes some 100 ms to write."""


class FleetReporter:
    """Writes the reports of shared addresses in the run directory, for one network namespace.

    All methods are called in the thread of the running event loop. Another thread writes, so that
    a report of many addresses does not delay the renewal of the lease.
    """

    def __init__(self, directory: Path, netns: int) -> None:
        """Write nothing yet.

        Args:
            directory: The run directory.
            netns: The inode number of the network namespace.
        """
        self._directory, self._netns = directory, netns
        self._made: Callable[[], tuple[str, list[SharedAddressEntry]]] | None = None
        self._written: tuple[str, list[SharedAddressEntry]] | None = None
        self._next = float("-inf")  # time of the loop's clock from which the next one may be made
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._writing = threading.Lock()
        self._is_closed = False
        self._problem = ""

    def note(self, host: str, addresses: Callable[[], list[SharedAddressEntry]]) -> None:
        """Note that there may be news: they are written at once, or when the next report is due.

        Args:
            host: The name of this host.
            addresses: Returns the present state of all shared addresses; called when it is due.
        """
        self._made = lambda: (host, addresses())
        self._plan()

    def close(self) -> None:
        """Remove the report: the daemon ends, or has no segment any more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        with self._writing:
            fleet_report.remove(self._directory, self._netns)

    def _plan(self) -> None:
        if self._made is None or self._timer or self._task or self._is_closed:
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(max(loop.time(), self._next), self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._task = asyncio.create_task(self._report())

    async def _report(self) -> None:
        """Make a report, and write it if it differs from the last one."""
        assert self._made is not None
        make, self._made = self._made, None
        try:
            found = make()
            self._next = asyncio.get_running_loop().time() + _PERIOD + _PER_ADDRESS * len(found[1])
            if found != self._written:
                self._written = found
                await asyncio.to_thread(self._write, *found)
        finally:
            self._task = None
        self._plan()

    def _write(self, host: str, addresses: list[SharedAddressEntry]) -> None:
        """Write a report; log a failure once."""
        report = FleetReport(host, self._netns, os.getpid(), time.time(), addresses)
        try:
            with self._writing:
                if not self._is_closed:
                    fleet_report.write(self._directory, report)
        except (NdxdpError, OSError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.warning("shared addresses: cannot write a report: %s", error)
        else:
            self._problem = ""
