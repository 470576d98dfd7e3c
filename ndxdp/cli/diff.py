"""Output of --dry-run: what a command would change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ndxdp.cli.output import print_parts
from ndxdp.printable import printable

if TYPE_CHECKING:
    from ndxdp.session.preview import Preview


def show_preview(preview: Preview, summary: str) -> None:
    """Print a preview: its summary, and a diff."""
    from ndxdp.observe.preview_text import preview_lines

    print_parts((f"{printable(line)}\n" for line in preview_lines(preview, summary)), "lines")
