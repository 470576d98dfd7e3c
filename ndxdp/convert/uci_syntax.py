"""Syntax of OpenWrt's configuration files (UCI), as libuci reads them. Pure.

A file has sections, `config TYPE NAME`, of options, `option KEY VALUE`, and of lists, `list KEY
VALUE`, one statement a line. A word is quoted as in a shell, without variables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ndxdp.errors import NdxdpError

_TOKEN = re.compile(
    r"[ \t\r\f\v]+|\\\n|\#[^\n]*|(?P<end>[\n;])"
    r"""|(?P<word>(?:'[^']*'|"(?:\\.|[^"\\])*"|\\[^\n]|[^\s'"\\;])+)""",
    re.DOTALL,
)
_PART = re.compile(
    r"""'(?P<single>[^']*)'|"(?P<double>(?:\\.|[^"\\])*)"|\\(?P<escaped>.)""", re.DOTALL
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class Option(NamedTuple):
    """The value of an option, or the values of a list, and the line of the first one."""

    values: list[str]
    line: int


@dataclass(slots=True)
class Section:
    """A section.

    Attributes:
        type: Its type.
        name: Its name; "" for a section without one.
        line: The line of its `config` statement, from 1.
        options: Its options and lists by their keys.
    """

    type: str
    name: str
    line: int
    options: dict[str, Option] = field(default_factory=dict)

    def value(self, key: str, default: str = "") -> str:
        """Return the value of an option; of a list the first one."""
        option = self.options.get(key)
        return option.values[0] if option else default

    def line_of(self, key: str) -> int:
        """Return the line of an option, or of the section that lacks it."""
        option = self.options.get(key)
        return option.line if option else self.line

    def is_on(self, key: str) -> bool:
        """Return the value of a switch; False without one."""
        return self.value(key).lower() in ("1", "yes", "on", "true", "enabled")


def parse(text: str, name: str) -> list[Section]:
    """Return the sections of a text; statements for a section of the same name are one section.

    Args:
        text: The text.
        name: The name of the file, for messages.

    Raises:
        NdxdpError: libuci refuses the text. The message names the line.
    """
    sections: list[Section] = []
    for line, (statement, *words) in _statements(text, name):
        place = f"{name}:{line}"
        if statement == "package":
            continue
        if statement == "config":
            if not 1 <= len(words) <= 2:
                raise NdxdpError(
                    f"{place}: this config has no type, or too many words",
                    "write it as in config dhcp 'lan'",
                )
            kind, called = words[0], "".join(words[1:])
            known = [
                each for each in sections if called and (each.type, each.name) == (kind, called)
            ]
            if known:
                sections.remove(known[0])
            sections.append(known[0] if known else Section(kind, called, line))
            continue
        if statement not in ("option", "list"):
            raise NdxdpError(
                f"{place}: OpenWrt's files have no statement '{statement}'",
                "the statements are config, option and list",
            )
        if not sections:
            raise NdxdpError(
                f"{place}: this {statement} belongs to no section", "write config TYPE above it"
            )
        if len(words) != 2:
            raise NdxdpError(
                f"{place}: this {statement} needs a key and one value",
                f"put a value with blanks in quotes, as in {statement} key 'one two'",
            )
        key, value = words
        options = sections[-1].options
        if statement == "list" and key in options:
            options[key].values.append(value)
        else:
            options[key] = Option([value], line)
    return sections


def _statements(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the words of each statement."""
    at, line, words, first = 0, 1, list[str](), 1
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise NdxdpError(f"{name}:{line}: this quote is not closed", "write the missing quote")
        if token["word"]:
            first = first if words else line
            words.append(_PART.sub(_unquoted, token["word"]))
        elif token["end"] and words:
            yield first, words
            words = []
        line += token[0].count("\n")
        at = token.end()
    if words:
        yield first, words


def _unquoted(part: re.Match[str]) -> str:
    if part["double"] is not None:
        return _ESCAPE.sub(r"\1", part["double"])
    return part["single"] if part["single"] is not None else part["escaped"]
