"""A configuration to be written: what another responder's came to, and what of it was lost. Pure.

ndxdp.config reads such a text; this writes one, with a comment wherever something has no
counterpart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ndxdp.printable import printable
from ndxdp.rules.prefix import Prefix


class Note(NamedTuple):
    """What is lost, or otherwise than before. line: of the text that was read; 0 for none."""

    line: int
    sentence: str


@dataclass(slots=True)
class DraftRule:
    """One [[interface.prefix]]. answer, via and force as in the file; router: the R flag.

    defend: of `dad`. comments: what is said in the file alone, notes elsewhere as well.
    """

    prefix: Prefix
    answer: str = "always"
    via: tuple[str, ...] = ()
    router: bool = True
    defend: bool = True
    force: bool = False
    comments: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


@dataclass(slots=True)
class DraftInterface:
    """One [[interface]]. networks: Docker's. announce: keys that are true. deadline: seconds.

    comments: what is said in the file alone.
    """

    name: str
    rules: list[DraftRule] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    announce: tuple[str, ...] = ()
    deadline: float | None = None
    comments: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


@dataclass(slots=True)
class Draft:
    """A whole file. log_level: None for the default."""

    interfaces: list[DraftInterface] = field(default_factory=list)
    log_level: str | None = None
    notes: list[Note] = field(default_factory=list)

    def all_notes(self) -> list[Note]:
        """Those of the file, of its interfaces and of their rules, by line."""
        found = list(self.notes)
        for interface in self.interfaces:
            found += interface.notes
            found += [note for rule in interface.rules for note in rule.notes]
        return sorted(found, key=lambda note: note.line)

    def text(self, origin: str) -> str:
        """The file. origin: what it was made from, for the comment at its top."""
        head = f"# Made from {printable(origin)} by ndxdp convert."
        return "\n".join([head, *self._lines(), ""])

    def warnings(self, origin: str) -> list[str]:
        """The notes in a sentence each, those that say the same in one."""
        places: dict[str, list[int]] = {}
        for line, sentence in self.all_notes():
            places.setdefault(sentence, []).append(line)
        return [
            printable(f"{origin}{_where(sorted(set(lines)))}: {sentence}")
            for sentence, lines in places.items()
        ]

    def _lines(self) -> Iterator[str]:
        yield from _comments(self.notes)
        if self.log_level is not None:
            yield ""
            yield f"log_level = {_string(self.log_level)}"
        for interface in self.interfaces:
            yield from _interface(interface)


def _interface(interface: DraftInterface) -> Iterator[str]:
    yield ""
    yield "[[interface]]"
    yield f"name = {_string(interface.name)}"
    yield from _comments(interface.notes)
    yield from _plain(interface.comments)
    if interface.deadline is not None:
        yield ""
        yield "[interface.resolve]"
        yield f"deadline = {interface.deadline!r}"
    for rule in interface.rules:
        yield ""
        yield "[[interface.prefix]]"
        yield f"prefix = {_string(str(rule.prefix))}"
        yield f"answer = {_string(rule.answer)}"
        if rule.via:
            yield f"via = [{', '.join(map(_string, rule.via))}]"
        if not rule.router:
            yield "router = false"
        if not rule.defend:
            yield 'dad = "ignore"'
        if rule.force:
            yield "force = true"
        yield from _plain(rule.comments)
        yield from _comments(rule.notes)
    for network in interface.networks:
        yield ""
        yield "[[interface.docker]]"
        yield f"network = {_string(network)}"
    if interface.announce:
        yield ""
        yield "[interface.announce]"
        for key in interface.announce:
            yield f"{key} = true"


def _comments(notes: list[Note]) -> Iterator[str]:
    for line, sentence in notes:
        yield f"# {f'line {line}: ' if line else ''}{printable(sentence)}"


def _plain(comments: list[str]) -> Iterator[str]:
    for sentence in comments:
        yield f"# {printable(sentence)}"


def _where(lines: list[int]) -> str:
    """`:3`, or `:3, 5, 9` where several lines are meant."""
    named = ", ".join(str(line) for line in lines if line)
    return f":{named}" if named else ""


def _string(text: str) -> str:
    """A basic string of TOML: JSON's, but DEL may not stand in it either."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
