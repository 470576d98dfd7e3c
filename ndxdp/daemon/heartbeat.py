"""The proof that the daemon works, and the heartbeats without which dynamic rules expire."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from ndxdp import threads
from ndxdp.backoff import Backoff
from ndxdp.daemon import reconcile
from ndxdp.errors import problem_of
from ndxdp.session.session import Session

log = logging.getLogger(__name__)

_PERIOD = 5.0  # seconds between two proofs, unless a watchdog needs them more often
_STUCK = 60.0  # seconds without a proof, after which there are no heartbeats


class Pulse:
    """The proof that the daemon works: its event loop runs, and its executor takes tasks."""

    def __init__(self) -> None:
        self._proved = time.monotonic()

    @property
    def age(self) -> float:
        """The time since the last proof, in seconds."""
        return time.monotonic() - self._proved

    async def prove(self, executor: Executor, proved: Callable[[], None], period: float) -> None:
        """Prove it periodically, until cancelled.

        Args:
            executor: The executor that has to take a task each time.
            proved: Called after each proof.
            period: Seconds between two proofs; 0 for the default period.
        """
        while True:
            await proof_of(executor)
            self._proved = time.monotonic()
            proved()
            await asyncio.sleep(period or _PERIOD)


@dataclass(slots=True)
class _Heart:
    session: Session
    timeout: float
    backoff: Backoff
    due: float = 0.0


class Heartbeats:
    """The heartbeats of all interfaces, written by a thread of their own.

    Heartbeats stop while the daemon is stuck, as its rules are out of date then. All methods may be
    called from any thread; they wait for a heartbeat that is being written.
    """

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._hearts: dict[str, _Heart] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def begin(self, session: Session, timeout: float) -> None:
        """Write heartbeats of an interface.

        Args:
            session: The interface, which stays open until end().
            timeout: Seconds after a heartbeat after which dynamic rules expire.
        """
        with self._changed:
            self._hearts[session.interface] = _Heart(session, timeout, Backoff(log))
            self._thread = self._thread or threads.start("heartbeat", self._run)
            self._changed.notify()

    def end(self, interface: str) -> None:
        """Write no more heartbeats of an interface."""
        with self._changed:
            self._hearts.pop(interface, None)

    def _run(self) -> None:
        with self._changed:
            while True:
                if self._pulse.age < _STUCK:
                    self._beat()
                now = time.monotonic()
                dues = [heart.due for heart in self._hearts.values()]
                self._changed.wait(max(min(dues) - now, 0.1) if dues else None)

    def _beat(self) -> None:
        for interface, heart in self._hearts.items():
            now = time.monotonic()
            if heart.due > now:
                continue
            heart.due = now + heart.timeout / 3
            try:
                reconcile.write_heartbeat(heart.session, heart.timeout)
                heart.backoff.succeeded()
            except Exception as error:
                heart.backoff.failed(f"{interface}: cannot write a heartbeat: {problem_of(error)}")


def proof_of(executor: Executor) -> asyncio.Future[None]:
    """Return a future that is done once an executor has taken a task."""
    return asyncio.get_running_loop().run_in_executor(executor, _nothing)


def _nothing() -> None:
    pass
