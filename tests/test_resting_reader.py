"""A reader that rests after a burst."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from ndxdp.resting_reader import RestingReader

LONG = 3600.0


class Pipe(NamedTuple):
    readable: int
    writable: int


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Yield a pipe that is always readable."""
    ends = Pipe(*os.pipe())
    os.write(ends.writable, b"x")
    yield ends
    for end in ends:
        os.close(end)


async def turns() -> None:
    """Let the event loop look for readable descriptors several times."""
    for _ in range(10):
        await asyncio.sleep(0)


def calls_of(pipe: Pipe, read: Callable[[], bool], pause: float) -> tuple[int, int]:
    """Return how often `read` is called in some turns of the loop, and how often after close()."""
    calls: list[None] = []

    def counted() -> bool:
        calls.append(None)
        return read()

    async def work() -> tuple[int, int]:
        reader = RestingReader(pipe.readable, counted, pause)
        await turns()
        before = len(calls)
        reader.close()
        await turns()
        return before, len(calls) - before

    return asyncio.run(work())


def test_a_reader_reads_until_it_rests(pipe: Pipe) -> None:
    often, after = calls_of(pipe, lambda: False, LONG)
    assert often > 3
    assert not after


def test_a_reader_rests(pipe: Pipe) -> None:
    assert calls_of(pipe, lambda: True, LONG) == (1, 0)


def test_a_reader_resumes_after_the_rest(pipe: Pipe) -> None:
    often, after = calls_of(pipe, lambda: True, 0.0)
    assert often > 3
    assert not after


def test_a_reader_that_fails_rests(pipe: Pipe) -> None:
    def fail() -> bool:
        raise ValueError

    assert calls_of(pipe, fail, LONG) == (1, 0)


def test_a_reader_is_closed_while_it_reads(pipe: Pipe) -> None:
    """Begin no rest, after which the reader would read again."""
    calls: list[None] = []

    async def work() -> None:
        def read() -> bool:
            calls.append(None)
            reader.close()
            return True

        reader = RestingReader(pipe.readable, read, 0.0)
        await turns()

    asyncio.run(work())
    assert len(calls) == 1
