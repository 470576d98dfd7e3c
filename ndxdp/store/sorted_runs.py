"""Sorting of more records than are wanted in memory: sorted runs in a file, which are merged."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from typing import Self

_RUN = 65536  # records that are sorted at once, as objects
_CHUNK = 1024  # records of each run that are objects while the runs are merged


class Runs:
    """Records of one size, added in any order and read in the order of their bytes.

    At most _RUN records are in this process. The others are in a file without a name, which the
    kernel keeps in memory (memfd_create(2)), packed: a directory for temporary files may be missing
    or read-only.
    """

    def __init__(self, size: int) -> None:
        """Make an empty set of runs, to be used in a `with` block; size: bytes of a record."""
        self._size = size
        self._last: list[bytes] = []
        self._ends: list[int] = []  # where each run in the file ends
        self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file >= 0:
            os.close(self._file)

    def add(self, records: Iterable[bytes]) -> None:
        """Add records."""
        for record in records:
            self._last.append(record)
            if len(self._last) == _RUN:
                self._write()

    def merged(self) -> Iterator[bytes]:
        """Yield the records in ascending order, each once; add nothing afterwards."""
        self._last.sort()
        starts = [0, *self._ends]
        runs = [self._run(*ends) for ends in zip(starts, self._ends, strict=False)]
        before = b""
        for record in heapq.merge(self._last, *runs):
            if record != before:
                yield record
            before = record

    def _write(self) -> None:
        """Move the records in memory to the file, as one run."""
        if self._file < 0:
            self._file = os.memfd_create("sorted runs", os.MFD_CLOEXEC)
        self._last.sort()
        with open(self._file, "ab", closefd=False) as file:
            file.write(b"".join(self._last))
        self._ends.append(os.fstat(self._file).st_size)
        self._last.clear()

    def _run(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the records of one run."""
        size = self._size
        for at in range(start, end, _CHUNK * size):
            chunk = os.pread(self._file, min(_CHUNK * size, end - at), at)
            for each in range(0, len(chunk), size):
                yield chunk[each : each + size]
