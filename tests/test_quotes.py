"""Messages that docs/ quotes are messages of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import click
import pytest

from ndxdp.cli.main import cli
from tests.fixtures.network import REPOSITORY

DOCS = REPOSITORY / "docs"
LEAST = 0.35  # of a quoted message that must be the code's; the rest are names and numbers
ENOUGH = 12  # characters of one part: few enough for "is not one of"
EDGES = " :;,.()'`[]"

Template = tuple[str, ...]
"""The constant parts of a message, in order."""


def templates() -> set[Template]:
    """Return the template of each string of the package that has words."""
    found: set[Template] = set()
    for path in sorted(REPOSITORY.glob("ndxdp/**/*.py")):
        tree = ast.parse(path.read_text())
        docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in set(ast.walk(tree)) - docstrings:
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "%s" for part in node.values
                ]
                found.add(template("".join(map(str, parts))))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(template(node.value))
    return {each for each in found if any(" " in part or len(part) > 8 for part in each)}


def template(text: str) -> Template:
    pieces = re.split(r"%[sdr]|\{\w*\}", " ".join(text.split()))
    return tuple(filter(None, (piece.strip(EDGES) for piece in pieces)))


TEMPLATES = templates()


def is_of_the_code(message: str) -> bool:
    """Return True if a template has all of its parts in the message, and they are much of it.

    Or if a template contains the message: some are quoted in part.
    """
    pieces = [piece.strip(EDGES) for piece in re.split(r"\(…[^)]*\)|…", message)]
    fixed = " ".join(filter(None, pieces))
    if any(fixed in part for each in TEMPLATES for part in each):
        return True
    return any(
        has_in_order(fixed, each)
        and (sum(map(len, each)) >= LEAST * len(fixed) or max(map(len, each)) >= ENOUGH)
        for each in TEMPLATES
    )


def has_in_order(text: str, parts: Template) -> bool:
    at = 0
    for part in parts:
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


def of_errors() -> Iterator[str]:
    """Yield the messages in bold of docs/errors.md."""
    for item in re.split(r"^- ", (DOCS / "errors.md").read_text(), flags=re.MULTILINE)[1:]:
        for message in re.findall(r"\*\*(.+?)\*\*", " ".join(item.split())):
            yield message.replace(r"\*", "*")


def of_blocks() -> Iterator[str]:
    """Yield lines of blocks in docs/ that are an error, a hint or a warning."""
    for page in sorted(DOCS.glob("*.md")):
        for block in re.findall(r"^```text\n(.*?)^```$", page.read_text(), re.M | re.S):
            for line in block.splitlines():
                shown = re.match(r"ndxdp: (?:\S+:\d+: \S+: )?|  (?:hint|also): |  WARNING +", line)
                if shown:
                    yield re.sub(r"^\S+:\d+: \S+: ", "", line[shown.end() :])


@pytest.mark.parametrize("message", sorted(set(of_errors())))
def test_an_error_that_is_explained_exists(message: str) -> None:
    assert is_of_the_code(message)


@pytest.mark.parametrize("message", sorted(set(of_blocks())))
def test_a_message_that_is_shown_exists(message: str) -> None:
    assert is_of_the_code(message)


# ---- options -------------------------------------------------------------------------------------


def options(command: click.Command) -> Iterator[str]:
    """Yield the long options of a command and of its subcommands."""
    for parameter in command.params:
        yield from (each for each in parameter.opts + parameter.secondary_opts if each[:2] == "--")
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from options(inner)


def test_options_that_are_documented_exist() -> None:
    """Check the options of the commands' page, in tables and in examples."""
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", (DOCS / "commands.md").read_text()))
    assert named <= {*options(cli), "--help"}


def test_every_option_is_documented() -> None:
    pages = "".join(page.read_text() for page in sorted(DOCS.glob("*.md")))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", pages))
    negations = {f"--no-{each[2:]}" for each in named}
    assert set(options(cli)) - negations - named == set()
