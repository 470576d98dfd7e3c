"""`ndxdp run`: a loop that wires the network, Docker and the configuration to the uplinks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ndxdp.errors import NdxdpError, UsageError
from ndxdp.instance import Instance
from ndxdp.job import Job
from ndxdp.kernel.abi import Mode
from ndxdp.kernel.pins import Trees
from ndxdp.notify import Notifier
from ndxdp.report import Publisher
from ndxdp.rules import Rules
from ndxdp.shared import Shared
from ndxdp.sources import docker
from ndxdp.sources.docker import Docker, Endpoint
from ndxdp.state import Attended, State
from ndxdp.uplink import Uplink
from ndxdp.wire import netlink
from ndxdp.wire.netlink import Monitor

log = logging.getLogger(__name__)

_ENDING = {signal.SIGINT, signal.SIGTERM}
_SIGNALS = _ENDING | {signal.SIGHUP}


def run(
    trees: Trees,
    jobs: list[Job],
    *,
    ready: Callable[[Job, Instance | None], None],
    docker_socket: str = docker.SOCKET,
    reread: Callable[[], list[Job]] | None = None,
    state: State | None = None,
    config: Path | None = None,
) -> None:
    """Do the jobs until SIGINT or SIGTERM.

    ready: called for each job when it answers, each time that it has begun to; without an instance
    where nothing is to be answered, and only addresses are kept. reread: what
    SIGHUP asks for anew; None: there is nothing to read, and SIGHUP ends as it does by default.
    NdxdpError if one that is not patient cannot begin. jobs: emptied. state: kept in step.
    config: the file that the jobs come from, for those who show it.
    """
    for job in jobs:
        if job.insist and job.options.mode is Mode.USERSPACE:
            raise UsageError(
                "in userspace mode a process answers, and nothing can go on without it",
                "leave --keep out, or take another mode",
            )
    _refuse_if_all_held(trees, jobs)
    _raise_descriptor_limit()
    # Held back until the loop listens for them: an attach half done is nobody's wish.
    signal.pthread_sigmask(signal.SIG_BLOCK, _awaited(reread))
    # The monitor comes first: what changes while we attach is seen afterwards.
    # The thread has its own mask: a signal must not reach it when nobody handles it any more.
    masked = ThreadPoolExecutor(
        1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, _SIGNALS)
    )
    state = state or State()
    with contextlib.closing(Monitor()) as monitor, masked as executor:
        daemon = _Daemon(trees, monitor, executor, ready, docker_socket, reread, state)
        with Publisher(trees.files.root, netlink.netns(), config, state):
            asyncio.run(daemon.run(jobs))


def _refuse_if_all_held(trees: Trees, jobs: list[Job]) -> None:
    """Raise NdxdpError if other processes answer on each interface: this is a second daemon.

    If they answer on some, those are tried again until they are free.
    """
    refused = []
    for job in jobs:
        try:
            for tree in trees:
                tree.refuse_if_held(job.interface)
        except NdxdpError as error:
            refused.append(error)
        except OSError:  # not readable: the attempt to answer says so
            pass
    if refused and len(refused) == len(jobs):
        raise NdxdpError(
            refused[0].message, refused[0].hint, tuple(error.message for error in refused[1:])
        )


def _raise_descriptor_limit() -> None:
    """Allow as many open files as the hard limit does: each interface takes some 20."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.debug("the limit of open files stays at %d: %s", soft, error)


def _awaited(reread: Callable[[], list[Job]] | None) -> set[signal.Signals]:
    return _SIGNALS if reread else _ENDING


class _Daemon:
    def __init__(
        self,
        trees: Trees,
        monitor: Monitor,
        executor: ThreadPoolExecutor,
        ready: Callable[[Job, Instance | None], None],
        docker_socket: str,
        reread: Callable[[], list[Job]] | None,
        state: State,
    ) -> None:
        self._trees, self._monitor, self._executor = trees, monitor, executor
        self._ready, self._docker_socket, self._reread = ready, docker_socket, reread
        self._uplinks: dict[str, tuple[Uplink, asyncio.Task[None]]] = {}
        self._stop, self._reload_wanted = asyncio.Event(), asyncio.Event()
        self._notifier = Notifier()
        self._state, self._shared = state, Shared()
        self._endpoints: frozenset[Endpoint] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def run(self, jobs: list[Job]) -> None:
        asyncio.get_running_loop().set_default_executor(self._executor)
        with self._shared, self._listening():
            while jobs:  # not kept: after a reload their rules would be a second copy
                self._start(jobs.pop(0))
            self._watch_docker()
            telling = asyncio.ensure_future(self._tell_systemd())
            reloading = asyncio.ensure_future(self._reload_when_asked())
            stopping = asyncio.ensure_future(self._stop.wait())
            # An uplink that ends by itself could not begin.
            while not self._stop.is_set() and not any(task.done() for task in self._tasks()):
                await asyncio.wait({stopping, *self._tasks()}, return_when=asyncio.FIRST_COMPLETED)
            self._notifier.stopping()
            for task in (telling, reloading, stopping, self._watching):
                if task:
                    task.cancel()
            for uplink, _ in self._uplinks.values():
                uplink.stop()
            ended = await asyncio.gather(*self._tasks(), return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, BaseException):
                raise outcome

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [task for _, task in self._uplinks.values()]

    def _start(self, job: Job) -> None:
        self._state.interfaces.setdefault(job.interface, Attended())
        self._state.on_change()
        uplink = Uplink(
            self._trees,
            job,
            self._executor,
            self._ready,
            self._wake_waiting,
            self._state,
            self._shared,
        )
        self._uplinks[job.interface] = uplink, asyncio.ensure_future(uplink.run())
        self._tell_containers(uplink)

    def _summary(self) -> str:
        return f"interfaces: {', '.join(self._uplinks)}"

    async def _tell_systemd(self) -> None:
        for uplink, _ in list(self._uplinks.values()):
            await uplink.began.wait()
        self._notifier.ready(self._summary())
        while self._notifier.watchdog:
            self._notifier.alive()
            await asyncio.sleep(self._notifier.watchdog / 3)

    # ---- Docker

    def _watch_docker(self) -> None:
        """Watch the engine if any job selects containers; with other labels watch it anew."""
        if self._watching:
            self._watching.cancel()
        selectors = [one for uplink, _ in self._uplinks.values() for one in uplink.job.selectors]
        self._watching = self._state.docker_connected = None
        if selectors:
            keys = docker.label_keys(selectors)
            engine = Docker(self._docker_socket, keys, self._state.on_change)
            self._state.docker_connected = lambda: engine.connected
            self._watching = asyncio.ensure_future(self._watch(engine))
        self._state.on_change()

    async def _watch(self, engine: Docker) -> None:
        async with contextlib.aclosing(engine.watch()) as looks:
            async for endpoints in looks:
                self._endpoints = endpoints
                for uplink, _ in self._uplinks.values():
                    self._tell_containers(uplink)

    def _tell_containers(self, uplink: Uplink) -> None:
        if not uplink.job.selectors:
            uplink.set_containers(Rules())
        elif self._endpoints is not None:
            uplink.set_containers(docker.rules(self._endpoints, uplink.job.selectors))

    # ---- the configuration

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            await self._reload()

    async def _reload(self) -> None:
        """Apply what differs; a bad file changes nothing."""
        assert self._reread
        self._notifier.reloading()
        # In the executor: a list of 100 000 takes half a second, in which this thread may have to
        # answer.
        try:
            read = await asyncio.get_running_loop().run_in_executor(self._executor, self._reread)
            jobs = {job.interface: job for job in read}
        except NdxdpError as error:
            self._state.note_reload(False, str(error))
            log.error("not reloaded: %s", error)
            self._notifier.ready(f"not reloaded: {error.message}")
            return
        for name in set(self._uplinks) - set(jobs):
            self._state.interfaces.pop(name, None)
            uplink, task = self._uplinks.pop(name)
            uplink.set_job(replace(uplink.job, detach=True))
            uplink.stop()
            task.add_done_callback(lambda task: task.exception())
        for name, job in jobs.items():
            if name in self._uplinks:
                self._uplinks[name][0].set_job(job)
                self._tell_containers(self._uplinks[name][0])
            else:
                self._start(job)
        self._watch_docker()
        self._state.note_reload(True)
        log.info("reloaded")
        self._notifier.ready(self._summary())

    # ---- signals and netlink

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _ENDING:
            loop.add_signal_handler(number, self._stop.set)
        if self._reread:
            loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _awaited(self._reread))
        loop.add_reader(self._monitor.fileno(), self._on_netlink)
        try:
            yield
        finally:
            # asyncio is about to give them back to their defaults: nothing shall interrupt the end.
            signal.pthread_sigmask(signal.SIG_BLOCK, _awaited(self._reread))
            loop.remove_reader(self._monitor.fileno())

    def _wake_waiting(self) -> None:
        for uplink, _ in self._uplinks.values():
            uplink.others_let_go()

    def _on_netlink(self) -> None:
        """Let each uplink know what has changed; it knows what concerns it."""
        concerns = self._monitor.drain()
        interrupted = self._monitor.interrupted()
        for uplink, _ in self._uplinks.values():
            if interrupted:
                uplink.links_interrupted(interrupted)
            uplink.network_changed(concerns)
