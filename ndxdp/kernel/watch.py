"""Notification of rules and pauses that a command has changed: it touches a watched directory.

The kernel reports no writing to maps, neither by the maps nor by bpffs. So a command that changes
rules, pauses or resumes sets the times of the directory that holds the interface's maps;
inotify(7) reports that on bpffs as elsewhere.
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
    """Notify watchers; there may be none."""
    with contextlib.suppress(OSError):  # it is not ours to touch, or has gone
        os.utime(directory)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
