"""Choices of a reader of the status page, which are in the query of its address. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import parse_qs, quote, urlencode

from ndxdp.rules.interface_name import natural_order


@dataclass(frozen=True, slots=True)
class Choice:
    """How a reader wants the page.

    Attributes:
        refreshed: The browser loads the page again from time to time.
        unfolded: The interfaces that stay unfolded.
    """

    refreshed: bool = True
    unfolded: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, query: str) -> Self:
        """Return the choices in a query; ignore what it has besides."""
        values = parse_qs(query, errors="replace")
        return cls("off" not in values.get("refresh", ()), frozenset(values.get("unfold", ())))

    def among(self, names: Iterable[str]) -> Self:
        """Return the choices without the interfaces that do not exist."""
        return replace(self, unfolded=self.unfolded.intersection(names))

    def unfolding(self, name: str) -> str:
        """Return the address of the page where an interface is unfolded, and shown first."""
        return f"{self._with(self.unfolded | {name})}#{quote(f'on-{name}')}"

    def folding(self, name: str) -> str:
        """Return the address of the page where an interface is not kept unfolded."""
        return self._with(self.unfolded - {name})

    def address(self, *, refreshed: bool) -> str:
        """Return the address of the page with the same interfaces unfolded."""
        return replace(self, refreshed=refreshed)._with(self.unfolded)

    def _with(self, unfolded: Iterable[str]) -> str:
        """Return an address relative to that of the page, which may be behind a proxy."""
        pairs = [] if self.refreshed else [("refresh", "off")]
        pairs += [("unfold", name) for name in sorted(unfolded, key=natural_order)]
        return f"?{urlencode(pairs)}"
