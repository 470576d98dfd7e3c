"""Maps whose descriptors are parked (kernel/parked.py): each call opens the map while it runs.

A daemon has 24 maps for each interface, and after the attachment it needs most of them only when
something changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ndxdp.kernel.abi import MapSpec
from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.kernel.parked import Parked


class ParkedMap:
    """A map in the kernel whose descriptor is parked.

    Attributes:
        value_size: Bytes of a value; of a per-CPU map, of the values of all CPUs.
    """

    def __init__(self, spec: MapSpec, value_size: int, parked: Parked) -> None:
        """Take the parked descriptor with the map's name, which the caller closes."""
        self._spec, self._parked = spec, parked
        self.value_size = value_size

    @contextlib.contextmanager
    def opened(self) -> Iterator[KernelMap]:
        """Yield the open map."""
        with self._parked.opened() as fds:
            yield KernelMap(self._spec, fds[self._spec.name])

    @property
    def max_entries(self) -> int:
        """How many entries the map can have, from the kernel."""
        with self.opened() as opened:
            return opened.max_entries

    def lookup(self, key: bytes) -> bytes | None:
        """Return a value; see KernelMap.lookup()."""
        with self.opened() as opened:
            return opened.lookup(key)

    def update(self, keys: bytes, values: bytes) -> None:
        """Write entries; see KernelMap.update()."""
        with self.opened() as opened:
            opened.update(keys, values)

    def delete(self, keys: bytes) -> None:
        """Remove entries; a missing entry is no error."""
        with self.opened() as opened:
            opened.delete(keys)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries; see KernelMap.items()."""
        with self.opened() as opened:
            yield from opened.items()

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries, many at a time."""
        with self.opened() as opened:
            yield from opened.pieces()

    def leading(self, code: str) -> Iterator[memoryview]:
        """Yield the first integer of each value, many at a time."""
        with self.opened() as opened:
            yield from opened.leading(code)

    def close(self) -> None:
        """Do nothing: the parked descriptors are closed together."""
