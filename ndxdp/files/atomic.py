"""Atomic writes of files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ndxdp.errors import NdxdpError, not_written


def write_text(path: Path, text: str, *, over: bool = True) -> None:
    """Write all of a text to a file, or nothing.

    The target of a symbolic link is replaced. A terminal or a pipe is written to directly.

    Args:
        path: The file.
        text: The text.
        over: Overwrite an existing file.

    Raises:
        NdxdpError: The file exists and `over` is False, or the file cannot be written.
    """
    if not over and os.path.lexists(path):
        raise NdxdpError(f"{path} exists already", "--force overwrites it")
    if path.exists() and not path.is_file():
        with write_errors(path):
            path.write_text(text, encoding="utf-8")
    else:
        replace(path.resolve(), text)


def replace(path: Path, text: str) -> None:
    """Replace a file, or a symbolic link, by a new file that every user may read.

    Raises:
        NdxdpError: The new file cannot be written; the old one stays.
    """
    with write_errors(path), staged(path, text) as name:
        os.rename(name, path)


@contextlib.contextmanager
def staged(path: Path, text: str) -> Iterator[str]:
    """Write a text to a new file in a file's directory; yield its path, to rename it over the file.

    Every user may read the new file. If the block does not rename it, it is removed.

    Raises:
        OSError: The new file cannot be written.
    """
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(fd, "w", encoding="utf-8") as fresh:
            fresh.write(text)
            os.fchmod(fd, 0o644)
        yield name
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into an NdxdpError that names the file."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from error
