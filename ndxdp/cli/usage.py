"""Errors in a command line, in one form: a sentence, and a hint that names the cure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

import click

from ndxdp.cli import examples
from ndxdp.errors import UsageError

_NEAR = 0.65  # similarity of a word that the user may have meant: `delete` is 0.67 of `del`
_PLAIN = (
    ("is not a valid float range", "is not a number"),
    ("is not a valid integer range", "is not a whole number"),
    ("is not in the range at ", "is not at "),
    ("requires an argument", "needs a value"),
)
"""Phrases of click, in plain English."""


def no_command(context: click.Context, name: str) -> UsageError:
    """Return the error for a name that no command of a group has."""
    group, path = context.command, context.command_path
    known = group.list_commands(context) if isinstance(group, click.Group) else []
    return UsageError(
        f"{path} has no command '{name}'", _near(name, known) or f"see: {path} --help"
    )


def in_our_form(error: click.UsageError) -> UsageError:
    """Convert an error of click."""
    context = error.ctx
    path = context.command_path if context else "ndxdp"
    see = f"see: {path} --help"
    if isinstance(error, click.NoSuchOption):
        name = error.option_name
        return UsageError(
            f"{path} has no option '{name}'",
            _of_all_commands(context, name) or _near(name, error.possibilities or ()) or see,
        )
    if isinstance(error, click.MissingParameter):
        return UsageError(f"{path} needs the argument {_name(error)}", _example(path) or see)
    message = error.message[:1].lower() + error.message[1:].rstrip(".")
    for phrase, plain in _PLAIN:
        message = message.replace(phrase, plain)
    if isinstance(error, click.BadParameter):
        choice = re.fullmatch(r"'(.*)' is not one of (.*)", message)
        near = _near(choice[1], re.findall(r"'([^']*)'", choice[2])) if choice else ""
        return UsageError(f"{_name(error)}: {message}", near or see)
    extra = re.fullmatch(r"got unexpected extra arguments? \((.*)\)", message)
    if extra and context:
        usage = " ".join(context.command.collect_usage_pieces(context))
        return UsageError(f"{path} takes no further word: {extra[1]}", f"usage: {path} {usage}")
    return UsageError(message, see)


def _of_all_commands(context: click.Context | None, option: str) -> str:
    """Return a hint if an option behind a command belongs before it; "" otherwise."""
    if context is None:
        return ""
    above = context.find_root()
    if not any(option in each.opts for each in above.command.params):
        return ""
    command = context.command_path.partition(" ")[2]
    return f"write it before the command: {above.command_path} {option} … {command}"


def _near(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the words that resemble a mistyped one; "" if none does."""
    found = get_close_matches(word, list(known), 2, _NEAR)
    return f"did you mean {' or '.join(repr(each) for each in found)}?" if found else ""


def _name(error: click.BadParameter) -> str:
    """Return the name of the parameter that an error is about."""
    parameter = error.param
    if isinstance(parameter, click.Argument) or parameter is None:
        named = error.param_hint or (parameter.human_readable_name if parameter else "a parameter")
        return named if isinstance(named, str) else " ".join(named)
    return max(parameter.opts, key=len)


def _example(path: str) -> str:
    """Return the first example of a command as a hint."""
    found = examples.of(path.partition(" ")[2])
    return f"as in: {found[0][1]}" if found else ""
