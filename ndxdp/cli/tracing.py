"""Events of attached interfaces as they occur, for `ndxdp trace` and `ndxdp top`."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ndxdp.cli.values import trees
from ndxdp.errors import NdxdpError
from ndxdp.rules.interface_name import natural_order

if TYPE_CHECKING:
    from ndxdp.observe.trace import Event, Stop, Tracer

_NICE = 10
"""Niceness of a tracer, so that a process that answers in userspace mode gets the CPU first."""


def named_or_attached(interfaces: tuple[str, ...]) -> list[str]:
    """Return the interfaces that are named; all attached ones if none is."""
    attached = sorted(trees().interfaces(), key=natural_order)
    found = list(dict.fromkeys(interfaces)) or attached
    if not found:
        raise NdxdpError("ndxdp is attached to no interface", "ndxdp attach IFACE")
    return found


def follow(
    tracer: Tracer,
    stop: Stop,
    deadline: float,
    show: Callable[[list[Event]], None],
    enough: Callable[[], bool],
) -> None:
    """Show events until an end condition holds, and then the events that are still queued.

    Args:
        tracer: Reads the events.
        stop: Ends the command at a signal.
        deadline: The monotonic time in seconds at which the command ends.
        show: Takes some events.
        enough: Returns True once no more events are wanted.
    """
    os.nice(_NICE)
    tracer.wake_on(stop.fileno(), select.POLLIN)
    while not (stop.requested or enough()) and (left := deadline - time.monotonic()) > 0:
        events, others = tracer.wait(left)
        show(events)
        if others:
            break
    show(tracer.finish())
