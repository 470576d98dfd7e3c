"""Solicitations answered per second: against the offered rate, and two responders in turn."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from benchmarks.contestants import CONTESTANTS, SINGLE, is_single
from benchmarks.wire import LINK, SPREAD, Flood, Wire
from ndxdp.kernel import bpf_hooks, libbpf
from ndxdp.store.directories import Trees

RATES = (25_000, 50_000, 100_000, 200_000, 400_000, 800_000, 1_600_000, 3_200_000, 0)
"""Solicitations a second; 0: the maximum rate."""

_TURN = 0.05  # seconds

_WORTH = 1.5  # beyond so many times its best rate, a process gets only the last rate


def curves(wire: Wire, names: tuple[str, ...], seconds: float, repeats: int) -> dict[str, Any]:
    """Return the rounds of each contestant; a round is a point for each rate."""
    found: dict[str, Any] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            found[name].append(_curve(wire, name, seconds))
    return found


def _curve(wire: Wire, name: str, seconds: float) -> list[dict[str, float]]:
    contestant = CONTESTANTS[name]
    wire.spread(SINGLE if is_single(name) else SPREAD)
    points: list[dict[str, float]] = []
    with contestant.serve(wire):
        for rate in RATES:
            best = max((point["answered"] for point in points), default=0)
            if rate and best and rate > _WORTH * 2 * best:
                continue
            flood = wire.flood(rate, seconds)
            checked = contestant.check(flood, wire)
            answered = _came_back(name, flood)
            points.append(
                {
                    "offered": round(flood.offered),
                    "answered": round(answered / flood.seconds),
                    "lost": round(1 - min(answered / flood.sent, 1), 5),
                    "checked": checked,
                }
            )
    return points


def _came_back(name: str, flood: Flood) -> int:
    return flood.counts.reflected if name == "reflector" else flood.counts.answers


def best(points: list[dict[str, float]]) -> float:
    """Return the answers per second at the best rate."""
    return max(point["answered"] for point in points)


def against_reflector(wire: Wire, seconds: float, rounds: int) -> list[dict[str, float]]:
    """Compare native mode with the bare reflector: answers per second of each, and the ratio.

    The two replace each other on one link every 50 ms without a frame in between, so that other
    work on the machine affects both. `seconds` is the time of each in a round.
    """
    wire.spread(SPREAD)
    native, found = CONTESTANTS["native"], []
    with native.serve(wire), contextlib.ExitStack() as stack:
        pins = Trees().pins.base / LINK
        link, ours = (libbpf.get_pinned(str(pins / name)) for name in ("link", "program"))
        stack.callback(os.close, link)
        stack.callback(os.close, ours)
        for _ in range(rounds):
            answered, lasted = (dict.fromkeys(("native", "reflector"), 0.0) for _ in range(2))
            for number in range(max(1, round(seconds / _TURN))):
                order = ("native", "reflector") if number % 2 else ("reflector", "native")
                for name in order:
                    program = ours if name == "native" else wire.program("reflect")
                    bpf_hooks.link_update(link, program)
                    flood = wire.flood(0, min(seconds, _TURN))
                    CONTESTANTS[name].check(flood, wire)
                    answered[name] += _came_back(name, flood)
                    lasted[name] += flood.seconds
            rates = {name: round(answered[name] / lasted[name]) for name in lasted}
            found.append(rates | {"ratio": round(rates["native"] / rates["reflector"], 4)})
    return found


def duel(
    wire: Wire, names: tuple[str, str], seconds: float, rounds: int, *, single: bool = False
) -> list[dict[str, float]]:
    """Compare two responders at full rate, in turn: answers per second of each, and the ratio.

    single: solicit from both only the few addresses that a table of single addresses is made for.
    """
    wire.spread(SINGLE if single else SPREAD)
    found = []
    for number in range(rounds):
        # They also take turns at starting, so that other work on the machine favours neither.
        order = names if number % 2 else names[::-1]
        rates: dict[str, float] = {}
        for name in order:
            with CONTESTANTS[name].serve(wire):
                flood = wire.flood(0, seconds)
            CONTESTANTS[name].check(flood, wire)
            rates[name] = round(_came_back(name, flood) / flood.seconds)
        found.append(rates | {"ratio": round(rates[names[0]] / rates[names[1]], 4)})
    return found
