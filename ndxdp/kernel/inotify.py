"""Watches on directories, by inotify(7), which works on bpffs as on other file systems."""

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
    """Watched directories, each with a function to call when the directory has changed.

    A change is a change of the directory's times, or the removal of a file in the directory. All
    directories share one inotify instance; a user has 128 instances by default.
    """

    def __init__(self) -> None:
        """Create the inotify instance; raise OSError if the user has no instance left."""
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._called: dict[int, Callable[[], None]] = {}

    def fileno(self) -> int:
        """Return the descriptor, which is readable when dispatch() has work to do."""
        return self._fd

    def add(self, directory: Path, changed: Callable[[], None]) -> int:
        """Watch a directory that is not watched yet.

        Args:
            directory: The directory.
            changed: Called by dispatch(), once for several changes.

        Returns:
            The number of the watch, for remove().

        Raises:
            OSError: The directory does not exist, or a limit is reached.
        """
        mask = _IN_ATTRIB | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
        number = _checked(_libc.inotify_add_watch(self._fd, os.fsencode(directory), mask))
        self._called[number] = changed
        return number

    def remove(self, number: int) -> None:
        """Stop watching a directory, which may have been removed."""
        if self._called.pop(number, None) is not None:
            _libc.inotify_rm_watch(self._fd, number)

    def dispatch(self) -> None:
        """Call the functions of the directories that have changed."""
        changed: dict[int, None] = {}
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, 65536):
                at = 0
                while at < len(data):
                    number, mask, _, length = _EVENT.unpack_from(data, at)
                    if not mask & _IN_IGNORED:  # the end of a watch is no change
                        changed[number] = None
                    at += _EVENT.size + length
        lost = -1 in changed  # the kernel's queue overflowed: any directory may have changed
        for number in list(self._called) if lost else changed:
            if number in self._called:
                self._called[number]()

    def close(self) -> None:
        """Close the inotify instance, and with it all watches."""
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
