"""Findings: one line, why it matters, and the command that mends it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from ndxdp.errors import NdxdpError


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


def note(what: str, why: str = "", cure: str = "") -> Finding:
    return Finding(Level.NOTE, what, why, cure)


def unseen(what: str, cure: str = "", why: str = "") -> Finding:
    """Make a finding for a thing that could not be looked at, and how it could be."""
    return Finding(Level.UNSEEN, what, why, cure)


def cannot_look(subject: str, error: Exception) -> Finding:
    """Report a thing that could not be looked at, with the reason and the hint of an error."""
    hint = error.hint if isinstance(error, NdxdpError) else ""
    return unseen(f"cannot look at {subject}: {reason_of(error)}", why=hint)


def reason_of(error: Exception) -> str:
    """Return what an exception says, in one line."""
    if isinstance(error, NdxdpError):
        return error.message
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return f"{type(error).__name__}: {error}".partition("\n")[0]


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
