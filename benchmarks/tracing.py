"""Cost of a solicitation in the program: without tracing code, with it, traced. Needs root.

    python -m benchmarks.tracing [--runs 200000] [--rounds 25] [--before COMMIT]

The figures come from BPF_PROG_TEST_RUN of a denied target; with an answered target the second run
would see its own answer. The kinds take turns, and the minimum counts, as other work on the machine
only adds time. `before` is the program of the last commit without tracing, compiled here from the
repository.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.wire import HOST_MAC, PREFIX, REPOSITORY, ROUTER_MAC, cpu_name
from lab import private
from lab.programs import build_xdp_pass
from ndxdp.kernel import abi, bpf_maps, libbpf
from ndxdp.kernel.abi import Layout
from ndxdp.kernel.loader import OBJECT
from ndxdp.kernel.ring_buffer import RingBuffer
from ndxdp.ndp.message import solicit
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.ndp.reason import Reason
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.rules.rule import RuleClass
from ndxdp.store.records import pack_rule_class

RESULTS = REPOSITORY / "benchmarks" / "results" / "tracing.json"
BPFFS = Path("/sys/fs/bpf")
TARGET = parse_address(f"{PREFIX}1")

_CHUNK = 1000  # events, fewer than the ring holds
_EVERY = 100
_CODES = {"__u64": "Q", "__u32": "I", "__u16": "H", "__u8": "B", "char": "s"}
_XDP_PASS = 2
_HOUR = 3_600_000_000_000

# A test run that is not dry needs an ingress interface that receives for XDP.
_LINK = "link add eth0 type veth peer name far\nlink set far up\nlink set eth0 up\n"


@dataclass
class Program:
    """A loaded program with its maps, below a directory of its own."""

    directory: Path
    settings: Layout
    denied_reason: int = Reason.DENIED

    def set(self, **fields: Any) -> None:
        """Write the settings, with these fields."""
        packed = self.settings.pack(mac=parse_mac(HOST_MAC), **fields)
        self._update("settings", bytes(4), packed)

    def deny(self, target: bytes) -> None:
        """Write a rule that never answers for a target (16 bytes)."""
        group = RuleClass("manual", PREFIX, Profile())
        self._update("groups", bytes(4), pack_rule_class(group))
        # By a prefix: the maps of addresses of older programs differ.
        key = abi.PREFIX.pack(length=127, address=target[:-1] + bytes([target[-1] & ~1]))
        self._update("prefixes", key, abi.RULE.pack(answer=Answer.NEVER, prefix_len=127))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[int]:
        """Yield the descriptor of a map."""
        fd = libbpf.get_pinned(str(self.directory / "maps" / name))
        try:
            yield fd
        finally:
            os.close(fd)

    def _update(self, name: str, key: bytes, value: bytes) -> None:
        with self.open(name) as fd:
            bpf_maps.update(fd, key, value)

    def denied(self) -> int:
        """Return the number of denied solicitations."""
        key = self.denied_reason.to_bytes(4, sys.byteorder)
        with self.open("reasons") as fd:
            data = bpf_maps.lookup(fd, key, 8 * bpf_maps.possible_cpus())
        assert data is not None
        return sum(struct.unpack(f"={bpf_maps.possible_cpus()}Q", data))

    def run(self, repeat: int) -> int:
        """Return the average ns of a run."""
        pinned = ["pinned", str(self.directory / "ndp_xdp")]
        files = ["data_in", "build/tracing.frame", "ctx_in", "build/tracing.context"]
        denied = self.denied()
        output = _output_of("bpftool", "-j", "prog", "run", *pinned, *files, "repeat", str(repeat))
        found = json.loads(output)
        assert found["retval"] == _XDP_PASS, found
        assert self.denied() - denied >= repeat, "another verdict than was meant"
        return int(found["duration"])


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200_000, help="runs of each kind in each round")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--before", help="the commit to compare with; by default git finds it")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="the file to write the figures to"
    )
    arguments = parser.parse_args()
    if not private.inside():
        return private.run([sys.executable, "-m", "benchmarks.tracing", *sys.argv[1:]])

    os.chdir(REPOSITORY)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _make_link()
    program = _load(OBJECT, "now", abi.SETTINGS)
    before = None
    commit = arguments.before or _before_tracing()
    if commit:
        header = _output_of("git", "show", f"{commit}:bpf/ndp_abi.h")
        before = _load(_compiled(commit), "before", _settings_in(header))
        found = re.search(r"NDP_DENIED = (\d+)", header)
        assert found, "no reason for a rule that says never"
        before.denied_reason = int(found[1])

    rounds: list[dict[str, float]] = []
    for _ in range(arguments.rounds):
        one: dict[str, float] = {}
        if before:
            before.set()
            one["before"] = before.run(arguments.runs)
        program.set()
        one["off"] = program.run(arguments.runs)
        one["sampled"] = _traced(program, arguments.runs, _EVERY)
        one["on"] = _traced(program, arguments.runs // _EVERY, 1)
        program.set(trace_until=time.monotonic_ns() + _HOUR, trace_every=1)
        one["unread"] = program.run(arguments.runs)
        rounds.append(one)
    _print(rounds)
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "cpu": cpu_name()}
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps({"machine": machine, "rounds": rounds}, indent=2) + "\n")
    return 0


def _traced(program: Program, runs: int, every: int) -> float:
    """Return ns per run, in batches that fit the ring, each read before the next."""
    program.set(trace_until=time.monotonic_ns() + _HOUR, trace_every=every)
    took = []
    with program.open("events") as fd, contextlib.closing(RingBuffer(fd)) as ring:
        while ring.consume():
            pass
        for _ in range(max(runs // (_CHUNK * every), 1)):
            took.append(program.run(_CHUNK * every))
            records = ring.consume()
            assert len(records) in (_CHUNK, _CHUNK + 1), len(records)  # and bpftool's warm-up
            verdict = abi.EXPLAINED.unpack(abi.EVENT.unpack(records[-1])["verdict"])
            assert verdict["reason"] == Reason.DENIED, verdict
    return statistics.mean(took)


def _make_link() -> None:
    subprocess.run(["ip", "-batch", "-"], input=_LINK, text=True, check=True)
    _output_of("ip", "link", "set", "eth0", "xdpdrv", "obj", str(build_xdp_pass()), "sec", "xdp")
    mac = parse_mac(ROUTER_MAC)
    frame = solicit(mac, TARGET, source=parse_address("fe80::1"), sllao=mac)
    ifindex = socket.if_nametoindex("eth0")
    # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    context = struct.pack("=6I", 0, len(frame), 0, ifindex, 0, 0)
    Path("build/tracing.frame").write_bytes(frame)
    Path("build/tracing.context").write_bytes(context)


def _load(image: Path, name: str, settings: Layout) -> Program:
    directory = BPFFS / name
    directory.mkdir()
    _output_of(
        "bpftool", "prog", "loadall", str(image), str(directory), "pinmaps", f"{directory}/maps"
    )
    program = Program(directory, settings)
    program.deny(TARGET)
    return program


def _before_tracing() -> str | None:
    """Return the commit before the first whose settings have trace_until; None without git."""
    search = ("log", "--format=%H", "--reverse", "-Strace_until", "--", "bpf/ndp_abi.h")
    found = subprocess.run(["git", *search], capture_output=True, text=True, check=False)
    if found.returncode or not found.stdout:
        print("there is no history to take the program from that could not trace")
        return None
    return f"{found.stdout.split()[0]}^"


def _settings_in(header: str) -> Layout:
    """Read the layout of the settings from the text of an ndp_abi.h."""
    body = header.partition("struct ndp_settings {")[2].partition("\n};")[0]
    fields = {}
    for kind, name, _, count in re.findall(r"^\t(\w+) (\w+)(\[(\d+)\])?;", body, re.MULTILINE):
        fields[name] = f"{count}s" if count else _CODES[kind]
    return Layout("ndp_settings", **fields)


def _compiled(commit: str) -> Path:
    """Compile the program's object of a commit."""
    image = REPOSITORY / "build" / "before.o"
    multiarch = f"-I/usr/include/{platform.machine()}-linux-gnu"
    flags = ("-target", "bpf", "-mcpu=v2", "-O2", "-g", multiarch)
    with tempfile.TemporaryDirectory() as directory:
        for path in _output_of("git", "ls-tree", "--name-only", commit, "bpf/").split():
            Path(directory, Path(path).name).write_text(
                _output_of("git", "show", f"{commit}:{path}")
            )
        source = f"{directory}/ndp_responder.c"
        _output_of("clang", *flags, "-c", source, "-o", str(image))
    return image


def _output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


_KINDS = {
    "before": "a program without tracing",
    "off": "no tracer",
    "sampled": f"1 of {_EVERY} traced",
    "on": "all traced",
    "unread": "all traced, events not read",
}


def _print(rounds: list[dict[str, float]]) -> None:
    for kind, text in _KINDS.items():
        took = sorted(one[kind] for one in rounds if kind in one)
        if took:
            median = statistics.median(took)
            print(f"  {text:<27} {took[0]:4.0f} ns, median {median:.0f}")


if __name__ == "__main__":
    sys.exit(main())
