"""Syntax of ndppd's configuration as ndppd 0.2 reads it, including its oddities. Pure.

A file is a block of entries, `keyword value { block }`. An entry needs one of the three parts only:

- Spaces, `=` and comments separate keyword, value and `{`; a line's end separates entries. So a
  `{` on a line of its own begins an entry without keyword and value.
- `#` and `//` start a comment until the end of the line, `/*` one until `*/`. No comment starts
  within a value.
- The quote at the end of a string begins another entry, without a keyword, whose value is the rest
  of the line.
- A `}` that closes nothing ends the file.
- A NUL ends the file.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, field

from ndxdp.errors import NdxdpError

_COMMENT = r"(?:\#|//)[^\n\0]*|/(?=\*)(?:[^\0]*?\*/|[^\0]*)"  # `/*/` is a complete comment
_SPACE = re.compile(rf"(?:[ \t\v\f\r]|{_COMMENT})*")
_SPACE_AND_LINES = re.compile(rf"(?:[ \t\v\f\r\n]|{_COMMENT})*")
_KEYWORD = re.compile(r"[A-Za-z0-9_-]*")
_WORD = re.compile(r"[!-z|~]*")  # visible ASCII characters except { and }
_QUOTED = re.compile(r"'([^'\n\0]*)|\"([^\"\n\0]*)")


@dataclass(slots=True)
class Entry:
    """An entry `keyword value { entries }`, with "" and None for missing parts.

    Attributes:
        keyword: The keyword.
        value: The value.
        line: The first line of the entry, from 1.
        quoted: True if the value is quoted.
        entries: The entries of the block.
    """

    keyword: str
    value: str
    line: int
    quoted: bool = False
    entries: list[Entry] | None = None

    def find(self, keyword: str) -> Entry | None:
        """Return the first entry of a keyword in the block, which is the one that ndppd uses."""
        return next(iter(self.find_all(keyword)), None)

    def find_all(self, keyword: str) -> list[Entry]:
        """Return all entries of a keyword in the block."""
        return [entry for entry in self.entries or () if entry.keyword == keyword]


@dataclass(slots=True)
class File:
    """A file: its root block, and in `unread` the line of a `}` that ends the file early."""

    root: Entry = field(default_factory=lambda: Entry("", "", 1, entries=[]))
    unread: int | None = None


def parse(text: str, name: str) -> File:
    """Return the entries of a text.

    Args:
        text: The configuration of ndppd.
        name: The name of the file, for messages.

    Raises:
        NdxdpError: ndppd cannot read the text either. The message names the line.
    """
    text = text.partition("\0")[0]
    ends = [found.start() for found in re.finditer("\n", text)]
    text += "\0"  # a sentinel, so that there is always a next character
    found = File()
    open_blocks = [found.root]
    at = 0
    while True:
        start = at = _skip(_SPACE_AND_LINES, text, at)
        line = bisect_left(ends, at) + 1
        if text[at] == "\0":
            break
        if text[at] == "}":
            if len(open_blocks) == 1:
                found.unread = line
                break
            open_blocks.pop()
            at += 1
            continue
        keyword = _KEYWORD.match(text, at)
        assert keyword is not None
        at = _skip(_SPACE, text, keyword.end())
        if text[at] == "=":
            at = _skip(_SPACE, text, at + 1)
        entry = Entry(keyword[0], "", line)
        if quoted := _QUOTED.match(text, at):
            entry.value, entry.quoted, at = quoted[0][1:], True, quoted.end()
        elif word := _WORD.match(text, at):
            entry.value, at = word[0], word.end()
        at = _skip(_SPACE, text, at)
        inner = open_blocks[-1].entries
        assert inner is not None
        inner.append(entry)
        if text[at] == "{":
            at += 1
            entry.entries = []
            open_blocks.append(entry)
        if at == start:
            raise NdxdpError(
                f"{name}:{line}: ndppd does not get past the character {text[at]!a}",
                "remove it: outside of comments and quotes ndppd accepts ASCII only",
            )
    if len(open_blocks) > 1:
        raise NdxdpError(
            f"{name}:{open_blocks[-1].line}: the {{ of this entry is not closed",
            "write the missing }; ndppd does not read the file either",
        )
    return found


def _skip(space: re.Pattern[str], text: str, at: int) -> int:
    """Return the place after spaces and comments."""
    found = space.match(text, at)
    assert found is not None
    return found.end()
