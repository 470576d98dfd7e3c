"""Measure what an interface costs when a daemon starts on many, by part. Needs root.

    python -m benchmarks.starting [10 100 500] [--output FILE]

Prints milliseconds of CPU for each interface, without the fixed cost, which is that of a daemon
with one interface. Each call of libbpf is timed in the daemon, by the clock of its thread, so that
other work on the machine matters little.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import growth_interfaces
from benchmarks.growing import Bench, Daemon
from benchmarks.wire import REPOSITORY, host_command, make_links
from lab import private

PARTS = {
    "loading: mostly the verifier": ("bpf_object__open_mem", "bpf_object__load"),
    "making maps": ("bpf_map_create",),
}
"""The calls of libbpf of a part; the others are `other calls of libbpf`."""

_OTHER, _REST, _SUM = "other calls of libbpf", "Python, netlink and files", "together"
_CHILD = "--timed"
_TIMED = (sys.executable, "-m", "benchmarks.starting", _CHILD)
_WITHIN = 60  # seconds for the daemon to write its times, and to end


def main() -> int:
    """Print a table, a line for each part, for each number of interfaces."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.starting", description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, default=[10, 100, 500])
    parser.add_argument("--output", type=Path, help="write the milliseconds to this file, too")
    arguments = parser.parse_args()
    if not private.inside():
        return private.run([sys.executable, "-m", "benchmarks.starting", *sys.argv[1:]])
    make_links()
    fixed = _measured(1)
    found: dict[int, dict[str, float]] = {}
    for number in arguments.numbers:
        parts = _measured(number)
        found[number] = {
            name: 1000 * (parts[name] - fixed[name]) / max(number - 1, 1) for name in parts
        }
    for name in fixed:
        cells = "  ".join(f"{n}: {each[name]:6.1f} ms" for n, each in found.items())
        print(f"{name:<32} {cells}", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _measured(number: int) -> dict[str, float]:
    """Return the seconds of CPU by part of a start on so many interfaces."""
    with (
        tempfile.TemporaryDirectory() as folder,
        growth_interfaces.interfaces(number) as names,
    ):
        configuration = growth_interfaces.configuration(Bench(Path(folder)), names)
        times = Path(folder) / "times.json"
        process = subprocess.Popen(
            host_command(*_TIMED, str(times), "-q", "run", "-c", str(configuration)),
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        daemon = Daemon(process)
        try:
            assert process.stdout is not None
            for _ in range(number):
                if not process.stdout.readline().startswith("ready"):
                    raise SystemExit("The daemon did not start.")
            daemon.settle()
            process.send_signal(signal.SIGUSR1)
            give_up = time.monotonic() + _WITHIN
            while not times.exists() and time.monotonic() < give_up:
                time.sleep(0.1)
            return json.loads(times.read_text())  # type: ignore[no-any-return]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=_WITHIN)


def _run_timed(path: Path) -> None:
    """Run ndxdp with the arguments of this process; on SIGUSR1, write the CPU so far by part."""
    from ndxdp.cli.main import main as ndxdp
    from ndxdp.kernel import libbpf

    parts = {name: part for part, names in PARTS.items() for name in names}
    spent = dict.fromkeys((*PARTS, _OTHER), 0.0)

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            before = time.thread_time()
            try:
                return function(*arguments)
            finally:
                spent[part] += time.thread_time() - before

        return call

    def write(*_: object) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        whole = used.ru_utime + used.ru_stime
        fresh = path.with_suffix(".new")
        rest = whole - sum(spent.values())
        fresh.write_text(json.dumps(spent | {_REST: rest, _SUM: whole}))
        fresh.rename(path)

    library = libbpf.library()
    for name in libbpf._SIGNATURES:
        setattr(library, name, timed(getattr(library, name), parts.get(name, _OTHER)))
    signal.signal(signal.SIGUSR1, write)
    ndxdp()


if __name__ == "__main__":
    if sys.argv[1:2] == [_CHILD]:
        times = Path(sys.argv[2])
        sys.argv[1:3] = []
        _run_timed(times)
    else:
        sys.exit(main())
