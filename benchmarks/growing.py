"""The shared parts of benchmarks.growth: a bench, its daemon, and the exponent of a curve."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.wire import LINK, NDXDP, REPOSITORY, host_command

SIZES = (10, 100, 1_000, 10_000)
MANY = (*SIZES, 100_000)

_WITHIN = 300  # seconds for a daemon to do what it was told
_IDLE = 0.5  # seconds
_CALM = 3  # times _IDLE without work, after which a process is idle, even on a busy machine
_BUSY = 0.005  # seconds of CPU in _IDLE, above which a process is at work
_CPU_CLOCK = 2  # CPUCLOCK_SCHED of the kernel's <linux/posix-timers.h>

_NOISE = {"s": 0.03, "MB": 1.0, "descriptors": 1.0, "answers": 1.0}
"""By unit, the largest growth that is only noise."""

Figures = Mapping[str, float]
"""By name, such as `command s`; the last word is the unit."""


class Curve(NamedTuple):
    """A measurement for growing numbers of something: a row of the table, or several.

    Attributes:
        name: The action, and the thing whose number grows.
        measure: Measures in a bench with this number of things, and returns the figures.
        sizes: The numbers.
    """

    name: str
    measure: Callable[[Bench, int], Figures]
    sizes: Sequence[int] = SIZES


class Daemon:
    """A running `ndxdp run -c`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def spent(self) -> float:
        """Seconds of CPU so far, including threads that have ended."""
        return time.clock_gettime(~self._process.pid << 3 | _CPU_CLOCK)

    @property
    def peak(self) -> float:
        """The most MB that were resident."""
        status = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024

    def send_hangup(self) -> None:
        """Have the configuration read again."""
        self._process.send_signal(signal.SIGHUP)

    def settle(self) -> None:
        """Wait until the daemon has been idle for a while."""
        give_up = time.monotonic() + _WITHIN
        before, idle = self.spent, 0
        while idle < _CALM and time.monotonic() < give_up:
            time.sleep(_IDLE)
            before, spent = self.spent, self.spent - before
            idle = idle + 1 if spent < _BUSY else 0

    @contextlib.contextmanager
    def working(self, found: dict[str, float]) -> Iterator[None]:
        """Add `daemon s`, the CPU for what the block makes the daemon do, until it is idle."""
        self.settle()
        before = self.spent
        yield
        self.settle()
        found["daemon s"] = self.spent - before


class Bench:
    """A link in namespaces of its own, a folder, and the commands that are measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, name: str, parts: Iterable[str]) -> Path:
        """Write a file in the folder, part by part: a process starts with this one's peak."""
        path = self.folder / name
        with path.open("w") as file:
            file.writelines(parts)
        return path

    def command(self, *words: str, fails: bool = False) -> dict[str, float]:
        """Run `ndxdp WORDS`, and return its `command s` of CPU and the `peak MB` resident.

        Args:
            words: The command.
            fails: An error is what is measured.
        """
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                host_command(*NDXDP, *words), stdout=output, stderr=output, cwd=REPOSITORY
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if bool(process.returncode) != fails:
                output.seek(0)
                raise SystemExit(f"ndxdp {' '.join(words)}: {output.read(4000).decode()}")
        return {"command s": used.ru_utime + used.ru_stime, "peak MB": used.ru_maxrss / 1024}

    @contextlib.contextmanager
    def attached(self, *words: str) -> Iterator[dict[str, float]]:
        """Attach to the link during the block; yield the figures of that."""
        try:
            yield self.command("-q", "attach", LINK, *words)
        finally:
            self.command("-q", "detach", LINK)

    @contextlib.contextmanager
    def daemon(self, configuration: Path, interfaces: int = 1) -> Iterator[Daemon]:
        """Run a daemon during the block; it answers on all its interfaces, and has become idle."""
        process = subprocess.Popen(
            host_command(*NDXDP, "-q", "run", "-c", str(configuration)),
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        try:
            assert process.stdout is not None
            for _ in range(interfaces):
                if not process.stdout.readline().startswith("ready"):
                    raise SystemExit("The daemon did not start.")
            running = Daemon(process)
            running.settle()
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=_WITHIN)


def exponent(sizes: Sequence[int], values: Sequence[float], unit: str) -> float:
    """Return the exponent of the last step; 0 if nothing grows.

    The figure of the smallest size is the fixed cost, which is subtracted.

    Args:
        sizes: The sizes.
        values: The figure at each size.
        unit: The unit of the figure.
    """
    noise = _NOISE[unit]
    growth = [max(value - values[0], noise) for value in values]
    if len(values) < 3 or growth[-1] == noise:
        return 0.0
    return math.log(growth[-1] / growth[-2]) / math.log(sizes[-1] / sizes[-2])
