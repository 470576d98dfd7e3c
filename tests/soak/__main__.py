"""`python -m tests.soak`: an hour of solicitations, answered while everything around changes.

In namespaces of its own, a daemon answers on four interfaces, each in another mode. A router
solicits without a pause. At random the daemon's configuration, rules, process, links, pins and
containers change. Each answer is judged, and each missing answer needs a cause that is expected to
lose answers. The program ends with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from lab import private
from ndxdp import __version__
from tests.soak.changes import Changes, Stuck
from tests.soak.router import Link, Router
from tests.soak.service import Growth, Service
from tests.soak.world import world

SECONDS, RATE = 3600, 2000

_REPOSITORY = Path(__file__).resolve().parents[2]
_OUTPUT = _REPOSITORY / "build" / "soak.json"

_SAMPLES = 10  # seconds between two
_SETTLED = 60  # seconds until a new process has all that it needs
_UNDISTURBED = 1 / 3  # seconds at the end in which no change ends the process
_MOST = {"memory": 4096, "descriptors": 64, "threads": 4}
"""The maximum growth of the last process, from when it had settled to its end; memory in kB. An
interface needs some 30 descriptors more in one mode than in another, and modes change."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"default {SECONDS}")
    parser.add_argument("--rate", type=int, default=RATE, help=f"solicitations/s, default {RATE}")
    parser.add_argument(
        "--seed", default=secrets.token_hex(4), help="seed of the changes; default: a new one"
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="CHANGE", help="leave this change out"
    )
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="file of the figures")
    arguments = parser.parse_args()
    if not private.inside():
        words = ["--seed", arguments.seed, *sys.argv[1:]]
        return private.run([sys.executable, "-m", "tests.soak", *words])
    found = soak(arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    return 0 if not faults(found) else 1


def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run daemon, router and changes for the given time; return the figures."""
    seed, seconds, rate = arguments.seed, arguments.seconds, arguments.rate
    print(f"seed {seed}: {seconds:.0f} s, {rate} solicitations/s", flush=True)
    log = arguments.output.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder, world(Path(folder)) as (uplinks, engine):
        config = Path(folder) / "ndxdp.toml"
        service = Service(config, log)
        changes = Changes(seed, uplinks, engine, service, config, arguments.without)
        router = Router([each.link for each in uplinks], rate, seed)
        router.start()
        started = time.monotonic()
        stopped = ""
        try:
            changes.begin()
            _disturb(changes, service, router, started, seconds)
        except (Stuck, AssertionError, OSError, KeyboardInterrupt) as end:
            stopped = str(end) or type(end).__name__
        lasted = time.monotonic() - started
        router.stop()
        code = service.end(signal.SIGTERM)
        if code:
            changes.problems.append(f"the last end: exit code {code}")
    if router.failed:
        changes.problems.append(f"the router ended: {router.failed!r}")
    if stopped:
        changes.problems.append(f"ended early: {stopped}")
    return _figures(seed, lasted, changes, service, [each.link for each in uplinks])


def _disturb(
    changes: Changes, service: Service, router: Router, started: float, seconds: float
) -> None:
    """Make one change after the other, and query the daemon now and then."""
    next_sample = next_change = started
    while (now := time.monotonic()) < started + seconds and not router.failed:
        if now >= next_sample:
            service.sample()
            next_sample = now + _SAMPLES
        if now >= next_change:
            changes.make(ending=now > started + seconds * (1 - _UNDISTURBED))
            next_change = time.monotonic() + changes.pause()
        service.restart_if_ended()
        time.sleep(0.05)
    service.sample()


def _figures(
    seed: str, lasted: float, changes: Changes, service: Service, links: list[Link]
) -> dict[str, Any]:
    lost: Counter[str] = Counter()
    for link in links:
        lost += link.tally.lost
    log = service.text()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "version": __version__,
        "commit": _commit(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "seed": seed,
        "seconds": round(lasted),
        "sent": sum(link.tally.sent for link in links),
        "answered": sum(link.tally.answered for link in links),
        "rightly_silent": sum(link.tally.silent for link in links),
        "answered_twice": sum(link.tally.second for link in links),
        "lost": dict(sorted(lost.items())),
        "unexplained": sum(link.tally.unexplained for link in links),
        "wrong": sum(link.tally.wrong for link in links),
        "texts": [text for link in links for text in link.tally.texts],
        "changes": dict(sorted(changes.made.items())),
        "problems": changes.problems,
        "processes": service.life,
        "unexpected_ends": service.unexpected_ends,
        "tracebacks": log.count("Traceback (most recent call last)"),
        "log_lines": len(log.splitlines()),
        "log": dict(service.complaints().most_common(40)),
        "cpu_seconds": round(service.samples[-1].cpu, 1) if service.samples else 0,
        "growth": {
            name: growth._asdict() if (growth := service.growth(name, _SETTLED)) else None
            for name in _MOST
        },
        "samples": [
            " ".join(
                f"{value:.0f}" for value in (sample.time - service.samples[0].time, *sample[1:])
            )
            for sample in service.samples
        ],
    }


def _commit() -> str:
    words = ("git", "-C", str(_REPOSITORY), "rev-parse", "--short", "HEAD")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def faults(found: dict[str, Any]) -> list[str]:
    """Return the findings that make a run a failure."""
    wrong = [f"{name}: {found[name]}" for name in ("wrong", "unexplained", "tracebacks")]
    wrong = [text for text in wrong if not text.endswith(": 0")]
    if found["unexpected_ends"]:
        wrong.append(f"the daemon ended by itself: {found['unexpected_ends']}")
    wrong += found["problems"]
    for name, growth in found["growth"].items():
        if growth and growth["end"] - growth["start"] > _MOST[name]:
            wrong.append(f"{name} grew from {growth['start']:g} to {growth['end']:g}")
    return wrong


def table(found: dict[str, Any]) -> str:
    """Return the figures as text."""
    rows: list[tuple[str, object]] = [
        ("seed", found["seed"]),
        ("duration in seconds", found["seconds"]),
        ("solicitations", found["sent"]),
        ("answered", found["answered"]),
        ("correctly left unanswered", found["rightly_silent"]),
        ("answered twice", found["answered_twice"]),
        ("wrong answers", found["wrong"]),
        *((f"lost: {cause}", count) for cause, count in found["lost"].items()),
        ("lost without a known cause", found["unexplained"]),
        *((f"disturbance: {name}", count) for name, count in found["changes"].items()),
        ("daemon processes", found["processes"]),
        ("CPU seconds of the daemon", found["cpu_seconds"]),
        ("lines in the daemon's log", found["log_lines"]),
        ("tracebacks", found["tracebacks"]),
    ]
    for name, growth in found["growth"].items():
        if growth:
            figures = Growth(**growth)
            text = f"{figures.start:g}, {figures.median:g}, {figures.end:g}; {figures.slope:+.1f}/h"
            rows.append((f"{name}: settled, median, end", text))
    lines = [f"{name:<32} {value}" for name, value in rows]
    lines += [f"fault: {text}" for text in [*faults(found), *found["texts"]]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
