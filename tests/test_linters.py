"""The linters' verdicts on the repository, each as one test. `make format` repairs the layout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def clean(*command: str) -> None:
    """Run a linter, which must find nothing; its output is the text of the failure."""
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


def test_types() -> None:
    clean(sys.executable, "-m", "mypy", "--strict")


def test_types_of_packaging() -> None:
    scripts = sorted(REPOSITORY.glob("packaging/*.py"))
    assert scripts
    clean(sys.executable, "-m", "mypy", "--strict", *map(str, scripts))


def test_types_of_lab_and_tests() -> None:
    packages = ("-p", "lab", "-p", "tests", "-p", "benchmarks", "-p", "dashboards")
    clean(sys.executable, "-m", "mypy", "--strict", *packages)


def test_ruff() -> None:
    clean(sys.executable, "-m", "ruff", "check")


def test_python_layout() -> None:
    clean(sys.executable, "-m", "ruff", "format", "--check")


def test_c_layout() -> None:
    sources = [
        path
        for pattern in ("bpf/*.[ch]", "lab/*.c", "benchmarks/*.c")
        for path in REPOSITORY.glob(pattern)
    ]
    assert sources
    clean("clang-format", "--dry-run", "-Werror", *map(str, sorted(sources)))
