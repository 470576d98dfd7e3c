"""Cost of a large routing table: 2 routes compared with 200 000. Needs root.

    python -m benchmarks.routes [--routes 200000] [--repeats 3]

A `routed` rule answers a flood of solicitations in the kernel; `ndxdp attach` is timed. The
program alternates between the tables, so that other work on the machine affects both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS, attached
from benchmarks.wire import BEHIND, PREFIX, Wire, cpu_name, in_host, wire
from lab import private

RESULTS = Path(__file__).resolve().parent / "results" / "routes.json"


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--routes", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="the file to write the figures to"
    )
    arguments = parser.parse_args()
    if not private.inside():
        return private.run([sys.executable, "-m", "benchmarks.routes", *sys.argv[1:]])

    turns: list[dict[str, Any]] = []
    with wire() as link:
        for _ in range(arguments.repeats):
            turn: dict[str, Any] = {}
            for name, routes in (("few", 0), ("many", arguments.routes)):
                _batch("".join(_route("add", n) for n in range(routes)))
                turn[name] = _measure(link, arguments.seconds) | {"routes": routes + 1}
                _batch("".join(_route("delete", n) for n in range(routes)))
                _print(turn[name])
            turns.append(turn)
    for what in ("answered", "attach_seconds"):
        ratio = statistics.median(turn["many"][what] / turn["few"][what] for turn in turns)
        print(f"median of {arguments.routes + 1} routes relative to 1, {what}: {ratio:.2f}")
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "cpu": cpu_name()}
    arguments.output.write_text(json.dumps({"machine": machine, "turns": turns}, indent=2) + "\n")
    return 0


def _measure(link: Wire, seconds: float) -> dict[str, Any]:
    started = time.monotonic()
    with attached("tc", "--answer", "routed", "-n", f"{PREFIX}/80"):
        took = time.monotonic() - started
        flood = link.flood(0, seconds)
    CONTESTANTS["tc"].check(flood, link)
    return {
        "offered": round(flood.offered),
        "answered": round(flood.answered),
        "attach_seconds": round(took, 3),
    }


def _route(verb: str, number: int) -> str:
    return f"route {verb} 2001:{0x1000 + (number >> 16):x}:{number & 0xFFFF:x}::/48 dev {BEHIND}\n"


def _batch(commands: str) -> None:
    in_host("ip", "-6", "-batch", "-", stdin=commands)


def _print(one: dict[str, Any]) -> None:
    print(
        f"  {one['routes']:>7} routes: offered {one['offered']:>7}/s,"
        f" answered {one['answered']:>7}/s; attached in {one['attach_seconds']:.2f} s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
