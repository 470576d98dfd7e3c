"""Cost of many interfaces in one daemon: its start, and foreign address changes. Needs root.

    python -m benchmarks.interfaces [--counts 10,50,100,200] [--output FILE]

- Start: CPU time and time of `ndxdp run -c` until it has attached to all of them, and the
  descriptors and inotify instances that it has then.
- Events: CPU time of a daemon with 40 interfaces while another interface gets and loses 1 000
  addresses a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.wire import NDXDP, REPOSITORY, cpu_name
from lab import private

RESULTS = REPOSITORY / "benchmarks" / "results" / "interfaces.json"

COUNTS = (10, 50, 100, 200, 500)
UPLINKS = 40
RATE = 1_000
"""Address changes a second, half of them additions."""

SECONDS = 6.0

_GIVE_UP = 900.0  # seconds for a daemon to start
_QUIET = 1.0  # seconds in which a daemon that has settled uses no CPU time
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_BATCH = 20  # address changes that are sent at once


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--uplinks", type=int, default=UPLINKS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="the file to write the figures to"
    )
    arguments = parser.parse_args()
    if not private.inside():
        return private.run([sys.executable, "-m", "benchmarks.interfaces", *sys.argv[1:]])
    counts = [int(count) for count in arguments.counts.split(",") if int(count)]
    found: dict[str, Any] = {"start": [], "events": []}
    for count in counts:
        found["start"].append(start(count))
        _print(found["start"][-1])
    if arguments.uplinks:
        found["events"].append(events(arguments.uplinks, arguments.seconds))
        _print(found["events"][-1])
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "cpu": cpu_name()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"machine": machine, **found}, indent=2) + "\n")
    return 0


def start(count: int) -> dict[str, float]:
    """Return what the start of a daemon with so many interfaces takes."""
    with _interfaces(count) as names, _daemon(names) as daemon:
        settled = daemon.settle()
        return {
            "interfaces": count,
            "ready_cpu_s": round(daemon.ready_cpu, 2),
            "ready_s": round(daemon.ready, 2),
            "settled_cpu_s": round(settled, 2),
            "descriptors": daemon.descriptors(),
            "inotify_instances": daemon.inotify_instances(),
            "resident_MB": daemon.resident(),
        }


def events(count: int, seconds: float) -> dict[str, float]:
    """Return the CPU time that foreign address changes take a daemon with so many interfaces."""
    with _interfaces(count + 1) as (foreign, *names), _daemon(names) as daemon:
        before = daemon.settle()
        changes = _change_addresses(foreign, seconds)
        spent = daemon.cpu() - before
        settled = daemon.settle() - before
        return {
            "interfaces": count,
            "seconds": seconds,
            "changes": changes,
            "cpu_s": round(spent, 2),
            "settled_cpu_s": round(settled, 2),
        }


def _change_addresses(foreign: str, seconds: float) -> int:
    """Add and delete addresses of an interface at RATE; return the number of changes."""
    done = 0
    began = time.monotonic()
    ip = subprocess.Popen(["ip", "-6", "-batch", "-"], stdin=subprocess.PIPE, text=True)
    assert ip.stdin is not None
    while (elapsed := time.monotonic() - began) < seconds:
        while done < elapsed * RATE:
            for number in range(_BATCH // 2):
                ip.stdin.write(
                    f"address add 2001:db8:ffff::{number + 1:x}/128 dev {foreign} nodad\n"
                )
            for number in range(_BATCH // 2):
                ip.stdin.write(f"address delete 2001:db8:ffff::{number + 1:x}/128 dev {foreign}\n")
            ip.stdin.flush()
            done += _BATCH
        time.sleep(0.002)
    ip.communicate(timeout=60)
    return done


class _Daemon:
    """A daemon that is ready.

    Attributes:
        ready: Seconds from its exec until it was ready.
        ready_cpu: Its CPU time until then, in seconds.
    """

    def __init__(self, configuration: Path) -> None:
        began = time.monotonic()
        self._running = subprocess.Popen(
            [*NDXDP, "-q", "run", "-c", str(configuration)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"NOTIFY_SOCKET": ""},
        )
        assert self._running.stdout is not None
        waiting = sum(1 for line in configuration.read_text().splitlines() if "name" in line)
        for line in self._running.stdout:
            waiting -= line.startswith("ready")
            if not waiting:
                break
        else:
            raise SystemExit("The daemon did not start.")
        self.ready, self.ready_cpu = time.monotonic() - began, self.cpu()

    def cpu(self) -> float:
        """Return its CPU time so far, in seconds."""
        stat = Path(f"/proc/{self._running.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) * _TICK

    def settle(self) -> float:
        """Wait until it has been idle for a while; return its CPU time so far."""
        give_up = time.monotonic() + _GIVE_UP
        before = self.cpu()
        while time.monotonic() < give_up:
            time.sleep(_QUIET)
            now = self.cpu()
            # The periodic checks of many interfaces take some time, too.
            if now - before < 0.05 * _QUIET:
                return now
            before = now
        raise SystemExit("The daemon does not become idle.")

    def descriptors(self) -> int:
        return len(self._links())

    def inotify_instances(self) -> int:
        return self._links().count("anon_inode:inotify")

    def resident(self) -> float:
        for line in Path(f"/proc/{self._running.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return round(int(line.split()[1]) / 1024, 1)
        raise SystemExit("The daemon has ended.")

    def end(self) -> None:
        self._running.send_signal(signal.SIGTERM)
        self._running.communicate(timeout=_GIVE_UP)

    def _links(self) -> list[str]:
        found = []
        for entry in os.scandir(f"/proc/{self._running.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(entry.path))
        return found


@contextlib.contextmanager
def _daemon(names: Sequence[str]) -> Iterator[_Daemon]:
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "ndxdp.toml"
        configuration.write_text(
            "".join(
                f'[[interface]]\nname = "{name}"\non_stop = "detach"\n'
                f'[[interface.prefix]]\nprefix = "2001:db8:0:{number:x}:c::/80"\n'
                for number, name in enumerate(names, 1)
            )
        )
        daemon = _Daemon(configuration)
        try:
            yield daemon
        finally:
            daemon.end()


@contextlib.contextmanager
def _interfaces(count: int) -> Iterator[list[str]]:
    """Make Ethernet interfaces that are up, and remove them afterwards."""
    names = [f"up{number}" for number in range(count)]
    _links(
        line
        for name in names
        for line in (
            f"link add {name} type veth peer name {name}p",
            f"link set {name}p up",
            f"link set {name} up",
        )
    )
    try:
        yield names
    finally:
        _links(f"link delete {name}" for name in names)


def _links(commands: Iterator[str]) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)


def _print(one: dict[str, float]) -> None:
    print("  " + ", ".join(f"{name} {value}" for name, value in one.items()), flush=True)


if __name__ == "__main__":
    sys.exit(main())
