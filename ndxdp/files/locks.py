"""Locks by flock(2) with a deadline, and the processes that hold them.

A lock is as safe as its file: who can open that can lock it, reading being enough. So each lock
here is on a file or directory that nobody else may open.
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

from ndxdp.files.access import is_at

_PAUSES = (0.001, 0.01)  # seconds between two attempts: the first, and the longest
_LOCKS = Path("/proc/locks")
_ATTEMPTS = 1000  # to lock a file that is removed each time
_SHOWN = 100  # characters of a command line


class Holder(NamedTuple):
    """The process that holds a lock. pid: 0 where it is not known."""

    pid: int

    def __str__(self) -> str:
        if not self.pid:
            return "a process that /proc/locks does not show here"
        command = _command(self.pid)
        return f"process {self.pid}" + (f" ({command})" if command else "")

    @property
    def cure(self) -> str:
        """Return how to end that process, as a hint."""
        return f"kill {self.pid}" if self.pid else "see /proc/locks on the host"


def take(fd: int, seconds: float) -> bool:
    """Lock an open file or directory exclusively; return False if that fails for so long."""
    until, pause = time.monotonic() + seconds, _PAUSES[0]
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            left = until - time.monotonic()
            if left <= 0:
                return False
        time.sleep(min(pause, left))
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


def is_taken(path: Path) -> bool:
    """Return True if a process has locked a file exclusively; the lock is not waited for.

    Who may not open the file is told by /proc/locks, which shows the locks of processes in the
    process namespace of its mount.
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
    """Return the process that has locked a file exclusively, as /proc/locks tells."""
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
    except OSError:  # it has just ended, or is not shown
        return ""
    text = " ".join(word.decode(errors="replace") for word in words)
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
