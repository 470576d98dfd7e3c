"""Pauses between attempts that fail, and what of them is logged."""

from __future__ import annotations

import logging

import pytest

from ndxdp.backoff import Backoff

log = logging.getLogger("ndxdp.tests")


def test_pauses_double_from_5_to_60_seconds_with_jitter() -> None:
    backoff = Backoff(log)
    for wanted in (5, 10, 20, 40, 60, 60, 60):
        assert backoff.failed("no") == pytest.approx(wanted, rel=0.1)
    assert len({Backoff(log).failed("no") for _ in range(20)}) > 1


def test_a_success_begins_anew() -> None:
    backoff = Backoff(log)
    assert not backoff.succeeded()
    for _ in range(3):
        backoff.failed("no")
    assert backoff.succeeded()
    assert backoff.cause == ""
    assert not backoff.succeeded()
    assert backoff.failed("no") == pytest.approx(5, rel=0.1)


def test_logs_each_cause_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    backoff = Backoff(log)
    for cause in ("full", "full", "full", "gone", "gone"):
        backoff.failed(cause)
        assert backoff.cause == cause
    backoff.succeeded()
    backoff.failed("gone", logging.WARNING)
    backoff.failed("gone", logging.WARNING)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [each for each in said if each[0] != "DEBUG"] == [
        ("ERROR", "full"),
        ("ERROR", "gone"),
        ("WARNING", "gone"),
    ]
    assert len(said) == 7
