"""Maps whose descriptors are parked (kernel/parked.py): each call opens the map while it runs.

A daemon has 22 maps or 7 files for each interface, and after the attachment it needs most maps, and
some files, only when something changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.kernel.parked import Parked
from ndxdp.store.map_files import ArrayFile


class ParkedMap:
    """A map in the kernel or in a file, whose descriptor is parked.

    Attributes:
        value_size: Bytes of a value; of a per-CPU map, of the values of all CPUs.
    """

    def __init__(
        self, parked: Parked, before: KernelMap | ArrayFile, name: str | None = None
    ) -> None:
        """Take a parked descriptor, which the caller closes.

        Args:
            parked: Has the descriptor.
            before: The map as it was open before.
            name: The name of the descriptor; None for the map's name.
        """
        self._parked, self._before = parked, before
        self._name = name or before.spec.name
        self.value_size = before.value_size

    @contextlib.contextmanager
    def opened(self) -> Iterator[KernelMap | ArrayFile]:
        """Yield the open map."""
        with self._parked.opened() as fds:
            yield self._before.using(fds[self._name])

    @property
    def max_entries(self) -> int:
        """How many entries the map can have."""
        with self.opened() as opened:
            return opened.max_entries

    def lookup(self, key: bytes) -> bytes | None:
        """Return a value; see Map.lookup()."""
        with self.opened() as opened:
            return opened.lookup(key)

    def update(self, keys: bytes, values: bytes) -> None:
        """Write entries; see Map.update()."""
        with self.opened() as opened:
            opened.update(keys, values)

    def delete(self, keys: bytes) -> None:
        """Remove entries; a missing entry is no error."""
        with self.opened() as opened:
            opened.delete(keys)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries; see Map.items()."""
        with self.opened() as opened:
            yield from opened.items()

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries, many at a time."""
        with self.opened() as opened:
            yield from opened.pieces()

    def leading(self, code: str) -> Iterator[memoryview]:
        """Yield the first integer of each value of a map in the kernel, many at a time."""
        with self.opened() as opened:
            assert isinstance(opened, KernelMap), "called in the kernel's modes"
            yield from opened.leading(code)

    def close(self) -> None:
        """Do nothing: the parked descriptors are closed together."""
