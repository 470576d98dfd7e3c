"""What keeps the daemon's resident memory small: it runs for years beside 512 MB of other things.

The figures are from Debian 12 with Python 3.11; `make bench-daemon` has the sum of them.
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
    """Let submodules of a package be imported without running its __init__.

    That runs as soon as anything is asked of the package that its imported submodules are not:
    so whoever does need it, now or in a later version of the package, gets it.
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
    """Import a module that can do without another one as if that were not installed.

    Whoever imports the other one later gets it.
    """
    if missing in sys.modules:
        return
    sys.modules[missing] = None  # type: ignore[assignment]  # so importing it is an ImportError
    try:
        importlib.import_module(name)
    finally:
        del sys.modules[missing]


def relax_gc() -> None:
    """Look for garbage in cycles after 20 000 new objects, not after 700: rules are in none.

    A list of 100 000 prefixes is read in 0.20 s then, not in 0.25.
    """
    gc.set_threshold(20_000)


def single_malloc_arena() -> None:
    """Give all threads one heap of malloc's, not each its own; only one runs Python at a time.

    The executor's is 0.3 MB after the start, and 1 MB after reloads of 10 000 addresses. What is
    large stays out of it, and goes back to the kernel at once: after a list of a million addresses
    was read, the heap would keep 50 MB of text and of pieces, as malloc raises this threshold by
    itself.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # libcs other than glibc have none
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
