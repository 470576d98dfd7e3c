"""The router's side: solicitations at a steady rate, and a judgement on every answer.

Each target belongs to a group; for each group it is known at any time whether it must be answered.
While that changes, a solicitation may be answered or not, but an answer must always be right: its
bytes are compared with the answer of ndp.py.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lab.capture import packet_socket
from ndxdp.ndp.address import is_link_local
from ndxdp.ndp.frame import TYPE_NA, eth_destination_of, eth_source_of, icmpv6_type_of, target_of
from ndxdp.ndp.message import Host, Solicitation, advertise, solicit
from ndxdp.rules.address import parse_address

ROUTER = "router"
SOURCE = parse_address("fe80::1")

_PATIENCE = 2.0  # seconds to wait for an answer
_AROUND = 0.5  # seconds: a solicitation so shortly before a change may be affected by it
_BURST = 32  # solicitations at once, if the machine could not keep up
_KEPT = 20  # number of faults of each kind that are kept as text
_PACKET_OUTGOING = 4


@dataclass(eq=False)
class Group:
    """Targets that are answered, or not, together.

    Attributes:
        pick: Returns one of the targets.
        answered: True if the targets must be answered, None while that changes.
        share: The frequency of solicitations, relative to other groups.
        changed: The time when `answered` changed.
    """

    name: str
    pick: Callable[[random.Random], bytes]
    answered: bool | None
    share: float = 1
    changed: float = 0
    _settles: tuple[float, bool] | None = None

    @property
    def settling(self) -> bool | None:
        """The state that the group is changing to; None if it is not changing."""
        return self._settles[1] if self._settles else None

    def become(self, answered: bool | None) -> None:
        self.answered, self.changed, self._settles = answered, time.monotonic(), None

    def become_after(self, answered: bool, seconds: float) -> None:
        """Accept both states for some seconds, and then only `answered`."""
        self.become(None)
        self._settles = time.monotonic() + seconds, answered

    def settle(self, now: float) -> None:
        if self._settles and now >= self._settles[0]:
            self.become(self._settles[1])


@dataclass(slots=True)
class _Asked:
    sent: float
    group: Group
    expected: bool | None
    answers: int = 0


@dataclass
class Window:
    """A time during which a cause may lose solicitations; `end` is None while it lasts."""

    cause: str
    start: float
    end: float | None = None


@dataclass
class Tally:
    """The solicitations of a link by outcome.

    Attributes:
        second: Answers beyond the first to one solicitation, as a change of mode may give.
        lost: Lost solicitations by cause.
        wrong: The number of wrong answers, and a text of the first.
        unexplained: The number of solicitations lost without a cause, and a text of the first.
    """

    sent: int = 0
    answered: int = 0
    silent: int = 0
    second: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    unexplained: int = 0
    texts: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if len(self.texts) < _KEPT:
            self.texts.append(text)


class Link:
    """The router's end of a link, and the expected answers there.

    Attributes:
        macs: The MACs that an advertisement may have; more than one while the MAC changes.
        mode: The responder's mode.
    """

    def __init__(self, name: str, far: str, far_mac: bytes, mac: bytes) -> None:
        self.name, self.far, self.far_mac = name, far, far_mac
        self.macs = {mac}
        self.mode = ""
        self.groups: list[Group] = []
        self.tally = Tally()
        self._windows: list[Window] = []
        # by MAC: when the answered solicitation was sent
        self._answered_at: dict[bytes, float] = {}
        self._asked: dict[bytes, _Asked] = {}
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def open(self) -> None:
        """Listen on the far end, which may be a new interface."""
        opened = packet_socket(ROUTER, self.far)
        opened.setblocking(False)
        with self._lock:
            self._socket = opened

    def close(self) -> None:
        """Stop soliciting."""
        with self._lock:
            if self._socket:
                self._socket.close()
            self._socket = None

    @contextlib.contextmanager
    def window(self, cause: str) -> Iterator[None]:
        """Expect losses during the block."""
        window = Window(cause, time.monotonic())
        self._windows.append(window)
        try:
            yield
        finally:
            window.end = time.monotonic()

    def is_answered(self, mac: bytes, since: float) -> bool:
        """Return True once a solicitation sent after `since` has been answered with this MAC."""
        return self._answered_at.get(mac, 0) > since

    # ---- called by the thread of the router

    def ask(self, rng: random.Random) -> None:
        """Solicit a target of a random group."""
        group = rng.choices(self.groups, [group.share for group in self.groups])[0]
        target = group.pick(rng)
        if target in self._asked:
            return
        frame = solicit(self.far_mac, target, source=SOURCE, sllao=self.far_mac)
        asked = _Asked(time.monotonic(), group, group.answered)
        with self._lock:
            if not self._socket:
                return
            try:
                self._socket.send(frame)
            except OSError:  # the link is down, or deleted
                return
        self._asked[target] = asked
        self.tally.sent += 1

    def collect(self) -> None:
        """Judge the frames that have arrived."""
        while True:
            with self._lock:
                if not self._socket:
                    return
                try:
                    frame, address = self._socket.recvfrom(2048)
                except BlockingIOError:
                    return
                except OSError:  # reported once, when the link goes down
                    continue
            is_na = len(frame) >= 78 and icmpv6_type_of(frame) == TYPE_NA
            if is_na and address[2] != _PACKET_OUTGOING:
                self._judge(frame)

    def _judge(self, frame: bytes) -> None:
        target = target_of(frame)
        if is_link_local(target) or eth_destination_of(frame)[:2] == b"\x33\x33":
            return  # sent by the host's own kernel, about itself
        asked = self._asked.get(target)
        if asked is None:
            self.tally.wrong += 1
            self.tally.note(f"{self.name}: unasked: {frame.hex()}")
            return
        solicitation = Solicitation(SOURCE, target, self.far_mac, self.far_mac)
        mac = eth_source_of(frame)
        if mac not in self.macs or frame != advertise(solicitation, Host(mac)):
            self.tally.wrong += 1
            self.tally.note(f"{self.name} ({self.mode}): not as it should be: {frame.hex()}")
        asked.answers += 1
        self._answered_at[mac] = max(asked.sent, self._answered_at.get(mac, 0))

    def expire(self, now: float) -> None:
        """Judge the solicitations whose time to be answered is over."""
        tally = self.tally
        for group in self.groups:
            group.settle(now)
        while self._asked:
            target, asked = next(iter(self._asked.items()))  # the oldest
            if asked.sent > now - _PATIENCE:
                return
            del self._asked[target]
            tally.second += max(asked.answers - 1, 0)
            if asked.answers:
                tally.answered += 1
            elif asked.expected is not True:
                tally.silent += 1
            if asked.expected is None or bool(asked.answers) is asked.expected:
                continue
            if asked.sent - _AROUND < asked.group.changed < asked.sent + _AROUND:
                if not asked.answers:
                    tally.lost["its rule changed"] += 1
                continue
            if asked.answers:
                tally.wrong += 1
                tally.note(self._about("answered", target, asked))
            elif cause := self._cause(asked.sent):
                tally.lost[cause] += 1
            else:
                tally.unexplained += 1
                tally.note(self._about("not answered", target, asked))

    def _about(self, fault: str, target: bytes, asked: _Asked) -> str:
        address = socket.inet_ntop(socket.AF_INET6, target)
        return f"{self.name} ({self.mode}): {fault}: {address} ({asked.group.name}) at {asked.sent}"

    def _cause(self, sent: float) -> str | None:
        for window in reversed(self._windows):
            if window.start - _AROUND <= sent and (window.end is None or sent <= window.end):
                return window.cause
        return None


class Router(threading.Thread):
    """A router that solicits on all links, `rate` times a second in total, until `stop` is called.

    failed: the exception that ended the thread, or None.
    """

    def __init__(self, links: list[Link], rate: int, seed: str) -> None:
        super().__init__(daemon=True)
        self._links, self._rate, self._rng = links, rate, random.Random(seed)
        self._stopping = threading.Event()
        self.failed: Exception | None = None

    def run(self) -> None:
        try:
            self._ask()
        # passed to the main thread, which would otherwise wait for answers
        except Exception as error:
            self.failed = error

    def _ask(self) -> None:
        started, due = time.monotonic(), 0
        while not self._stopping.is_set():
            now = time.monotonic()
            wanted = int((now - started) * self._rate)
            due = max(due, wanted - _BURST * len(self._links))
            while due < wanted:
                self._links[due % len(self._links)].ask(self._rng)
                due += 1
            for link in self._links:
                link.collect()
                link.expire(now)
            time.sleep(0.002)
        time.sleep(_PATIENCE)
        for link in self._links:
            link.collect()
            link.expire(time.monotonic() + _PATIENCE)

    def stop(self) -> None:
        self._stopping.set()
        self.join()
