"""The only element of an array of maps, by which a program finds a map that may be replaced."""

from __future__ import annotations

import sys

from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.store.parked_map import ParkedMap

_KEY0 = bytes(4)


def number_in(array: KernelMap | ParkedMap) -> int:
    """Return the kernel's number of the map in an array; 0 if the array is empty."""
    return int.from_bytes(array.lookup(_KEY0) or b"", sys.byteorder)


def put_into(array: KernelMap | ParkedMap, fd: int) -> None:
    """Put a map into an array. The kernel waits until no program reads the former one."""
    array.update(_KEY0, fd.to_bytes(4, sys.byteorder))
