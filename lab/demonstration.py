"""A demonstration: the machine that it needs, its steps, and its end."""

from __future__ import annotations

import argparse
import os
import re
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from lab import private
from lab.commands import LabError, missing_tools, stop

_PACKAGES = "util-linux iproute2 procps nftables iputils-ping clang"
_READY = re.compile(rb"^ready\b", re.MULTILINE)
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


# ---- the steps -----------------------------------------------------------------------------------


class Demonstration:
    """The base of a demonstration.

    Attributes:
        step: The present step, for the differences.
        differences: The outcomes that were not expected.
    """

    def __init__(self) -> None:
        self.step = ""
        self.differences: list[str] = []

    def expect(self, holds: bool, claim: str) -> None:
        """Note a claim that does not hold, once for each step."""
        difference = f"step {self.step}: not true: {claim}"
        if not holds and difference not in self.differences:
            self.differences.append(difference)

    def begin(self, step: str, title: str) -> None:
        """Begin a step."""
        self.step = step
        report(f"\n{step}. {title}")

    def end(self, outcome: str) -> int:
        """Report whether all went as expected, with the outcome; return the exit code."""
        if self.differences:
            report("\nNOT as expected:")
            for difference in self.differences:
                report("  " + difference.strip().replace("\n", "\n    "))
            return 1
        report(f"\nAs expected: {outcome}")
        return 0


def report(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def report_output(text: str) -> None:
    """Print the output of a command."""
    for line in text.splitlines():
        report(f"    {line}".rstrip())


def read_until_ready(process: subprocess.Popen[str]) -> str:
    """Return what ndxdp prints until it reports that it is ready; stop it if it does not.

    Args:
        process: ndxdp, whose output is a pipe.

    Raises:
        LabError: It ends before, or is not ready within 10 s.
    """
    assert process.stdout is not None
    output = b""
    give_up = time.monotonic() + 10
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, give_up - time.monotonic())):
            chunk = os.read(process.stdout.fileno(), 4096)
            output += chunk
            if _READY.search(output):
                return output.decode(errors="replace")
            if not chunk:
                break
    stop(process)
    raise LabError("ndxdp did not report that it is ready.", output.decode(errors="replace"))
