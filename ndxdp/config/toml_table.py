"""TOML tables that are read key by key, and collect every problem. Pure.

A reader asks a table for its keys by name and type. For a wrong value the table notes a problem,
with its place, and returns a stand-in, so that one reading finds all problems. `finish` then raises
one UsageError, which also names the keys that the reader did not ask for.
"""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from ndxdp.config import toml_lines
from ndxdp.config.toml_lines import KeyPath
from ndxdp.errors import UsageError
from ndxdp.printable import printable

_T = TypeVar("_T")

_ALSO_MAX = 20
"""Problems in addition to the first that one error lists."""

_PARTS_MAX = 32
"""Parts of a key, `a.b.c`; tomllib's time grows with their square. No known key has five."""

_SENTENCE_MAX = 400
"""Characters of a problem's text, which may repeat a word of the file."""

_ROOT = "the file"

_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "a boolean"),  # before int, of which bool is a subclass
    (int, "an integer"),
    (float, "a number"),
    (str, "a string"),
    (dict, "a table"),
    (list, "an array"),
    ((datetime.date, datetime.time), "a date or time"),
    (type(None), "null"),
)


class Problem(NamedTuple):
    """A problem: the path of its key, one sentence, and a hint."""

    path: KeyPath
    message: str
    hint: str


class Document:
    """A TOML document, and the problems found so far."""

    def __init__(self, text: str, name: str) -> None:
        """Parse a text.

        Args:
            text: The TOML text.
            name: The name of the file, for messages.

        Raises:
            UsageError: The text is not TOML. The message names the line.
        """
        self.begin(name, text)
        line = toml_lines.line_of_long_key(text, _PARTS_MAX)
        if line:
            raise UsageError(
                f"{printable(name)}:{line}: this key has more than {_PARTS_MAX} parts",
                "no table is nested so deeply",
            )
        try:
            data = tomllib.loads(text)
        except RecursionError:
            raise UsageError(
                f"{printable(name)}: brackets are nested too deeply", "no key takes such a value"
            ) from None
        except ValueError as error:  # also for an integer of thousands of digits
            raise _syntax_error(text, name, str(error)) from None
        self.root = self.enter((), data, _ROOT)

    def begin(self, name: str, text: str) -> None:
        """Have no tables and no problems yet."""
        self.name = name
        self._text = text
        self._problems: list[Problem] = []
        self._tables: list[Table] = []
        self._lines: dict[KeyPath, int] | None = None

    def enter(self, path: KeyPath, data: dict[str, Any] | None, title: str) -> Table:
        """Return a table to read; without data, a table that the text does not have."""
        table = Table(self, path, data, title)
        self._tables.append(table)
        return table

    def complain(self, path: KeyPath, message: str, hint: str) -> None:
        """Note a problem."""
        self._problems.append(Problem(path, shortened(message), shortened(hint)))

    def line(self, path: KeyPath) -> int:
        """Return the line of a key; of the table that lacks the key, if it is missing."""
        if self._lines is None:
            try:
                self._lines = toml_lines.lines(self._text)
            except RecursionError:  # tomllib needs a little less of the stack
                self._lines = {(): 1}
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def place(self, line: int) -> str:
        """Return the beginning of a sentence about a line."""
        return f"{self.name}:{line}: "

    def finish(self) -> None:
        """Raise UsageError if there are problems: the first one, with the others in `also`."""
        homes: dict[str, set[str]] = {}
        for table in self._tables:
            for key in table.asked:
                homes.setdefault(key, set()).add(table.title)
        for table in self._tables:
            table.complain_of_unknown(homes)
        if not self._problems:
            return
        found = [(self.line(problem.path), problem) for problem in self._problems]
        found.sort(key=lambda pair: pair[0])
        sentences = [
            printable(f"{self.place(line)}{written(problem.path)}{problem.message}")
            for line, problem in found
        ]
        also = sentences[1 : 1 + _ALSO_MAX]
        if len(sentences) > 1 + _ALSO_MAX:
            also.append(f"and {len(sentences) - 1 - _ALSO_MAX} more")
        raise UsageError(sentences[0], printable(found[0][1].hint), tuple(also))


class Table:
    """A table of a document. Each method reads one key, and thereby makes it a known key.

    Attributes:
        title: The name in messages, such as `[[interface]]`.
        path: The path of the table.
        given: True if the text has the table; otherwise every key has its default.
        asked: The known keys.
    """

    def __init__(
        self, document: Document, path: KeyPath, data: dict[str, Any] | None, title: str
    ) -> None:
        self.title = title
        self.path = path
        self.given = data is not None
        self.asked: list[str] = []
        self._document = document
        self._data = data or {}

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def complain(self, message: str, hint: str, *where: str | int) -> None:
        """Note a problem of a key, or of an element of its array; without `where`, of the table."""
        self._document.complain((*self.path, *where), message, hint)

    def is_string(self, key: str) -> bool:
        """Return True if the value of a key is a string."""
        return isinstance(self._data.get(key), str)

    def is_empty(self, key: str) -> bool:
        """Return True if the value of a key is an empty array."""
        return self._data.get(key) == []

    def line(self, *where: str | int) -> int:
        """Return the line of a key, or of an element of its array."""
        return self._document.line((*self.path, *where))

    def require(self, key: str, example: str) -> None:
        """Complain if the text has the table, but not this key."""
        if self.given and key not in self._data:
            self.complain("this key is missing", f"write it as in {example}", key)

    def boolean(self, key: str, default: bool) -> bool:
        """Return a boolean."""
        value = self._get(key, (bool,), "true or false")
        return default if value is None else bool(value)

    def string(self, key: str) -> str | None:
        """Return a string; None if the key is missing or wrong."""
        value = self._get(key, (str,), "a string")
        return None if value is None else str(value)

    def choice(self, key: str, words: tuple[str, ...], default: str) -> str:
        """Return one of a few words."""
        value = self.string(key)
        if value is None or value in words:
            return value or default
        near = _near(value, words)
        hint = f"did you mean '{near[0]}'?" if near else f"without this key it is {default}"
        self.complain(f"'{value}' is not one of {', '.join(words)}", hint, key)
        return default

    def integer(self, key: str, least: int, most: int) -> int | None:
        """Return an integer within bounds; None if the key is missing or wrong."""
        value = self._get(key, (int,), "an integer")
        if value is None or least <= value <= most:
            return None if value is None else int(value)
        self._out_of_range(key, value, f"from {least} to {most}")
        return None

    def number(self, key: str, least: float, most: float, *, zero: bool = False) -> float | None:
        """Return a number within bounds, or 0 if `zero`; None if the key is missing or wrong."""
        value = self._get(key, (int, float), "a number")
        if value is None or least <= value <= most or (zero and value == 0):  # all false for nan
            return None if value is None else float(value)
        self._out_of_range(
            key, value, f"{'0, or ' if zero else ''}from {least:.12g} to {most:.12g}"
        )
        return None

    def parsed(self, key: str, parse: Callable[[str], _T]) -> _T | None:
        """Return the result of `parse` for a string; its UsageError becomes a problem."""
        value = self.string(key)
        return None if value is None else self._parse(parse, value, key)

    def parsed_all(self, key: str, parse: Callable[[str], _T]) -> list[tuple[int, _T]]:
        """Return the results of `parse` for an array of strings, each with its index."""
        return self._parse_each(key, parse, self._get(key, (list,), "an array") or ())

    def parsed_some(self, key: str, parse: Callable[[str], _T]) -> list[tuple[int, _T]]:
        """Return the results of `parse` for a string or an array, each with its index."""
        value = self._get(key, (str, list), "a string or an array of strings")
        if isinstance(value, str):
            result = self._parse(parse, value, key)
            return [] if result is None else [(0, result)]
        return self._parse_each(key, parse, value or ())

    def _parse_each(
        self, key: str, parse: Callable[[str], _T], values: Sequence[Any]
    ) -> list[tuple[int, _T]]:
        found = []
        for number, value in enumerate(values):
            if not isinstance(value, str):
                self.complain(f"{kind(value)}, not a string", "put it in quotes", key, number)
                continue
            result = self._parse(parse, value, key, number)
            if result is not None:
                found.append((number, result))
        return found

    def table(self, key: str) -> Table:
        """Return a table of this table, even if the text does not have it."""
        title = f"[{_title(self.path, key)}]"
        self.asked.append(key)
        value = self._data.get(key)
        if value is not None and not isinstance(value, dict):
            self.complain(f"{kind(value)}, not a table", f"write it as {title}", key)
            value = None
        return self._document.enter((*self.path, key), value, title)

    def tables(self, key: str) -> Iterator[Table]:
        """Yield each table of an array of tables."""
        title = f"[[{_title(self.path, key)}]]"
        hint = f"write it as {title}"
        self.asked.append(key)
        value = self._data.get(key)
        if value is not None and (not isinstance(value, list) or not value):
            what = "an empty array" if value == [] else kind(value)
            self.complain(f"{what}, not an array of tables", hint, key)
            return
        for number, data in enumerate(value or ()):
            if isinstance(data, dict):
                yield self._document.enter((*self.path, key, number), data, title)
            else:
                self.complain(f"{kind(data)}, not a table", hint, key, number)

    def complain_of_unknown(self, homes: dict[str, set[str]]) -> None:
        """Complain about the keys of the text that are not known.

        Args:
            homes: The titles of the tables that know a key, by key.
        """
        for key in self._data:
            if key in self.asked:
                continue
            near = _near(key, self.asked)
            if _ROOT in homes.get(key, ()):
                hint = "it belongs at the top of the file, above all tables"
            elif key in homes:
                hint = f"it is a key of {' and '.join(sorted(homes[key]))}"
            elif near:
                hint = f"did you mean '{near[0]}'?"
            else:
                hint = f"the keys are {', '.join(self.asked)}"
            self.complain(f"{self.title} has no such key", hint, key)

    def _get(self, key: str, wanted: tuple[type, ...], what: str) -> Any:
        """Return a value of one of the wanted types; None if the key is missing or wrong."""
        self.asked.append(key)
        value = self._data.get(key)
        if value is None:
            return None
        if isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool)):
            return value
        if str in wanted:
            hint = f'put it in quotes: {key} = "…"'
        elif list in wanted:
            hint = f'put it in brackets: {key} = ["…"]'
        else:
            hint = "write it without quotes or brackets"
        self.complain(f"{kind(value)}, not {what}", hint, key)
        return None

    def _out_of_range(self, key: str, value: float, bounds: str) -> None:
        """Complain about a number that is out of range."""
        # Python refuses to format integers of thousands of digits.
        shown = f"{value:.12g}" if isinstance(value, float) else "this number"
        if isinstance(value, int) and abs(value) < 1 << 64:
            shown = str(value)
        self.complain(f"{shown} is out of range", f"it may be {bounds}", key)

    def _parse(self, parse: Callable[[str], _T], value: str, *where: str | int) -> _T | None:
        try:
            return parse(value)
        except UsageError as error:
            self.complain(error.message, error.hint, *where)
            return None


def kind(value: Any) -> str:
    """Return the kind of a value, such as `an integer`."""
    return next(name for types, name in _KINDS if isinstance(value, types))


def written(path: KeyPath) -> str:
    """Return a path as in `interface[0].prefix[1].answer: `; "" for the whole text."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            text += ("." if text else "") + (part if bare else json.dumps(part))
    return f"{text}: " if text else ""


def shortened(text: str) -> str:
    """Return a text, without its middle if it is too long for a sentence."""
    half = _SENTENCE_MAX // 2
    return text if len(text) <= _SENTENCE_MAX else f"{text[:half]}…{text[-half:]}"


def _title(path: KeyPath, key: str) -> str:
    return ".".join([part for part in path if isinstance(part, str)] + [key])


_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_TUPLE = re.compile(r"\('[^']*'(?:, '[^']*')*,?\)")


def _syntax_error(text: str, name: str, message: str) -> UsageError:
    """Return the error for a message of tomllib, with the line first."""
    place = _PLACE.search(message)
    words = message[: place.start()] if place else "a number has too many digits"
    if words == "Cannot overwrite a value":
        words = "this key or table exists already"
    words = _TUPLE.sub(lambda found: found[0].strip("(,)").replace("', '", "."), words)
    line = text.count("\n") + (not text.endswith("\n"))
    where = ""
    if place and place[1]:
        line = int(place[1])
        where = f" (column {place[2]})"
    if place is None:
        digits = re.search(r"[0-9_]{4300,}", text)
        line = text.count("\n", 0, digits.start() if digits else 0) + 1
    hint = "strings need quotes; true, false and numbers must have none"
    if words.endswith(("already", "twice")):
        hint = "write every key and every [table] once; only [[tables]] may repeat"
    words = words[:1].lower() + words[1:]
    return UsageError(printable(f"{name}:{line}: this is not TOML: {words}{where}"), hint)


def _near(word: str, known: Sequence[str]) -> list[str]:
    """Return the most similar known word, if there is one."""
    import difflib  # takes 10 ms, and only mistakes need it

    return difflib.get_close_matches(word, known, 1)
