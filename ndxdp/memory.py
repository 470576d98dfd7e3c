"""Measures that keep the daemon's resident memory small, for hosts with 512 MB of memory.

The figures are from Debian 12 with Python 3.11; `make bench-daemon` measures the sum.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import sys
from typing import Any

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_LARGE = 1 << 16  # bytes


def defer(name: str) -> None:
    """Allow imports of a package's submodules without running the package's __init__.

    The __init__ runs at the first access to an attribute of the package that is not an imported
    submodule. So code that needs the package, now or in a later version, gets it.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None or name in sys.modules:
        return
    loader, package = spec.loader, importlib.util.module_from_spec(spec)

    def fill(attribute: str) -> Any:
        del package.__dict__["__getattr__"]
        loader.exec_module(package)
        return getattr(package, attribute)

    package.__dict__["__getattr__"] = fill  # PEP 562
    sys.modules[name] = package


def import_without(missing: str, name: str) -> None:
    """Import a module as if an optional module that it imports were not installed.

    Args:
        missing: The optional module, which later imports get.
        name: The module to import.
    """
    if missing in sys.modules:
        return
    sys.modules[missing] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        importlib.import_module(name)
    finally:
        del sys.modules[missing]


def relax_gc() -> None:
    """Run the cyclic garbage collector after 20 000 new objects instead of 700.

    Rules are in no reference cycles. Reading a list of 100 000 prefixes takes 0.20 s instead of
    0.25 s.
    """
    gc.set_threshold(20_000)


def single_malloc_arena() -> None:
    """Make all threads share one malloc arena, and return large blocks to the kernel at once.

    Only one thread runs Python at a time. An arena of the executor's thread would take 0.3 MB after
    the start, and 1 MB after reloads of 10 000 addresses. By default malloc raises the threshold
    for large blocks, so that the arena would keep 50 MB after a list of a million addresses.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has mallopt()
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
