"""Notification of rules and pauses that a command has changed: it touches a watched directory.

The kernel reports no writing to maps, neither by the maps nor by bpffs. So a command that changes
rules, pauses or resumes sets the times of the directory that holds the interface's maps;
inotify(7) reports that on bpffs as elsewhere. It reports what is removed there, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

_IN_ATTRIB, _IN_DELETE, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x4, 0x200, 0x400, 0x800
_IN_IGNORED, _IN_ONLYDIR = 0x8000, 0x1000000
_EVENT = struct.Struct("=iIII")  # struct inotify_event: watch, mask, cookie, length of the name

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


class Watch:
    """Calls back when touch() was called for a directory, or when something in it was removed.

    All directories share one inotify instance, of which a user has 128 by default. fileno() is
    readable when dispatch() has something to do. OSError if there is no instance to be had.
    """

    def __init__(self) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._called: dict[int, Callable[[], None]] = {}

    def fileno(self) -> int:
        return self._fd

    def add(self, directory: Path, changed: Callable[[], None]) -> int:
        """Watch a directory that is not watched yet.

        Args:
            directory: Where something may change.
            changed: Called by dispatch() after changes, once for several.

        Returns:
            The number for remove().

        Raises:
            OSError: There is no such directory, or a limit is reached.
        """
        mask = _IN_ATTRIB | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
        number = _checked(_libc.inotify_add_watch(self._fd, os.fsencode(directory), mask))
        self._called[number] = changed
        return number

    def remove(self, number: int) -> None:
        """Stop watching a directory, which may have gone."""
        if self._called.pop(number, None) is not None:
            _libc.inotify_rm_watch(self._fd, number)

    def dispatch(self) -> None:
        """Call back for the directories that have changed."""
        changed: dict[int, None] = {}
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, 65536):
                at = 0
                while at < len(data):
                    number, mask, _, length = _EVENT.unpack_from(data, at)
                    if not mask & _IN_IGNORED:  # the watch has ended, as all do that are removed
                        changed[number] = None
                    at += _EVENT.size + length
        lost = -1 in changed  # more than the kernel's queue holds
        for number in list(self._called) if lost else changed:
            if number in self._called:
                self._called[number]()

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
