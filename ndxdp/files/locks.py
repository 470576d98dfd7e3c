"""Locks by flock(2) with a deadline, and the processes that have them.

A user who can open a file, even for reading, can lock it. So each lock is on a file or directory
that only its owner can open.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_PAUSES = (0.001, 0.01)  # seconds between two attempts: the first and the longest pause
_LOCKS = Path("/proc/locks")
_ATTEMPTS = 1000  # to lock a file that is removed each time
_SHOWN = 100  # characters of a command line in a message


class Holder(NamedTuple):
    """The process that has a lock; `pid` is 0 if /proc/locks does not show the process."""

    pid: int

    def __str__(self) -> str:
        if not self.pid:
            return "a process that /proc/locks does not show here"
        command = _command(self.pid)
        return f"process {self.pid}" + (f" ({command})" if command else "")

    @property
    def cure(self) -> str:
        """The command that ends the process, for a hint."""
        return f"kill {self.pid}" if self.pid else "see /proc/locks on the host"


def take(fd: int, seconds: float) -> bool:
    """Lock an open file or directory exclusively; return False after waiting for `seconds`."""
    until, pause = time.monotonic() + seconds, _PAUSES[0]
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            remaining = until - time.monotonic()
            if remaining <= 0:
                return False
        time.sleep(min(pause, remaining))
        pause = min(2 * pause, _PAUSES[1])


def acquire(
    path: Path, opened: Callable[[], int | None], take: Callable[[int], bool]
) -> int | None:
    """Open and lock a file or directory that other processes may remove.

    A process that ends its lock may remove the file. So the lock counts only if the file is still
    at its path after locking; otherwise the file is opened again.

    Args:
        path: Where the file is.
        opened: Opens the file, making it where it is missing, and returns its descriptor; returns
            None if the directory that the file is in was removed at that moment.
        take: Locks the descriptor; returns False if another process has the lock.

    Returns:
        The descriptor, locked; None if `take` returned False.

    Raises:
        FileNotFoundError: Other processes removed the file after every attempt.
    """
    for _ in range(_ATTEMPTS):
        fd = opened()
        if fd is None:
            continue
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fd)
            if not take(fd):
                return None
            if is_at(fd, path):
                undo.pop_all()
                return fd
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def is_at(fd: int, path: Path) -> bool:
    """Return True if the open file or directory is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def is_taken(path: Path) -> bool:
    """Return True if a process has locked a file exclusively, without waiting.

    If this process may not open the file, the answer is from /proc/locks, which shows the locks of
    the processes in the process namespace of its mount.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except PermissionError:
        return bool(holder(path).pid)
    try:
        return not is_free(fd)
    finally:
        os.close(fd)


def is_free(fd: int) -> bool:
    """Return True if no process has locked an open file exclusively, without waiting."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(path: Path) -> Holder:
    """Return the process that has locked a file exclusively, from /proc/locks."""
    with contextlib.suppress(OSError):
        file = path.stat()
        device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
        # 1: FLOCK  ADVISORY  WRITE 708 00:1a:1169 0 EOF
        wanted = re.compile(rf"^\d+: FLOCK +\w+ +WRITE +(\d+) {device} ", re.MULTILINE)
        found = wanted.search(_LOCKS.read_text())
        return Holder(int(found[1]) if found else 0)
    return Holder(0)


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:  # the process has just ended, or is hidden
        return ""
    text = " ".join(word.decode(errors="replace") for word in words)
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
