"""Writes files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ndxdp.errors import NdxdpError, not_written


def write_text(path: Path, text: str, *, over: bool = True) -> None:
    """Write a text into a file, or what a symbolic link leads to: all of it, or nothing.

    What is no regular file, as a terminal or a pipe, is written to as it is.

    Args:
        path: Where the file is, or will be.
        text: What it is to hold.
        over: False to leave a file alone that is there already.

    Raises:
        NdxdpError: The file is there already, or could not be written.
    """
    if not over and os.path.lexists(path):
        raise NdxdpError(f"{path} is there already", "--force writes over it")
    if path.exists() and not path.is_file():
        with _written(path):
            path.write_text(text, encoding="utf-8")
    else:
        replace(path.resolve(), text)


def replace(path: Path, text: str) -> None:
    """Put a file that everybody may read in the place of what there is, a symbolic link, too.

    Raises:
        NdxdpError: It could not be written; what there is stays.
    """
    with _written(path):
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(fd, "w", encoding="utf-8") as fresh:
                fresh.write(text)
                os.fchmod(fd, 0o644)
            os.rename(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into an NdxdpError that names the file."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from error
