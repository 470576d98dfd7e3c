"""docs/reliability.md: its tests exist, and its figures are those of the last runs."""

from __future__ import annotations

import ast
import re

import pytest

from tests.fixtures import reliability
from tests.fixtures.network import REPOSITORY

TEXT = reliability.PAGE.read_text()
NAMED = sorted(set(re.findall(r"`(tests/test_\w+\.py)(?:::(\w+))?`", TEXT)))


def test_tests_are_named() -> None:
    assert len(NAMED) > 20


@pytest.mark.parametrize(("file", "name"), NAMED, ids="::".join)
def test_a_test_that_is_named_exists(file: str, name: str) -> None:
    module = ast.parse((REPOSITORY / file).read_text())
    functions = {each.name for each in module.body if isinstance(each, ast.FunctionDef)}
    assert not name or name in functions, sorted(functions)


def test_each_promise_names_a_test() -> None:
    promises = TEXT.partition("## What it promises")[2].partition("\n## ")[0].split("\n**")[1:]
    assert len(promises) > 5
    for promise in promises:
        assert "`tests/test_" in promise, promise


def test_the_figures_are_those_of_the_last_runs() -> None:
    """Show the figures that `python -m tests.fixtures.reliability` writes."""
    assert reliability.page(TEXT) == TEXT
