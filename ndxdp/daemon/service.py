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
from ndxdp.daemon.container_rules import ContainerRules
from ndxdp.daemon.exporter_listener import MetricsListener
from ndxdp.daemon.heartbeat import Heartbeats, Pulse
from ndxdp.daemon.sd_notify import Notifier
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.daemon.spec import DaemonSpec, InterfaceSpec
from ndxdp.daemon.uplink import Uplink
from ndxdp.errors import ModeUnavailable, NdxdpError, problem_of
from ndxdp.netlink import names
from ndxdp.netlink.link_monitor import LinkMonitor
from ndxdp.netlink.netns import netns
from ndxdp.runtime.daemon_status import DaemonStatus, InterfaceStatus
from ndxdp.runtime.report import Publisher
from ndxdp.store.directories import Trees
from ndxdp.store.instance import Instance
from ndxdp.store.ownership import refuse_if_locked

log = logging.getLogger(__name__)

_ENDING = {signal.SIGINT, signal.SIGTERM}
_SIGNALS = _ENDING | {signal.SIGHUP}

_LISTEN_TIME = 1.0  # seconds for which the start waits until metrics are served

_BURST_TIME = 0.01  # seconds between two looks at netlink while messages come

_STUCK = 10.0
"""Seconds for which the end waits for a task that does not return; systemd kills after 20."""


def run(
    trees: Trees,
    spec: DaemonSpec,
    *,
    ready: Callable[[InterfaceSpec, Instance | None], None],
    reread: Callable[[], DaemonSpec] | None = None,
    set_log: Callable[[DaemonSpec], None] = lambda spec: None,
    config: Path | None = None,
) -> None:
    """Answer on all specified interfaces until SIGINT or SIGTERM.

    Args:
        trees: Where the state of interfaces is kept.
        spec: The task. Its list of interfaces is emptied.
        ready: Called each time that answering on an interface has begun; without an instance where
            only addresses are kept.
        reread: Reads the task again after SIGHUP, in a thread of its own. Without it, SIGHUP ends
            the process as it does by default.
        set_log: Configures logging as the task specifies; called after a reload.
        config: The file that the task comes from, for `ndxdp status`.

    Raises:
        NdxdpError: Answering on an interface cannot begin, and its specification is not patient.
    """
    for each in spec.interfaces:
        each.check()
    _refuse_if_all_locked(trees, spec.interfaces)
    _raise_descriptor_limit()
    # Blocked until the loop handles them, so that an attach is not interrupted half-way.
    signal.pthread_sigmask(signal.SIG_BLOCK, _awaited(reread))
    # The executor's thread has a mask of its own: a signal must not reach it once the loop does not
    # handle signals any more.
    masked = ThreadPoolExecutor(
        1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, _SIGNALS)
    )
    status = DaemonStatus()
    # The monitor is opened first, so that changes during an attach are seen afterwards.
    with contextlib.closing(LinkMonitor()) as monitor, masked as executor:
        daemon = _Daemon(trees, monitor, executor, ready, reread, set_log, status)
        with Publisher(trees.files.root, netns(), config, status):
            asyncio.run(daemon.run(spec))


def _refuse_if_all_locked(trees: Trees, specs: list[InterfaceSpec]) -> None:
    """Raise NdxdpError if other processes answer on each interface: this is a second daemon.

    If they answer on some of them, the daemon tries these again until they are free.
    """
    refused = []
    for spec in specs:
        try:
            for tree in trees:
                with contextlib.suppress(
                    ModeUnavailable
                ):  # directories of other users lock nothing
                    tree.check()
                    refuse_if_locked(tree, names.real_name(spec.interface))
        except NdxdpError as error:
            refused.append(error)
        except OSError:  # unreadable: the attempt to answer reports it
            pass
    if refused and len(refused) == len(specs):
        raise NdxdpError(
            refused[0].message, refused[0].hint, tuple(error.message for error in refused[1:])
        )


def _raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard one: 500 interfaces take 3000."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.debug("the limit of open files stays at %d: %s", soft, error)


def _log_stray(stray: Backoff, context: dict[str, Any]) -> None:
    """Log an error of a callback, or of a task that is not awaited, once for each cause."""
    error = context.get("exception")
    stray.failed(problem_of(error) if error else f"internal error: {context['message']}")


def _awaited(reread: Callable[[], DaemonSpec] | None) -> set[signal.Signals]:
    """Return the signals that the loop handles."""
    return _SIGNALS if reread else _ENDING


class _Daemon:
    """The uplinks, and what they need: signals, netlink, Docker, the configuration, metrics."""

    def __init__(
        self,
        trees: Trees,
        monitor: LinkMonitor,
        executor: ThreadPoolExecutor,
        ready: Callable[[InterfaceSpec, Instance | None], None],
        reread: Callable[[], DaemonSpec] | None,
        set_log: Callable[[DaemonSpec], None],
        status: DaemonStatus,
    ) -> None:
        self._trees, self._monitor, self._executor = trees, monitor, executor
        self._ready, self._reread, self._set_log = ready, reread, set_log
        self._uplinks: dict[str, tuple[Uplink, asyncio.Task[None]]] = {}
        self._removed: set[asyncio.Task[None]] = set()  # uplinks that a reload has stopped
        self._stop, self._reload_wanted = asyncio.Event(), asyncio.Event()
        self._notifier = Notifier()
        self._status, self._shared = status, Shared(executor)
        self._pulse = Pulse()
        self._heartbeats = Heartbeats(self._pulse)
        self._metrics = MetricsListener(trees, status)
        self._containers = ContainerRules(status, self._all_uplinks)
        self._gathering: asyncio.TimerHandle | None = None

    async def run(self, spec: DaemonSpec) -> None:
        """Answer until SIGINT or SIGTERM, or until an uplink fails at its start."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(self._executor)
        stray = Backoff(log)
        loop.set_exception_handler(lambda _, context: _log_stray(stray, context))
        with self._shared, self._signals_and_netlink():
            # Metrics are served before READY=1, but a slow name server must not delay answers.
            listening = asyncio.ensure_future(self._metrics.serve_at(spec.metrics))
            await asyncio.wait({listening}, timeout=_LISTEN_TIME)
            while spec.interfaces:  # emptied: after a reload their rules would be a second copy
                self._start(spec.interfaces.pop(0))
            self._containers.watch(spec.docker_socket)
            proving = asyncio.ensure_future(self._prove())
            tasks = [
                asyncio.ensure_future(self._notify_when_ready(listening)),
                asyncio.ensure_future(self._reload_when_asked()),
            ]
            stopping = asyncio.ensure_future(self._stop.wait())
            # An uplink that ends without stop() could not begin.
            while not self._stop.is_set() and not any(task.done() for task in self._tasks()):
                await asyncio.wait({stopping, *self._tasks()}, return_when=asyncio.FIRST_COMPLETED)
            self._notifier.stopping()
            for task in (*tasks, stopping):
                task.cancel()
            self._containers.end()
            for uplink, _ in self._uplinks.values():
                uplink.stop()
            ended = await self._all_ended()
            proving.cancel()
        for outcome in ended:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _all_ended(self) -> list[BaseException | None]:
        """Wait until all uplinks have ended. End the process if the executor is stuck."""
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

    def _all_uplinks(self) -> list[Uplink]:
        return [uplink for uplink, _ in self._uplinks.values()]

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [task for _, task in self._uplinks.values()]

    def _start(self, spec: InterfaceSpec) -> Uplink:
        """Start an uplink."""
        self._status.interfaces.setdefault(spec.interface, InterfaceStatus())
        self._status.changed()
        uplink = Uplink(
            self._trees,
            spec,
            self._shared,
            self._heartbeats,
            self._status,
            self._ready,
            self._wake_waiting,
        )
        self._uplinks[spec.interface] = uplink, asyncio.ensure_future(uplink.run())
        self._containers.apply_to(uplink)
        return uplink

    def _summary(self) -> str:
        return f"interfaces: {', '.join(self._uplinks)}"

    async def _notify_when_ready(self, listening: asyncio.Future[None]) -> None:
        """Notify systemd once each uplink has made its first attempt."""
        await listening
        for uplink, _ in list(self._uplinks.values()):
            await uplink.began.wait()
        self._notifier.ready(self._summary())

    async def _prove(self) -> None:
        await self._pulse.prove(self._executor, self._notifier.alive, self._notifier.watchdog / 3)

    # ---- the configuration

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            await self._reload()

    async def _reload(self) -> None:
        """Read the configuration again, and put all of it in force, or change nothing."""
        assert self._reread
        self._status.note_reload_begun()
        self._notifier.reloading()
        try:
            # A list of 100 000 takes half a second, for which neither loop nor executor has time.
            await self._put_in_force(await threads.result_of("reload", self._reread))
        except Exception as error:
            problem = problem_of(error)
            log.error("cannot reload: %s", error if isinstance(error, NdxdpError) else problem)
            self._status.note_reload(False, problem)
            self._notifier.ready(f"cannot reload: {problem}")
            return
        log.info("reloaded")
        for name, interface in self._status.interfaces.items():
            if interface.problem:
                log.warning("%s, as before: %s", name, interface.problem)
        self._status.note_reload(True)
        self._notifier.ready(self._summary())

    async def _put_in_force(self, spec: DaemonSpec) -> None:
        """Put another task in force.

        An interface that is not answered on, neither before nor after, does not keep the others
        from their new rules.

        Raises:
            NdxdpError: An interface's specification cannot be put in force. All interfaces have
                their former ones then.
        """
        specs = {each.interface: each for each in spec.interfaces}
        spec.interfaces.clear()
        former = {name: self._uplinks[name][0].spec for name in specs if name in self._uplinks}
        problems = await self._set_specs({name: specs[name] for name in former})
        if problems:
            first, *others = (f"{name}: {problem}" for name, problem in problems.items())
            lasting = await self._set_specs(former)
            if lasting:
                first += f"; {', '.join(lasting)} is not as before either"
            raise NdxdpError(first, "the former configuration is in force", tuple(others))
        self._set_log(spec)
        for name in set(self._uplinks) - set(specs):
            self._remove(name)
        if self._removed:
            await asyncio.wait(self._removed)
        for uplink in [self._start(each) for name, each in specs.items() if name not in former]:
            await uplink.began.wait()
        self._containers.watch(spec.docker_socket)
        await self._metrics.serve_at(spec.metrics)

    async def _set_specs(self, specs: dict[str, InterfaceSpec]) -> dict[str, str]:
        """Give uplinks their specifications; return the problem of each that fails, by name."""
        outcomes = {}
        for name, spec in specs.items():
            uplink = self._uplinks[name][0]
            outcomes[name] = uplink.set_spec(spec)
            self._containers.apply_to(uplink)
        problems = {name: await outcome for name, outcome in outcomes.items()}
        return {name: problem for name, problem in problems.items() if problem}

    def _remove(self, name: str) -> None:
        """Detach an interface that is no longer in the configuration."""
        uplink, task = self._uplinks.pop(name)
        self._status.interfaces.pop(uplink.spec.interface, None)
        uplink.set_spec(replace(uplink.spec, detach=True))
        uplink.stop()
        self._removed.add(task)
        task.add_done_callback(self._removed.discard)

    # ---- signals and netlink

    @contextlib.contextmanager
    def _signals_and_netlink(self) -> Iterator[None]:
        """Handle signals and netlink messages during the block."""
        loop = asyncio.get_running_loop()
        for number in _ENDING:
            loop.add_signal_handler(number, self._stop.set)
        if self._reread:
            loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _awaited(self._reread))
        self._loop = loop
        loop.add_reader(self._monitor.fileno(), self._on_netlink)
        try:
            yield
        finally:
            # asyncio resets them to their defaults afterwards: nothing may interrupt the end.
            signal.pthread_sigmask(signal.SIG_BLOCK, _awaited(self._reread))
            if self._gathering is not None:
                self._gathering.cancel()
            loop.remove_reader(self._monitor.fileno())

    def _wake_waiting(self) -> None:
        """Let waiting uplinks try again: an interface was released."""
        for uplink, _ in self._uplinks.values():
            uplink.other_released()

    def _on_netlink(self) -> None:
        """Notify each uplink of changes of the network, then let the next ones gather for a moment.

        To wake for each message of a burst takes longer than to read them.
        """
        self._loop.remove_reader(self._monitor.fileno())
        # Before anything that may fail: the daemon must not become deaf.
        self._gathering = self._loop.call_later(_BURST_TIME, self._on_netlink)
        changes = self._monitor.drain()
        if not changes:
            self._gathering.cancel()
            self._loop.add_reader(self._monitor.fileno(), self._on_netlink)
            return
        interrupted = self._monitor.interrupted()
        self._shared.tables.network_changed(changes)
        for uplink, _ in self._uplinks.values():
            if interrupted:
                uplink.links_interrupted(interrupted)
            uplink.network_changed(changes)
