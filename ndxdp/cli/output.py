"""Output of the commands: lines on stdout, JSON, and the log on stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterable
from itertools import islice
from typing import Any

import click

from ndxdp import progress
from ndxdp.cli.colour import coloured, is_coloured
from ndxdp.printable import printable

_PARTS = 1000  # parts that one write(2) prints

_VERBOSITY = "ndxdp.verbosity"  # key in click's context: a flag has set the log level


def echo(text: str, *, err: bool = False) -> None:
    """Print a line; escape control characters, since names and labels come from elsewhere."""
    line, has_colours = printable(text), is_coloured(2 if err else 1)
    click.echo(coloured(line) if has_colours else line, err=err, color=has_colours or None)


def print_json(data: Any) -> None:
    """Print a JSON document."""
    click.echo(json.dumps(data, indent=2))


def print_parts(parts: Iterable[str], what: str) -> None:
    """Print the parts of a long output as they come, many at a time.

    Args:
        parts: The parts.
        what: What a part is, in the plural, for the progress.
    """
    left = iter(parts)
    block = list(islice(left, _PARTS))
    # Lines on a terminal show the progress themselves.
    step = contextlib.nullcontext() if sys.stdout.isatty() else progress.step(f"{what} printed")
    with step:
        while block:
            click.echo("".join(block), nl=False, color=is_coloured(1) or None)
            progress.advance(len(block))
            block = list(islice(left, _PARTS))


# ---- the log ------------------------------------------------------------------------------------


def is_journal() -> bool:
    """Return True if stderr is connected to the journal (JOURNAL_STREAM, systemd.exec(5))."""
    named = os.environ.get("JOURNAL_STREAM")
    try:
        stream = os.fstat(2)
    except OSError:  # stderr is closed
        return False
    return named == f"{stream.st_dev}:{stream.st_ino}"


def start_log() -> None:
    """Log warnings and errors to stderr, until a flag or the configuration sets another level."""
    logging.basicConfig(stream=sys.stderr)
    _set_format(_text_format())


def configure_log(level: str, form: str) -> None:
    """Apply the configured log level and format; the flags -v, -q and --debug take precedence."""
    context = click.get_current_context(silent=True)
    if context is None or _VERBOSITY not in context.meta:
        logging.getLogger("ndxdp").setLevel(level.upper())
    _set_format(_JsonLines() if form == "json" else _text_format())


def set_verbosity(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Set the log level that a flag names: a callback of click. --debug outranks the others."""
    if not value:
        return
    context.meta[_VERBOSITY] = True
    logger = logging.getLogger("ndxdp")
    if parameter.name == "debug":
        logger.setLevel(logging.DEBUG)
    elif logger.level != logging.DEBUG:
        logger.setLevel(logging.INFO if parameter.name == "verbose" else logging.ERROR)


def _text_format() -> logging.Formatter:
    return _TextLines("%(message)s" if is_journal() else "ndxdp: %(message)s")


def _set_format(form: logging.Formatter) -> None:
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Journal(form) if is_journal() else form)


class _TextLines(logging.Formatter):
    """A formatter that writes one line per record.

    Control characters are escaped, because parts of a record may come from a container or from the
    network. The verifier's log and tracebacks, which only --debug shows, take further lines, which
    are indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno > logging.DEBUG and not record.exc_info:
            return printable(text)
        return "\n  ".join(map(printable, text.split("\n")))


class _Journal(logging.Formatter):
    """A formatter that prefixes each line with its priority, as sd-daemon(3) requires."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        steps = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
        priority = next((number for level, number in steps if record.levelno >= level), 7)
        lines = self._inner.format(record).splitlines()
        return "\n".join(f"<{priority}>{line}" for line in lines)


class _JsonLines(logging.Formatter):
    """A formatter that writes one JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(line)
