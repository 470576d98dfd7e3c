"""Fields of reports: checked, because another version may have written them.

Each function returns a field, or raises TypeError, ValueError or OSError if the value is none.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def text(value: object) -> str:
    """Return a text that can be printed."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    value.encode()  # a surrogate, which JSON may have, cannot be printed
    return value


def address(value: object) -> str:
    """Return an address in its canonical form."""
    return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, text(value)))


def prefix(value: object) -> str:
    """Return a prefix in its canonical form."""
    start, _, length = text(value).partition("/")
    if not length.isascii() or not length.isdigit() or int(length) > 128:
        raise ValueError(f"{value!r} is no prefix")
    return f"{address(start)}/{int(length)}"


def moment(value: object) -> float:
    """Return a time, such as time.time() returns, of the years 1970 to 5138."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise TypeError(f"{value!r} is no time")
    return value


def whole(value: object) -> int:
    """Return a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def maybe(reader: Callable[[object], _T], value: object) -> _T | None:
    """Return None for None, and what `reader` returns for other values."""
    return None if value is None else reader(value)
