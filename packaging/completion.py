"""Write click's completion for bash, zsh and fish: completion.py DIRECTORY."""

from __future__ import annotations

import sys
from pathlib import Path

from click.shell_completion import get_completion_class

from ndxdp.cli.completion import VARIABLE
from ndxdp.cli.main import cli

# The name that each shell expects.
FILES = {"bash": "ndxdp", "zsh": "_ndxdp", "fish": "ndxdp.fish"}


def main(directory: Path) -> None:
    """Write click's script for each shell; the scripts ask `ndxdp` for the completions."""
    for shell, name in FILES.items():
        found = get_completion_class(shell)
        assert found, shell
        path = directory / shell / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found(cli, {}, "ndxdp", VARIABLE).source().lstrip() + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
