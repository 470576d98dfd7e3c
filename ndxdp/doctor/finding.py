"""What doctor says: one line, why it matters, and the command that mends it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple


class Level(Enum):
    """How bad it is. NOTE and UNSEEN do not change the exit code."""

    NOTE = "note"
    UNSEEN = "unseen"
    WARNING = "warning"
    FAILURE = "failure"


class Finding(NamedTuple):
    """what: is wrong, or is so, in one line. why: it matters. cure: a command for the shell."""

    level: Level
    what: str
    why: str = ""
    cure: str = ""


def note(what: str) -> Finding:
    return Finding(Level.NOTE, what)


def unseen(what: str, cure: str = "") -> Finding:
    """What could not be looked at, and how it could be."""
    return Finding(Level.UNSEEN, what, "", cure)


def warning(what: str, why: str, cure: str) -> Finding:
    return Finding(Level.WARNING, what, why, cure)


def failure(what: str, why: str, cure: str) -> Finding:
    return Finding(Level.FAILURE, what, why, cure)


def exit_code(findings: Iterable[Finding]) -> int:
    """2 if anything fails, 1 if there is a warning, else 0."""
    levels = {finding.level for finding in findings}
    if Level.FAILURE in levels:
        return 2
    return 1 if Level.WARNING in levels else 0
