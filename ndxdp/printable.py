"""Makes text from elsewhere fit for a line of a terminal or a log. Pure."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return the text with line ends and control characters written as `\n` and `\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
