"""Writes files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from ndxdp.errors import NdxdpError, not_written

READABLE = 0o644
"""Permissions of a file that everybody may read."""


def write_text(path: Path, text: str, *, over: bool = True) -> None:
    """Write a text into a file: all of it, or nothing.

    What is no regular file, as a terminal or a pipe, is written to as it is.

    Args:
        path: Where the file is, or will be.
        text: What it is to hold.
        over: False to leave a file alone that is there already.

    Raises:
        NdxdpError: The file is there already, or could not be written.
    """
    try:
        if not over and os.path.lexists(path):
            raise NdxdpError(f"{path} is there already", "--force writes over it")
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            path.write_text(text, encoding="utf-8")
        else:
            _replace(path.resolve(), text)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        failed = error if isinstance(error, OSError) else OSError(0, str(error))
        raise not_written(path, failed) from error


def _replace(path: Path, text: str) -> None:
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(fd, "w", encoding="utf-8") as fresh:
            fresh.write(text)
            os.fchmod(fd, READABLE)
        os.rename(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
