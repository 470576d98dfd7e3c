"""Time from a solicitation to its answer, by the clock of the programs at the solicitor's end."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants import CONTESTANTS, SINGLE
from benchmarks.wire import Wire

SLOW = 1000
"""Solicitations a second at which no queue builds up."""


def latencies(
    wire: Wire, halves: dict[str, float], seconds: float, repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """Return percentiles in µs of each contestant, at 1000/s and at half of its best rate.

    halves: half of the best rate, by name. Every contestant is asked for the same few addresses.
    """
    wire.spread(SINGLE)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in halves}
    for _ in range(repeats):
        for name, half in halves.items():
            with CONTESTANTS[name].serve(wire):
                found[name].append(
                    {
                        "1000/s": _percentiles(wire, name, SLOW, seconds),
                        "half": _percentiles(wire, name, half, seconds / 2),
                    }
                )
    return found


def _percentiles(wire: Wire, name: str, rate: float, seconds: float) -> dict[str, float]:
    wire.flood(rate, 0.05)  # a process that has slept is awake now
    wire.latencies()
    flood = wire.flood(rate, seconds, timed=True, batch=1)
    CONTESTANTS[name].check(flood, wire)
    counted = sorted(wire.latencies().items())
    total = sum(count for _, count in counted)
    if not total:
        raise SystemExit(f"{name} answered nothing at {rate:.0f}/s.")
    figures: dict[str, float] = {"rate": round(flood.offered), "answers": total}
    for text, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
        seen = 0
        for ns, count in counted:
            seen += count
            if seen >= share * total:
                figures[text] = round(ns / 1000, 3)
                break
    return figures
