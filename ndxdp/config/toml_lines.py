"""Line numbers of the keys in a TOML text. Pure.

tomllib returns the values of a text, but not their places. This module walks through a text that
tomllib has accepted. So it checks nothing, and only finds the ends of keys, strings and brackets.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

KeyPath = tuple[str | int, ...]
"""Keys, and indexes of arrays: ("interface", 0, "prefix", 1, "answer"). () is the whole text."""

_BLANK = re.compile(r"[ \t]*")
_BLANKS_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
# A multi-line string may end in five quotes: two of its text, and three that end it.
_STRING = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|"(?:[^"\\\n]|\\.)*"'''
    r"""|'''.*?'{3,5}|'[^'\n]*'""",
    re.DOTALL,
)
_OTHER = re.compile(r"[^,\]}#\n]+")  # numbers, booleans, dates


def line_of_long_key(text: str, parts: int) -> int:
    """Return the line of the first dotted key with more than `parts` parts; 0 if there is none.

    The text may be wrong TOML. The effort is proportional to its length.
    """
    if all(line.count(".") < parts for line in text.split("\n")):
        return 0
    # Strings and comments are matched as well, so that their content is not taken for a key.
    key = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
    tokens = re.compile(
        rf"(?P<long>{key}(?:[ \t]*+\.[ \t]*+{key}){{{parts},}}+)"
        rf"|#[^\n]*+|{_STRING.pattern}|[A-Za-z0-9_-]++|.",
        re.DOTALL,
    )
    found = next((token for token in tokens.finditer(text) if token["long"]), None)
    return text.count("\n", 0, found.start()) + 1 if found else 0


def lines(text: str) -> dict[KeyPath, int]:
    """Return the line, from 1, of every key, table and array element in a valid TOML text.

    The line of a table is that of its header, or of the first key that implies the table.

    Raises:
        RecursionError: Values are nested deeper than Python's stack.
    """
    return _Walk(text).found


class _Walk:
    """A walk through a text, which collects the lines in `found`."""

    def __init__(self, text: str) -> None:
        self.found: dict[KeyPath, int] = {(): 1}
        self._text = text
        self._at = 0
        self._line = 1
        self._sizes: dict[KeyPath, int] = {}  # sizes of the arrays of tables so far
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
        """Walk through a header after its [[; return the path of the new table."""
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
        """Yield the index before each item, which the caller walks through, up to the bracket."""
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
        """Return the parts of a dotted key, and skip the blanks around it."""
        keys = []
        while True:
            self._skip(_BLANK)
            key = self._skip(_KEY)
            keys.append(tomllib.loads(f"key = {key}")["key"] if key[0] in "\"'" else key)
            self._skip(_BLANK)
            if not self._take("."):
                return keys

    def _within(self, path: KeyPath, keys: list[str]) -> KeyPath:
        """Return the path that keys lead to; in an array of tables, that of its last table."""
        for key in keys:
            path = (*path, key)
            self.found.setdefault(path, self._line)
            if path in self._sizes:
                path = (*path, self._sizes[path] - 1)
        return path

    def _take(self, word: str) -> bool:
        """Skip a word; return False if the text continues otherwise."""
        taken = self._text.startswith(word, self._at)
        if taken:
            self._at += len(word)
        return taken

    def _skip(self, pattern: re.Pattern[str]) -> str:
        """Skip a match of a pattern, and return it."""
        match = pattern.match(self._text, self._at)
        if match is None:  # the text is not TOML; continuing would never end
            raise ValueError(f"unexpected text in line {self._line}")
        self._at = match.end()
        self._line += match[0].count("\n")
        return match[0]
