"""`ndxdp run`: a loop that wires the network, Docker and the configuration to the uplinks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ndxdp import threads
from ndxdp.backoff import Backoff
from ndxdp.daemon.exporter_listener import Listening
from ndxdp.daemon.heartbeat import Heartbeats, Pulse
from ndxdp.daemon.sd_notify import Notifier
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.daemon.spec import Job, Work
from ndxdp.daemon.uplink import Uplink
from ndxdp.errors import ModeUnavailable, NdxdpError, UsageError, problem_of
from ndxdp.kernel.abi import Mode
from ndxdp.netlink import names
from ndxdp.netlink.link_monitor import LinkMonitor
from ndxdp.netlink.netns import netns
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime.daemon_status import DaemonStatus, InterfaceStatus
from ndxdp.runtime.report import Publisher
from ndxdp.sources import docker
from ndxdp.sources.docker import Docker, Endpoint
from ndxdp.store.directories import Trees
from ndxdp.store.instance import Instance
from ndxdp.store.ownership import refuse_if_locked

log = logging.getLogger(__name__)

_ENDING = {signal.SIGINT, signal.SIGTERM}
_SIGNALS = _ENDING | {signal.SIGHUP}

_LISTENING = 1.0  # seconds that the start waits for metrics to be served

_STUCK = 10.0
"""Seconds that the end waits for a task that does not return; systemd kills after 20."""


def run(
    trees: Trees,
    work: Work,
    *,
    ready: Callable[[Job, Instance | None], None],
    reread: Callable[[], Work] | None = None,
    set_log: Callable[[Work], None] = lambda work: None,
    config: Path | None = None,
) -> None:
    """Do the work until SIGINT or SIGTERM.

    Args:
        trees: Where the state of interfaces is kept.
        work: What to do. Its jobs are emptied.
        ready: Called for a job each time that answering begins; without an instance where nothing
            is to be answered, and only addresses are kept.
        reread: Reads the work anew when SIGHUP asks for it, in a thread of its own. Without it,
            SIGHUP ends the process as it does by default.
        set_log: Logs as the work says; called after a reload.
        config: The file that the work comes from, for those who show it.

    Raises:
        NdxdpError: A job that is not patient cannot begin.
    """
    for job in work.jobs:
        if job.insist and job.options.mode is Mode.USERSPACE:
            raise UsageError(
                "in userspace mode a process answers, and nothing can go on without it",
                "leave --keep out, or take another mode",
            )
    _refuse_if_all_held(trees, work.jobs)
    _raise_descriptor_limit()
    # Held back until the loop listens for them: an attach half done is nobody's wish.
    signal.pthread_sigmask(signal.SIG_BLOCK, _awaited(reread))
    # The monitor comes first: what changes while we attach is seen afterwards.
    # The thread has its own mask: a signal must not reach it when nobody handles it any more.
    masked = ThreadPoolExecutor(
        1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, _SIGNALS)
    )
    state = DaemonStatus()
    with contextlib.closing(LinkMonitor()) as monitor, masked as executor:
        daemon = _Daemon(trees, monitor, executor, ready, reread, set_log, state)
        with Publisher(trees.files.root, netns(), config, state):
            asyncio.run(daemon.run(work))


def _refuse_if_all_held(trees: Trees, jobs: list[Job]) -> None:
    """Raise NdxdpError if other processes answer on each interface: this is a second daemon.

    If they answer on some, those are tried again until they are free.
    """
    refused = []
    for job in jobs:
        try:
            for tree in trees:
                with contextlib.suppress(ModeUnavailable):  # what others put there holds nothing
                    tree.check()
                    refuse_if_locked(tree, names.real_name(job.interface))
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


def _log_stray(stray: Backoff, context: dict[str, Any]) -> None:
    """Log what a callback of the loop raised, or a task that nobody waits for, once for each."""
    error = context.get("exception")
    stray.failed(problem_of(error) if error else f"internal error: {context['message']}")


def _awaited(reread: Callable[[], Work] | None) -> set[signal.Signals]:
    return _SIGNALS if reread else _ENDING


class _Daemon:
    def __init__(
        self,
        trees: Trees,
        monitor: LinkMonitor,
        executor: ThreadPoolExecutor,
        ready: Callable[[Job, Instance | None], None],
        reread: Callable[[], Work] | None,
        set_log: Callable[[Work], None],
        state: DaemonStatus,
    ) -> None:
        self._trees, self._monitor, self._executor = trees, monitor, executor
        self._ready, self._reread, self._set_log = ready, reread, set_log
        self._uplinks: dict[str, tuple[Uplink, asyncio.Task[None]]] = {}
        self._removed: set[asyncio.Task[None]] = set()  # by a reload, and at their ends
        self._stop, self._reload_wanted = asyncio.Event(), asyncio.Event()
        self._notifier = Notifier()
        self._state, self._shared = state, Shared()
        self._pulse = Pulse()
        self._heartbeats = Heartbeats(self._pulse)
        self._listening = Listening(trees, state)
        self._docker_socket = docker.SOCKET
        self._endpoints: frozenset[Endpoint] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def run(self, work: Work) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(self._executor)
        stray = Backoff(log)
        loop.set_exception_handler(lambda _, context: _log_stray(stray, context))
        with self._shared, self._signals_and_netlink():
            self._docker_socket = work.docker_socket
            # Whoever waits for `ready` finds metrics; a slow name server keeps nobody from answers.
            listening = asyncio.ensure_future(self._listening.want(work.metrics))
            await asyncio.wait({listening}, timeout=_LISTENING)
            while work.jobs:  # not kept: after a reload their rules would be a second copy
                self._start(work.jobs.pop(0))
            self._watch_docker()
            proving = asyncio.ensure_future(self._prove())
            beside = [
                asyncio.ensure_future(self._tell_systemd(listening)),
                asyncio.ensure_future(self._reload_when_asked()),
            ]
            stopping = asyncio.ensure_future(self._stop.wait())
            # An uplink that ends by itself could not begin.
            while not self._stop.is_set() and not any(task.done() for task in self._tasks()):
                await asyncio.wait({stopping, *self._tasks()}, return_when=asyncio.FIRST_COMPLETED)
            self._notifier.stopping()
            for task in (*beside, stopping, self._watching):
                if task:
                    task.cancel()
            for uplink, _ in self._uplinks.values():
                uplink.stop()
            ended = await self._ends()
            proving.cancel()
        for outcome in ended:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _ends(self) -> list[BaseException | None]:
        """Wait until all uplinks have ended. If the executor is stuck, end the process."""
        ends = asyncio.gather(*self._tasks(), *self._removed, return_exceptions=True)
        while True:
            done, _ = await asyncio.wait({ends}, timeout=1)
            if done:
                return list(ends.result())
            if self._pulse.age > _STUCK:
                log.error(
                    "ending without detaching: a task has not returned for %d s", self._pulse.age
                )
                logging.shutdown()
                os._exit(1)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [task for _, task in self._uplinks.values()]

    def _start(self, job: Job) -> Uplink:
        self._state.interfaces.setdefault(job.interface, InterfaceStatus())
        self._state.changed()
        uplink = Uplink(
            self._trees,
            job,
            self._executor,
            self._heartbeats,
            self._ready,
            self._wake_waiting,
            self._state,
            self._shared,
        )
        self._uplinks[job.interface] = uplink, asyncio.ensure_future(uplink.run())
        self._tell_containers(uplink)
        return uplink

    def _summary(self) -> str:
        return f"interfaces: {', '.join(self._uplinks)}"

    async def _tell_systemd(self, listening: asyncio.Future[None]) -> None:
        await listening
        for uplink, _ in list(self._uplinks.values()):
            await uplink.began.wait()
        self._notifier.ready(self._summary())

    async def _prove(self) -> None:
        await self._pulse.prove(self._executor, self._notifier.alive, self._notifier.watchdog / 3)

    # ---- Docker

    def _watch_docker(self) -> None:
        """Watch the engine if any job selects containers; with other labels watch it anew."""
        if self._watching:
            self._watching.cancel()
        selectors = [one for uplink, _ in self._uplinks.values() for one in uplink.job.selectors]
        self._watching = self._state.docker_connected = None
        if selectors:
            keys = docker.label_keys(selectors)
            engine = Docker(self._docker_socket, keys, self._state.changed)
            self._state.docker_connected = lambda: engine.connected
            self._watching = asyncio.ensure_future(self._watch(engine))
        self._state.changed()

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
        """Read the configuration anew, and put it in force whole, or change nothing."""
        assert self._reread
        self._state.note_reload_begun()
        self._notifier.reloading()
        try:
            # A list of 100 000 takes half a second, and neither the loop nor the executor has it.
            await self._put_in_force(await threads.result_of("reload", self._reread))
        except Exception as error:
            problem = problem_of(error)
            log.error("not reloaded: %s", error if isinstance(error, NdxdpError) else problem)
            self._state.note_reload(False, problem)
            self._notifier.ready(f"not reloaded: {problem}")
            return
        log.info("reloaded")
        for name, attended in self._state.interfaces.items():
            if attended.problem:
                log.warning("%s, as before: %s", name, attended.problem)
        self._state.note_reload(True)
        self._notifier.ready(self._summary())

    async def _put_in_force(self, work: Work) -> None:
        """Do this work from now on.

        An interface that is not answered on, neither before nor after, does not keep the others
        from their new rules.

        Raises:
            NdxdpError: The new job of an interface cannot be had. All have their former jobs then.
        """
        jobs = {job.interface: job for job in work.jobs}
        work.jobs.clear()
        former = {name: self._uplinks[name][0].job for name in jobs if name in self._uplinks}
        problems = await self._give({name: jobs[name] for name in former})
        if problems:
            first, *others = (f"{name}: {problem}" for name, problem in problems.items())
            lasting = await self._give(former)
            if lasting:
                first += f"; {', '.join(lasting)} is not as before either"
            raise NdxdpError(first, "the former configuration is in force", tuple(others))
        self._set_log(work)
        for name in set(self._uplinks) - set(jobs):
            self._remove(name)
        if self._removed:
            await asyncio.wait(self._removed)
        for uplink in [self._start(job) for name, job in jobs.items() if name not in former]:
            await uplink.began.wait()
        self._docker_socket = work.docker_socket
        self._watch_docker()
        await self._listening.want(work.metrics)

    async def _give(self, jobs: dict[str, Job]) -> dict[str, str]:
        """Give uplinks these jobs; return what is wrong with those that they cannot do."""
        outcomes = {}
        for name, job in jobs.items():
            uplink = self._uplinks[name][0]
            outcomes[name] = uplink.set_job(job)
            self._tell_containers(uplink)
        problems = {name: await outcome for name, outcome in outcomes.items()}
        return {name: problem for name, problem in problems.items() if problem}

    def _remove(self, name: str) -> None:
        """Detach an interface that is no longer in the configuration."""
        uplink, task = self._uplinks.pop(name)
        self._state.interfaces.pop(uplink.job.interface, None)
        uplink.set_job(replace(uplink.job, detach=True))
        uplink.stop()
        self._removed.add(task)
        task.add_done_callback(self._removed.discard)

    # ---- signals and netlink

    @contextlib.contextmanager
    def _signals_and_netlink(self) -> Iterator[None]:
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
