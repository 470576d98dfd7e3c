"""Access to directories: who can change them, how they are opened, and with which permissions.

If another user could rename or replace a directory, this process could not trust its pins and
files. The rule is that of OpenSSH's StrictModes: each directory of the path belongs to root or to
the user, and neither its group nor other users may write to it. Every user may write to a sticky
directory, such as /tmp, because there a user cannot rename another user's files.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ndxdp.errors import ModeUnavailable

_UID_MAP = Path("/proc/self/uid_map")
_OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def refuse_untrusted(path: Path) -> None:
    """Raise ModeUnavailable if another user can change a directory of a path.

    Directories that do not exist, or that this process may not see, are not checked.
    """
    for each in _components(path):
        try:
            found = os.lstat(each)
        except OSError:
            continue
        if not is_ours(found):
            raise ModeUnavailable(
                f"{each} belongs to user {found.st_uid}, who can change what is in it",
                f"inspect it, then: rm -r {each}; or run this as that user",
            )
        mode = found.st_mode
        if stat.S_ISDIR(mode) and mode & 0o022 and not mode & stat.S_ISVTX:
            raise ModeUnavailable(
                f"{each} can be changed by others than its owner", f"chmod go-w {each}"
            )


def is_ours(file: os.stat_result) -> bool:
    """Return True if a file belongs to root or to the user of this process."""
    return file.st_uid in (0, os.geteuid()) or file.st_uid == _unmapped_root()


def _components(path: Path) -> Iterable[str]:
    """Return the directories and symbolic links of a path, and the path itself."""
    found: dict[str, None] = {}
    # Strings and not Path objects: a daemon checks its directories many times for each interface.
    for end in (os.path.abspath(path), os.path.realpath(path)):
        parts = itertools.accumulate(end.split("/"), "{}/{}".format)
        found |= dict.fromkeys(each or "/" for each in parts)
    return found


@functools.cache
def _unmapped_root() -> int | None:
    """Return the uid under which a user namespace that does not map the host's root shows it.

    All users that the namespace does not map have that uid, so that the host's root cannot be
    distinguished from them.
    """
    try:
        mapped = [line.split() for line in _UID_MAP.read_text().splitlines()]
        # First uid, first uid in the parent namespace, number of uids.
        if any(outside == "0" for _, outside, _ in mapped):
            return None
        return int(_OVERFLOW_UID.read_text())
    except (OSError, ValueError):
        return None


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
