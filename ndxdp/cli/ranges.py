"""Numbers with limits, which `--help` and errors describe in words: `1 to 1000000`."""

from __future__ import annotations

import math
from typing import Any

import click


class Number(click.FloatRange):
    """A number between limits."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; reject `nan`, which click's comparisons accept."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a valid float range.", param, ctx)
        return float(number)

    def _describe_range(self) -> str:
        """Describe the limits, in place of click's `0.1<=x<=86400`."""
        return _described(self.min, self.max)


class WholeNumber(click.IntRange):
    """A whole number between limits."""

    def _describe_range(self) -> str:
        """Describe the limits, in place of click's `1<=x<=1000000`."""
        return _described(self.min, self.max)


def _described(least: float | None, most: float | None) -> str:
    """Describe limits, at least one of which is there."""
    low, high = (f"{limit:.10g}" for limit in (least or 0, most or 0))
    if most is None:
        return f"at least {low}"
    return f"at most {high}" if least is None else f"{low} to {high}"
