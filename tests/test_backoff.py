"""Pauses between failing attempts, and the log of the failures."""

from __future__ import annotations

import asyncio
import logging

import pytest

from ndxdp import backoff as module
from ndxdp.backoff import Backoff, Retry, persist

log = logging.getLogger("ndxdp.tests")


def test_pauses_double_from_5_to_60_seconds_with_jitter() -> None:
    backoff = Backoff(log)
    for wanted in (5, 10, 20, 40, 60, 60, 60):
        assert backoff.failed("no") == pytest.approx(wanted, rel=0.1)
    assert len({Backoff(log).failed("no") for _ in range(20)}) > 1


def test_a_success_resets_the_pause() -> None:
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
    found = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [each for each in found if each[0] != "DEBUG"] == [
        ("ERROR", "full"),
        ("ERROR", "gone"),
        ("WARNING", "gone"),
    ]
    assert len(found) == 7


def test_work_that_fails_is_done_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST", 0.01)
    attempts = 0

    async def work() -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise RuntimeError("not yet")

    asyncio.run(persist(log, "eth0", work))
    assert attempts == 4
    assert caplog.messages == ["eth0: internal error: RuntimeError: not yet"]


def test_a_retry_is_due_after_its_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST", 0.05)

    async def steps() -> None:
        woken = asyncio.Event()
        retry = Retry(log, woken.set)
        assert retry.is_due
        retry.failed("full", "eth0: full")
        assert (retry.is_due, retry.problem, woken.is_set()) == (False, "full", False)
        await asyncio.wait_for(woken.wait(), 5)
        assert retry.is_due
        retry.failed("full", "eth0: full")
        retry.hurry()
        assert retry.is_due
        assert retry.succeeded()
        assert retry.problem == ""
        woken.clear()
        await asyncio.sleep(0.2)
        assert not woken.is_set()

    asyncio.run(steps())
