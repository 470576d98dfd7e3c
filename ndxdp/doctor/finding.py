"""Findings of doctor: a fact in one line, why it matters, and the command that repairs it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from ndxdp.errors import NdxdpError


class Level(Enum):
    """Severity of a finding. NOTE and UNSEEN do not change the exit code."""

    NOTE = "note"
    UNSEEN = "unseen"
    WARNING = "warning"
    FAILURE = "failure"


class Finding(NamedTuple):
    """Finding of a check.

    Attributes:
        level: The severity.
        what: The fact, in one line.
        why: Why the fact matters; "" where that is obvious.
        cure: A command for the shell; "" without one.
    """

    level: Level
    what: str
    why: str = ""
    cure: str = ""


def note(what: str, why: str = "", cure: str = "") -> Finding:
    """Return a finding that needs no repair."""
    return Finding(Level.NOTE, what, why, cure)


def unseen(what: str, cure: str = "", why: str = "") -> Finding:
    """Return a finding about a thing that could not be checked."""
    return Finding(Level.UNSEEN, what, why, cure)


def cannot_check(subject: str, error: Exception) -> Finding:
    """Return a finding about a thing that an error made impossible to check, with its hint."""
    hint = error.hint if isinstance(error, NdxdpError) else ""
    return unseen(f"cannot check {subject}: {reason_of(error)}", why=hint)


def reason_of(error: Exception) -> str:
    """Return the message of an exception, in one line."""
    if isinstance(error, NdxdpError):
        return error.message
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def warning(what: str, why: str, cure: str) -> Finding:
    """Return a finding about a problem that some traffic, or some nodes, meet."""
    return Finding(Level.WARNING, what, why, cure)


def failure(what: str, why: str, cure: str) -> Finding:
    """Return a finding about a problem because of which IPv6 fails, or will fail soon."""
    return Finding(Level.FAILURE, what, why, cure)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return doctor's exit code: 2 with a failure, 1 with a warning, else 0."""
    levels = {finding.level for finding in findings}
    if Level.FAILURE in levels:
        return 2
    return 1 if Level.WARNING in levels else 0
