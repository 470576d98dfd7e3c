"""How cost grows with numbers: rules, lists, containers. Needs root.

    python -m benchmarks.growth [--only WORD] [--most 10000] [--output FILE] [--page FILE]

Each curve is measured at several sizes. The last column is the exponent of the last step, less the
fixed cost, which is the figure of the smallest size: 0 is flat, 1 is in proportion, 2 is the
square. A curve ends before a step that would take longer than a minute, by the steps so far. With
--only, the other curves of an earlier run stay in the file of figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import (
    growth_containers,
    growth_interfaces,
    growth_page,
    growth_rules,
    growth_userspace,
    report,
)
from benchmarks.growing import Bench, Curve, Figures, exponent
from benchmarks.wire import HOST_CPU, REPOSITORY, cpu_name, make_links
from lab import private

RESULTS = REPOSITORY / "benchmarks" / "results" / "growth.json"

CURVES: Sequence[Curve] = (
    *growth_rules.CURVES,
    *growth_userspace.CURVES,
    *growth_containers.CURVES,
    *growth_interfaces.CURVES,
)
"""The table: a module for each kind of thing whose number grows adds its curves here."""

_LONGEST = 60  # seconds of one step, at most


def main() -> int:
    """Measure the curves, and write figures and tables; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--only", default="", help="measure the curves with this in their names")
    parser.add_argument("--most", type=int, default=1_000_000, help="the largest size")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="the file to write the figures to"
    )
    parser.add_argument("--page", type=Path, help="the page whose table is replaced")
    arguments = parser.parse_args()
    if not private.inside():
        return private.run([sys.executable, "-m", "benchmarks.growth", *sys.argv[1:]])
    curves = [curve for curve in CURVES if arguments.only in curve.name]
    make_links()
    os.sched_setaffinity(0, {HOST_CPU})
    earlier = arguments.only and arguments.output.exists()
    found = json.loads(arguments.output.read_text())["curves"] if earlier else {}
    for curve in curves:
        found[curve.name] = _measured(curve, arguments.most)
        for row in rows(curve.name, found[curve.name]):
            print(row, flush=True)
    found = {curve.name: found[curve.name] for curve in CURVES if curve.name in found}
    arguments.output.parent.mkdir(exist_ok=True)
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "cpu": cpu_name()}
    figures = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "curves": found}
    arguments.output.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    arguments.output.with_suffix(".svg").write_text(growth_page.picture(figures))
    if arguments.page:
        report.put_into(arguments.page, growth_page.text(figures))
    return 0


def _measured(curve: Curve, most: int) -> dict[str, Figures]:
    """Return the figures of a curve by its sizes."""
    found: dict[str, Figures] = {}
    took = [0.0]
    for size in curve.sizes:
        if size > most or took[-1] * _factor(took) > _LONGEST:
            break
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            figures = curve.measure(Bench(Path(folder)), size)
        found[str(size)] = {name: round(value, 3) for name, value in figures.items()}
        took.append(time.monotonic() - began)
    return found


def _factor(took: Sequence[float]) -> float:
    """Return by how much the next step probably takes longer than the last one."""
    return max(took[-1] / took[-2], 1) if len(took) > 2 else 1


def rows(name: str, found: Mapping[str, Figures]) -> list[str]:
    """Return the lines of the table for one curve: a line for each figure."""
    sizes = list(found)
    lines = []
    for figure in found[sizes[0]] if sizes else ():
        values = [found[size][figure] for size in sizes]
        cells = " ".join(
            f"{int(size):>7,}: {value:<7.4g}" for size, value in zip(sizes, values, strict=True)
        )
        power = exponent([int(size) for size in sizes], values, figure.split()[-1])
        lines.append(f"{name:<52} {figure:<10} {cells}  exponent {power:.1f}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
