"""Measurement of everything that docs/performance.md shows. Needs root and two CPUs.

    python -m benchmarks [--quick] [--output FILE]

The program writes the figures as JSON, draws pictures in the same directory, and prints the
tables. With --page it also writes the tables into that page.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from benchmarks import cost, latency, report, rules, saturation, scan, upkeep
from benchmarks.contestants import CONTESTANTS
from benchmarks.wire import REPOSITORY, SPREAD, Wire, cpu_name, run, wire
from lab import private

RESULTS = REPOSITORY / "benchmarks" / "results"

CURVES = ("native", "reflector", "tc", "generic", "userspace", "ndppd", "npd6", "proxy_ndp")
TIMED = ("native", "own address", "tc", "generic", "userspace", "ndppd", "npd6", "proxy_ndp")
_SUSTAINED = 300_000  # solicitations a second, more than any process answers

_T = TypeVar("_T")


class Effort(NamedTuple):
    """Durations of the measurements: seconds of a flood, rounds, and runs of a program."""

    quick: bool
    curve: float
    curves: int
    duel: float
    duels: int
    sustained: float
    sustained_rounds: int
    latency: float
    latencies: int
    times: int
    rounds: int
    repeats: int
    modes: tuple[str, ...] = ("native", "tc", "userspace")


_FULL = Effort(False, 0.7, 3, 0.7, 15, 10, 3, 4, 3, 400_000, 11, 3)
_QUICK = Effort(True, 0.12, 1, 0.25, 3, 1, 1, 0.5, 1, 40_000, 3, 1)
_TEST = Effort(True, 0.03, 1, 0.05, 1, 0.1, 1, 0.1, 1, 4_000, 1, 1, ("native",))


def main() -> int:
    """Measure, and write figures and tables; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="measure for two minutes, without a million addresses"
    )
    parser.add_argument("--test", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS / "bench.json")
    parser.add_argument("--page", type=Path, help="the page whose tables are replaced")
    arguments = parser.parse_args()
    if not private.inside():
        return private.run([sys.executable, "-m", "benchmarks", *sys.argv[1:]])
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("The flood and who answers it need a CPU each.")
    effort = _TEST if arguments.test else _QUICK if arguments.quick else _FULL
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "quick": effort.quick,
        "machine": _machine(),
    }
    _prefer_us()
    with wire() as link:
        found |= measure(link, effort)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    for name, picture in report.pictures(found).items():
        arguments.output.with_name(f"{arguments.output.stem}-{name}.svg").write_text(picture)
    print(report.text(found))
    if arguments.page:
        report.put_into(arguments.page, report.text(found))
    return 0


def measure(link: Wire, effort: Effort) -> dict[str, Any]:
    """Run every measurement, one after the other."""
    found: dict[str, Any] = {}

    def step(name: str, take: Callable[[], _T]) -> _T:
        began = time.monotonic()
        print(f"{name} …", end=" ", file=sys.stderr, flush=True)
        taken = take()
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        found[name] = taken
        return taken

    def duel(names: tuple[str, str], *, single: bool = False) -> list[dict[str, float]]:
        return saturation.duel(link, names, effort.duel, effort.duels, single=single)

    step(
        "native/reflector",
        lambda: saturation.against_reflector(link, effort.duel, effort.duels),
    )
    step("tc/proxy_ndp", lambda: duel(("tc", "proxy_ndp"), single=True))
    curves = step("curves", lambda: saturation.curves(link, CURVES, effort.curve, effort.curves))
    step("userspace/ndppd", lambda: _sustained(link, effort))
    halves = {
        name: saturation.best(curves[name if name in curves else "proxy_ndp"][0]) / 2
        for name in TIMED
    }
    step("latency", lambda: latency.latencies(link, halves, effort.latency, effort.latencies))
    step("others", lambda: cost.others(link, effort.times, effort.rounds))
    step("solicitation", lambda: cost.solicitation(link, effort.times, effort.rounds))
    step("forwarding", lambda: cost.forwarding(link, effort.duel, effort.rounds))
    step("rules", lambda: rules.by_number(link, effort.quick, effort.times, effort.rounds))
    counts = (10_000,) if effort.quick else (10_000, 1_000_000)
    step("daemon", lambda: {str(count): rules.daemon(count, effort.repeats) for count in counts})
    step("ndppd", lambda: rules.ndppd(10_000))
    found["upkeep_rate"] = upkeep.RATE
    step("upkeep", lambda: upkeep.losses(link, effort.modes, effort.repeats))
    step("scan", lambda: scan.beside_a_flood(link, effort.duel, effort.repeats))
    return found


def _sustained(link: Wire, effort: Effort) -> list[dict[str, float]]:
    """Flood both for long with more than either answers, so that a queue gains nothing."""
    link.spread(SPREAD)
    found = []
    for _ in range(effort.sustained_rounds):
        rates: dict[str, float] = {}
        for name in ("ndppd", "userspace"):
            with CONTESTANTS[name].serve(link):
                flood = link.flood(_SUSTAINED, effort.sustained)
            CONTESTANTS[name].check(flood, link)
            rates[name] = round(flood.answered)
        found.append(rates | {"ratio": round(rates["userspace"] / rates["ndppd"], 4)})
    return found


def _prefer_us() -> None:
    """Raise the priority of this process, so that other work on the machine waits for seconds."""
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        # Where there are autogroups, a nice value only counts within one (sched(7)).
        Path("/proc/self/autogroup").write_text("-20")
    except FileNotFoundError:
        pass  # a kernel without them
    except OSError as error:
        # EINVAL: this process has no session of its own (setsid), so it has no group of its own.
        if error.errno != errno.EINVAL:
            raise


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "kernel": platform.release(),
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "memory_GB": round(pages / 1e9),
        "virtual": any("hypervisor" in line for line in lines if line.startswith("flags")),
        "clang": run("clang", "--version").split("version ")[1].split()[0],
        "python": platform.python_version(),
        "load": Path("/proc/loadavg").read_text().split()[0],
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(error.cmd)} failed") from error
