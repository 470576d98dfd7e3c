"""The lease of a host in etcd, which is renewed while this process runs and etcd answers."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import TypeVar

from ndxdp.backoff import persist
from ndxdp.boot_clock import boot_ns
from ndxdp.printable import printable
from ndxdp.sources.etcd_client import EtcdClient
from ndxdp.sources.etcd_session import LeaseLost
from ndxdp.sources.etcd_settings import Etcd
from ndxdp.sources.etcd_store import Lease, Store
from ndxdp.sources.http import NoAnswer
from ndxdp.sources.tls import plain_reason

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_RENEWALS = 3  # in one TTL
_GUARD_MIN, _GUARD_PART = 0.25, 10  # seconds; a part of the TTL
_WITHIN_MAX, _PATIENCE_MAX = (
    3.0,
    1.0,
)  # seconds for a member to answer; and before the next is asked
_PAUSE_PART, _PAUSE_MAX = 20, 0.5  # a part of the TTL; seconds
_DELAY_MIN, _DELAY_MAX = 0.2, 5.0  # seconds between two attempts without a lease


def guard_of(ttl: int) -> float:
    """Return the seconds before the end of a lease at which it counts as lost.

    The clocks of this host and of etcd may differ in rate.
    """
    return max(_GUARD_MIN, ttl / _GUARD_PART)


class LeaseKeeper:
    """A lease, which the keeper grants or adopts, and renews three times in its TTL.

    A renewal goes to the member that answered last. If that does not answer soon, the next member
    is asked at the same time; the first answer counts. When etcd no longer has the lease, the
    keeper grants another one. When etcd is out of reach for too long, the lease counts as lost; the
    keeper still renews it if it is alive when etcd answers again, as its keys are then, too.

    Call the methods in the event loop's thread.

    Attributes:
        lease: The id of the lease; 0 if there is none, or if etcd has not confirmed it yet.
        ttl: Its TTL in seconds, which etcd decides; 0 before the first answer.
        until: CLOCK_BOOTTIME in nanoseconds until which this host may rely on the lease; 0 if it
            may not.
        lag: Seconds from the last renewal's request to its answer; None before the first.
        endpoint: The member that answered last; "" before.
        problem: Why the last request failed; "" after an answer.
    """

    def __init__(
        self,
        settings: Etcd,
        on_renewed: Callable[[int, int], None],
        on_lost: Callable[[], None],
    ) -> None:
        """Send nothing yet.

        Args:
            settings: The table [etcd].
            on_renewed: Called after each answer with the id of the lease, and with `until`. The id
                may be that of a lease that was reported as lost.
            on_lost: Called when etcd no longer has the lease, or when `until` has passed.
        """
        self.lease, self.ttl, self.until = 0, 0, 0
        self.lag: float | None = None
        self.endpoint, self.problem = "", ""
        self._settings, self._on_renewed, self._on_lost = settings, on_renewed, on_lost
        self._known = 0  # the lease to renew, whether it counts as lost or not
        self._asked = 0  # when the last renewal that was answered was sent, boot_ns()
        self._client = EtcdClient(settings, min(settings.lease / 3, _WITHIN_MAX))
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, former: int = 0) -> None:
        """Begin to keep a lease.

        Args:
            former: The id of a lease of an earlier process to adopt; 0 for none. If etcd does not
                have it, the keeper grants another one.
        """
        self._known = former
        self._task = asyncio.ensure_future(persist(log, "etcd: the lease", self._keep))

    def stop(self) -> None:
        """Renew the lease no longer, and leave it as it is: another process may adopt it."""
        for each in (self._task, self._timer):
            if each is not None:
                each.cancel()
        self._task = self._timer = None
        self.until = 0
        self._client.close()

    async def revoke(self, within: float = 2.0) -> bool:
        """End the lease and delete its keys; renew it no longer. Call no function.

        Args:
            within: Seconds for etcd to answer.

        Returns:
            False if etcd does not answer, so that the lease ends with its TTL.
        """
        lease, task = self._known, self._task
        self.stop()
        if task is not None:
            await asyncio.wait([task])
        self._known = self.lease = 0
        if not lease:
            return True
        try:
            async with asyncio.timeout(within):
                await self._client.call(lambda etcd: etcd.revoke(lease), patience=within / 4)
        except (TimeoutError, NoAnswer) as error:
            why = plain_reason(error) if isinstance(error, NoAnswer) else f"after {within:g} s"
            log.warning("cannot revoke the lease of etcd: %s; it ends by itself", printable(why))
            return False
        finally:
            self._client.close()
        return True

    # ---- renewal

    async def _keep(self) -> None:
        delay = _DELAY_MIN
        while True:
            try:
                if self._known:
                    await self._renew(self._known)
                else:
                    await self._grant()
            except LeaseLost as reason:
                log.warning("the lease of etcd is lost: %s", printable(plain_reason(reason)))
                self._known = 0
                self._lose()
            except NoAnswer as reason:
                self._note_failure(plain_reason(reason))
                if self.until:
                    await asyncio.sleep(min(self.ttl / _PAUSE_PART, _PAUSE_MAX))
                    continue
            else:
                delay = _DELAY_MIN
                due = self._asked + self.ttl * 10**9 / _RENEWALS * random.uniform(0.9, 1.0)
                await asyncio.sleep(max(0, due - boot_ns()) / 1e9)
                continue
            await asyncio.sleep(delay * random.uniform(0.8, 1.2))
            delay = min(delay * 2, _DELAY_MAX)

    async def _renew(self, lease: int) -> None:
        async def ask(etcd: Store) -> tuple[int, int]:
            # A leader whose disk hangs, or that was stopped, may renew leases after others have
            # replaced it (https://github.com/etcd-io/etcd/issues/15247). A read, which a majority
            # confirms, shows that it is the leader, or knows the present one. The next leader is
            # elected later, and extends all leases by their TTL then. Each host may read this key.
            await etcd.get(self._settings.directory)
            sent = boot_ns()
            return sent, await etcd.keepalive(lease)

        sent, ttl = await self._ask(ask)
        self._take(Lease(lease, ttl), sent)

    async def _grant(self) -> None:
        async def ask(etcd: Store) -> tuple[int, Lease]:
            sent = boot_ns()
            return sent, await etcd.grant(self._settings.lease)

        sent, lease = await self._ask(ask)
        log.info("etcd has granted a lease of %d s", lease.ttl)
        self._known = lease.id
        self._take(lease, sent)

    async def _ask(self, request: Callable[[Store], Coroutine[None, None, _T]]) -> _T:
        patience = min(self._settings.lease / 8, _PATIENCE_MAX)
        answer = await self._client.call(request, patience=patience)
        self.endpoint = self._client.endpoint
        if self.problem:
            log.info("%s: answers again", self.endpoint)
            self.problem = ""
        return answer

    # ---- state

    def _take(self, lease: Lease, sent: int) -> None:
        """Note an answer to a request that was sent at a time."""
        until = sent + int((lease.ttl - guard_of(lease.ttl)) * 1e9)
        self._asked, self.ttl, self.lag = sent, lease.ttl, (boot_ns() - sent) / 1e9
        if until <= boot_ns():
            return  # the answer comes too late
        self.lease, self.until = lease.id, until
        self._arm()
        self._on_renewed(lease.id, until)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        left = max(0, self.until - boot_ns()) / 1e9
        self._timer = asyncio.get_running_loop().call_later(left, self._elapsed)

    def _elapsed(self) -> None:
        if boot_ns() < self.until:  # the clock of the loop may be ahead
            self._arm()
            return
        self.problem = self.problem or "no member of etcd answers"
        log.warning("the lease of etcd is lost, as it was not renewed in time: %s", self.problem)
        self._lose()

    def _lose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        was_held, self.until, self.lease = bool(self.until), 0, 0
        if was_held:
            self._on_lost()

    def _note_failure(self, reason: str) -> None:
        problem = printable(reason)
        log.log(logging.DEBUG if self.problem else logging.WARNING, "%s", problem)
        self.problem = problem
