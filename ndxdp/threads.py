"""Threads that receive no signal and do not prevent the process from ending."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def start(name: str, target: Callable[[], None]) -> threading.Thread:
    """Start a daemon thread with all signals blocked; the main thread receives them."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    # A thread inherits the signal mask of the thread that starts it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread


async def result_of(name: str, function: Callable[[], _T]) -> _T:
    """Call a function that may block in a thread of its own, and return its result.

    An exception of the function is raised here. If the caller is cancelled, the thread continues,
    and its result is dropped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def call() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(settle, result, error)

    start(name, call)
    return await future
