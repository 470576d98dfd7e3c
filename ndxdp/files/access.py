"""Directories opened by descriptor, their permissions, and the error where one is not writable."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ndxdp.errors import ModeUnavailable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_directory(path: Path) -> int:
    """Open a directory that is no symbolic link, and return its descriptor."""
    return os.open(path, _DIRECTORY)


@contextlib.contextmanager
def opened_directory(path: Path) -> Iterator[int]:
    """Yield the descriptor of an open directory."""
    fd = open_directory(path)
    try:
        yield fd
    finally:
        os.close(fd)


def is_at(fd: int, path: Path) -> bool:
    """Return True if the open file or directory is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def restrict(fd: int, mode: int) -> None:
    """Withdraw the permissions that `mode` does not have; the set-group-ID bit stays."""
    present = stat.S_IMODE(os.fstat(fd).st_mode)
    if present & 0o777 & ~mode:
        os.fchmod(fd, present & (0o7000 | mode))


def unwritable(path: Path, error: OSError) -> OSError | ModeUnavailable:
    """Return the exception for a directory that is not writable.

    Returns:
        ModeUnavailable if permissions or a read-only file system are the cause, else `error`.
    """
    if error.errno in (errno.EPERM, errno.EACCES):
        return ModeUnavailable(f"cannot write to {path}: permission denied", "run this as root")
    if error.errno == errno.EROFS:
        return ModeUnavailable(
            f"cannot write to {path}: its file system is read-only",
            "remount it, or name another",
        )
    return error
