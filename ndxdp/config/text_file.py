"""Text files that the configuration consists of: the file itself, and lists of prefixes."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from ndxdp.errors import UsageError
from ndxdp.printable import printable


def read_text(path: Path) -> str:
    """Return the text of a file.

    Only regular files are read, because a read of a pipe or device may never end.

    Raises:
        UsageError: The file cannot be read, or is not UTF-8.
    """
    name = printable(str(path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{name} is not a regular file", "name a text file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no file {name}", "check the spelling of its name") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"cannot read {name}: {why}", "see: ls -l, namei -l") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{name}:{line}: this is not UTF-8 text", "save it as UTF-8") from None


def lines_of(text: str) -> Iterator[str]:
    """Yield one line after the other; a list of a million lines would take 80 MB."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]
