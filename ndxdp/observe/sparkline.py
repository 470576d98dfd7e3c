"""Curves of the status page, as SVG without scripts, links or styles of their own. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

_HEIGHT = 50
_Run = list[tuple[int, int]]  # points of a curve that are connected


@dataclass(frozen=True, slots=True)
class Curves:
    """The answers per second in the past, the oldest first; NaN where they are not known.

    Attributes:
        seconds: The time that the curves reach back.
        total: Of all interfaces.
        of: Of each interface.
    """

    seconds: float
    total: Sequence[float]
    of: Mapping[str, Sequence[float]]


def svg(values: Sequence[float], label: str, *, points: int) -> str:
    """Draw values from left to right, and the area below them; "" if fewer than two are known.

    Args:
        values: The values, the oldest first; NaN for a gap.
        label: The description for screen readers; "" to hide the curve from them.
        points: The number of values to draw at most. Of neighbours, the largest is drawn.
    """
    step = -(-len(values) // points) or 1
    drawn = [_largest(values[at : at + step]) for at in range(0, len(values), step)]
    if sum(value == value for value in drawn) < 2:
        return ""
    top = max(value for value in drawn if value == value) or 1.0
    runs = list(_runs([None if y != y else round(_HEIGHT * (1 - y / top)) for y in drawn]))
    line = "".join("M" + _path(run) for run in runs)
    area = "".join(f"M{run[0][0]},{_HEIGHT}L{_path(run)} {run[-1][0]},{_HEIGHT}Z" for run in runs)
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    # A line along the edge would be cut to half of its width.
    return (
        f'<svg viewBox="0 -1 {len(drawn) - 1} {_HEIGHT + 2}" preserveAspectRatio="none" {role}>'
        f'<path class="area" d="{area}"/>'
        f'<path class="line" d="{line}"/></svg>'
    )


def _largest(values: Sequence[float]) -> float:
    return max((value for value in values if value == value), default=float("nan"))


def _runs(heights: Sequence[int | None]) -> Iterator[_Run]:
    """Yield the points between gaps, without those in the middle of a level line."""
    run: _Run = []
    for x, y in enumerate((*heights, None)):
        if y is not None:
            if len(run) > 1 and run[-1][1] == run[-2][1] == y:
                run.pop()
            run.append((x, y))
        elif run:
            yield run if len(run) > 1 else [run[0], run[0]]  # a single point is a dot
            run = []


def _path(run: _Run) -> str:
    return " ".join(f"{x},{y}" for x, y in run)
