"""The daemon's exporter, which listens at the configured address as soon as that is possible.

A failure to serve metrics does not keep the daemon from answering solicitations.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from ndxdp import threads
from ndxdp.backoff import Backoff
from ndxdp.config.model import Metrics
from ndxdp.errors import problem_of
from ndxdp.runtime.daemon_status import DaemonStatus, ExporterStatus
from ndxdp.store.directories import Trees

if TYPE_CHECKING:
    from ndxdp.observe.exporter import Exporter

log = logging.getLogger(__name__)


class MetricsListener:
    """Keeps the exporter listening at the configured address.

    A failed attempt is repeated, after 5 s growing to 60 s; until it succeeds, the exporter listens
    at the former address. Call the methods in the event loop's thread.
    """

    def __init__(self, trees: Trees, state: DaemonStatus) -> None:
        self._trees, self._state = trees, state
        self._exporter: Exporter | None = None
        self._wanted: Metrics | None = None
        self._backoff = Backoff(log)
        self._attempt = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._retry: asyncio.Task[None] | None = None

    async def serve_at(self, where: Metrics | None) -> None:
        """Listen at an address from now on, or at none; return after the first attempt."""
        if where != self._wanted:
            self._backoff.succeeded()
            self._wanted = where
            await self._try()

    async def _try(self) -> None:
        async with self._attempt:
            if self._timer:
                self._timer.cancel()
            where = self._wanted
            try:
                await threads.result_of("listen", partial(self._listen, where))
            except Exception as error:
                problem = problem_of(error)
                self._note(where, problem)
                sentence = f"cannot serve metrics: {problem}; trying again later"
                pause = self._backoff.failed(sentence, logging.WARNING)
                self._timer = asyncio.get_running_loop().call_later(pause, self._try_again)
            else:
                self._backoff.succeeded()
                self._note(where)

    def _note(self, where: Metrics | None, problem: str = "") -> None:
        """Show in the daemon's status where metrics are wanted, and the problem if there is one."""
        place = f"http://{where}/metrics" if problem else str(self._exporter)
        self._state.note_exporter(ExporterStatus(place, problem) if where else None)

    def _try_again(self) -> None:
        self._retry = asyncio.ensure_future(self._try())

    def _listen(self, where: Metrics | None) -> None:
        if self._exporter is None and where:  # Prometheus' client is 9 MB
            from ndxdp.observe.exporter import Exporter

            self._exporter = Exporter(self._trees, self._state)
        if self._exporter:
            self._exporter.listen(where)
