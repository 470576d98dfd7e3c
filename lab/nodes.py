"""Kernels as nodes of a network: namespaces with one interface, their addresses and their pings."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv6Address, IPv6Network
from typing import Any, NamedTuple, Self

from lab.capture import run_in
from lab.commands import HANG, LabError, enter, run_command

LINK = "eth0"
"""The interface of a node."""

KERNEL_WITHIN = 60.0
"""Seconds within which the kernel's work queues bring a link up and join its addresses' groups.

All network namespaces of the machine share these queues: on a busy one, they are late by seconds.
"""

LOOKS_MIN = 20
"""Looks at something before a test gives up, even if its time is over.

All network namespaces of the machine share one lock of the kernel (rtnl). While one of them is
removed, or a flood delays RCU, each command of another one may take many seconds, and so may the
event that it looks for.
"""

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TUN_NO_PI = 0x1001


class LabNetwork:
    """Namespaces and processes of a lab, until `close` (or the end of `with`).

    A subclass builds them, and registers in `_exits` how each is removed.
    """

    def __init__(self) -> None:
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, and remove all namespaces. A second call does nothing."""
        self._exits.close()

    def _add_namespace(self, name: str) -> None:
        run_command(["ip", "netns", "add", name])
        self._exits.callback(run_command, ["ip", "netns", "delete", name], check=False)


class Pings(NamedTuple):
    """The outcome of continuous pings.

    Attributes:
        sent: Echo requests, without one that was on its way at the end.
        lost: The sequence numbers of those without a reply.
    """

    sent: int
    lost: list[int]


class Node:
    """A kernel in a namespace of its own, with one interface.

    Attributes:
        name: Of the namespace.
        mac: Of the interface, as text; "" if it has none.
    """

    def __init__(self, name: str, mac: str = "") -> None:
        self.name = name
        self.mac = mac

    def run(
        self, *args: str, check: bool = True, stdin: str = "", timeout: float = HANG
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end. Raises LabError if it fails and `check` is set."""
        return run_command(enter(self.name, args), check=check, stdin=stdin, timeout=timeout)

    def ip(self, commands: str) -> None:
        """Run a batch of `ip` commands there."""
        self.run("ip", "-6", "-batch", "-", stdin=commands)

    def sysctl(self, *settings: str) -> None:
        """Set sysctls below net.ipv6.conf there."""
        self.run("sysctl", "-qw", *(f"net.ipv6.conf.{setting}" for setting in settings))

    def address_objects(self) -> list[dict[str, Any]]:
        """Return the objects of the interface's addresses, as `ip -j address` prints them."""
        shown = json.loads(self.run("ip", "-j", "-6", "address", "show", "dev", LINK).stdout)
        return [entry for link in shown for entry in link.get("addr_info", []) if entry]

    def addresses(self, network: IPv6Network) -> list[IPv6Address]:
        """Return the addresses of a prefix that have passed DAD, the newest first."""
        return [
            IPv6Address(entry["local"])
            for entry in self.address_objects()
            if IPv6Address(entry["local"]) in network
            and not entry.get("tentative")
            and not entry.get("dadfailed")
        ]

    def has_settled(self, network: IPv6Network) -> bool:
        """Return True if there are addresses of a prefix, all of which have passed DAD."""
        found = [e for e in self.address_objects() if IPv6Address(e["local"]) in network]
        return bool(found) and len(self.addresses(network)) == len(found)

    def slaac(self, network: IPv6Network) -> IPv6Address:
        """Return the address that the kernel forms from a prefix and the MAC."""
        return slaac_address(network, self.mac)

    @property
    def link_local(self) -> IPv6Address:
        """The link-local address."""
        return self.slaac(IPv6Network("fe80::/64"))

    def dad(self, address: IPv6Address | str) -> str:
        """Return the state of an address: `valid`, `tentative`, `failed`, or "" if it is absent."""
        for entry in self.address_objects():
            if IPv6Address(entry["local"]) == IPv6Address(str(address)):
                if entry.get("dadfailed"):
                    return "failed"
                return "tentative" if entry.get("tentative") else "valid"
        return ""

    def ping(
        self,
        target: IPv6Address | str,
        *,
        count: int = 1,
        wait: float = 2,
        source: IPv6Address | str | None = None,
    ) -> int:
        """Return how many of `count` echo requests, 0.2 s apart, are answered in `wait` seconds."""
        origin = ("-I", str(source)) if source else ()
        options = f"-6 -n -q -i 0.2 -c {count} -W {wait:g}".split()
        done = self.run("ping", *options, *origin, str(target), check=False)
        received = re.search(r"(\d+) received", done.stdout)
        if not received:
            raise LabError(f"ping {target} in {self.name} says: {done.stderr.strip()}")
        return int(received[1])

    @contextlib.contextmanager
    def pinging(
        self, target: IPv6Address | str, *, interval: float = 0.01
    ) -> Iterator[Callable[[], Pings]]:
        """Ping during the block, every `interval` seconds; yield a function for the outcome."""
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                enter(self.name, ("ping", "-6", "-n", "-i", f"{interval:g}", str(target))),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

            def outcome() -> Pings:
                """End the pings, and return their outcome."""
                if process.poll() is None:
                    process.send_signal(2)
                    process.wait(10)
                output.seek(0)
                return parse_pings(output.read())

            try:
                yield outcome
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def neighbour(self, address: IPv6Address | str, link: str = LINK) -> tuple[str, str]:
        """Return state and MAC of a neighbour's entry, empty strings if there is none."""
        shown = self.run("ip", "-6", "-j", "neighbour", "show", str(address), "dev", link).stdout
        entries: list[dict[str, Any]] = json.loads(shown or "[]")
        if not entries:
            return "", ""
        return " ".join(entries[0]["state"]), entries[0].get("lladdr", "")

    def forget_neighbours(self) -> None:
        """Empty the neighbour cache, so that the next packet has to wait for an answer."""
        self.run("ip", "-6", "neighbour", "flush", "all")

    def routes(self, *selector: str) -> list[dict[str, Any]]:
        """Return the objects of the IPv6 routes that `ip -6 route show` selects."""
        shown = self.run("ip", "-j", "-6", "route", "show", *selector).stdout
        found: list[dict[str, Any]] = json.loads(shown or "[]")
        return found


def slaac_address(network: IPv6Network, mac: str) -> IPv6Address:
    """Return the address of a prefix that a kernel forms from a MAC (RFC 4291 appendix A)."""
    raw = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return IPv6Address(network.network_address.packed[:8] + identifier)


def parse_pings(output: str) -> Pings:
    """Return the outcome of pings from the output of `ping`.

    The last request is not counted if its reply had no time to arrive.
    """
    answered = {int(number) for number in re.findall(r"bytes from .*icmp_seq=(\d+)", output)}
    sent = re.search(r"(\d+) packets transmitted", output)
    if not sent:
        raise LabError(f"ping says: {output[-300:].strip()}")
    last = int(sent[1])
    if last not in answered:
        last -= 1
    return Pings(last, [number for number in range(1, last + 1) if number not in answered])


def wait_until(
    probe: Callable[[], object],
    problem: str,
    within: float,
    explain: Callable[[], object] = str,
) -> None:
    """Wait until a probe is true.

    Raises LabError with the problem, and the result of `explain`, after `within` seconds and
    LOOKS_MIN probes.
    """
    patience = float(os.environ.get("NDXDP_TEST_PATIENCE", "1"))
    give_up, looks = time.monotonic() + within * patience, 0
    while not probe():
        looks += 1
        if looks >= LOOKS_MIN and time.monotonic() > give_up:
            raise LabError(f"After {within:g} s {problem}.", str(explain()))
        time.sleep(0.05)


@contextlib.contextmanager
def tunnel(*ends: tuple[str, str]) -> Iterator[None]:
    """Join two tun interfaces, which have no MACs, during the block.

    Args:
        ends: Two namespaces, and the interface to make in each.
    """
    near, far = (run_in(namespace, partial(_tun, name)) for namespace, name in ends)
    stopped = threading.Event()
    thread = threading.Thread(target=_carry, args=(near, far, stopped))
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        os.close(near)
        os.close(far)


def _tun(name: str) -> int:
    """Make a tun interface; return its end of the wire: a packet for each read() and write()."""
    wire = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(wire, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
    return wire


def _carry(near: int, far: int, stopped: threading.Event) -> None:
    """Carry packets between two wires until `stopped` is set."""
    other = {near: far, far: near}
    while not stopped.is_set():
        for wire in select.select([near, far], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # an interface that is down
                os.write(other[wire], os.read(wire, 65536))
