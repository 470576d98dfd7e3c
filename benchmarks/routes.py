"""What a large routing table costs: 2 routes beside 200 000. Needs root.

    python -m benchmarks.routes [--routes 200000] [--repeats 3]

A flood of solicitations is answered by a `routed` rule, in the kernel; `ndxdp attach` is timed.
Both tables are used in turn, so that what the machine does besides falls on both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.userspace import PREFIX, build, cpu_name, flood
from lab import private

RESULTS = Path(__file__).resolve().parent / "results" / "routes.json"
NDXDP = (sys.executable, "-m", "ndxdp")

_BEHIND = """
link add down0 type veth peer name down0x
link set down0 up
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--routes", type=int, default=200_000)
    parser.add_argument("--rate", type=int, default=1_000_000, help="solicitations per second")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the figures go")
    arguments = parser.parse_args()
    if not private.inside():
        return private.run([sys.executable, "-m", "benchmarks.routes", *sys.argv[1:]])

    build()
    _batch(_BEHIND)
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
    turns: list[dict[str, Any]] = []
    for _ in range(arguments.repeats):
        turn: dict[str, Any] = {}
        for name, routes in (("few", 0), ("many", arguments.routes)):
            _batch("".join(_route("add", n) for n in range(routes)))
            _batch(f"route add {PREFIX}/80 dev down0\n")
            turn[name] = _measure(arguments.rate, arguments.seconds)
            turn[name]["routes"] = routes + 1
            _batch(f"route delete {PREFIX}/80 dev down0\n")
            _batch("".join(_route("delete", n) for n in range(routes)))
            _print(turn[name])
        turns.append(turn)
    for what in ("answered", "attach_seconds"):
        ratio = statistics.median(turn["many"][what] / turn["few"][what] for turn in turns)
        print(f"{arguments.routes} routes / none besides, {what}: median {ratio:.2f}")
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "cpu": cpu_name()}
    arguments.output.write_text(json.dumps({"machine": machine, "turns": turns}, indent=2) + "\n")
    return 0


def _measure(rate: int, seconds: float) -> dict[str, Any]:
    rule = ("--answer", "routed", "-n", f"{PREFIX}/80")
    started = time.monotonic()
    subprocess.run([*NDXDP, "attach", "eth0", "--mode", "tc", *rule], check=True)
    attached = time.monotonic() - started
    try:
        found = flood(rate, seconds)
    finally:
        subprocess.run([*NDXDP, "detach", "eth0"], check=True)
    return found | {"attach_seconds": round(attached, 3)}


def _route(verb: str, number: int) -> str:
    return f"route {verb} 2001:{0x1000 + (number >> 16):x}:{number & 0xFFFF:x}::/48 dev down0\n"


def _batch(commands: str) -> None:
    subprocess.run(["ip", "-6", "-batch", "-"], input=commands, text=True, check=True)


def _print(one: dict[str, Any]) -> None:
    print(
        f"  {one['routes']:>7} routes: offered {one['offered']:>7}/s,"
        f" answered {one['answered']:>7}/s; attached in {one['attach_seconds']:.2f} s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
