"""Tables on a terminal, drawn by rich: the only module that imports it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ndxdp.cli.colour import STYLES, is_coloured

_WIDTH = 1000
"""Columns, more than any table has: a narrow terminal wraps lines, and rich would cut cells."""


def draw(
    headings: Sequence[str], rows: Iterable[Sequence[str]], is_numeric: Sequence[bool]
) -> None:
    """Draw a table on stdout.

    Args:
        headings: The headings of the columns.
        rows: The cells of each row.
        is_numeric: Whether a column has numbers, which are aligned at their right.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for heading, number in zip(headings, is_numeric, strict=True):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
    Console(
        color_system="standard" if is_coloured(1) else None, width=_WIDTH, highlight=False
    ).print(table)
