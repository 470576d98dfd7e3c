"""The results that `make test-kernels` reads from its machines, and its page."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from lab import kernel_matrix, kernels
from tests.scenarios import kernel_groups

JUNIT = """\
<testsuites><testsuite>
<testcase classname="tests.test_auto" name="test_good"/>
<testcase classname="tests.scenarios.virtio_nic" name="test_auto"><properties>
<property name="auto" value="tc"/><property name="not" value="native: it has none"/>
</properties></testcase>
<testcase classname="tests.test_auto" name="test_bad"><failure message="…">…</failure></testcase>
<testcase classname="tests.test_auto" name="test_fixture"><error message="…">…</error></testcase>
<testcase classname="tests.test_auto" name="test_new"><skipped message="no rename"/></testcase>
</testsuite></testsuites>
"""


def test_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, page = tmp_path / "junit", tmp_path / "kernels.md"
    result.write_text(JUNIT)
    group = {"group": "ladder", "seconds": 7, **kernel_groups.read(result)}
    assert (group["passed"], group["failed"], group["skipped"]) == (2, 2, 1)
    gone = {"group": "packets", "seconds": 1, **kernel_groups.read(tmp_path / "none")}
    lines = [json.dumps(line) for line in (group, gone, {"release": "5.10.0-46-amd64"})]

    monkeypatch.setattr(kernel_matrix, "RESULTS", tmp_path / "results" / "kernels.json")
    monkeypatch.setattr(kernel_matrix, "PAGE", page)
    page.write_text(f"before\n{kernel_matrix.BEGIN}old\n{kernel_matrix.END}after\n")
    for _ in range(2):  # the page is rewritten, not appended to
        kernel_matrix.keep("5.10", "\n".join(lines))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    today = datetime.date.today().isoformat()
    assert (
        f"| 5.10.0-46-amd64 | Debian 11 | {today} | tc | 0 passed, 1 failed | not run "
        "| 2 passed, 1 skipped, 2 failed | not run | not run | not run |\n"
    ) in text
    for remark in ("skipped: no rename", "native: it has none", "failed: tests.test_auto.test_bad"):
        assert text.count(f"- 5.10, {remark}") == 1


def test_failed_tests_are_run_once_more(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text(JUNIT)
    second.write_text(
        '<testsuite><testcase classname="tests.test_auto" name="test_bad"/>'
        '<testcase classname="tests.test_auto" name="test_fixture"><error/></testcase></testsuite>'
    )
    found = kernel_groups.merged(kernel_groups.read(first), kernel_groups.read(second))
    assert (found["passed"], found["failed"], found["skipped"]) == (3, 1, 1)
    assert found["names"] == ["tests.test_auto.test_fixture"]
    assert found["again"] == ["tests.test_auto.test_bad"]
    # Without a second report of pytest, no test has passed.
    found = kernel_groups.merged(kernel_groups.read(first), kernel_groups.read(tmp_path / "none"))
    assert (found["passed"], found["failed"]) == (2, 2)


def test_page_shows_the_kept_results() -> None:
    assert kernel_matrix.table(kernel_matrix.read()) in kernel_matrix.PAGE.read_text()
    assert set(kernel_matrix.read()) <= set(kernels.SOURCES)
