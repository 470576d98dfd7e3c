"""The tables and the picture of docs/scale.md, made of the figures of benchmarks.growth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import plot
from benchmarks.growing import Figures, exponent

_DRAWN = ("command s", "daemon s", "start s")
"""Figures of the picture: seconds of CPU. It shows the first one that a curve has."""


def text(found: Mapping[str, Any]) -> str:
    """Return the table of all curves: a row for each figure, with its exponent."""
    machine = found["machine"]
    lines = [
        f"Last run: {found['date']}, Linux {machine['kernel']}, {machine['cpus']} CPUs"
        f" ({machine['cpu']}).",
        "",
        "| what grows | figure | at the smallest and the largest number | exponent |",
        "|---|---|---|---|",
    ]
    for name, figures in found["curves"].items():
        lines += _rows(name, figures)
    return "\n".join(lines)


def _rows(name: str, figures: Mapping[str, Figures]) -> list[str]:
    sizes = [int(size) for size in figures]
    if not sizes:
        return []
    rows = []
    for figure in figures[str(sizes[0])]:
        values = [figures[str(size)][figure] for size in sizes]
        unit = figure.split()[-1]
        power = f"{exponent(sizes, values, unit):.1f}" if len(sizes) > 2 else ""
        ends = f"{sizes[0]}: {values[0]:.4g}; {sizes[-1]}: {values[-1]:.4g}"
        rows.append(f"| {name} | {figure} | {ends} | {power} |")
    return rows


def picture(found: Mapping[str, Any]) -> str:
    """Return an SVG picture: seconds of CPU against numbers, a line for each curve."""
    series: dict[str, list[tuple[int, float]]] = {}
    for name, curve in found["curves"].items():
        figures: Figures = next(iter(curve.values()), {})
        for figure in [each for each in _DRAWN if each in figures][:1]:
            series[name] = [(int(size), at[figure]) for size, at in curve.items()]
    return plot.lines("CPU by number", ("number", "seconds of CPU"), series, room=330)
