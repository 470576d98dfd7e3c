"""Responders at the host's end of the link, each for the length of a `with` block."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv6Address
from typing import NamedTuple

from benchmarks.wire import (
    HOST_CPU,
    HOST_LINK_LOCAL,
    LINK,
    NDXDP,
    PREFIX,
    REPOSITORY,
    Flood,
    Wire,
    advertisement,
    host_command,
    in_host,
)
from ndxdp.ndp.frame import target_of

_NDPPD = f"proxy {LINK} {{ rule {PREFIX}/80 {{ static }} }}\n"
_NPD6 = f"""\
prefix = 2001:0db8:0000:0001:
interface = {LINK}
ralogging = off
listtype = none
linkOption = false
ignoreLocal = true
routerNA = true
maxHops = 255
collectTargets = 0
"""

SILENT = ("reflector", "pass", "nobody")

SINGLE = 64
"""Number of targets for contestants that take only single addresses: the kernel searches them
linearly."""


class Contestant(NamedTuple):
    """A responder. flags: the first byte of its flags; from_target: the target is its source."""

    name: str
    serve: Callable[[Wire], contextlib.AbstractContextManager[int | None]]
    flags: int = 0xC0
    from_target: bool = True

    def check(self, flood: Flood, wire: Wire) -> int:
        """Compare the sampled frames with the expected ones, byte by byte; return their number."""
        if self.name in SILENT:
            if flood.counts.answers:
                raise SystemExit(f"Somebody answers where only {self.name} is.")
            return 0
        targets = set(wire.targets)
        for frame in flood.sample:
            target = target_of(frame)
            wanted = advertisement(
                target,
                int.from_bytes(frame[52:54], "big"),
                source=target if self.from_target else IPv6Address(HOST_LINK_LOCAL).packed,
                flags=self.flags,
            )
            if frame != wanted or target not in targets:
                raise SystemExit(f"{self.name} answers\n{frame.hex()}\n and not\n{wanted.hex()}")
        return len(flood.sample)


@contextlib.contextmanager
def attached(mode: str, *options: str) -> Iterator[None]:
    """Attach ndxdp's program, without a process."""
    rule = options or ("-n", f"{PREFIX}/80")
    in_host(*NDXDP, "-q", "attach", LINK, "--mode", mode, *rule)
    try:
        yield
    finally:
        in_host(*NDXDP, "-q", "detach", LINK)


@contextlib.contextmanager
def xdp(program: str) -> Iterator[None]:
    """Attach a program of wire.c in the host's driver."""
    pinned = ("pinned", f"/sys/fs/bpf/bench/{program}")
    in_host("bpftool", "net", "attach", "xdpdrv", *pinned, "dev", LINK)
    try:
        yield
    finally:
        in_host("bpftool", "net", "detach", "xdpdrv", "dev", LINK)


@contextlib.contextmanager
def process(*command: str, word: str = "") -> Iterator[subprocess.Popen[str]]:
    """Start a process in the host on its own CPU. word: its output when it is ready."""
    # Two CPUs are required: the wire's is never the process's.
    started = subprocess.Popen(
        host_command(*command),
        preexec_fn=lambda: os.sched_setaffinity(0, {HOST_CPU}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=REPOSITORY,
    )
    assert started.stdout is not None
    try:
        if word and not started.stdout.readline().startswith(word):
            raise SystemExit(f"It did not start: {' '.join(command)}")
        if not word:
            time.sleep(0.5)  # it prints nothing when it is ready
            if started.poll() is not None:
                raise SystemExit(f"It ended at once: {' '.join(command)}")
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.communicate()


@contextlib.contextmanager
def _program(mode: str) -> Iterator[None]:
    with attached(mode):
        yield None


@contextlib.contextmanager
def _configured(text: str, command: Callable[[str], Sequence[str]]) -> Iterator[int]:
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as configuration:
        configuration.write(text)
        configuration.flush()
        with process(*command(configuration.name)) as started:
            yield started.pid


@contextlib.contextmanager
def _userspace() -> Iterator[int]:
    run = ("run", "-i", LINK, "-n", f"{PREFIX}/80", "--mode", "userspace")
    with process(*NDXDP, *run, word="ready") as started:
        yield started.pid


@contextlib.contextmanager
def _proxy(wire: Wire) -> Iterator[None]:
    """Use the kernel's own proxy, without its default delay."""
    in_host("sysctl", "-qw", f"net.ipv6.conf.{LINK}.proxy_ndp=1")
    in_host("sysctl", "-qw", f"net.ipv6.neigh.{LINK}.proxy_delay=0")
    with _for_each(wire, "neighbour {} proxy {} dev " + LINK):
        yield None


@contextlib.contextmanager
def _own(wire: Wire) -> Iterator[None]:
    """Give the kernel the addresses as its own."""
    with _for_each(wire, "address {} {}/128 dev " + LINK + " nodad"):
        yield None


@contextlib.contextmanager
def _for_each(wire: Wire, command: str) -> Iterator[None]:
    if len(wire.targets) > SINGLE:
        raise SystemExit(f"That is for {SINGLE} addresses.")
    addresses = [str(IPv6Address(target)) for target in wire.targets]
    for verb in ("add", "delete"):
        lines = "".join(command.format(verb, address) + "\n" for address in addresses)
        in_host("ip", "-6", "-batch", "-", stdin=lines)
        if verb == "add":
            try:
                yield
            except BaseException:
                in_host("ip", "-6", "-batch", "-", stdin=lines.replace(" add ", " delete "))
                raise


@contextlib.contextmanager
def _xdp(program: str) -> Iterator[None]:
    with xdp(program):
        yield None


@contextlib.contextmanager
def _no_responder() -> Iterator[None]:
    yield None


CONTESTANTS = {
    one.name: one
    for one in (
        Contestant("reflector", lambda _: _xdp("reflect")),
        Contestant("native", lambda _: _program("native")),
        Contestant("generic", lambda _: _program("generic")),
        Contestant("tc", lambda _: _program("tc")),
        Contestant("userspace", lambda _: _userspace()),
        Contestant(
            "ndppd",
            lambda _: _configured(_NDPPD, lambda file: ("ndppd", "-c", file)),
            from_target=False,
        ),
        Contestant(
            "npd6",
            lambda _: _configured(_NPD6, lambda file: ("npd6", "-f", "-c", file)),
            from_target=False,
        ),
        Contestant("proxy_ndp", _proxy, flags=0x40, from_target=False),
        Contestant("own address", _own, flags=0xE0),
        Contestant("pass", lambda _: _xdp("pass")),
        Contestant("nobody", lambda _: _no_responder()),
    )
}


def is_single(name: str) -> bool:
    """Return True if the responder can be configured with single addresses only."""
    return name in ("proxy_ndp", "own address")
