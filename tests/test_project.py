"""Tests of the files that carry on the work: versions, locked dependencies, linters, links."""

from __future__ import annotations

import re
import tomllib

import pytest

from ndxdp import __version__
from tests.fixtures.network import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PUBLIC = "https://github.com/ndxdp/ndxdp"


def text(name: str) -> str:
    return (REPOSITORY / name).read_text()


def normalized(name: str) -> str:
    """Return a package's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_versions_agree() -> None:
    (debian,) = re.findall(r"\Andxdp \((.+?)\)", text("packaging/debian/changelog"))
    assert debian == __version__
    headings = re.findall(r"^## \[(.+?)\]", text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert __version__ in headings
    links = re.findall(r"^\[(.+?)\]: ", text("CHANGELOG.md"), re.MULTILINE)
    assert links == headings


def test_the_readme_installs_this_version() -> None:
    assert set(re.findall(r"ndxdp_(\d[\w.~+-]*)_all\.deb", text("README.md"))) == {__version__}


def test_every_dependency_is_locked() -> None:
    pins = re.findall(r"^([\w.-]+)==\S+$", text("constraints.txt"), re.MULTILINE)
    locked = {normalized(name) for name in pins}
    extras = PROJECT["optional-dependencies"].values()
    wanted = [*PROJECT["dependencies"], *(each for extra in extras for each in extra)]
    names = {normalized(re.match(r"[\w.-]+", each)[0]) for each in wanted}  # type: ignore[index]
    assert names <= locked


def test_the_makefile_installs_locked_dependencies_only() -> None:
    installs = re.findall(r"^\t.*pip install.*$", text("Makefile"), re.MULTILINE)
    (lock,) = installs
    assert lock.startswith("\tbuild/lock/")
    assert "--constraint constraints.txt" in text("Makefile")


def test_coverage_runs_tests_that_exist() -> None:
    (names,) = re.findall(r"^IN_COVERAGE := ((?:.*\\\n)*.*)$", text("Makefile"), re.MULTILINE)
    named = names.replace("\\", "").split()
    assert "convert" in named
    assert [name for name in named if not (REPOSITORY / f"tests/test_{name}.py").is_file()] == []


def test_the_workflow_runs_the_steps_of_ci() -> None:
    workflow = text(".github/workflows/test.yml")
    assert re.findall(r"run: (\.\S+)", workflow) == [".ci/run"]
    (minutes,) = re.findall(r"timeout-minutes: (\d+)", workflow)
    assert f"at most {minutes} minutes, which is the limit of CI" in text("README.md")


def test_pre_commit_runs_the_linters_of_the_tests() -> None:
    entries = re.findall(r"entry: (?:\.venv/bin/)?(.*)", text(".pre-commit-config.yaml"))
    assert entries == [
        "ruff check",
        "ruff format --check",
        "mypy --strict",
        "mypy --strict -p lab -p tests -p benchmarks -p dashboards",
        "mypy --strict",
        "clang-format --dry-run -Werror",
    ]


def test_the_unit_names_the_documentation() -> None:
    documented = re.findall(r"^Documentation=(.*)$", text("ndxdp/data/ndxdp.service"), re.MULTILINE)
    assert PROJECT["urls"]["Documentation"] in documented


def test_urls_are_public() -> None:
    for name, url in PROJECT["urls"].items():
        assert url.startswith(PUBLIC), name


@pytest.mark.parametrize("folder", [".github", "docs", "packaging"])
def test_the_project_has_one_address(folder: str) -> None:
    for path in (REPOSITORY / folder).rglob("*"):
        if path.is_file() and path.suffix in {".md", ".yml", ".yaml"}:
            for owner in re.findall(
                r"https://github\.com/([\w/-]+?)/(?:issues|security|blob)", path.read_text()
            ):
                assert owner == "ndxdp/ndxdp" or not owner.endswith("/ndxdp"), path
