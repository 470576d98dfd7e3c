"""Patterns of `name` in [[interface]], each for many interfaces. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase, translate

from ndxdp.errors import UsageError
from ndxdp.rules.interface_name import INTERFACE_MAX, WILDCARD, is_pattern

_PATTERN_MAX = 255  # bytes

_CLASS = re.compile(r"\[!?+\]?+[^\]]*\]")  # as fnmatch reads it: a ] that comes first is a member
_TOKEN = re.compile(rf"{_CLASS.pattern}|.", re.DOTALL)
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


def overlap(first: str, second: str) -> bool:
    """Return True if one interface can have a name that both match: each a name or a pattern."""
    tokens = _tokens(first), _tokens(second)
    # Two classes have a character in common if an end of one's range is in the other, or if both
    # have a usual character, which only negated ones need.
    alphabet = [*map(chr, range(0x21, 0x7F)), *first, *second]
    members = [
        [{char for char in alphabet if fnmatchcase(char, token)} for token in each]
        for each in tokens
    ]
    # reach: the indexes in the second pattern up to which both may have matched the same text.
    reach = _after_stars({0}, tokens[1])
    for token, chars in zip(tokens[0], members[0], strict=True):
        if token == "*":
            least = min(reach, default=len(tokens[1]) + 1)
            reach = set(range(least, len(tokens[1]) + 1))
            continue
        steps = {
            at if tokens[1][at] == "*" else at + 1
            for at in reach
            if at < len(tokens[1]) and chars & members[1][at]
        }
        reach = _after_stars(steps, tokens[1])
    return len(tokens[1]) in reach


def _tokens(pattern: str) -> list[str]:
    """Split a pattern into stars, question marks, classes and characters."""
    return _TOKEN.findall(pattern)


def _after_stars(reach: set[int], tokens: list[str]) -> set[int]:
    """Return the indexes that follow when a star matches nothing."""
    found = set(reach)
    for at in sorted(reach):
        while at < len(tokens) and tokens[at] == "*":
            at += 1
            found.add(at)
    return found


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
