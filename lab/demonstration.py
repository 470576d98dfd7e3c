"""The beginning of a demonstration: what the machine needs, and private namespaces."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from lab import private
from lab.topology import LabError, missing_tools

_PACKAGES = "util-linux iproute2 procps nftables iputils-ping clang"
NDXDP = Path(__file__).resolve().parent.parent / ".venv" / "bin" / "ndxdp"
"""The program by default."""


def check_machine(ndxdp: Path | None, more: Mapping[str, str] | None = None) -> None:
    """Raise LabError if this machine lacks something.

    Args:
        ndxdp: The program; None if it is not needed.
        more: Further programs that are needed, and the Debian package of each.
    """
    if os.geteuid() != 0:
        raise LabError("The lab makes network namespaces, which takes root.", "Try it with sudo.")
    others = more or {}
    if missing := [*missing_tools(), *(name for name in others if not shutil.which(name))]:
        packages = " ".join((_PACKAGES, *others.values()))
        raise LabError(f"The lab needs {', '.join(missing)}.", f"Debian: apt install {packages}")
    if ndxdp and not os.access(ndxdp, os.X_OK):
        raise LabError(f"There is no ndxdp at {ndxdp}.", "Name another one with --ndxdp PATH.")


def run(description: str | None, demo: Callable[[Path], int], more: Mapping[str, str]) -> int:
    """Run a demonstration in private namespaces, as the command line wants it.

    Args:
        description: For --help.
        demo: Runs it with the program ndxdp, and returns the exit code.
        more: Further programs that are needed, and the Debian package of each.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--ndxdp", type=Path, default=NDXDP, metavar="PATH")
    ndxdp = parser.parse_args().ndxdp.absolute()
    check_machine(ndxdp, more)
    if not private.inside():
        return private.run([sys.executable, *sys.argv])
    return demo(ndxdp)
