"""Threads of this process: none of them takes a signal, and none keeps the process from ending."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def start(name: str, target: Callable[[], None]) -> threading.Thread:
    """Start a daemon thread. Signals are the main thread's: this one has them all blocked."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    # A thread begins with the signal mask of the thread that starts it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread


async def result_of(name: str, function: Callable[[], _T]) -> _T:
    """Call a function in a thread of its own, and return or raise what it returns or raises.

    The function may take long, as one that reads a file does. If the caller is cancelled, the
    thread goes on, and its result is dropped.
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
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    start(name, call)
    return await future
