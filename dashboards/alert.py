"""An alert of Prometheus, as one object."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alert:
    """Alert that fires if `value comparison` holds for `hold`. Texts are Prometheus' templates."""

    name: str
    value: str
    comparison: str
    hold: str
    severity: str
    summary: str
    description: str

    @property
    def expr(self) -> str:
        """The PromQL expression."""
        return f"{self.value} {self.comparison}"
