"""Escapes for text from outside in a line of a terminal or a log."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return the text with control characters escaped, for example as `\n` and `\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_NAME_MAX = 100  # characters


def shown(name: str) -> str:
    """Return the name of a key in etcd for messages: the first characters, and escaped."""
    return printable(name if len(name) <= _NAME_MAX else f"{name[:_NAME_MAX]}…")
