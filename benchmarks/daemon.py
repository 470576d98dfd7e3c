"""Cost of an idle daemon, and the time to its first answer. Needs root.

    python -m benchmarks.daemon [--addresses 10000] [--idle 60] [--starts 7]

The figures are: resident memory of `ndxdp run -c FILE` with its children, compared with ndppd for
the same addresses and with a Python process that does nothing; CPU while idle; the time from exec
to the first answer on an interface without a program. The daemon runs with a real Docker engine
if one is installed, and with the engine's socket missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.wire import REPOSITORY, ROUTER_MAC, host_command, make_links
from lab import private
from ndxdp.ndp.message import decode_own, solicit
from ndxdp.rules.address import parse_address, parse_mac

RESULTS = REPOSITORY / "benchmarks" / "results" / "daemon.json"

FEW = 5
NETWORK = "ipv6exposed"

_EVERY = 0.001  # seconds between two solicitations
_WITHIN = 20.0  # seconds for an answer to come, at most
_SETTLE = 20.0  # seconds: what follows a start, and attempts to find an engine that come soon
_TICK = os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--addresses", type=int, default=10_000)
    parser.add_argument("--idle", type=float, default=60, help="seconds of idling to measure")
    parser.add_argument(
        "--settle", type=float, default=_SETTLE, help="seconds to wait before measuring"
    )
    parser.add_argument("--starts", type=int, default=7, help="the number of starts to time")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="the file to write the figures to"
    )
    parser.add_argument("--solicit", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.solicit:
        return _solicit(parse_address(arguments.solicit))
    if not private.inside():
        return private.run([sys.executable, "-m", "benchmarks.daemon", *sys.argv[1:]])

    make_links()
    idle = (arguments.settle, arguments.idle)
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        missing = str(folder / "docker.sock")
        sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
        found["python"] = _report("python, asleep", _watch(sleeping, None, 1, 0))
        ndppd = ["ndppd", "-c", str(_ndppd(folder, arguments.addresses))]
        found["ndppd"] = _report(f"ndppd, {arguments.addresses}", _watch(ndppd, None, *idle))
        starts = [_start(folder, arguments.addresses, missing) for _ in range(arguments.starts)]
        for count in (FEW, arguments.addresses):
            command = _command(folder, count, missing)
            found[f"{count}, no engine"] = _report(
                f"ndxdp, {count}, no engine", _watch(command, "ready", *idle)
            )
        engine = stack.enter_context(_engine())
        if engine is not None:
            command = _command(folder, arguments.addresses, engine)
            found[f"{arguments.addresses}, Docker"] = _report(
                f"ndxdp, {arguments.addresses}, Docker", _watch(command, "ready", *idle)
            )
    lasted = [round(seconds, 4) for seconds, _ in starts]
    spent = [round(seconds, 4) for _, seconds in starts]
    found["starts"] = {"s": lasted, "cpu_s": spent}
    print(
        f"from exec to the first answer: median {statistics.median(lasted) * 1000:.0f} ms"
        f" ({min(lasted) * 1000:.0f} to {max(lasted) * 1000:.0f} ms),"
        f" {statistics.median(spent) * 1000:.0f} ms of CPU time"
    )
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "python": sys.version[:7]}
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps({"machine": machine, **found}, indent=2) + "\n")
    return 0


def _address(number: int) -> str:
    return f"2001:db8:0:1:c::{number:x}"


def _command(folder: Path, count: int, docker_socket: str) -> list[str]:
    """Return `ndxdp run` for a configuration of so many addresses; its end detaches the program."""
    (folder / "addresses").write_text("".join(f"{_address(n + 1)}\n" for n in range(count)))
    configuration = folder / "ndxdp.toml"
    configuration.write_text(
        f'[docker]\nsocket = "{docker_socket}"\n'
        '[[interface]]\nname = "eth0"\non_stop = "detach"\n'
        '[[interface.prefix]]\nfile = "addresses"\n'
        f'[[interface.docker]]\nnetwork = "{NETWORK}"\n'
    )
    return [sys.executable, "-m", "ndxdp", "-q", "run", "-c", str(configuration)]


def _ndppd(folder: Path, count: int) -> Path:
    rules = "".join(f"  rule {_address(n + 1)} {{ static }}\n" for n in range(count))
    configuration = folder / "ndppd.conf"
    configuration.write_text(f"proxy eth0 {{\n{rules}}}\n")
    return configuration


@contextlib.contextmanager
def _engine() -> Iterator[str | None]:
    """Yield the socket of a Docker engine with a container on the network; None without Docker."""
    if not shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        print("There is no dockerd here.")
        yield None
        return
    from tests.fixtures import engine  # so do the tests

    with engine.engine() as made:
        made.make_network(NETWORK, "2001:db8:0:1:d::/80")
        made.run("one", NETWORK, address="2001:db8:0:1:d::10")
        yield str(made.socket)


# ---- memory and CPU -----------------------------------------------------------------------------


@contextlib.contextmanager
def _process(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        host_command(*command), stdout=subprocess.PIPE, cwd=REPOSITORY, text=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def _watch(command: list[str], word: str | None, settle: float, idle: float) -> dict[str, Any]:
    """Return figures of a process and its children, from its ready word on."""
    with _process(command) as process:
        assert process.stdout is not None
        if word and not process.stdout.readline().startswith(word):
            raise SystemExit(f"It did not start: {' '.join(command)}")
        time.sleep(settle)
        before = _cpu(process.pid)
        time.sleep(idle)
        ticks, spent = (after - was for after, was in zip(_cpu(process.pid), before, strict=True))
        family = _family(process.pid)
        return {
            "processes": len(family),
            "resident_kB": sum(_kilobytes(pid, "status", "VmRSS:") for pid in family),
            "proportional_kB": sum(_kilobytes(pid, "smaps_rollup", "Pss:") for pid in family),
            "idle_s": idle,
            "idle_ticks": ticks,
            "idle_cpu": spent / 1e9 / idle if idle else None,
        }


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _family(int(child))
    return found


def _kilobytes(pid: int, file: str, name: str) -> int:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _cpu(pid: int) -> tuple[int, int]:
    """Return ticks in user and kernel mode (sampled), and ns on a CPU (exact)."""
    ticks = spent = 0
    for each in _family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
        for task in Path(f"/proc/{each}/task").iterdir():
            spent += int((task / "schedstat").read_text().split()[0])
    return ticks, spent


def _report(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    line = (
        f"{name + ':':<27} {figures['resident_kB'] / 1024:5.1f} MB resident,"
        f" {figures['proportional_kB'] / 1024:5.1f} MB proportional"
    )
    if figures["idle_s"]:
        line += (
            f", {figures['idle_ticks']} ticks of {1000 // _TICK} ms in {figures['idle_s']:.0f} s,"
            f" {figures['idle_cpu'] * 100:.3f} % of a core"
        )
    print(line, flush=True)
    return figures


# ---- the first answer ---------------------------------------------------------------------------


def _start(folder: Path, count: int, docker_socket: str) -> tuple[float, float]:
    """Return seconds from exec to the first answer, and seconds on a CPU until then."""
    command = _command(folder, count, docker_socket)
    asking = [sys.executable, "-m", "benchmarks.daemon", "--solicit", _address(count)]
    with subprocess.Popen(asking, stdout=subprocess.PIPE, text=True) as asker:
        assert asker.stdout is not None
        asker.stdout.readline()  # it has begun
        began = time.monotonic()
        with _process(command) as process:
            answered = asker.stdout.readline()
            _, spent = _cpu(process.pid)
    if not answered:
        raise SystemExit("There was no answer.")
    return float(answered) - began, spent / 1e9


def _solicit(target: bytes) -> int:
    """Solicit until an answer arrives, and print its time in seconds of CLOCK_MONOTONIC."""
    mac, source = parse_mac(ROUTER_MAC), parse_address("fe80::1")
    question = solicit(mac, target, source=source, sllao=mac)
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD))
    link.bind(("eth0", 0x86DD))
    link.settimeout(_EVERY)
    print("asking", flush=True)
    give_up = time.monotonic() + _WITHIN
    while (now := time.monotonic()) < give_up:
        link.send(question)
        until = now + _EVERY
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                frame = link.recv(2048)
                heard = time.monotonic()
                if len(frame) == 86 and _answers(frame, target, source):
                    print(heard, flush=True)
                    return 0
    return 1


def _answers(frame: bytes, target: bytes, source: bytes) -> bool:
    answer = decode_own(frame)
    right = (answer.source, answer.target, answer.destination) == (target, target, source)
    return right and answer.solicited and answer.checksum_correct


if __name__ == "__main__":
    sys.exit(main())
