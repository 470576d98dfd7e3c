"""Files in the run directory by which a daemon reports to other processes.

A reader does not trust a file: another user may have put it there. Its fields are read by
report_fields.py.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ndxdp.errors import not_written
from ndxdp.files import access

_MODE = 0o640


def write(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file: readers find either the former one or all of this one.

    The file can be read by its owner and group only. The run directory is made if it is absent.

    Args:
        path: The path.
        parts: The content.

    Raises:
        NdxdpError: The file cannot be written, or another user can change the run directory; the
            former file stays.
    """
    fresh = _fresh(path)
    try:
        try:
            file = _create(fresh)
        except FileNotFoundError:  # another process has just removed the empty directory
            file = _create(fresh)
        with open(file, "wb") as output:
            output.writelines(parts)
            os.fchmod(file, _MODE)
        fresh.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise not_written(path, error) from error


def _fresh(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _create(path: Path) -> int:
    """Open a new file, in place of what a killed daemon has left; no link is followed."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    access.refuse_untrusted(path.parent)
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)


def read(path: Path) -> bytes:
    """Return the content of a report.

    Raises:
        OSError: The file cannot be read, is no regular file, or its owner is neither root nor this
            user.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        made = os.fstat(fd)
        if not stat.S_ISREG(made.st_mode) or made.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"{path} is not a daemon's")
        return file.read()


def remove(path: Path) -> None:
    """Remove a report, if there is one, and the run directory if it is empty then."""
    for each in (path, _fresh(path)):  # a killed daemon may have left the new file
        with contextlib.suppress(OSError):
            each.unlink()
    with contextlib.suppress(OSError):  # not empty
        path.parent.rmdir()
