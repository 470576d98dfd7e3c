"""Tracing: every verdict on a solicitation, of several interfaces at once.

The program, or the process of userspace mode, writes events until the time `trace_until` in the
interface's settings. The tracer extends this time every second: a killed tracer cannot clear it,
so tracing has a deadline.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

from ndxdp.errors import Damaged, NdxdpError
from ndxdp.kernel import abi
from ndxdp.kernel.ring_buffer import RingBuffer
from ndxdp.ndp.frame import OPTIONS_AT, eth_source_of, source_of, target_of, untagged
from ndxdp.ndp.reason import Reason
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from ndxdp.session.signals import uninterrupted
from ndxdp.sockets.trace_socket import EventReceiver
from ndxdp.store.directories import Tree, Trees
from ndxdp.store.instance import open_instance
from ndxdp.store.maps import Maps
from ndxdp.store.records import Explained, Traced, explained_of

log = logging.getLogger(__name__)

_EXTEND_EVERY = 1.0
"""Seconds after which the tracer extends the deadline."""

_TRACE_FOR = 3_000_000_000
"""Nanoseconds from an extension to the new deadline."""

_IN_FLIGHT = 0.01
"""Seconds in which a program that read the old deadline finishes writing its event."""

_DRAIN_CALLS = 64
"""Calls of consume() to read what is left after tracing has ended."""

_VERDICTS_MAX = 4096
"""Different verdicts whose explanation is cached."""


class Event(NamedTuple):
    """Solicitation with its verdict.

    Attributes:
        time: Nanoseconds since the epoch.
        interface: The interface that received the solicitation.
        length: The length of the frame.
        frame: The first 128 bytes of the frame.
        reason: The verdict.
        prefix: The prefix of the rule that matched, None without one.
        rule: The rule that matched, None without one.
        reply: The frame of the advertisement, None without one.
    """

    time: int
    interface: str
    length: int
    frame: bytes
    reason: Reason
    prefix: Prefix | None
    rule: Rule | None
    reply: bytes | None

    @property
    def mac(self) -> bytes:
        """The soliciting MAC (6 bytes): the Ethernet source of the frame."""
        return eth_source_of(self.frame)

    @property
    def source(self) -> bytes:
        """The source address (16 bytes) of the packet."""
        return source_of(untagged(self.frame))

    @property
    def target(self) -> bytes | None:
        """The address that is solicited; None if the frame is too short to have one."""
        frame = untagged(self.frame)
        return target_of(frame) if len(frame) >= OPTIONS_AT else None


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions on events to show: an event matches one value of each kind that has values.

    sources: MACs of 6 bytes, addresses of 16.
    """

    reasons: frozenset[Reason] = frozenset()
    targets: tuple[Prefix, ...] = ()
    sources: frozenset[bytes] = frozenset()

    def passes(self, event: Event) -> bool:
        """Return True if an event meets the conditions."""
        if self.reasons and event.reason not in self.reasons:
            return False
        if self.sources and not self.sources & {event.mac, event.source}:
            return False
        target = event.target
        return not self.targets or (
            target is not None
            and any(Prefix.around(target, wanted.length) == wanted for wanted in self.targets)
        )


class Tracer:
    """Reader of the events of several interfaces, each of which admits one tracer."""

    def __init__(self, trees: Trees, interfaces: Sequence[str], every: int = 1) -> None:
        """Start tracing one of `every` solicitations.

        Raises:
            NdxdpError: ndxdp is not attached to an interface, or another tracer traces it.
        """
        self._poll = select.poll()
        self._others: set[int] = set()
        self._extended = 0.0
        self._past = Traced(0, 0)
        self._traces: dict[_Trace, contextlib.ExitStack] = {}
        try:
            for interface in interfaces:
                with contextlib.ExitStack() as opened:
                    trace = opened.enter_context(_tracing(trees.of(interface), interface, every))
                    self._poll.register(trace.fileno(), select.POLLIN)
                    self._traces[trace] = opened.pop_all()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop tracing all interfaces."""
        with uninterrupted():
            for opened in self._traces.values():
                opened.close()
            self._traces = {}

    def wake_on(self, fd: int, mask: int) -> None:
        """Make wait() return when one of the events `mask` (select.POLL…) occurs on `fd`."""
        self._others.add(fd)
        self._poll.register(fd, mask)

    def wait(self, seconds: float) -> tuple[list[Event], set[int]]:
        """Wait for events, at most so many seconds.

        Returns:
            The events, and the descriptors of wake_on() that are ready.

        Raises:
            NdxdpError: ndxdp was detached from all interfaces.
        """
        seconds = min(seconds, self._extended + _EXTEND_EVERY - time.monotonic())
        if seconds <= 0:
            self._extend()
            seconds = 0
        ready = {fd for fd, _ in self._poll.poll(seconds * 1000)}
        return (self._read() if ready - self._others else []), ready & self._others

    def finish(self) -> list[Event]:
        """Stop tracing, and return the remaining events."""
        for trace in self._traces:
            trace.extend(0)
        time.sleep(_IN_FLIGHT)
        events: list[Event] = []
        for _ in range(_DRAIN_CALLS):
            more = self._read()
            if not more:
                break
            events += more
        return events

    def counts(self) -> Traced:
        """Return the counts since the start. Lost solicitations were seen, and have no event."""
        counts = [self._past, *(trace.counts() for trace in self._traces)]
        return Traced(*map(sum, zip(*counts, strict=True)))

    def _read(self) -> list[Event]:
        events = [event for trace in self._traces for event in trace.read()]
        events.sort(key=lambda event: event.time)
        return events

    def _extend(self) -> None:
        for trace in list(self._traces):
            if trace.extend(time.monotonic_ns() + _TRACE_FOR):
                continue
            counts = trace.counts()
            self._past = Traced(self._past.seen + counts.seen, self._past.lost + counts.lost)
            self._poll.unregister(trace.fileno())
            self._traces.pop(trace).close()
            if not self._traces:
                raise NdxdpError(
                    f"ndxdp was detached from {trace.interface} during the trace",
                    f"ndxdp attach {trace.interface}",
                )
            log.warning("ndxdp was detached from %s during the trace", trace.interface)
        self._extended = time.monotonic()


class _Trace:
    """Tracing of one interface. source: the ring buffer or socket that receives its events."""

    def __init__(
        self,
        tree: Tree,
        interface: str,
        maps: Maps,
        source: RingBuffer | EventReceiver,
        directory: Path,
        every: int,
    ) -> None:
        self.interface = interface
        self._tree, self._maps, self._source, self._every = tree, maps, source, every
        self._directory, self._inode = directory, directory.stat()
        self._epoch = 0
        self._verdicts: dict[bytes, Explained] = {}
        self.extend(0)  # ends the tracing of a killed tracer
        for _ in range(_DRAIN_CALLS):
            if not source.consume():
                break
        self._before = maps.traced()

    def fileno(self) -> int:
        return self._source.fileno()

    def extend(self, until: int) -> bool:
        """Set the deadline, in ns of CLOCK_MONOTONIC; 0 stops tracing.

        Returns:
            False if ndxdp was detached from the interface.
        """
        self._epoch = time.time_ns() - time.monotonic_ns()
        self._verdicts.clear()  # rules may change
        with self._tree.lock.exclusive():
            try:
                there = os.path.samestat(self._inode, self._directory.stat())
            except FileNotFoundError:
                return False
            if there:
                self._maps.set_trace(until, self._every)
            return there

    def counts(self) -> Traced:
        now, before = self._maps.traced(), self._before
        return Traced(now.seen - before.seen, now.lost - before.lost)

    def read(self) -> Iterator[Event]:
        """Yield the events that have arrived, up to a thousand."""
        for record in self._source.consume():
            fields = abi.EVENT.unpack(record)
            verdict = self._explained(fields["verdict"])
            frame = fields["frame"][: fields["captured"]]
            prefix = None
            if verdict.prefix_len is not None:
                prefix = Prefix.around(target_of(frame), verdict.prefix_len)
            yield Event(
                fields["time"] + self._epoch,
                self.interface,
                fields["length"],
                frame,
                verdict.reason,
                prefix,
                verdict.rule,
                fields["reply"] if verdict.reason.is_answer else None,
            )

    def _explained(self, verdict: bytes) -> Explained:
        known = self._verdicts.get(verdict)
        if known is None:
            fields: dict[str, Any] = abi.EXPLAINED.unpack(verdict)
            slots = [fields["rule_class"]] if fields["matched"] else []
            try:
                known = explained_of(verdict, self._maps.rule_classes_at(slots))
            except Damaged:  # the rule was removed after the verdict
                known = Explained(Reason(fields["reason"]), None, None)
            if len(self._verdicts) < _VERDICTS_MAX:
                self._verdicts[verdict] = known
        return known


@contextlib.contextmanager
def _tracing(tree: Tree, interface: str, every: int) -> Iterator[_Trace]:
    """Open the tracing of one interface, and stop it when the block ends."""
    with open_instance(tree, interface) as instance, tree.traced(interface) as directory:
        maps = instance.maps
        source = maps.events() if maps.in_kernel else EventReceiver(directory)
        with contextlib.closing(source):
            trace = _Trace(tree, interface, maps, source, directory, every)
            try:
                yield trace
            finally:
                trace.extend(0)


class Stop:
    """Handler of SIGINT and SIGTERM, which end a trace in good order; fileno() is readable then.

    The signals interrupt only writes, which may block for ever if their reader does not read.
    """

    def __init__(self) -> None:
        self.requested = False
        self.cut_short = False
        """A write was interrupted, and its output is incomplete: no other may follow."""
        self._writing = False

    def __enter__(self) -> Self:
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read_end)
        os.close(self._write_end)

    def fileno(self) -> int:
        """Return the descriptor, which is readable once a signal has arrived."""
        return self._read_end

    def write(self, fd: int, data: bytes) -> None:
        """Write all of `data`. A closed pipe or a signal interrupts it, and stops the trace.

        A signal interrupts only a write without room. Only on a terminal may a write that has room
        for some bytes block for the others, so that the signal's handler has to end it.
        """
        if self.cut_short:
            return
        left = memoryview(data)
        may_block = os.isatty(fd)
        try:
            while left:
                self._wait_for_room(fd)
                self._writing = may_block
                written = os.write(fd, left[: select.PIPE_BUF])
                self._writing = False
                left = left[written:]
        except (BrokenPipeError, _Interrupted):
            self.requested = self.cut_short = True
        finally:
            self._writing = False

    def _wait_for_room(self, fd: int) -> None:
        """Wait until `fd` takes PIPE_BUF bytes, or fails; raise _Interrupted at a signal."""
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        poll.register(self._read_end, select.POLLIN)
        if all(ready != fd for ready, _ in poll.poll()):
            raise _Interrupted

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._writing:
            self._writing = False
            raise _Interrupted


class _Interrupted(Exception):
    """Exception that a signal handler raises to interrupt a write."""
