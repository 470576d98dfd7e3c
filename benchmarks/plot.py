"""Pictures of figures as SVG: lines on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 150, 40, 60
_COLOURS = ("#0b6", "#06c", "#c60", "#c06", "#60c", "#690", "#888", "#a22", "#099", "#333")

Points = Sequence[tuple[float, float]]


class _Axis(NamedTuple):
    """A logarithmic scale from figures to pixels."""

    low: float
    high: float
    begins: float
    ends: float

    @classmethod
    def of(cls, values: Sequence[float], begins: float, ends: float) -> _Axis:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return cls(low, max(high, low + 1), begins, ends)

    def at(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self.begins + share * (self.ends - self.begins), 1)

    def decades(self) -> list[float]:
        return [10.0**power for power in range(int(self.low), int(self.high) + 1)]


def lines(
    title: str,
    axes: tuple[str, str],
    series: Mapping[str, Points],
    names: Mapping[float, str] | None = None,
    *,
    room: int = _RIGHT,
) -> str:
    """Draw a line with its name for each of `series`.

    Figures of zero have no place on a logarithmic axis and are omitted.

    Args:
        title: The title of the picture.
        axes: The names of the axes.
        series: The points of each line.
        names: Tick labels instead of numbers.
        room: Pixels for the names of the lines.
    """
    right = _WIDTH - _RIGHT
    width = right + room
    drawn = {
        name: [(x, y) for x, y in points if x > 0 and y > 0] for name, points in series.items()
    }
    drawn = {name: points for name, points in drawn.items() if points}
    every = [point for points in drawn.values() for point in points]
    across = _Axis.of([x for x, _ in every], _LEFT, right)
    up = _Axis.of([y for _, y in every], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{_HEIGHT}" fill="#fff"/>',
        _text(_LEFT, 22, title, size=15),
        _text((_LEFT + right) / 2, _HEIGHT - 14, axes[0], anchor="middle"),
        f'<g transform="translate(18,{_HEIGHT / 2}) rotate(-90)">'
        f"{_text(0, 0, axes[1], anchor='middle')}</g>",
    ]
    for value in up.decades():
        y = up.at(value)
        parts.append(_rule(_LEFT, y, right, y))
        parts.append(_text(_LEFT - 6, y + 4, _short(value), anchor="end"))
    below = names or {value: _short(value) for value in across.decades()}
    for value, name in below.items():
        x = across.at(value)
        parts.append(_rule(x, _TOP, x, _HEIGHT - _BOTTOM))
        parts.append(_text(x, _HEIGHT - _BOTTOM + 18, name, anchor="middle"))
    named = _apart([up.at(points[-1][1]) for points in drawn.values()])
    for (name, points), colour, beside in zip(
        drawn.items(), _cycle(len(drawn)), named, strict=True
    ):
        path = " ".join(f"{across.at(x)},{up.at(y)}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{across.at(x)}" cy="{up.at(y)}" r="3" fill="{colour}"/>'
            for x, y in points
        ]
        parts.append(_text(right + 10, beside + 4, name, colour=colour))
    return "\n".join([*parts, "</svg>\n"])


def _cycle(count: int) -> list[str]:
    return [_COLOURS[n % len(_COLOURS)] for n in range(count)]


def _apart(heights: Sequence[float]) -> list[float]:
    """Move the positions until a line of text fits between each two."""
    placed: dict[int, float] = {}
    last = -math.inf
    for index in sorted(range(len(heights)), key=heights.__getitem__):
        last = placed[index] = max(heights[index], last + 15)
    over = max(0.0, last - (_HEIGHT - _BOTTOM))
    return [round(placed[index] - over, 1) for index in range(len(heights))]


def _short(value: float) -> str:
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def _text(
    x: float, y: float, words: str, *, anchor: str = "start", colour: str = "#000", size: int = 12
) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">'
        f"{escape(words)}</text>"
    )


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#ddd"/>'
