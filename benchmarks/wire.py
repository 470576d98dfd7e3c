"""The link of every benchmark: the solicitor is here, the responder in netns `host`.

    eth0 ======== eth0 [netns host] behind ======== container
    (here)                                          (here)

An XDP program makes solicitations on live frames, which saturates any responder; another one in
the driver counts the answers and keeps a sample of them. Both are in wire.c.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address
from pathlib import Path
from typing import NamedTuple

from ndxdp.kernel import bpf_hooks, bpf_maps, bpf_programs, libbpf
from ndxdp.kernel.ring_buffer import RingBuffer

REPOSITORY = Path(__file__).resolve().parent.parent
NDXDP = (sys.executable, "-m", "ndxdp")
HOST = "host"
LINK, BEHIND, CONTAINER = "eth0", "behind", "container"

ROUTER_MAC, HOST_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
BEHIND_MAC, CONTAINER_MAC = "02:00:00:00:00:03", "02:00:00:00:00:04"
HOST_LINK_LOCAL = "fe80::2"
PREFIX = "2001:db8:0:1:c::"
"""The first bytes of a /80 behind the host."""

ROUTER_CPU, HOST_CPU = 0, 1
"""The CPU of the wire and the kernel, and the CPU of a process that answers."""

# wire.c has the same value
SOURCES, FLOOD, BESIDE = 16, 0x100, 0xFEED
STAMPS, BUCKETS = 1024, 4096
SPREAD = 8192
"""The default number of targets."""

_PLAN = struct.Struct("=8Q4I")
_COUNTS = struct.Struct("=6Q")
_BPFFS = Path("/sys/fs/bpf/bench")
_MANY = (1 << 31) - 1
_PARTS = 4
_TRIES = 10  # of a flood that ends before the first frame, each twice as long as the one before

_LINKS = f"""
link add {LINK} address {ROUTER_MAC} type veth peer name {LINK} address {HOST_MAC} netns {HOST}
link add {CONTAINER} address {CONTAINER_MAC} type veth \
 peer name {BEHIND} address {BEHIND_MAC} netns {HOST}
link set {LINK} up
link set {CONTAINER} up
"""
_HOST_LINKS = f"""
link set lo up
link set {LINK} up
link set {BEHIND} up
address add {HOST_LINK_LOCAL}/64 dev {LINK} nodad
route add {PREFIX}/80 dev {BEHIND}
"""


class Counts(NamedTuple):
    """The frames that came back, as `struct counts` of wire.c."""

    received: int
    answers: int
    beside: int
    reflected: int
    timed: int
    lost: int

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(self, other, strict=True)))


class Flood(NamedTuple):
    """The frames that one run sent and received. Rates are per second."""

    seconds: float
    sent: int
    beside_sent: int
    counts: Counts
    sample: list[bytes]

    @property
    def offered(self) -> float:
        """Solicitations sent per second."""
        return self.sent / self.seconds

    @property
    def answered(self) -> float:
        """Answers received per second."""
        return self.counts.answers / self.seconds

    @property
    def received(self) -> float:
        """Frames received per second."""
        return self.counts.received / self.seconds


class Wire:
    """Generator and far end, loaded and attached."""

    def __init__(self) -> None:
        self._maps: dict[str, int] = {}
        self._programs: dict[str, int] = {}
        self._load()
        self._sample = RingBuffer(self._maps["sample"])
        ifindex = socket.if_nametoindex(LINK)
        self._ifindex = ifindex
        self._cpus = bpf_maps.possible_cpus()
        self.targets: list[bytes] = []
        self.spread(SPREAD)

    def _load(self) -> None:
        image = compile_programs()
        run("mkdir", "-p", str(_BPFFS))
        run("bpftool", "prog", "loadall", str(image), str(_BPFFS), "pinmaps", f"{_BPFFS}/maps")
        for pin in _BPFFS.iterdir():
            if pin.name != "maps":
                self._programs[pin.name] = libbpf.get_pinned(str(pin))
        for pin in (_BPFFS / "maps").iterdir():
            if not pin.name.startswith("."):
                self._maps[pin.name] = libbpf.get_pinned(str(pin))
        for link in (LINK, CONTAINER):
            flags = bpf_hooks.XDP_FLAGS_DRV_MODE
            bpf_hooks.xdp_attach(socket.if_nametoindex(link), self._programs["receive"], flags)

    def program(self, name: str) -> int:
        """Return the descriptor of a program of wire.c."""
        return self._programs[name]

    # ---- targets

    def spread(self, count: int) -> None:
        """Solicit so many random addresses of the prefix's last /96."""
        rng = random.Random(4861)
        base = IPv6Address(PREFIX).packed[:12]
        self.ask([base + rng.randbytes(4) for _ in range(count)])

    def ask(self, targets: Sequence[bytes]) -> None:
        """Solicit these addresses in turn."""
        keys = b"".join(n.to_bytes(4, sys.byteorder) for n in range(len(targets)))
        fd = self._maps["targets"]
        bpf_maps.KernelMap(bpf_maps.spec_of(fd), fd).update(keys, b"".join(targets))
        self.targets = list(targets)

    # ---- measurements

    def flood(
        self,
        rate: float,
        seconds: float,
        *,
        timed: bool = False,
        plain: bool = False,
        beside: int = 0,
        macs: int = SOURCES,
        batch: int = 64,
        program: str = "solicit",
    ) -> Flood:
        """Solicit for so long at so many per second; 0 for the maximum rate.

        The flood lasts longer if this process gets no time on its busy processor before it ends.
        """
        descriptor, frame = self._programs[program], bytes(78 if plain else 86)
        signal.signal(signal.SIGALRM, lambda *_: None)  # it only has to interrupt the system call
        for doubled in range(_TRIES):
            self._plan(rate, timed=timed, beside=beside, macs=macs)
            self._kept()
            before = self.counts()
            signal.setitimer(signal.ITIMER_REAL, seconds * 2**doubled)
            bpf_programs.run_live(descriptor, frame, _MANY, self._context(len(frame)), batch)
            signal.setitimer(signal.ITIMER_REAL, 0)
            counts = self.counts() - before
            sent, dues, lasted = self._sent()
            if lasted:
                return Flood(lasted, sent, dues, counts, self._kept())
        raise SystemExit("The machine is too busy to send anything.")

    def _kept(self) -> list[bytes]:
        """Return the frames that the far end has sampled since the last call."""
        found: list[bytes] = []
        while more := self._sample.consume():
            found += more
        return found

    def stop(self) -> None:
        """End the flood that runs in another thread."""
        os.kill(os.getpid(), signal.SIGALRM)

    def _plan(
        self,
        rate: float,
        *,
        timed: bool = False,
        beside: int = 0,
        macs: int = SOURCES,
        first: int = 0,
        targets: int = 0,
    ) -> None:
        interval = round(1e9 / rate) if rate else 0
        now = time.monotonic_ns()
        packed = _PLAN.pack(
            interval, now, 0, 0, beside, first, 0, 0, targets or len(self.targets), timed, 0, macs
        )
        bpf_maps.update(self._maps["plan"], bytes(4), packed)

    def _sent(self) -> tuple[int, int, float]:
        packed = bpf_maps.lookup(self._maps["plan"], bytes(4), _PLAN.size)
        assert packed
        fields = _PLAN.unpack(packed)
        return fields[2], fields[3], (fields[7] - fields[6]) / 1e9

    def latencies(self) -> dict[int, int]:
        """Return counts by ns from a solicitation to its answer, since the last call."""
        empty = struct.pack(f"={self._cpus}Q", *[0] * self._cpus)
        found: dict[int, int] = {}
        keys = []
        fd = self._maps["took"]
        for key, value in bpf_maps.KernelMap(bpf_maps.spec_of(fd), fd).items():
            count = sum(struct.unpack(f"={self._cpus}Q", value))
            if count:
                found[_middle(int.from_bytes(key, sys.byteorder))] = count
                keys.append(key)
        for key in keys:
            bpf_maps.update(fd, key, empty)
        return found

    def carry(self, packet: bytes, seconds: float) -> Flood:
        """Send a packet's headers at the maximum rate, to be forwarded to the container."""
        bpf_maps.update(self._maps["offered"], bytes(4), packet[:62])
        return self.flood(0, seconds, program="offer")

    def ns_per_run(self, program: int, times: int, *, first: int = 0, targets: int = 0) -> float:
        """Return ns per run of a program on a fresh solicitation, including the time to make it.

        first, targets: the part of the addresses given to ask() that is solicited; all by default.
        """
        bpf_maps.update(self._maps["under_test"], bytes(4), struct.pack("=i", program))
        self._plan(0, first=first, targets=targets)
        return self.ns_per_frame(self._programs["fresh"], bytes(86), times)

    def ns_per_frame(self, program: int, frame: bytes, times: int, *, skb: bool = False) -> float:
        """Return ns per frame of a program that leaves the frame unchanged, by the kernel's clock.

        Our own clock would measure more: the kernel first patches a call to the program into its
        code, which takes longer than the runs. skb: the program is tc's, and frames enter by lo.
        """
        context = b"" if skb else self._context(len(frame))
        # The kernel reports whole ns: several short runs give fractions.
        return statistics.fmean(
            bpf_programs.run_often(program, frame, times // _PARTS, context).duration
            for _ in range(_PARTS)
        )

    def _context(self, length: int) -> bytes:
        # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        return struct.pack("=6I", 0, length, 0, self._ifindex, 0, 0)

    def counts(self) -> Counts:
        """Return the counters of the far end."""
        size = _COUNTS.size
        packed = bpf_maps.lookup(self._maps["counts"], bytes(4), size * self._cpus)
        assert packed
        each = [_COUNTS.unpack_from(packed, size * n) for n in range(self._cpus)]
        return Counts(*map(sum, zip(*each, strict=True)))


def _middle(bucket: int) -> int:
    """Return the ns that a bucket of wire.c stands for."""
    if bucket < 128:
        return bucket
    power = bucket // 64 - 1
    return (bucket - power * 64 << power) + (1 << power >> 1)


@contextlib.contextmanager
def wire() -> Iterator[Wire]:
    """Build the links, and load the programs."""
    os.sched_setaffinity(0, {ROUTER_CPU})
    make_links()
    yield Wire()


def make_links() -> None:
    """Create the links in the private namespaces of lab.private, which remove them.

    This end has no IPv6, so that a received frame costs no more than counting it.
    """
    run("ip", "netns", "add", HOST)
    run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    batch(_LINKS)
    in_host("ip", "-6", "-batch", "-", stdin=_HOST_LINKS + _neighbours())
    in_host("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1", "net.ipv6.auto_flowlabels=0")
    # the kernel delivers live frames only to interfaces with NAPI
    in_host("ethtool", "-K", LINK, "gro", "on")


def advertisement(target: bytes, who: int, *, source: bytes, flags: int) -> bytes:
    """Return the expected answer of a solicitor of wire.c, independent of the measured code.

    who: the end of its address and MAC.
    """
    solicitor = IPv6Address(f"fe80::{who:x}").packed
    host = bytes.fromhex(HOST_MAC.replace(":", ""))
    message = bytes((136, 0, 0, 0, flags, 0, 0, 0)) + target + b"\x02\x01" + host
    pseudo = source + solicitor + struct.pack("!II", len(message), 58)
    # A one's-complement sum is the number modulo 65535.
    checksum = 0xFFFF - int.from_bytes(pseudo + message, "big") % 0xFFFF
    message = message[:2] + struct.pack("!H", checksum) + message[4:]
    ip6 = struct.pack("!IHBB", 0x60000000, len(message), 58, 255) + source + solicitor
    return b"\x02\0\0\0" + who.to_bytes(2, "big") + host + b"\x86\xdd" + ip6 + message


def _neighbours() -> str:
    """Add the solicitors to the host's neighbour table."""
    return "".join(
        f"neighbour add fe80::{end:x} lladdr 02:00:00:00:{end >> 8:02x}:{end & 255:02x}"
        f" dev {LINK} nud permanent\n"
        for end in (*range(FLOOD, FLOOD + SOURCES), BESIDE)
    )


def cpu_name() -> str:
    """Return the name of the processor; "" if the kernel does not name it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


def compile_programs() -> Path:
    """Compile wire.c unless the object exists; return the object's path."""
    source, target = REPOSITORY / "benchmarks" / "wire.c", REPOSITORY / "build" / "wire.o"
    newest = max(file.stat().st_mtime for file in (source, REPOSITORY / "bpf" / "ndp_frame.h"))
    if not target.exists() or target.stat().st_mtime < newest:
        target.parent.mkdir(exist_ok=True)
        include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
        flags = ("-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Werror", include)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            made = Path(work, target.name)
            run("clang", *flags, "-c", str(source), "-o", str(made))
            made.replace(target)
    return target


def batch(commands: str) -> None:
    """Run commands of ip, one in each line."""
    run("ip", "-6", "-batch", "-", stdin=commands)


def host_command(*command: str) -> list[str]:
    """Return the command that runs a command in the host's namespace."""
    # Not `ip netns exec`: that mounts a new /sys, which hides the bpffs.
    return ["nsenter", f"--net=/run/netns/{HOST}", *command]


def in_host(*command: str, stdin: str = "") -> str:
    """Run a command in the host's namespace, and return its output."""
    return run(*host_command(*command), stdin=stdin)


def run(*command: str, stdin: str = "") -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
