"""`ndxdp run`: a loop that wires the network, Docker and the configuration to the uplinks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ndxdp import threads
from ndxdp.backoff import Backoff
from ndxdp.daemon import ending
from ndxdp.daemon.container_rules import ContainerRules
from ndxdp.daemon.etcd_rules import EtcdRules
from ndxdp.daemon.exporter_listener import MetricsListener
from ndxdp.daemon.heartbeat import Heartbeats, Pulse
from ndxdp.daemon.leftovers import Leftovers
from ndxdp.daemon.link_index import LinkIndex
from ndxdp.daemon.report_timer import ReportTimer
from ndxdp.daemon.sd_notify import Notifier
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.daemon.shared_rules import SharedRules
from ndxdp.daemon.shares import Shares
from ndxdp.daemon.spec import DaemonSpec, InterfaceSpec
from ndxdp.daemon.uplink import Uplink
from ndxdp.daemon.uplinks import Uplinks, interface_names
from ndxdp.errors import ModeUnavailable, NdxdpError, problem_of
from ndxdp.netlink.link_monitor import LinkMonitor
from ndxdp.netlink.netns import netns
from ndxdp.resting_reader import RestingReader
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.runtime.report import Publisher
from ndxdp.sources.selector import Selector
from ndxdp.store.directories import Trees
from ndxdp.store.instance import Instance
from ndxdp.store.ownership import refuse_if_locked

log = logging.getLogger(__name__)

_ENDING = {signal.SIGINT, signal.SIGTERM}
_SIGNALS = _ENDING | {signal.SIGHUP}

_LISTEN_TIME = 1.0  # seconds for which the start waits until metrics are served

_BURST_TIME = 0.01  # seconds between two looks at netlink while messages come


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
        with Publisher(trees.files.root, netns(), config, status) as publisher:
            asyncio.run(daemon.run(spec, publisher))


def _refuse_if_all_locked(trees: Trees, specs: list[InterfaceSpec]) -> None:
    """Raise NdxdpError if other processes answer on each interface: this is a second daemon.

    If they answer on some of them, the daemon tries these again until they are free.
    """
    found = interface_names(specs)
    refused = []
    for name in found:
        try:
            for tree in trees:
                with contextlib.suppress(
                    ModeUnavailable
                ):  # directories of other users lock nothing
                    tree.check()
                    refuse_if_locked(tree, name)
        except NdxdpError as error:
            refused.append(error)
        except OSError:  # unreadable: the attempt to answer reports it
            pass
    if refused and len(refused) == len(found):
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
        self._stop, self._reload_wanted = asyncio.Event(), asyncio.Event()
        self._notifier = Notifier()
        self._status, self._shared = status, Shared(executor)
        self._pulse = Pulse()
        self._heartbeats = Heartbeats(self._pulse)
        self._metrics = MetricsListener(trees, status)
        self._configured: list[str] = []  # names and patterns
        self._containers = ContainerRules(status, lambda: self._uplinks)
        self._etcd = EtcdRules(status, lambda: self._uplinks)
        self._fleet = SharedRules(
            status, trees.files.root, self._shared.lease, lambda: self._uplinks
        )
        self._shares = Shares(trees.files.root, self._shared, lambda: self._uplinks)
        self._uplinks = Uplinks(self._make_uplink, status, self._apply_rules, self._stop.set)
        self._leftovers = Leftovers(trees, self._shared, self._uplinks.is_wanted)

    async def run(self, spec: DaemonSpec, publisher: Publisher) -> None:
        """Answer until SIGINT or SIGTERM, or until an uplink fails at its start."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(self._executor)
        stray = Backoff(log)
        loop.set_exception_handler(lambda _, context: _log_stray(stray, context))

        report = ReportTimer(publisher.update)

        def note() -> None:
            loop.call_soon_threadsafe(report.note)

        with self._shared, self._signals_and_netlink(), publisher.gathering(note):
            # Metrics are served before READY=1, but a slow name server must not delay answers.
            listening = asyncio.ensure_future(self._metrics.serve_at(spec.metrics))
            await asyncio.wait({listening}, timeout=_LISTEN_TIME)
            self._configured, selectors, segments = _contents(spec)
            # The list is emptied: after a reload its rules would be a second copy.
            self._shares.begin(spec.shares)
            self._uplinks.begin(spec.interfaces)
            self._containers.watch(spec.docker_socket, selectors)
            self._etcd.watch(spec.etcd, segments)
            await self._fleet.watch(spec.etcd, segments)
            proving = asyncio.ensure_future(self._prove())
            tasks = [
                asyncio.ensure_future(self._notify_when_ready(listening)),
                asyncio.ensure_future(self._reload_when_asked()),
            ]
            await self._stop.wait()  # for a signal, or for an uplink that could not begin
            self._notifier.stopping()
            for task in tasks:
                task.cancel()
            ended = await ending.finished(self._end(), self._executor, self._uplinks.present_names)
            proving.cancel()
            ending.exit_later()
        for outcome in ended:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _end(self) -> list[BaseException | None]:
        """End everything that answers; return the error of each uplink that had one."""
        self._containers.end()
        self._etcd.end()
        await self._fleet.end()
        await self._shares.end()
        self._uplinks.stop()
        return await self._uplinks.ended()

    def _make_uplink(self, spec: InterfaceSpec, index: LinkIndex[Uplink]) -> Uplink:
        return Uplink(
            self._trees,
            spec,
            self._shared,
            self._heartbeats,
            self._status,
            self._ready,
            self._uplinks.wake_waiting,
            index,
            self._fleet.presence_changed,
        )

    def _apply_rules(self, uplink: Uplink) -> None:
        """Give an uplink the rules that follow from containers, etcd and shares."""
        self._containers.apply_to(uplink)
        self._etcd.apply_to(uplink)
        self._fleet.apply_to(uplink)
        self._shares.apply_to(uplink)

    def _summary(self) -> str:
        return f"interfaces: {', '.join(self._configured)}"

    async def _notify_when_ready(self, listening: asyncio.Future[None]) -> None:
        """Notify systemd once each uplink has made its first attempt."""
        await listening
        for uplink in self._uplinks:
            await uplink.began.wait()
            self._notifier.starting()  # thousands of interfaces take minutes
        self._status.changed(urgent=True)
        self._notifier.ready(self._summary())
        await self._leftovers.remove(self._configured)
        await self._shared.call(self._shares.remove_leftovers)

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

        Raises:
            NdxdpError: An interface's specification cannot be put in force. All interfaces have
                their former ones then.
        """
        configured, selectors, segments = _contents(spec)
        await self._uplinks.put_in_force(spec.interfaces, lambda: self._set_log(spec))
        self._configured = configured
        self._containers.watch(spec.docker_socket, selectors)
        self._etcd.watch(spec.etcd, segments)
        await self._fleet.watch(spec.etcd, segments)
        await self._shares.put_in_force(spec.shares)
        await self._metrics.serve_at(spec.metrics)
        await self._leftovers.remove(configured)

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
        netlink = RestingReader(self._monitor.fileno(), self._on_netlink, _BURST_TIME)
        try:
            yield
        finally:
            # asyncio resets them to their defaults afterwards: nothing may interrupt the end.
            signal.pthread_sigmask(signal.SIG_BLOCK, _awaited(self._reread))
            netlink.close()

    def _on_netlink(self) -> bool:
        """Notify each uplink of changes of the network; return True to let the next ones gather.

        To wake for each message of a burst takes longer than to read them.
        """
        changes = self._monitor.drain()
        if not changes:
            return False
        interrupted = self._monitor.interrupted()
        self._shared.tables.network_changed(changes)
        self._uplinks.network_changed(changes, interrupted)
        self._shares.network_changed(changes)
        return True


def _contents(spec: DaemonSpec) -> tuple[list[str], list[Selector], set[str]]:
    """Return the names and patterns of a task's interfaces, all its selectors, all its segments."""
    selectors = [selector for each in spec.interfaces for selector in each.selectors]
    segments = {segment for each in spec.interfaces for segment in each.segments}
    return [each.interface for each in spec.interfaces], selectors, segments
