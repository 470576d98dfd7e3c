"""Tests that depend on the kernel, on each kernel of lab/kernels.py, and a table of the results.

    python -m lab.kernel_matrix [--timeout SECONDS] [--groups NAME,…] [KERNEL …]

lab/results/kernels.json keeps the results, from which the table in docs/kernels.md is written. A
kernel or a group that was not run keeps its last result. The exit code is 1 if a test failed, or
a machine ended without a report.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from lab import kernels, vm
from lab.commands import LabError
from tests.scenarios.kernel_groups import GROUPS

_REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = _REPOSITORY / "lab" / "results" / "kernels.json"
PAGE = _REPOSITORY / "docs" / "kernels.md"
BEGIN, END = "<!-- made by `make test-kernels` -->\n", "<!-- end -->\n"

Results = dict[str, dict[str, Any]]
"""By the first part of the kernel's version: `release`, `of`, `date`, `groups`, `auto`, `not`."""


def main() -> int:
    """Run the program; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.kernel_matrix", description=__doc__)
    parser.add_argument(
        "--timeout",
        type=float,
        default=1800,
        metavar="SECONDS",
        help="seconds allowed for each kernel",
    )
    parser.add_argument(
        "--groups", default=",".join(GROUPS), help="groups of tests/scenarios/kernel_groups.py"
    )
    parser.add_argument(
        "kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(kernels.SOURCES)}"
    )
    options = parser.parse_args()
    groups, names = options.groups.split(","), options.kernels or list(kernels.SOURCES)
    for wrong in {*groups} - {*GROUPS} | {*names} - {*kernels.SOURCES}:
        parser.error(f"there is no {wrong}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = 0
    try:
        for name in names:
            print(f"==== Linux {name} ({kernels.release(name)})", flush=True)
            code = _run(name, groups, options.timeout) or code
    except KeyboardInterrupt:
        return 130
    print(table(read()), end="")
    return code


def _run(name: str, groups: list[str], timeout: float) -> int:
    """Run the groups on one kernel, and keep the results even of an incomplete run."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report")
        try:
            kernel = kernels.kernel(name)
            return vm.run(
                groups,
                timeout,
                module="tests.scenarios.kernel_groups",
                kernel=kernel,
                report=report,
            )
        except LabError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            if report.exists():
                keep(name, report.read_text(errors="replace"))


def read() -> Results:
    """Read the known results of each kernel."""
    found: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def keep(name: str, report: str) -> None:
    """Store the results of a guest, and write the table to the page."""
    results = read()  # read again: another run may have written in the meantime
    found = results.setdefault(name, {"groups": {}})
    found.setdefault("release", name)
    found["of"] = kernels.release(name)
    found["date"] = datetime.date.today().isoformat()
    for line in report.splitlines():
        if not (line.startswith("{") and line.endswith("}")):
            continue  # the guest's exit code, or a truncated line
        entry = json.loads(line)
        if "release" in entry:
            found["release"] = entry["release"]
            continue
        noted = entry.pop("noted")
        found["groups"][entry.pop("group")] = entry
        for mode in [value for of, value in noted if of == "auto"]:
            found["auto"] = mode
            found["not"] = [value for of, value in noted if of == "not"]

    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    page = [before, BEGIN, "\n", table(results), "\n", END, rest.partition(END)[2]]
    PAGE.write_text("".join(page))


def table(results: Results) -> str:
    """Return a row for each kernel, and notes below the rows."""
    head = ["kernel", "distribution", "last run", "`auto` on virtio-net", *GROUPS]
    lines = [_row(head), _row(["---"] * len(head))]
    remarks = []
    for name in kernels.SOURCES:
        if name not in results:
            continue
        found = results[name]
        cells = [_cell(found["groups"].get(group)) for group in GROUPS]
        about = [found["release"], found["of"], found["date"], found.get("auto", "not run")]
        lines.append(_row([*about, *cells]))
        why = {reason for group in found["groups"].values() for reason in group["why"]}
        remarks += [f"- {name}, skipped: {reason}" for reason in sorted(why)]
        remarks += [f"- {name}, {step}" for step in found.get("not", [])]
        remarks += [
            f"- {name}, failed: {test}"
            for group in found["groups"].values()
            for test in group["names"]
        ]
        remarks += [
            f"- {name}, passed at the second attempt: {test}"
            for group in found["groups"].values()
            for test in group.get("again", [])
        ]
    return "\n".join([*lines, "", *remarks]) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(group: dict[str, Any] | None) -> str:
    if group is None:
        return "not run"
    entry = [f"{group['passed']} passed"]
    entry += [f"{group[how]} {how}" for how in ("skipped", "failed") if group[how]]
    return ", ".join(entry)


if __name__ == "__main__":
    sys.exit(main())
