"""Names of interfaces and patterns of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from ndxdp.errors import UsageError

INTERFACE_MAX, ALTNAME_MAX = 15, 127
"""Bytes of an interface's name, and of an alternative one (ip link property)."""

DEV_MAX = 127
"""Bytes of UTF-8 that the maps store of all output interfaces of a rule, blanks between them."""


def check_interface(name: str) -> None:
    """Raise UsageError for a text that can name no interface (Linux' dev_valid_name()).

    Patterns are refused, too, although the kernel would let an interface have such a name.
    """
    try:
        data = name.encode()
    except UnicodeEncodeError:  # it is not UTF-8, and could be written into no file or page
        data = b""
    # To the kernel the byte A0, which `à` has in UTF-8, is a blank, and %d stands for a number.
    if (
        not 1 <= len(data) <= ALTNAME_MAX
        or name in (".", "..")
        or re.search(rb"[/:%\s\xa0\0]", data)
    ):
        raise UsageError(f"'{name}' is no interface name", "see: ip -br link")
    if re.search(r"[*?[]", name):
        raise UsageError(
            f"'{name}' is a pattern, and one interface is to be named",
            "name each interface on its own: ip -br link",
        )


def parse_dev(texts: Iterable[str]) -> tuple[str, ...]:
    """Patterns of interface names: `docker0`, `br-*`, `vnet[0-9]`; UsageError for others."""
    patterns = tuple(dict.fromkeys(texts))
    for pattern in patterns:
        if not pattern or not pattern.isprintable() or re.search(r"[/:\s]", pattern):
            raise UsageError(f"'{pattern}' matches no interface's name", "as in docker0, or br-*")
    if len(" ".join(patterns).encode(errors="replace")) > DEV_MAX:
        raise UsageError(
            f"the interfaces of one rule take more than {DEV_MAX} bytes",
            "use a pattern, as in br-*",
        )
    return patterns


def matches_dev(name: str, via: tuple[str, ...]) -> bool:
    """Whether an interface's name matches one of the patterns; any does where there are none."""
    return not via or any(fnmatchcase(name, pattern) for pattern in via)
