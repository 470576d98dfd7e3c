"""`python -m tests [pytest's arguments]`: pytest in namespaces that vanish with it.

Without the name of a file: every file, each in namespaces of its own, as many at once as there are
processors, and the longest first. What a file's tests said is shown when it failed.

Many tests wait for the kernel, for containers, for other people's daemons, beside a second file's
tests and on machines that are never idle. So a few that failed are run once more at the end, with
nothing beside them, and are named if they pass then. What is broken fails twice.

Before anything else, limits of the machine that leave too little room are named, and once more at
the end where tests have failed.
"""

from __future__ import annotations

import compileall
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from lab import private
from tests import machine

_HERE = Path(__file__).resolve().parent
_NO_TESTS = 5  # pytest's exit code where nothing was selected
_FEW = 5  # failed tests and errors, in all files
_ONLY_FAILED = ("--last-failed", "--last-failed-no-failures=none")


def main() -> int:
    words = sys.argv[1:]
    machine.raise_open_files()
    compile_packages()
    if any((_HERE.parent / word.partition("::")[0]).exists() for word in words):
        return private.run([sys.executable, "-m", "pytest", *words])
    short = machine.short_of(machine.limits())
    _print_limits(short)
    before = machine.neighbour_table_overflows()
    code = _all_files(words)
    if code:
        _print_limits(short)
        if overflows := machine.neighbour_table_overflows() - before:
            print(f"meanwhile the kernel had no room for an IPv6 neighbour {overflows} times")
    return code


def compile_packages() -> None:
    """Compile what the tests start thousands of times, where Python is told to keep no bytecode."""
    for package in ("ndxdp", "lab", "tests"):
        compileall.compile_dir(_HERE.parent / package, quiet=2)


def _print_limits(short: list[str]) -> None:
    for sentence in short:
        print(f"limit: {sentence}", flush=True)


def _all_files(words: list[str]) -> int:
    started = time.monotonic()
    files = sorted(_HERE.glob("test_*.py"), key=lambda path: -path.stat().st_size)
    total: Counter[str] = Counter()
    failed: list[Path] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(_one_file, path, [*words, "--cache-clear"]): path for path in files}
        for done in as_completed(running):
            code, said = done.result()
            if not _tell(running[done], 0 if code == _NO_TESTS else code, said, total):
                failed.append(running[done])
    if failed and total["failed"] + total["error"] <= _FEW:
        print(f"\nonce more, alone: {_names(failed)}")
        second: Counter[str] = Counter()
        again = [
            path
            for path in failed
            if not _tell(path, *_one_file(path, [*words, *_ONLY_FAILED]), second)
        ]
        print(f"passed at the second try: {_names(set(failed) - set(again)) or 'none'}")
        total["passed"] += second["passed"]
        total["failed"], total["error"] = second["failed"], second["error"]
        failed = again
    told = ", ".join(f"{number} {what}" for what, number in sorted(total.items()) if number)
    print(f"{told} in {time.monotonic() - started:.0f} s")
    if failed:
        print(f"failed: {_names(failed)}")
    return 1 if failed or not total["passed"] else 0


def _tell(path: Path, code: int, said: str, total: Counter[str]) -> bool:
    """Say how a file's tests went, and count them by outcome; False if any failed."""
    lines = said.strip().splitlines() or ["it said nothing"]
    if code:
        print(said)
    print(f"{path.name}: {lines[-1].strip('= ')}", flush=True)
    for number, what in re.findall(r"(\d+) ([a-z]+)", lines[-1].partition(" in ")[0]):
        total[what.rstrip("s")] += int(number)
    return code == 0


def _names(paths: Iterable[Path]) -> str:
    return " ".join(sorted(path.name for path in paths))


def _one_file(path: Path, words: list[str]) -> tuple[int, str]:
    cache = _HERE.parent / "build" / "pytest" / path.stem
    command = [sys.executable, "-m", "tests", f"tests/{path.name}", *words]
    done = subprocess.run(
        [*command, "-o", f"cache_dir={cache}"],
        cwd=_HERE.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout


if __name__ == "__main__":
    sys.exit(main())
