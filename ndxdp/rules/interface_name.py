"""Names of interfaces and patterns of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase, translate

from ndxdp.errors import UsageError

INTERFACE_MAX, ALTNAME_MAX = 15, 127
"""Bytes of an interface's name, and of an alternative name (`ip link property`)."""

DEV_MAX = 127
"""Bytes of UTF-8 that the maps store of a rule's output interfaces, joined by blanks."""

FEWER_DEVS = "name fewer different sets of interfaces in `dev`, or patterns that fewer match"
"""What to do if all sets of output interfaces together match too many interfaces."""


WILDCARD = re.compile(r"[*?[]")
"""A character that makes a name a pattern."""


def is_pattern(name: str) -> bool:
    """Return True if a name is a pattern of names."""
    return WILDCARD.search(name) is not None


def check_interface(name: str) -> None:
    """Raise UsageError for a text that is no interface name (dev_valid_name() in the kernel).

    A name with the characters of a pattern is refused as well, although the kernel accepts it.
    """
    try:
        data = name.encode()
    except UnicodeEncodeError:  # No configuration file or status page can contain the name.
        data = b""
    # The kernel takes the byte A0, which `à` has in UTF-8, for a blank, and %d for a number.
    if (
        not 1 <= len(data) <= ALTNAME_MAX
        or name in (".", "..")
        or re.search(rb"[/:%\s\xa0\0]", data)
    ):
        raise UsageError(f"'{name}' is no interface name", "see: ip -br link")
    if is_pattern(name):
        raise UsageError(
            f"'{name}' is a pattern, but this must be the name of one interface",
            "name each interface on its own: ip -br link",
        )


def natural_order(name: str) -> list[tuple[str, int, str]]:
    """Return the key by which names are sorted so that `eth2` comes before `eth10`."""
    parts = re.findall(r"(\D*)(\d*)", name)
    return [(text, int(digits or 0), digits) for text, digits in parts]


def parse_dev(texts: Iterable[str]) -> tuple[str, ...]:
    """Validate patterns of interface names, such as `docker0`, `br-*`, `vnet[0-9]`.

    Returns:
        The patterns in their order, each once.

    Raises:
        UsageError: No interface can have a name that matches, or the patterns are too long.
    """
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


def matching_dev(names: Collection[str], dev: tuple[str, ...]) -> set[str]:
    """Return the names that match one of the patterns; a name that is no pattern is looked up.

    Args:
        names: Names of interfaces, quick to look up.
        dev: The patterns, at least one.
    """
    patterns = [pattern for pattern in dev if is_pattern(pattern)]
    found = {pattern for pattern in dev if pattern in names}
    if patterns:
        matches = re.compile("|".join(map(translate, patterns))).match
        found.update(filter(matches, names))
    return found


def matches_dev(name: str, dev: tuple[str, ...]) -> bool:
    """Return True if an interface's name matches one of the patterns, or there is no pattern."""
    return not dev or any(fnmatchcase(name, pattern) for pattern in dev)
