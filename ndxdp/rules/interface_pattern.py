"""Patterns of `name` in [[interface]], each for many interfaces. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase, translate

from ndxdp.errors import UsageError
from ndxdp.rules.interface_name import INTERFACE_MAX, WILDCARD, is_pattern

_PATTERN_MAX = 255  # bytes

_CLASS = re.compile(r"\[!?+\]?+[^\]]*\]")  # as fnmatch reads it: a ] that comes first is a member
_FORBIDDEN = re.compile(r"[/:%\s\xa0\0]")  # in no name (check_interface())


def check_pattern(pattern: str) -> None:
    """Raise UsageError for a pattern that no interface's name can match.

    A pattern is compared with names only, and not with alternative names, which may be longer.
    """
    if not pattern.isprintable() or _FORBIDDEN.search(pattern):
        raise UsageError(f"'{pattern}' matches no interface's name", 'as in "tap*"')
    if len(pattern.encode(errors="replace")) > _PATTERN_MAX:
        raise UsageError(
            f"the pattern is longer than {_PATTERN_MAX} bytes",
            "write several [[interface]] tables",
        )
    without_classes = _CLASS.sub("?", pattern)
    if "[" in without_classes:
        raise UsageError(
            f"'{pattern}' has a [ without its ]", 'as in "tap[0-9]", or without the bracket'
        )
    if any("(?!)" in translate(part) for part in _CLASS.findall(pattern)):
        raise UsageError(
            f"'{pattern}' has a range without a member", 'the lower end comes first, as in "[0-9]"'
        )
    shortest = len(without_classes.replace("*", "").encode(errors="replace"))
    if shortest > INTERFACE_MAX:
        raise UsageError(
            f"'{pattern}' matches only names longer than {INTERFACE_MAX} bytes, and no interface"
            " has one",
            "a pattern is not compared with alternative names",
        )


def contains(pattern: str, other: str) -> bool:
    """Return True if every interface that `other` names or matches certainly matches a pattern.

    Args:
        pattern: A name or a pattern. Of two different patterns, only one whose wildcards are all
            `*` is known to contain the other.
        other: A name or a pattern.
    """
    if pattern == other:
        return True
    if not is_pattern(other):
        return fnmatchcase(other, pattern)
    if not is_pattern(pattern) or "?" in pattern or "[" in pattern:
        return False
    # A character that no name has stands for what a wildcard matches: only `*` can match it.
    return fnmatchcase(re.sub(r"[*?]", "\0", _CLASS.sub("\0", other)), pattern)


class Patterns:
    """The configured names of interfaces, some of which are patterns.

    Attributes:
        named: The names that are no patterns.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Compile the patterns, which are tried in this order."""
        every = list(names)
        self.named = frozenset(name for name in every if not is_pattern(name))
        self._patterns = [
            (name, re.compile(translate(name)).match) for name in every if is_pattern(name)
        ]
        # One call compares a name with all of them, and most foreign names end there.
        self._beginnings = tuple(WILDCARD.split(name, maxsplit=1)[0] for name, _ in self._patterns)

    def __bool__(self) -> bool:
        """Return True if there is a pattern."""
        return bool(self._patterns)

    def first(self, name: str, others: Iterable[str] = ()) -> str:
        """Return the first pattern that matches an interface; "" if there is none.

        Args:
            name: The interface's name.
            others: Its alternative names. No pattern matches an interface that is configured by
                one of its names.
        """
        if not name.startswith(self._beginnings):
            return ""
        found = next((pattern for pattern, matches in self._patterns if matches(name)), "")
        is_named = found and (name in self.named or not self.named.isdisjoint(others))
        return "" if is_named else found

    def all_matching(self, name: str) -> list[str]:
        """Return all patterns that match a name, in their order."""
        return [pattern for pattern, matches in self._patterns if matches(name)]
