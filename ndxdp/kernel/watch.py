"""Word of rules that were changed by hand: the directory of an interface is touched, and watched.

The maps themselves tell nobody, and bpffs reports no writing to them. So who changes rules sets
the times of the directory that holds them, which inotify(7) reports on bpffs as elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

_IN_ATTRIB, _IN_ONLYDIR = 0x4, 0x1000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


class Watch:
    """Wakes its reader when touch() was called for a directory. OSError if it cannot be watched."""

    def __init__(self, directory: Path) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            mask = _IN_ATTRIB | _IN_ONLYDIR
            _checked(_libc.inotify_add_watch(self._fd, os.fsencode(directory), mask))
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return self._fd

    def drain(self) -> None:
        """Read what there is: that there was something is all that it says."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, 4096):
                pass

    def close(self) -> None:
        os.close(self._fd)


def touch(directory: Path) -> None:
    """Tell whoever watches; nobody need."""
    with contextlib.suppress(OSError):  # it is not ours to touch, or has gone
        os.utime(directory)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
