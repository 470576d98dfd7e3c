"""The end of the daemon. If something hangs, the process shows where, and exits.

systemd would kill it after 20 s, and show nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from typing import Any, NoReturn, TypeVar

from ndxdp.daemon.heartbeat import proof_of

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_STUCK = 10.0  # seconds

_LOOK_PERIOD = 1.0  # seconds


async def finished(
    end: Coroutine[Any, Any, _T], executor: Executor, unended: Callable[[], list[str]]
) -> _T:
    """Wait for an end, and return its result.

    Exit with 1 if the executor is busy with one call for 10 s, or has nothing to do for 10 s while
    no interface ends. Print where all threads and tasks are.

    Args:
        end: Ends all interfaces.
        executor: Makes the calls of the end.
        unended: Returns the names of the interfaces that have not ended.
    """
    loop = asyncio.get_running_loop()
    ending = asyncio.ensure_future(end)
    idle, left, proof = 0.0, unended(), None
    while True:
        if proof is None or proof.done():
            asked, proof = loop.time(), proof_of(executor)
        await asyncio.wait({ending}, timeout=_LOOK_PERIOD)
        if ending.done():
            return ending.result()
        before, left = left, unended()
        idle = idle + _LOOK_PERIOD if proof.done() and left == before else 0.0
        busy = 0.0 if proof.done() else loop.time() - asked
        if max(idle, busy) > _STUCK:
            _exit(left, max(idle, busy))


def _exit(left: list[str], seconds: float) -> NoReturn:
    names = f" {', '.join(left)}" if left else ""
    log.error("ending without detaching%s: a task has not returned for %d s", names, seconds)
    logging.shutdown()
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # there is no stderr
        for task in asyncio.all_tasks():
            print(f"{task.get_name()} waits:", *_places(task.get_coro()), sep="\n", file=sys.stderr)
        sys.stderr.flush()
        faulthandler.dump_traceback()
    os._exit(1)


def _places(coroutine: Any) -> Iterator[str]:
    """Yield where a coroutine waits, and the coroutines that it waits for."""
    while frame := getattr(coroutine, "cr_frame", None):
        code = frame.f_code
        yield f'  File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}'
        coroutine = coroutine.cr_await


def exit_later() -> None:
    """Exit with 1 and the stacks of all threads on stderr if the process has not ended in 10 s.

    All interfaces have been left as they are to be left. A thread that does not return would keep
    the executor or the interpreter from ending.
    """
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # there is no stderr
        faulthandler.dump_traceback_later(_STUCK, exit=True)
