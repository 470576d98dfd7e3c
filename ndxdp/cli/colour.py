"""Colours of output on a terminal.

A colour only repeats what the text says. There is none in a pipe, with NO_COLOR (no-color.org) and
on a terminal without them; `ndxdp --color always|never` overrides all of these.
"""

from __future__ import annotations

import os
import re

import click

CHOICES = ("auto", "always", "never")

STYLES = {
    "answering": "green",
    "paused": "yellow",
    "starting": "yellow",
    "not answering": "red",
    "not attached": "red",
}
"""The colours of the cells of tables."""

_PATTERNS = tuple(
    (re.compile(pattern), click.style(r"\g<0>", fg=colour))
    for pattern, colour in (
        (r"^ndxdp:", "red"),  # an error; the log does not pass here
        (r"^  (?:hint|also):", "cyan"),
        (r"^  WARNING(?= )", "yellow"),
        (r"(?<=  )not (?:answering|attached)\b", "red"),
        (r"^  paused(?=:)", "yellow"),
        (r"^  failure:", "red"),  # of `ndxdp doctor`, as the next two
        (r"^  warning:", "yellow"),
        (r"^ {12}\$ .*", "cyan"),
        (r"^\+ .*", "green"),  # of --dry-run, as the next one
        (r"^- .*", "red"),
        (r"^reason   answered\w*", "green"),  # of `ndxdp explain`
        (r"^reason   (?!answered)\w+", "yellow"),
    )
)

_choice = "auto"


def choose(choice: str) -> None:
    """Choose when there are colours: one of CHOICES."""
    global _choice
    _choice = choice


def is_coloured(fd: int) -> bool:
    """Return True if output to a file descriptor has colours."""
    if _choice != "auto":
        return _choice == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    try:
        return os.isatty(fd)
    except OSError:
        return False


def coloured(line: str) -> str:
    """Return a line of output with colours."""
    for pattern, styled in _PATTERNS:
        line = pattern.sub(styled, line)
    return line
