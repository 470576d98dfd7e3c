"""Tables: aligned columns in a pipe, and drawn by rich on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from ndxdp.cli.output import echo
from ndxdp.printable import printable

_GAP = "  "
_NUMBERS = "0123456789.-/s"
"""Characters of a column of numbers and rates, which is aligned at its right."""


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], plain: Iterable[str] | None = None
) -> None:
    """Print a table, by rich if stdout is a terminal and rich is installed.

    rich is imported here only: it takes 60 ms and 8 MB, which a daemon or a pipe has no use for.

    Args:
        headings: The headings of the columns.
        rows: The cells of each row; at least one row.
        plain: The lines to print without rich; None for aligned columns.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        try:
            from ndxdp.cli import rich_table
        except ImportError:  # the Debian package only recommends python3-rich
            pass
        else:
            rich_table.draw(headings, cells, list(_numeric(cells)))
            return
    for line in aligned(headings, cells) if plain is None else plain:
        echo(line)


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table: the headings, then a line for each row."""
    numeric = list(_numeric(rows))
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numeric, strict=True)
        )
        yield _GAP.join(cells).rstrip()


def _numeric(rows: Sequence[Sequence[str]]) -> Iterator[bool]:
    """Yield for each column whether it has numbers only."""
    for column in zip(*rows, strict=True):
        yield all(set(cell) <= set(_NUMBERS) for cell in column)
