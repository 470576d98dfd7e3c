"""Directories that nobody but root, or the user of this process, can change.

What others can rename or replace is no place for pins and files that this process believes and
writes to. The rule is that of OpenSSH's StrictModes: each directory on the way belongs to root or
to the user, and neither its group nor others may write there. A sticky directory, such as /tmp, may
be written by all, as nobody can rename there what belongs to somebody else.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ndxdp.errors import ModeUnavailable

_UID_MAP = Path("/proc/self/uid_map")
_OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")


def refuse_untrusted(path: Path) -> None:
    """Raise ModeUnavailable if somebody else can change a directory on the way to `path`.

    Those that do not exist yet, or that this process may not see, are not judged.
    """
    for each in _way_to(path):
        try:
            found = os.lstat(each)
        except OSError:
            continue
        if not is_ours(found):
            raise ModeUnavailable(
                f"{each} belongs to user {found.st_uid}, who can change what is in it",
                f"look what it is, then: rm -r {each}; or run this as that user",
            )
        mode = found.st_mode
        if stat.S_ISDIR(mode) and mode & 0o022 and not mode & stat.S_ISVTX:
            raise ModeUnavailable(
                f"{each} can be changed by others than its owner", f"chmod go-w {each}"
            )


def is_ours(file: os.stat_result) -> bool:
    """Return True if a file belongs to root, or to the user of this process."""
    return file.st_uid in (0, os.geteuid()) or file.st_uid == _unmapped_root()


def _way_to(path: Path) -> Iterator[Path]:
    """Yield the directories and symbolic links that lead to a path, and the path itself."""
    seen: set[Path] = set()
    for end in (Path(os.path.abspath(path)), Path(os.path.realpath(path))):
        for each in (*reversed(end.parents), end):
            if each not in seen:
                seen.add(each)
                yield each


@functools.cache
def _unmapped_root() -> int | None:
    """Return the uid that the host's root appears as in a user namespace without it.

    All users that such a namespace does not have appear as the same one, so that the host's root
    cannot be told from the others.
    """
    try:
        mapped = [line.split() for line in _UID_MAP.read_text().splitlines()]
        # From uid, to uid in the parent namespace, how many: the first namespace has all.
        if any(outside == "0" for _, outside, _ in mapped):
            return None
        return int(_OVERFLOW_UID.read_text())
    except (OSError, ValueError):
        return None
