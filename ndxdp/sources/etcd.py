"""Ranges of keys in etcd, such as this host's: a stream of the changes of their values.

The watcher reads all keys in pages, and then the stream of changes from the next revision on. After
a loss of the connection it continues at the revision that it has reached, at the same or at another
member; it reads all keys again if etcd has compacted that revision, or was restored from a backup.
A check now and then finds what the stream does not report.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence

from ndxdp.errors import UsageError
from ndxdp.printable import printable
from ndxdp.sources.etcd_api import Changes, EtcdApi
from ndxdp.sources.etcd_batch import Batch
from ndxdp.sources.etcd_position import Position
from ndxdp.sources.etcd_session import Compacted, Future
from ndxdp.sources.etcd_settings import Endpoint, Etcd
from ndxdp.sources.etcd_wire import Item
from ndxdp.sources.http import NoAnswer
from ndxdp.sources.tls import TcpServer, context_of, plain_reason

log = logging.getLogger(__name__)

_DELAY_MIN, _DELAY_MAX = 0.1, 30.0  # seconds between two attempts to reach any member
_STABLE = 2.0  # seconds; after a connection that lasted so long, the delay starts at its minimum

_CHECK_AFTER = 20.0
"""Seconds between two checks. A check is one request, whose answer a majority confirms."""

_COUNTED_OFTEN = 10_000
"""Keys that every check counts. With 10 times as many, one check in 10 does.

etcd takes 0.2 ms of CPU time to count 1000 keys, for each host that follows them.
"""

_CONFIRM_MIN = 0.5  # seconds for an answer
_FIRST_CHECK = 2.0  # seconds from a connection to its first check
_LAG = 2.0  # seconds for the stream to report what a check has found

_KEYS_MAX = 1_000_000
"""Keys that one host may have; the room for prefixes in the maps is 1 048 576."""


class _Differs(NoAnswer):
    """Keys in etcd that differ from those that were read: they have to be read again."""


class _NewHistory(_Differs):
    """A cluster that was restored from a backup, or is another one."""


class Watcher:
    """A watcher of this host's keys, or of other ranges.

    Attributes:
        settings: The table [etcd].
        ranges: The beginnings of the keys.
        connected: True if all keys were read, and the stream of changes continues.
        endpoint: The member that the watcher is connected to, or was last; "" before.
        problem: Why the watcher is disconnected; "" while it is connected.
        since: time.time() of the last change of `connected`.
        last_event: time.time() of the last change of a key; None before the first one.
        confirmed: time.time() when a majority last confirmed the number of keys; None before.
        revision: The revision up to which the keys are known; 0 before.
    """

    def __init__(
        self,
        settings: Etcd,
        on_change: Callable[[], None] = lambda: None,
        *,
        ranges: Sequence[str] = (),
        on_new_history: Callable[[], None] = lambda: None,
        subject: str = "keys of this host",
        meanwhile: str = "rules of etcd are kept",
        silence: float = 0.0,
    ) -> None:
        """Watch nothing yet.

        Args:
            settings: The table [etcd].
            on_change: Called when `connected` or `problem` has changed.
            ranges: The beginnings of the keys to watch; empty for the keys of this host.
            on_new_history: Called when etcd turns out to be restored from a backup, or another
                cluster, before the batches with its keys.
            subject: What the keys are, for the log.
            meanwhile: What becomes of it while etcd is out of reach, for the log.
            silence: Seconds after which a member that hangs is left; 0 if the check of the number
                of keys suffices, which notices it after half a minute.
        """
        self._subject, self._meanwhile = subject, meanwhile
        self.ranges = tuple(ranges) or (settings.directory,)
        self.settings = settings
        self.connected, self.endpoint, self.problem = False, "", ""
        self.since = time.time()
        self.last_event: float | None = None
        self.confirmed: float | None = None
        self._on_change, self._on_new_history = on_change, on_new_history
        self._position: Position | None = None
        self._hurried = asyncio.Event()
        self._silence = silence
        self._events = 0
        self._token = ""
        self._size: Callable[[], int] = lambda: 0

    @property
    def revision(self) -> int:
        """The revision up to which the keys are known; 0 before the first."""
        return min(self._position.revisions) if self._position else 0

    async def watch(self, size: Callable[[], int]) -> AsyncGenerator[Batch, None]:
        """Yield all keys at first, and then every change.

        The generator never ends and never raises. While etcd is out of reach it yields nothing, so
        that the keys stay valid. The members are tried in turn, from a random one on; the delay
        after a round in vain starts at 0.1 s and doubles up to 30 s.

        Args:
            size: Returns the number of keys that the batches so far have left.
        """
        self._size, self._position = size, None
        members = list(self.settings.endpoints)
        random.shuffle(members)
        tried, delay = 0, _DELAY_MIN
        while True:
            endpoint = members[0]
            members.append(members.pop(0))
            began, was_connected = time.monotonic(), False
            try:
                async with contextlib.aclosing(self._session(endpoint)) as batches:
                    async for batch in batches:
                        yield batch
            except NoAnswer as reason:
                was_connected = self.connected
                self._mark_lost(endpoint, plain_reason(reason))
            finally:
                self._set_connected(False)
            tried += 1
            if was_connected and time.monotonic() - began > _STABLE:
                tried, delay = 0, _DELAY_MIN
            if tried % len(members) == 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay * random.uniform(0.8, 1.2)):
                        await self._hurried.wait()
                self._hurried.clear()
                delay = min(delay * 2, _DELAY_MAX)

    def hurry(self) -> None:
        """End the delay before the next attempt: etcd has just answered another request."""
        self._hurried.set()

    # ---- one connection

    async def _session(self, endpoint: Endpoint) -> AsyncGenerator[Batch, None]:
        """Read the keys and their changes from one member, until NoAnswer."""
        api = self._api(endpoint, self._token)
        try:
            await self._check_continuity(api)
            while True:
                if self._position is None:
                    async for batch in self._read_all(api):
                        yield batch
                try:
                    async with contextlib.aclosing(self._follow(api, endpoint)) as batches:
                        async for batch in batches:
                            yield batch
                except (Compacted, _Differs) as reason:
                    log.info("%s: %s; reading all keys again", endpoint, plain_reason(reason))
                    self._position = None
                    if isinstance(reason, _NewHistory):
                        self._begin_history()
                    await asyncio.sleep(_DELAY_MIN)
        finally:
            self._token = api.session.token
            api.close()

    def _api(self, endpoint: Endpoint, token: str) -> EtcdApi:
        try:
            # The files are read again: certificates are renewed.
            context = context_of(self.settings) if endpoint.tls else None
        except UsageError as error:
            raise NoAnswer(error.message) from None
        return EtcdApi(TcpServer(endpoint, context), self.settings, token, self.ranges)

    async def _check_continuity(self, api: EtcdApi) -> None:
        """Forget the position if the history before it is not that of etcd now.

        A restored etcd counts revisions on from its backup, and may have the id of the former
        cluster. So the last change that this process knows is looked up in etcd's history.
        """
        position = self._position
        if position is None:
            return
        try:
            page = await api.changed_since(max(position.changed, 1), position.revisions)
        except Compacted as reason:
            log.info("etcd: %s; reading all keys again", plain_reason(reason))
            self._position = None
            # Without the revisions between, the header alone shows most other histories.
            if isinstance(reason, Future) or not position.precedes((await api.count()).header):
                self._begin_history()
            return
        same = (
            position.precedes(page.header)
            and page.total == self._size()
            and {item.key for item in page.items} == position.written
            and all(item.changed == position.changed for item in page.items)
        )
        if not same:
            self._position = None
            self._begin_history()

    def _begin_history(self) -> None:
        log.warning("etcd has another history: it was restored, or is another cluster")
        self._on_new_history()

    async def _read_all(self, api: EtcdApi) -> AsyncGenerator[Batch, None]:
        """Yield all keys; start over if their revision is compacted before the end."""
        while True:
            begins, read, position = True, 0, Position(0, 0, ())
            try:
                async for page in api.pages():
                    read += len(page.items)
                    if read > _KEYS_MAX:
                        raise NoAnswer(f"there are more than {_KEYS_MAX} keys")
                    ends = not page.more
                    position = position.after(page.items)
                    if ends:
                        cluster, term, revision = page.header
                        revisions = (revision,) * len(self.ranges)
                        self._position = Position(cluster, term, revisions, *position[3:])
                    yield Batch(page.items, begins, ends)
                    begins = False
                return
            except Compacted:
                await asyncio.sleep(_DELAY_MIN)

    async def _follow(self, api: EtcdApi, endpoint: Endpoint) -> AsyncGenerator[Batch, None]:
        """Yield changes, until NoAnswer."""
        assert self._position is not None
        queue: asyncio.Queue[Changes | BaseException] = asyncio.Queue(16)

        async def feed(work: Coroutine[None, None, None]) -> None:
            try:
                await work
            except Exception as error:
                await queue.put(error)

        works = [self._listen(api, self._position.revisions, queue), self._check(api, queue)]
        if self._silence:
            works.append(self._confirm(api, endpoint))
        tasks = {asyncio.create_task(feed(work)) for work in works}
        try:
            items: list[Item] = []
            while True:
                found = await queue.get()
                if not isinstance(found, BaseException):
                    self._mark_connected(endpoint)
                    items += found.items
                    self._note(found)
                # A change of several ranges arrives as one answer for each.
                if items and (queue.empty() or isinstance(found, BaseException)):
                    yield Batch(items)
                    items = []
                if isinstance(found, BaseException):
                    raise found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _note(self, changes: Changes) -> None:
        """Note the place in the history that some changes lead to."""
        assert self._position is not None
        if changes.items:
            self._events += len(changes.items)
            self.last_event = time.time()
            self._position = self._position.after(changes.items)
        if changes.revision and changes.number:
            self._position = self._position.reaches(changes.number, changes.revision)

    async def _listen(
        self,
        api: EtcdApi,
        revisions: Sequence[int],
        queue: asyncio.Queue[Changes | BaseException],
    ) -> None:
        async with api.changes(revisions) as answers:
            async for changes in answers:
                await queue.put(changes)
        raise NoAnswer("the stream of changes has ended")

    async def _confirm(self, api: EtcdApi, endpoint: Endpoint) -> None:
        """Leave a member that hangs, or has no majority; a check would cost more with many keys.

        One request that fails is no reason yet, as etcd may be electing a leader.
        """
        own = self._api(endpoint, api.session.token)  # a long answer to a check is no silence
        failures = 0
        try:
            while True:
                if not failures:
                    await asyncio.sleep(self._silence / 2 * random.uniform(0.9, 1.0))
                limit = max(self._silence / 4, _CONFIRM_MIN)
                try:
                    async with asyncio.timeout(limit):
                        await own.confirm()
                    failures = 0
                except (TimeoutError, NoAnswer) as error:
                    failures += 1
                    if failures > 1:
                        silent = isinstance(error, TimeoutError)
                        why = f"no answer within {limit:.3g} s" if silent else str(error)
                        raise NoAnswer(why) from None
                    await asyncio.sleep(_DELAY_MIN)
        finally:
            own.close()

    async def _check(self, api: EtcdApi, queue: asyncio.Queue[Changes | BaseException]) -> None:
        """Compare the number of keys, and the history, now and then.

        Raises:
            NoAnswer: The member does not answer, or has no majority.
            _Differs: The keys differ, and the stream has reported no change for a while; or their
                number differs by the same amount in three checks while keys change.
        """
        pause, differences, due = _FIRST_CHECK, [0], 0
        while True:
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))
            pause, due = _CHECK_AFTER, due - 1
            if due > 0:
                await api.confirm()
                continue
            before = self._events
            page = await api.count()
            if self._position is not None and not self._position.precedes(page.header):
                raise _NewHistory("it may have another history")
            difference = page.total - self._size()
            if not difference:
                self.confirmed = time.time()
                due = self._size() // _COUNTED_OFTEN
                continue
            await asyncio.sleep(_LAG)
            is_quiet = before == self._events and queue.empty()
            differences = [*differences[-2:], difference]
            if is_quiet or differences == [difference] * 3:
                raise _Differs(f"etcd has {page.total} keys, and {self._size()} are known")
            pause = _FIRST_CHECK

    # ---- state

    def _mark_connected(self, endpoint: Endpoint) -> None:
        self.endpoint = str(endpoint)
        if not self.connected:
            log.info("%s: connected, %s: %d", endpoint, self._subject, self._size())
        self.problem = ""
        self._set_connected(True)

    def _set_connected(self, connected: bool) -> None:
        if connected is not self.connected:
            self.connected, self.since = connected, time.time()
            self._on_change()

    def _mark_lost(self, endpoint: Endpoint, reason: str) -> None:
        """Log the reason why etcd is out of reach, as a warning only if it is another one."""
        if endpoint.tls and not self.settings.certificate and not self.endpoint:
            # With TLS 1.3 a refusal may show as a broken connection only.
            reason += " (no certificate is configured, and etcd may require one)"
        problem = f"{endpoint}: {printable(reason)}"
        level = logging.DEBUG if self.problem else logging.WARNING
        log.log(level, "%s; trying again, %s", problem, self._meanwhile)
        self.problem = problem
        self.connected, self.since = False, time.time() if self.connected else self.since
        self._on_change()
