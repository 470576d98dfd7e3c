"""Answers per second of each interface since the process began, at most of the last day."""

from __future__ import annotations

import contextlib
import logging
import math
import struct
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path

from ndxdp.errors import NdxdpError
from ndxdp.kernel import abi
from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.ndp.reason import Reason
from ndxdp.observe.sparkline import Curves
from ndxdp.store.directories import Trees
from ndxdp.store.map_files import ArrayFile, Map

log = logging.getLogger(__name__)

SAMPLES = 144
"""Samples of an interface, each a float of 4 bytes."""

_SHORTEST, _LONGEST = 10.0, 640.0
"""Seconds between two samples: the shortest at first, and twice as many whenever there are SAMPLES,
of which each two become one. At the longest interval they reach back for more than a day."""

_COUNTERS = "reasons"
"""The only map that is opened: to open all maps of an interface takes ten times as long."""

_ANSWERS = [struct.pack("=I", reason) for reason in Reason if reason.is_answer]


class History:
    """Samples of the answers per second, taken in one thread and read in others."""

    def __init__(self, trees: Trees, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an empty history. clock: returns seconds of CLOCK_MONOTONIC."""
        self._trees, self._clock = trees, clock
        self._interval = _SHORTEST
        self._last: float | None = None  # when the counters below were read
        self._counts: dict[str, int] = {}
        self._rates: dict[str, array[float]] = {}
        self._length = 0  # of each array; a missing sample is NaN
        self._lock = threading.Lock()

    def due_in(self) -> float:
        """Return the seconds until sample() has work to do."""
        if self._last is None:
            return 0
        return max(self._last + self._interval - self._clock(), 0)

    def sample(self) -> None:
        """Take a sample if it is due."""
        if self.due_in() > 0:
            return
        counts: dict[str, int] = {}
        try:
            counts = self._read()
        except Exception:  # the thread also accepts the connections of the exporter
            log.debug("cannot sample the answers", exc_info=True)
        now = self._clock()
        with self._lock:
            if self._last is not None:
                self._append_for(now - self._last, counts)
            self._last, self._counts = now, counts

    def _append_for(self, took: float, counts: dict[str, int]) -> None:
        """Append a sample of the counters; the mean stands for samples that a stop has missed."""
        left = min(took, SAMPLES * _LONGEST)
        while True:
            left -= self._interval
            self._append(counts, took)
            if left < self._interval / 2:
                return

    def _append(self, counts: dict[str, int], took: float) -> None:
        rates = {}
        for name, count in counts.items():
            known = self._rates.get(name) or array("f", [math.nan] * self._length)
            before = self._counts.get(name)
            if before is None:  # it was attached during the interval
                rate = math.nan
            else:  # a smaller count was reset
                rate = (count - before if count >= before else count) / took
            known.append(rate)
            rates[name] = known
        self._rates = rates  # the samples of an interface that is gone are dropped
        self._length += 1
        if self._length < SAMPLES:
            return
        if self._interval < _LONGEST:
            self._interval *= 2
            self._length //= 2
            self._rates = {name: _halved(known) for name, known in rates.items()}
        else:
            self._length -= 1
            for known in rates.values():
                del known[0]

    def curves(self) -> Curves:
        """Return the answers per second so far."""
        with self._lock:
            rates = {name: known[:] for name, known in self._rates.items()}
            seconds = self._length * self._interval
        columns = zip(*rates.values(), strict=True)
        total = [sum(rate for rate in column if rate == rate) for column in columns]
        return Curves(seconds, total, rates)

    def _read(self) -> dict[str, int]:
        """Return the number of answers of each interface that can be read."""
        counts: dict[str, int] = {}
        for tree, opened in zip(self._trees, (_pin, _file), strict=True):
            with contextlib.suppress(NdxdpError):  # there is no BPF file system, for example
                tree.check()
                for name in tree.interfaces():
                    with contextlib.suppress(NdxdpError, OSError):
                        counts[name] = counts.get(name, 0) + _answers(opened(tree.path(name)))
        return counts


def _pin(directory: Path) -> Map:
    return KernelMap.open(directory / _COUNTERS, abi.MAPS[_COUNTERS], readonly=True)


def _file(directory: Path) -> Map:
    return ArrayFile(directory / _COUNTERS, abi.FILES[_COUNTERS])


def _answers(counters: Map) -> int:
    """Return the number of answers, and close the counters of the reasons."""
    try:
        values = [counters.lookup(key) or b"" for key in _ANSWERS]
    finally:
        counters.close()
    return sum(sum(struct.unpack(f"={len(value) // 8}Q", value)) for value in values)


def _halved(rates: array[float]) -> array[float]:
    """Return the means of each two samples."""
    pairs = zip(rates[::2], rates[1::2], strict=True)
    return array("f", (_mean(*pair) for pair in pairs))


def _mean(one: float, other: float) -> float:
    if math.isnan(one):
        return other
    return one if math.isnan(other) else (one + other) / 2
