"""Time until `ndxdp run -c` answers correctly after a change of the network. Needs root.

    python -m benchmarks.following [--repeats 20]

A router at the other end of a veth solicits each millisecond. A figure is the time from before
the command that changes something (mostly `ip`, which itself takes some ms) to the first correct
answer, or to the last wrong one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lab import private
from lab.capture import packet_socket
from ndxdp.ndp.frame import (
    OVERRIDE,
    SOLICITED,
    TYPE_NA,
    flags_of,
    icmpv6_type_of,
    lladdr_of,
    target_of,
)
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.rules.rule import MANUAL_ORIGIN, Rule
from ndxdp.rules.rule_lists import compile_rules
from ndxdp.session.rule_changes import add_rules, delete_rules
from ndxdp.store.directories import Trees

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results" / "following.json"

ROUTER_MAC, HOST_MAC, OTHER_MAC = (f"02:00:00:00:00:0{n}" for n in range(1, 4))
PREFIX, ADDED = "2001:db8:0:1:c::/80", "2001:db8:0:1:d::/80"
TARGET, ADDED_TARGET = "2001:db8:0:1:c::99", "2001:db8:0:1:d::99"
OWN, GATEWAY, EXACT = "2001:db8:0:1:c::22", "2001:db8:0:1:c::1", "2001:db8:0:1:c::7"
BY_HAND = "2001:db8:0:1:e::7"

_GIVE_UP = 5.0  # seconds
_SETTLED = 0.5  # seconds from one change to the next: each is measured alone
_QUIET = 0.4  # seconds without a wrong answer, after which it was the last one

_CREATE = f"""
link add eth0 address {HOST_MAC} type veth peer name eth0 address {ROUTER_MAC} netns router
link set eth0 up
address add fe80::2/64 dev eth0 nodad
"""


class Router:
    """The other end of the link: it solicits, and records when each answer arrives."""

    def __init__(self) -> None:
        self._mac = parse_mac(ROUTER_MAC)
        self._wire: socket.socket | None = None
        self.read_interface()

    def read_interface(self) -> None:
        """Read the current state of the interface."""
        if self._wire:
            self._wire.close()
        in_router("ip", "link", "set", "eth0", "up")
        self._wire = packet_socket("router", "eth0")
        self._wire.setblocking(False)

    def drain(self) -> None:
        """Discard the frames that have arrived."""
        assert self._wire
        while True:
            try:
                self._wire.recv(1)
            except BlockingIOError:
                return
            except OSError:  # reported once, when the link went down
                continue

    def answers(self, target: str, seconds: float) -> Iterator[tuple[float, bytes | None]]:
        """Solicit the target each ms for `seconds`; yield each advertisement and its arrival time.

        Yields None whenever no further frame has arrived.
        """
        assert self._wire
        address = parse_address(target)
        question = solicit(self._mac, address, source=parse_address("fe80::1"), sllao=self._mac)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(OSError):  # the link is down
                self._wire.send(question)
            select.select([self._wire], [], [], 0.001)
            with contextlib.suppress(OSError):
                while True:
                    frame, where = self._wire.recvfrom(2000)
                    incoming = where[2] != socket.PACKET_OUTGOING
                    if (
                        incoming
                        and icmpv6_type_of(frame) == TYPE_NA
                        and target_of(frame) == address
                    ):
                        yield time.monotonic(), frame
            yield time.monotonic(), None


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="the file to write the figures to"
    )
    arguments = parser.parse_args()
    if not private.inside():
        return private.run([sys.executable, "-m", "benchmarks.following", *sys.argv[1:]])
    ip("netns add router\nlink set lo up\n" + _CREATE)
    in_router("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    router = Router()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "ndxdp.toml"
        configure(file)
        command = [sys.executable, "-m", "ndxdp", "run", "-c", str(file)]
        daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            next(frame for _, frame in router.answers(TARGET, _GIVE_UP) if frame)
            found = measure(Events(router, daemon, file), arguments.repeats)
        finally:
            daemon.terminate()
            daemon.wait(10)
    arguments.output.parent.mkdir(exist_ok=True)
    machine = {"kernel": platform.release(), "cpus": os.cpu_count()}
    figures = {"machine": machine, "milliseconds": found}
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def measure(events: Events, repeats: int) -> dict[str, list[float]]:
    """Measure each event a number of times; return the milliseconds of each, by event."""
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, took in events.all():
            found.setdefault(name, []).append(round(took * 1000, 1))
    for name, values in found.items():
        median, longest = statistics.median(values), max(values)
        print(f"  {name:<44} median {median:5.1f} ms, longest {longest:5.1f} ms")
    return found


class Events:
    """Changes of a network; each restores the network when it ends."""

    def __init__(self, router: Router, daemon: subprocess.Popen[bytes], file: Path) -> None:
        self._router, self._daemon, self._file = router, daemon, file

    def all(self) -> Iterator[tuple[str, float]]:
        """Yield each event, and the seconds until the daemon has followed it."""
        yield "link deleted, created and up: answers", self._first(TARGET, self._recreate)
        ip("link set eth0 down")
        yield "link down and up: answers", self._first(TARGET, lambda: ip("link set eth0 up"))
        yield "renamed: the program is detached", self._last(TARGET, "link set eth0 name wan0")
        back = "link set wan0 name eth0"
        yield "renamed to the configured name: answers", self._first(TARGET, lambda: ip(back))
        yield from self._mac()
        own = f"address add {OWN}/128 dev eth0 nodad"
        yield "own address added: its hole", self._last(OWN, own)
        gone = f"address delete {OWN}/128 dev eth0"
        yield "own address removed: answers", self._first(OWN, lambda: ip(gone))
        route = f"route add default via {GATEWAY} dev eth0 onlink"
        yield "gateway changed: its hole", self._last(GATEWAY, route)
        gone_route = f"route delete default via {GATEWAY} dev eth0"
        yield "gateway removed: answers", self._first(GATEWAY, lambda: ip(gone_route))
        yield "rule added by a reload: answers", self._first(ADDED_TARGET, self._reload)
        configure(self._file)
        self._daemon.send_signal(signal.SIGHUP)
        yield "address added by hand: announced", self._first(BY_HAND, self._by_hand, _is_announced)
        delete_rules(Trees().pins, "eth0", compile_rules([BY_HAND]), MANUAL_ORIGIN)
        time.sleep(_QUIET)

    def _mac(self) -> Iterator[tuple[str, float]]:
        for mac in (OTHER_MAC, HOST_MAC):
            change = f"link set eth0 address {mac}"

            def is_new(frame: bytes, mac: str = mac) -> bool:
                return lladdr_of(frame) == parse_mac(mac)

            took = self._first(TARGET, lambda change=change: ip(change), is_new)  # type: ignore[misc]
            yield "MAC changed: answers with it", took
        change = f"link set eth0 address {OTHER_MAC}"
        yield "MAC changed: announced", self._first(EXACT, lambda: ip(change), _is_announced)
        ip(f"link set eth0 address {HOST_MAC}")
        time.sleep(_QUIET)

    def _first(
        self, target: str, act: Callable[[], None], right: Callable[[bytes], bool] | None = None
    ) -> float:
        time.sleep(_SETTLED)
        self._router.drain()
        began = time.monotonic()
        act()
        for at, frame in self._router.answers(target, _GIVE_UP):
            if frame and (right or _is_ours)(frame):
                return at - began
        raise SystemExit(f"{target} was not answered for within {_GIVE_UP} s.")

    def _last(self, target: str, change: str) -> float:
        time.sleep(_SETTLED)
        self._router.drain()
        began = last = time.monotonic()
        ip(change)
        for at, frame in self._router.answers(target, _GIVE_UP):
            if frame and _is_ours(frame):
                last = at
            if at - last > _QUIET:
                return last - began
        raise SystemExit(f"{target} is still answered for after {change!r}.")

    def _recreate(self) -> None:
        ip("link delete eth0\n" + _CREATE)
        self._router.read_interface()

    def _reload(self) -> None:
        configure(self._file, ADDED)
        self._daemon.send_signal(signal.SIGHUP)

    def _by_hand(self) -> None:
        rule = Rule(origin=MANUAL_ORIGIN)
        add_rules(Trees().pins, "eth0", compile_rules([BY_HAND], rule=rule))


def _is_ours(frame: bytes) -> bool:
    return not flags_of(frame) & OVERRIDE  # O=0: for its own addresses the kernel answers with O=1


def _is_announced(frame: bytes) -> bool:
    return flags_of(frame) & (OVERRIDE | SOLICITED) == OVERRIDE  # O=1, S=0


def configure(file: Path, *more: str) -> None:
    """Write the configuration file, with further prefixes."""
    tables = "".join(
        f'[[interface.prefix]]\nprefix = "{prefix}"\n' for prefix in (PREFIX, EXACT, *more)
    )
    file.write_text(f'[[interface]]\nname = "eth0"\n{tables}[interface.announce]\nadvertise=true\n')


def ip(commands: str) -> None:
    """Run commands of ip, one in each line."""
    subprocess.run(["ip", "-6", "-batch", "-"], input=commands, text=True, check=True)


def in_router(*command: str) -> None:
    """Run a command in the router's namespace."""
    entered = ["nsenter", "--net=/run/netns/router", *command]
    subprocess.run(entered, check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
