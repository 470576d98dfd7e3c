"""Output of --dry-run: what a command would change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ndxdp.cli.colour import coloured, is_coloured
from ndxdp.cli.output import print_parts
from ndxdp.printable import printable

if TYPE_CHECKING:
    from ndxdp.session.preview import Preview


def show_preview(preview: Preview, summary: str) -> None:
    """Print a preview: its summary, and a diff."""
    from ndxdp.observe.preview_text import preview_lines

    lines = map(printable, preview_lines(preview, summary))
    if is_coloured(1):
        lines = map(coloured, lines)
    print_parts((f"{line}\n" for line in lines), "lines")
