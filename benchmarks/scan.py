"""A flood that scans the prefix while a router solicits at its usual rate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from benchmarks.contestants import CONTESTANTS, attached, process
from benchmarks.wire import LINK, NDXDP, PREFIX, SPREAD, Wire

_ONE_OF = 1000  # solicitations is the legitimate router's
_BEFORE = 1.0  # seconds that the flood has lasted
_LIMIT = 50_000  # answers a second to one soliciting MAC: more than that router asks for

_RULE = ("-n", f"{PREFIX}/80")
_LIMITED = (*_RULE, "--rate", str(_LIMIT))


def beside_a_flood(wire: Wire, seconds: float, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Return the share of the router's solicitations without an answer, at saturation."""
    wire.spread(SPREAD)
    run = ("run", "-i", LINK, *_LIMITED, "--mode", "userspace")
    answering: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
        "native": lambda: attached("native", *_RULE),
        "native, limit": lambda: attached("native", *_LIMITED),
        "tc": lambda: attached("tc", *_RULE),
        "tc, limit": lambda: attached("tc", *_LIMITED),
        "userspace": lambda: CONTESTANTS["userspace"].serve(wire),
        "userspace, limit": lambda: process(*NDXDP, *run, word="ready"),
        "ndppd": lambda: CONTESTANTS["ndppd"].serve(wire),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in answering}
    for _ in range(repeats):
        for name, start in answering.items():
            with start():
                wire.flood(0, _BEFORE, beside=_ONE_OF, macs=1)
                flood = wire.flood(0, seconds, beside=_ONE_OF, macs=1)
            found[name].append(
                {
                    "flood": round(flood.offered),
                    "answers": round(flood.answered),
                    "asked": flood.beside_sent,
                    "lost": flood.beside_sent - flood.counts.beside,
                }
            )
    return found
