"""The syntax of ndppd's configuration, as ndppd 0.2 takes it, oddities included. Pure.

A file is a block of entries, `keyword value { block }`, each part but one may be missing:

- Spaces, `=` and comments part keyword, value and `{`; a line's end parts entries. So a `{` on a
  line of its own begins an entry without keyword and value.
- `#` and `//` comment to the line's end, `/*` to `*/` over lines; but none begins within a value.
- A quote at the end of a string is not consumed: it begins another entry, without a keyword,
  whose value is the rest of the line.
- A `}` that closes nothing ends the file.
- The file ends at a NUL.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, field

from ndxdp.errors import NdxdpError

_COMMENT = r"(?:\#|//)[^\n\0]*|/(?=\*)(?:[^\0]*?\*/|[^\0]*)"  # `/*/` is a whole one
_SPACE = re.compile(rf"(?:[ \t\v\f\r]|{_COMMENT})*")
_SPACE_AND_LINES = re.compile(rf"(?:[ \t\v\f\r\n]|{_COMMENT})*")
_KEYWORD = re.compile(r"[A-Za-z0-9_-]*")
_WORD = re.compile(r"[!-z|~]*")  # all that is visible in ASCII, but not { and }
_QUOTED = re.compile(r"'([^'\n\0]*)|\"([^\"\n\0]*)")


@dataclass(slots=True)
class Entry:
    """`keyword value { entries }`, with "" and None for what is not there.

    line: where it begins, from 1. quoted: the value was.
    """

    keyword: str
    value: str
    line: int
    quoted: bool = False
    entries: list[Entry] | None = None

    def find(self, keyword: str) -> Entry | None:
        """The first of that keyword within, which is the one that ndppd heeds."""
        return next(iter(self.find_all(keyword)), None)

    def find_all(self, keyword: str) -> list[Entry]:
        return [entry for entry in self.entries or () if entry.keyword == keyword]


@dataclass(slots=True)
class File:
    """root: the block that the file is. unread: the line of a `}` that ended it early."""

    root: Entry = field(default_factory=lambda: Entry("", "", 1, entries=[]))
    unread: int | None = None


def parse(text: str, name: str) -> File:
    """The entries of a text; NdxdpError with the line for what ndppd cannot read either.

    name: the file's, for messages.
    """
    text = text.partition("\0")[0]
    ends = [found.start() for found in re.finditer("\n", text)]
    text += "\0"  # so that there is always a next character
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
                "remove it: only ASCII may stand outside of comments and quotes",
            )
    if len(open_blocks) > 1:
        raise NdxdpError(
            f"{name}:{open_blocks[-1].line}: the {{ of this entry is not closed",
            "write the missing }; ndppd does not read the file either",
        )
    return found


def _skip(space: re.Pattern[str], text: str, at: int) -> int:
    found = space.match(text, at)
    assert found is not None
    return found.end()
