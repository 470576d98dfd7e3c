"""`python -m tests [pytest's arguments]`: pytest in namespaces that vanish with it.

Without the name of a file: every file, each in namespaces of its own, as many at once as there are
processors, and the longest first. What a file's tests said is shown when it failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from lab import private

_HERE = Path(__file__).resolve().parent
_NO_TESTS = 5  # pytest's exit code where nothing was selected


def main() -> int:
    words = sys.argv[1:]
    if any((_HERE.parent / word.partition("::")[0]).exists() for word in words):
        return private.run([sys.executable, "-m", "pytest", *words])
    return _all_files(words)


def _all_files(words: list[str]) -> int:
    started = time.monotonic()
    files = sorted(_HERE.glob("test_*.py"), key=lambda path: -path.stat().st_size)
    total: Counter[str] = Counter()
    failed = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(_one_file, path, words): path for path in files}
        for done in as_completed(running):
            code, said = done.result()
            lines = said.strip().splitlines() or ["it said nothing"]
            if code not in (0, _NO_TESTS):
                failed.append(running[done].name)
                print(said)
            print(f"{running[done].name}: {lines[-1].strip('= ')}", flush=True)
            for number, what in re.findall(r"(\d+) ([a-z]+)", lines[-1].partition(" in ")[0]):
                total[what.rstrip("s")] += int(number)
    told = ", ".join(f"{number} {what}" for what, number in sorted(total.items()))
    print(f"{told} in {time.monotonic() - started:.0f} s")
    if failed:
        print(f"failed: {' '.join(sorted(failed))}")
    return 1 if failed or not total["passed"] else 0


def _one_file(path: Path, words: list[str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "tests", f"tests/{path.name}", *words]
    done = subprocess.run(
        command,
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
