"""Where in a TOML text each key stands. Pure.

tomllib says what a text holds, but not where. This walks a text that tomllib has taken, so it
checks nothing: it only has to know where a key, a string and a bracket end.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

KeyPath = tuple[str | int, ...]
"""Keys, and places in arrays: ("interface", 0, "prefix", 1, "answer"). () is the whole text."""

_BLANK = re.compile(r"[ \t]*")
_BLANKS_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
# A string of several lines may end in five quotes: two of its own, then the three.
_STRING = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|"(?:[^"\\\n]|\\.)*"'''
    r"""|'''.*?'{3,5}|'[^'\n]*'""",
    re.DOTALL,
)
_OTHER = re.compile(r"[^,\]}#\n]+")  # numbers, booleans, dates


def line_of_long_key(text: str, parts: int) -> int:
    """Return the line of the first dotted key with more than so many parts; 0 if there is none.

    The text need not be good TOML. The effort grows with its length, however many parts there are.
    """
    if all(line.count(".") < parts for line in text.split("\n")):
        return 0
    # Strings and comments are matched, too, so that what they hold is not taken for a key.
    key = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
    tokens = re.compile(
        rf"(?P<long>{key}(?:[ \t]*+\.[ \t]*+{key}){{{parts},}}+)"
        rf"|#[^\n]*+|{_STRING.pattern}|[A-Za-z0-9_-]++|.",
        re.DOTALL,
    )
    found = next((token for token in tokens.finditer(text) if token["long"]), None)
    return text.count("\n", 0, found.start()) + 1 if found else 0


def lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of every key, table and element of an array in a good TOML text.

    A table's line is its header's, or where it is first implied. RecursionError where values
    are nested deeper than Python's stack.
    """
    return _Walk(text).found


class _Walk:
    def __init__(self, text: str) -> None:
        self.found: dict[KeyPath, int] = {(): 1}
        self._text = text
        self._at = 0
        self._line = 1
        self._sizes: dict[KeyPath, int] = {}  # of the arrays of tables so far
        self._statements()

    def _statements(self) -> None:
        base: KeyPath = ()
        while True:
            self._skip(_BLANKS_AND_LINES)
            if self._at == len(self._text):
                return
            if self._take("[["):
                base = self._array_header()
            elif self._take("["):
                base = self._within((), self._keys())
                self.found[base] = self._line
                self._take("]")
            else:
                self._assignment(base)

    def _array_header(self) -> KeyPath:
        """What stands between [[ and ]]: one more table of the array."""
        *outer, last = self._keys()
        array = (*self._within((), outer), last)
        number = self._sizes.get(array, 0)
        self._sizes[array] = number + 1
        self.found.setdefault(array, self._line)
        self.found[(*array, number)] = self._line
        self._take("]]")
        return (*array, number)

    def _assignment(self, base: KeyPath) -> None:
        path = self._within(base, self._keys())
        self.found[path] = self._line
        self._take("=")
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._skip(_BLANK)
        if self._take("["):
            for number in self._items("]"):
                self.found[(*path, number)] = self._line
                self._value((*path, number))
        elif self._take("{"):
            for _ in self._items("}"):
                self._assignment(path)
        elif self._text[self._at] in "\"'":
            self._skip(_STRING)
        else:
            self._skip(_OTHER)

    def _items(self, end: str) -> Iterator[int]:
        """Stand before each item up to the bracket that ends them; the caller walks the item."""
        number = 0
        while True:
            self._skip(_BLANKS_AND_LINES)
            if self._take(end):
                return
            yield number
            number += 1
            self._skip(_BLANKS_AND_LINES)
            self._take(",")

    def _keys(self) -> list[str]:
        """A key with its dots, and the blanks around it."""
        keys = []
        while True:
            self._skip(_BLANK)
            key = self._skip(_KEY)
            keys.append(tomllib.loads(f"key = {key}")["key"] if key[0] in "\"'" else key)
            self._skip(_BLANK)
            if not self._take("."):
                return keys

    def _within(self, path: KeyPath, keys: list[str]) -> KeyPath:
        """The path that keys lead to: in an array of tables to its last one."""
        for key in keys:
            path = (*path, key)
            self.found.setdefault(path, self._line)
            if path in self._sizes:
                path = (*path, self._sizes[path] - 1)
        return path

    def _take(self, word: str) -> bool:
        taken = self._text.startswith(word, self._at)
        if taken:
            self._at += len(word)
        return taken

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:  # no good TOML, or no text: stop before this goes round for ever
            raise ValueError(f"unexpected text in line {self._line}")
        self._at = match.end()
        self._line += match[0].count("\n")
        return match[0]
