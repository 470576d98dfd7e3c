"""A JSON object that is read key by key, as config/toml_table.py reads tables. Pure."""

from __future__ import annotations

import json
from typing import Any

from ndxdp.config.toml_table import Document, kind, shortened
from ndxdp.errors import UsageError


class JsonDocument(Document):
    """A JSON object that is read as a table of TOML would be. Its problems have no lines.

    Attributes:
        data: The object.
    """

    def __init__(self, text: str, title: str) -> None:
        """Parse a text.

        Args:
            text: The JSON text.
            title: What the text is, for messages, as in `the value`.

        Raises:
            UsageError: The text is not a JSON object, or has a key twice.
        """
        self.begin("", "")
        self.data = _json_object(text, title)
        self.root = self.enter((), self.data, title)

    def place(self, line: int) -> str:
        """Return "": a value is one line."""
        return ""


_OBJECT_HINT = 'write it as in {"prefix": "2001:db8::/64"}'


def _json_object(text: str, title: str) -> dict[str, Any]:
    """Return the object in a JSON text; raise UsageError if it is none."""
    try:
        data = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError:
        raise UsageError(f"{title} is nested too deeply", "no key takes such a value") from None
    except ValueError as error:
        reason = str(error) if type(error) is ValueError else f"not JSON ({error})"
        reason = reason.partition(";")[0]  # Python's advice on integers of thousands of digits
        raise UsageError(f"{title} is wrong: {shortened(reason)}", _OBJECT_HINT) from None
    if not isinstance(data, dict):
        raise UsageError(f"{title} is {kind(data)}, not a JSON object", _OBJECT_HINT)
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise ValueError for one that has a key twice, or null."""
    data = dict(pairs)
    for key, value in pairs:
        if value is None:
            raise ValueError(f"{json.dumps(key)} is null")
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"it has the key {json.dumps(twice)} twice")
    return data


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
