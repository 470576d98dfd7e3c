"""Drafts of a configuration file, with notes on what a conversion loses. Pure.

ndxdp.config reads such a file; this module writes one, with a comment for each setting that has no
counterpart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ndxdp.config.toml_text import quoted
from ndxdp.printable import printable
from ndxdp.rules.prefix import Prefix


class Note(NamedTuple):
    """A difference that the conversion makes, and the line of its cause; 0 for no line."""

    line: int
    sentence: str


@dataclass(slots=True)
class DraftRule:
    """A [[interface.prefix]].

    Attributes:
        prefix: The prefix.
        answer: The key `answer`.
        dev: The key `dev`.
        router: The R flag.
        defend: True for `dad = "defend"`.
        force: The key `force`.
        comments: Sentences for the file only.
        notes: Sentences for the file, and for stderr.
    """

    prefix: Prefix
    answer: str = "always"
    dev: tuple[str, ...] = ()
    router: bool = True
    defend: bool = True
    force: bool = False
    comments: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


@dataclass(slots=True)
class DraftInterface:
    """A [[interface]].

    Attributes:
        name: The name of the interface.
        rules: The tables [[interface.prefix]].
        networks: The Docker networks of [[interface.docker]].
        announce: The keys of [interface.announce] that are true.
        deadline: The key `deadline` of [interface.resolve], in seconds; None for no table.
        comments: Sentences for the file only.
        notes: Sentences for the file, and for stderr.
    """

    name: str
    rules: list[DraftRule] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    announce: tuple[str, ...] = ()
    deadline: float | None = None
    comments: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


@dataclass(slots=True)
class DraftShare:
    """A [[share]].

    Attributes:
        upstream: The key `upstream`.
        downstream: The key `downstream`.
        prefixes: The key `prefixes`; empty for "advertised".
        relay: True for `router_advertisements = "relay"`.
        max_hosts: The key `max_hosts`; None for the default.
        expire: The key `expire`, in seconds; None for the default.
        comments: Sentences for the file only.
        notes: Sentences for the file, and for stderr.
    """

    upstream: str
    downstream: list[str] = field(default_factory=list)
    prefixes: list[Prefix] = field(default_factory=list)
    relay: bool = True
    max_hosts: int | None = None
    expire: float | None = None
    comments: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    @property
    def members(self) -> set[str]:
        """The names of all interfaces."""
        return {self.upstream, *self.downstream}


@dataclass(slots=True)
class Draft:
    """A configuration file.

    Attributes:
        interfaces: The tables [[interface]].
        shares: The tables [[share]].
        log_level: The key `log_level`; None for the default.
        lines_of: The file that the lines of notes are in; "" for the only one.
        notes: Sentences for the file, and for stderr.
    """

    interfaces: list[DraftInterface] = field(default_factory=list)
    shares: list[DraftShare] = field(default_factory=list)
    log_level: str | None = None
    lines_of: str = ""
    notes: list[Note] = field(default_factory=list)

    def all_notes(self) -> list[Note]:
        """Return the notes of the file, of interfaces, rules and shares, ordered by line."""
        found = list(self.notes)
        found += [note for share in self.shares for note in share.notes]
        for interface in self.interfaces:
            found += interface.notes
            found += [note for rule in interface.rules for note in rule.notes]
        return sorted(found, key=lambda note: note.line)

    def text(self, origin: str) -> str:
        """Return the text of the file; its first line names the origin of the conversion."""
        head = f"# Made from {printable(origin)} by ndxdp convert."
        return "\n".join([head, *self._lines(), ""])

    def warnings(self, origin: str) -> list[str]:
        """Return the notes as sentences; equal ones become one sentence with all their lines."""
        places: dict[str, list[int]] = {}
        for line, sentence in self.all_notes():
            places.setdefault(sentence, []).append(line)
        return [
            printable(f"{self.lines_of or origin}{_where(sorted(set(lines)))}: {sentence}")
            for sentence, lines in places.items()
        ]

    def _lines(self) -> Iterator[str]:
        yield from _note_lines(self.notes)
        if self.log_level is not None:
            yield ""
            yield f"log_level = {quoted(self.log_level)}"
        for interface in self.interfaces:
            yield from _interface(interface)
        for share in self.shares:
            yield from _share(share)


def _interface(interface: DraftInterface) -> Iterator[str]:
    yield ""
    yield "[[interface]]"
    yield f"name = {quoted(interface.name)}"
    yield from _note_lines(interface.notes)
    yield from _comment_lines(interface.comments)
    if interface.deadline is not None:
        yield ""
        yield "[interface.resolve]"
        yield f"deadline = {interface.deadline!r}"
    for rule in interface.rules:
        yield ""
        yield "[[interface.prefix]]"
        yield f"prefix = {quoted(str(rule.prefix))}"
        yield f"answer = {quoted(rule.answer)}"
        if rule.dev:
            yield f"dev = [{', '.join(map(quoted, rule.dev))}]"
        if not rule.router:
            yield "router = false"
        if not rule.defend:
            yield 'dad = "ignore"'
        if rule.force:
            yield "force = true"
        yield from _comment_lines(rule.comments)
        yield from _note_lines(rule.notes)
    for network in interface.networks:
        yield ""
        yield "[[interface.docker]]"
        yield f"network = {quoted(network)}"
    if interface.announce:
        yield ""
        yield "[interface.announce]"
        for key in interface.announce:
            yield f"{key} = true"


def _share(share: DraftShare) -> Iterator[str]:
    yield ""
    yield "[[share]]"
    yield f"upstream = {quoted(share.upstream)}"
    yield f"downstream = [{', '.join(map(quoted, share.downstream))}]"
    if share.prefixes:
        yield f"prefixes = [{', '.join(quoted(str(prefix)) for prefix in share.prefixes)}]"
    yield f"router_advertisements = {quoted('relay' if share.relay else 'off')}"
    if share.max_hosts is not None:
        yield f"max_hosts = {share.max_hosts}"
    if share.expire is not None:
        yield f"expire = {share.expire:g}"
    yield from _note_lines(share.notes)
    yield from _comment_lines(share.comments)


def _note_lines(notes: list[Note]) -> Iterator[str]:
    for line, sentence in notes:
        yield f"# {f'line {line}: ' if line else ''}{printable(sentence)}"


def _comment_lines(comments: list[str]) -> Iterator[str]:
    for sentence in comments:
        yield f"# {printable(sentence)}"


def _where(lines: list[int]) -> str:
    """Return `:3`, or `:3, 5, 9` for several lines; "" for none."""
    named = ", ".join(str(line) for line in lines if line)
    return f":{named}" if named else ""
