"""Run pytest in namespaces that vanish with it: `python -m tests [pytest's arguments]`.

Without a test file among the arguments, every test file runs, each in namespaces of its own, the
longest files first. Two more run at once than there are processors, because many tests wait for
the kernels and daemons that they started. Files that keep the whole kernel busy run alone, at the
end. The output of a file is printed if one of its tests
failed. No test is run a second time: a test that fails now and then is a defect.

`python -m tests --repeat N ARGUMENTS` finds such a test: it runs pytest with the same arguments N
times, several runs for each processor at once, so that every run competes for the processors, and
prints how many runs failed.

Limits of the machine that leave the tests too little room are printed first, and once more at the
end if a test failed.
"""

from __future__ import annotations

import compileall
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from lab import private
from tests.fixtures import machine

_HERE = Path(__file__).resolve().parent
_NO_TESTS = 5  # pytest's exit code if no test was selected
_RUNS_PER_PROCESSOR = 2  # of --repeat
_ALONE = ("test_benchmarks.py",)
"""Files that flood the kernel at a high priority. RCU waits for a flood, and the rtnl lock for RCU:
commands in all other network namespaces take seconds, some a minute."""


class Run(NamedTuple):
    """A run of pytest that has ended."""

    name: str
    code: int
    output: str

    @property
    def summary(self) -> str:
        """The last line of the output, such as "2 failed, 30 passed in 3.21s"."""
        lines = self.output.strip().splitlines()
        return lines[-1].strip("= ") if lines else "no output"


def main() -> int:
    """Run the tests that the command line selects; return the exit code."""
    words = sys.argv[1:]
    machine.raise_open_files()
    compile_packages()
    if words[:1] == ["--repeat"]:
        return _repeat(words[1:])
    if any((_HERE.parent / word.partition("::")[0]).exists() for word in words):
        return private.run([sys.executable, "-m", "pytest", *words])
    short = machine.short_of(machine.limits())
    _print_limits(short)
    before = machine.neighbour_table_overflows()
    code = _run_all_files(words)
    if code:
        _print_limits(short)
        if overflows := machine.neighbour_table_overflows() - before:
            print(f"the kernel had no room for an IPv6 neighbour {overflows} times")
    return code


def compile_packages() -> None:
    """Compile the modules that the tests start thousands of times.

    Otherwise each start would compile them, where Python is configured to write no bytecode.
    """
    for package in ("ndxdp", "lab", "tests"):
        compileall.compile_dir(_HERE.parent / package, quiet=2)


def _print_limits(short: list[str]) -> None:
    for sentence in short:
        print(f"limit: {sentence}", flush=True)


def _run_all_files(words: list[str]) -> int:
    """Run every test file; return 1 if a test failed or no test ran."""
    started = time.monotonic()
    files = sorted(_HERE.glob("test_*.py"), key=lambda path: -path.stat().st_size)
    total: Counter[str] = Counter()
    failed: list[str] = []
    at_once = (os.cpu_count() or 1) + 2
    alone = [path for path in files if path.name in _ALONE]
    together = [path for path in files if path not in alone]
    for run in chain(_files(at_once, together, words), _files(1, alone, words)):
        _print_run(run)
        for number, outcome in re.findall(r"(\d+) ([a-z]+)", run.summary.partition(" in ")[0]):
            total[outcome.rstrip("s")] += int(number)
        if run.code not in (0, _NO_TESTS):
            failed.append(run.name)
    counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(total.items()) if number)
    print(f"{counts} in {time.monotonic() - started:.0f} s")
    if failed:
        print(f"failed: {' '.join(sorted(failed))}")
    return 1 if failed or not total["passed"] else 0


def _files(at_once: int, files: list[Path], words: list[str]) -> Iterator[Run]:
    """Run test files, several at once; yield each run when it has ended."""
    return _runs(at_once, ((path.name, [f"tests/{path.name}", *words]) for path in files))


def _repeat(words: list[str]) -> int:
    """Run the same tests many times at once; return 1 if one of the runs failed."""
    if len(words) < 2 or not words[0].isdecimal() or not int(words[0]):
        print("usage: python -m tests --repeat N ARGUMENTS", file=sys.stderr)
        return 2
    times = int(words[0])
    at_once = _RUNS_PER_PROCESSOR * (os.cpu_count() or 1)
    failed = 0
    for run in _runs(at_once, ((f"run {n}", words[1:]) for n in range(1, times + 1))):
        _print_run(run)
        failed += run.code != 0
    print(f"{failed} of {times} runs failed")
    return 1 if failed else 0


def _runs(at_once: int, wanted: Iterable[tuple[str, list[str]]]) -> Iterator[Run]:
    """Run pytest by name and arguments, several at once; yield each run when it has ended."""
    with ThreadPoolExecutor(at_once) as pool:
        running = [pool.submit(run, name, arguments) for name, arguments in wanted]
        for ended in as_completed(running):
            yield ended.result()


def run(name: str, arguments: list[str]) -> Run:
    """Run pytest in namespaces of its own, without the cache that all runs would write to."""
    done = subprocess.run(
        [sys.executable, "-m", "tests", *arguments, "-p", "no:cacheprovider"],
        cwd=_HERE.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return Run(name, done.returncode, done.stdout)


def _print_run(run: Run) -> None:
    if run.code not in (0, _NO_TESTS):
        print(run.output)
    print(f"{run.name}: {run.summary}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
