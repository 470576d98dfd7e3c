"""The userspace path beside ndppd: one flooding neighbour, one veth, a core each. Needs root.

    python -m benchmarks.userspace [--seconds 10] [--rate 300000] [--repeats 3]

Both are run in turn, on the same link, under the same flood. The ratio of a turn is what counts:
absolute figures are this machine's on this day.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lab import private

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results" / "userspace.json"

ROUTER_CPU, HOST_CPU = 0, 1
ROUTER_MAC, HOST_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
PREFIX = "2001:db8:0:1:c::"

# The solicitor's kernel has no IPv6: what it receives is counted, and costs nothing more.
_LINKS = f"""
netns add router
link add eth0 address {HOST_MAC} type veth peer name eth0 address {ROUTER_MAC} netns router
link set lo up
link set eth0 up
address add fe80::2/64 dev eth0 nodad
neighbour add fe80::1 lladdr {ROUTER_MAC} dev eth0 nud permanent
"""

_NDPPD = f"proxy eth0 {{ rule {PREFIX}/80 {{ static }} }}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=int, default=300_000, help="solicitations per second")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the figures go")
    arguments = parser.parse_args()
    if not private.inside():
        return private.run([sys.executable, "-m", "benchmarks.userspace", *sys.argv[1:]])
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("The flood and who answers it need a core each.")

    build()
    turns: list[dict[str, Any]] = []
    for _ in range(arguments.repeats):
        turn: dict[str, Any] = {}
        for name, start in (("ndppd", _ndppd), ("ndxdp", _ndxdp)):
            with start() as process:
                turn[name] = flood(arguments.rate, arguments.seconds)
                turn[name]["resident_kB"] = _resident(process.pid)
        turn["ratio"] = turn["ndxdp"]["answered"] / turn["ndppd"]["answered"]
        turns.append(turn)
        _print(turn)
    ratios = sorted(turn["ratio"] for turn in turns)
    print(
        f"ndxdp userspace / ndppd: median {statistics.median(ratios):.2f},"
        f" from {ratios[0]:.2f} to {ratios[-1]:.2f}"
    )
    arguments.output.parent.mkdir(exist_ok=True)
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "cpu": cpu_name()}
    arguments.output.write_text(json.dumps({"machine": machine, "turns": turns}, indent=2) + "\n")
    return 0


def build() -> None:
    subprocess.run(["ip", "-6", "-batch", "-"], input=_LINKS, text=True, check=True)
    _in_router("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    _in_router("ip", "link", "set", "eth0", "up")
    time.sleep(0.5)  # the carrier


def _in_router(*command: str) -> str:
    entered = ["nsenter", "--net=/run/netns/router", *command]
    return subprocess.run(entered, check=True, capture_output=True, text=True).stdout


def flood(rate: int, seconds: float) -> dict[str, Any]:
    command = [
        *(sys.executable, "-m", "benchmarks.flood", "eth0", "--mac", ROUTER_MAC),
        *("--prefix", PREFIX, "--rate", str(rate), "--seconds", str(seconds)),
        *("--cpu", str(ROUTER_CPU)),
    ]
    found: dict[str, Any] = json.loads(_in_router(*command))
    wrong = {fault: n for fault, n in found["sample"].items() if fault != "good"}
    if wrong or not found["sample"]:
        raise SystemExit(f"The answers are not what they should be: {found['sample']}")
    return found


@contextlib.contextmanager
def _ndppd() -> Iterator[subprocess.Popen[str]]:
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as configuration:
        configuration.write(_NDPPD)
        configuration.flush()
        with _process("ndppd", "-c", configuration.name) as process:
            time.sleep(0.5)  # it says nothing when it is ready
            yield process


@contextlib.contextmanager
def _ndxdp() -> Iterator[subprocess.Popen[str]]:
    run = ("run", "-i", "eth0", "-n", f"{PREFIX}/80", "--mode", "userspace")
    with _process(sys.executable, "-m", "ndxdp", *run) as process:
        assert process.stdout is not None
        if not process.stdout.readline().startswith("ready"):
            raise SystemExit("ndxdp did not start.")
        yield process


@contextlib.contextmanager
def _process(*command: str) -> Iterator[subprocess.Popen[str]]:
    pin: Callable[[], None] = lambda: os.sched_setaffinity(0, {HOST_CPU})  # noqa: E731
    process = subprocess.Popen(
        command,
        preexec_fn=pin,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


def _print(turn: dict[str, Any]) -> None:
    for name in ("ndppd", "ndxdp"):
        one = turn[name]
        checked = sum(one["sample"].values())
        print(
            f"  {name:<6} offered {one['offered']:>7}/s, answered {one['answered']:>7}/s"
            f" over {one['seconds']:.0f} s, {checked} of them checked,"
            f" {one['resident_kB'] / 1024:.1f} MB resident"
        )
    print(f"  ratio  {turn['ratio']:.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
