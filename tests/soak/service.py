"""The daemon, restarted as systemd would, its log, and its use of resources."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.fixtures.network import NDXDP, REPOSITORY

RESTART = 1.0  # seconds, RestartSec= of the unit

_TICKS = os.sysconf("SC_CLK_TCK")


class Sample(NamedTuple):
    """Resources of the daemon at one time.

    life: the number of the process, from 1. memory: resident, kB. cpu: seconds of all processes.
    """

    time: float
    life: int
    memory: int
    descriptors: int
    threads: int
    cpu: float


class Growth(NamedTuple):
    """A figure of the last process: medians of its first quarter, of all, and of its last quarter.

    slope: by least squares, per hour.
    """

    start: float
    median: float
    end: float
    slope: float


@dataclass
class Service:
    """`ndxdp run -c`, with one log for all its processes."""

    config: Path
    log: Path

    def __post_init__(self) -> None:
        self.samples: list[Sample] = []
        self.life = 0
        self.unexpected_ends: list[int] = []
        self._cpu = 0.0  # seconds of CPU of the processes that have ended
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self._process is None
        self.life += 1
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*NDXDP, "run", "-c", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
            )

    def send(self, number: int) -> None:
        assert self._process
        self._process.send_signal(number)

    def end(self, number: int) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self.sample()
        assert self._process
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            return process.wait(timeout=30)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            self._cpu = self.samples[-1].cpu

    def restart_if_ended(self) -> None:
        """Start the daemon again if it has ended by itself."""
        if self._process and self._process.poll() is not None:
            self.unexpected_ends.append(self._process.returncode)
            self._cpu = self.samples[-1].cpu if self.samples else 0
            self._process = None
            time.sleep(RESTART)
            self.start()

    def position(self) -> int:
        """Return the current end of the log."""
        return self.log.stat().st_size if self.log.exists() else 0

    def text(self, since: int = 0) -> str:
        """Return the log from a position on."""
        with self.log.open("rb") as log:
            log.seek(since)
            return log.read().decode(errors="replace")

    def complaints(self) -> Counter[str]:
        """Return the log's warnings and errors; those that differ only in numbers count as one."""
        lines = (line for line in self.text().splitlines() if not line.startswith("ready:"))
        return Counter(re.sub(r"[0-9a-f]*[0-9][0-9a-f:]*", "N", line) for line in lines)

    # ---- its use of resources

    def sample(self) -> None:
        if self._process is None:
            return
        here = Path(f"/proc/{self._process.pid}")
        try:
            status = (here / "status").read_text()
            fields = (here / "stat").read_text().rpartition(")")[2].split()
            descriptors = len(os.listdir(here / "fd"))
        except OSError:  # it has ended
            return
        memory = re.search(r"VmRSS:\s+(\d+)", status)
        threads = re.search(r"Threads:\s+(\d+)", status)
        if memory is None or threads is None:  # the process is a zombie
            return
        cpu = self._cpu + (int(fields[11]) + int(fields[12])) / _TICKS
        self.samples.append(
            Sample(time.monotonic(), self.life, int(memory[1]), descriptors, int(threads[1]), cpu)
        )

    def growth(self, name: str, settled: float) -> Growth | None:
        """Return how a figure grew in the last process, from `settled` seconds after its start."""
        last = [sample for sample in self.samples if sample.life == self.life]
        last = [sample for sample in last if sample.time >= last[0].time + settled]
        if len(last) < 4:
            return None
        times = [sample.time / 3600 for sample in last]
        values = [float(getattr(sample, name)) for sample in last]
        slope = statistics.linear_regression(times, values).slope
        quarter = len(values) // 4
        start, end = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
        return Growth(start, statistics.median(values), end, slope)
