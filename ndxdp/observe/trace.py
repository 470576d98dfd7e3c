"""Seeing each decision as it is made, of several interfaces at once.

Who answers makes events while `trace_until` is ahead. The tracer moves it on every second, so
that the light of a tracer that was killed goes out by itself.
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
from ndxdp.kernel.bpf_maps import RingBuffer
from ndxdp.ndp.frame import OPTIONS_AT, eth_source_of, source_of, target_of, untagged
from ndxdp.ndp.reason import Reason
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from ndxdp.session.request import uninterrupted
from ndxdp.sockets.trace_socket import EventReceiver
from ndxdp.store.directories import Tree, Trees
from ndxdp.store.instance import open_instance
from ndxdp.store.maps import Maps
from ndxdp.store.records import Explained, Traced, explained_of

log = logging.getLogger(__name__)

_RENEWED = 1.0
_BURNS = 3_000_000_000
"""Every so many seconds the light is renewed, and then it burns for so many ns."""

_IN_FLIGHT = 0.01
"""Seconds for who saw the light burning to write down what it decided."""

_DRAINED = 64  # times that consume() is called where nobody should be writing any more
_VERDICTS = 4096  # different ones that are remembered


class Event(NamedTuple):
    """A solicitation, and what became of it.

    time: ns since the epoch. frame: the first bytes of `length`, 128 at most. prefix: that of
    the rule. reply: the advertisement's frame, None if there was none.
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
        return eth_source_of(self.frame)

    @property
    def source(self) -> bytes:
        return source_of(untagged(self.frame))

    @property
    def target(self) -> bytes | None:
        """None where the frame is too short to have one."""
        frame = untagged(self.frame)
        return target_of(frame) if len(frame) >= OPTIONS_AT else None


@dataclass(frozen=True, slots=True)
class Filter:
    """What is to be seen: of each kind that is named, one must fit.

    sources: MACs of 6 bytes, addresses of 16.
    """

    reasons: frozenset[Reason] = frozenset()
    targets: tuple[Prefix, ...] = ()
    sources: frozenset[bytes] = frozenset()

    def passes(self, event: Event) -> bool:
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
    """The only one on each of its interfaces. NdxdpError where there is another one already."""

    def __init__(self, trees: Trees, interfaces: Sequence[str], every: int = 1) -> None:
        self._poll = select.poll()
        self._others: set[int] = set()
        self._renewed = 0.0
        self._past = Traced(0, 0)
        self._lights: dict[_Light, contextlib.ExitStack] = {}
        try:
            for interface in interfaces:
                with contextlib.ExitStack() as opened:
                    light = opened.enter_context(_lit(trees.of(interface), interface, every))
                    self._poll.register(light.fileno(), select.POLLIN)
                    self._lights[light] = opened.pop_all()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        with uninterrupted():
            for opened in self._lights.values():
                opened.close()
            self._lights = {}

    def wake_on(self, fd: int, mask: int) -> None:
        """Let wait() return when something of `mask` (select.POLL…) is to be said of `fd`."""
        self._others.add(fd)
        self._poll.register(fd, mask)

    def wait(self, seconds: float) -> tuple[list[Event], set[int]]:
        """What has come within so many seconds, and which descriptors of wake_on() were ready.

        NdxdpError if ndxdp was detached from all interfaces meanwhile.
        """
        seconds = min(seconds, self._renewed + _RENEWED - time.monotonic())
        if seconds <= 0:
            self._renew()
            seconds = 0
        ready = {fd for fd, _ in self._poll.poll(seconds * 1000)}
        return (self._read() if ready - self._others else []), ready & self._others

    def finish(self) -> list[Event]:
        """Put out the lights; returns what was still on its way."""
        for light in self._lights:
            light.burn(0)
        time.sleep(_IN_FLIGHT)
        events: list[Event] = []
        for _ in range(_DRAINED):
            more = self._read()
            if not more:
                break
            events += more
        return events

    def counts(self) -> Traced:
        """Since the start. What is lost was seen, but not shown."""
        all_of_them = [self._past, *(light.counts() for light in self._lights)]
        return Traced(*map(sum, zip(*all_of_them, strict=True)))

    def _read(self) -> list[Event]:
        events = [event for light in self._lights for event in light.read()]
        events.sort(key=lambda event: event.time)
        return events

    def _renew(self) -> None:
        for light in list(self._lights):
            if light.burn(time.monotonic_ns() + _BURNS):
                continue
            gone = light.counts()
            self._past = Traced(self._past.seen + gone.seen, self._past.lost + gone.lost)
            self._poll.unregister(light.fileno())
            self._lights.pop(light).close()
            if not self._lights:
                raise NdxdpError(
                    f"ndxdp was detached from {light.interface} meanwhile",
                    "start again when it is attached",
                )
            log.warning("ndxdp was detached from %s meanwhile", light.interface)
        self._renewed = time.monotonic()


class _Light:
    """Of one interface. `source` has its events."""

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
        self.burn(0)  # that of one that was killed
        for _ in range(_DRAINED):
            if not source.consume():
                break
        self._before = maps.traced()

    def fileno(self) -> int:
        return self._source.fileno()

    def burn(self, until: int) -> bool:
        """Until that time; False if the interface is no longer ours to trace."""
        self._epoch = time.time_ns() - time.monotonic_ns()
        self._verdicts.clear()  # rules may change
        with self._tree.lock():
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
        """What has come, up to a thousand events."""
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
            group = self._maps.rule_class(fields["rule_class"]) if fields["matched"] else None
            try:
                known = explained_of(verdict, {fields["rule_class"]: group} if group else {})
            except Damaged:  # the rule has gone since
                known = Explained(Reason(fields["reason"]), None, None)
            if len(self._verdicts) < _VERDICTS:
                self._verdicts[verdict] = known
        return known


@contextlib.contextmanager
def _lit(tree: Tree, interface: str, every: int) -> Iterator[_Light]:
    """What a tracer needs of an interface. It is dark, before and after."""
    with open_instance(tree, interface) as instance, tree.traced(interface) as directory:
        maps = instance.maps
        source = maps.events() if maps.in_kernel else EventReceiver(directory)
        with contextlib.closing(source):
            light = _Light(tree, interface, maps, source, directory, every)
            try:
                yield light
            finally:
                light.burn(0)


class Stop:
    """SIGINT and SIGTERM, which end a trace in good order. fileno() is readable then.

    They interrupt nothing but writes, which may wait for ever for a reader.
    """

    def __init__(self) -> None:
        self.asked = False
        self.cut_short = False
        """A write was given up: no more are to follow."""
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
        return self._read_end

    def write(self, fd: int, data: bytes) -> None:
        """All of it. A reader that has gone, or a signal, is a stop."""
        if self.cut_short:
            return
        left = memoryview(data)
        try:
            while left:
                self._writing = True
                written = os.write(fd, left)
                self._writing = False
                left = left[written:]
        except (BrokenPipeError, _Interrupted):
            self.asked = self.cut_short = True
        finally:
            self._writing = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._writing:
            self._writing = False
            raise _Interrupted


class _Interrupted(Exception):
    """A write was, by a signal."""
