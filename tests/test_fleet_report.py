"""The report of shared addresses: written whole and seldom, read by other versions."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ndxdp.daemon import fleet_reporter
from ndxdp.daemon.fleet_reporter import FleetReporter
from ndxdp.errors import NdxdpError
from ndxdp.runtime import fleet_report
from ndxdp.runtime import report as daemon_report
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.runtime.fleet_report import FleetReport, SharedAddressEntry

NETNS = 4026531840
WEB = SharedAddressEntry("vlan7", "web", "2001:db8::20", ["h1", "h2"], True, "h2", 1000.5)
MAIL = SharedAddressEntry("vlan7", "mail", "2001:db8:0:0:e::/80", [], False, "", 0, "nobody lives")
REPORT = FleetReport("h1", NETNS, 4711, 2000.25, [MAIL, WEB])


# ---- the file ------------------------------------------------------------------------------------


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert fleet_report.read(directory, NETNS) is None
    other = REPORT._replace(netns=7, addresses=[])
    for each in (REPORT, other):
        fleet_report.write(directory, each)
        assert fleet_report.read(directory, each.netns) == each
    assert fleet_report.path_of(directory, NETNS).stat().st_mode & 0o777 == 0o640
    assert len(list(directory.iterdir())) == 2
    fleet_report.remove(directory, NETNS)
    assert fleet_report.read(directory, NETNS) is None
    fleet_report.remove(directory, 7)
    fleet_report.remove(directory, 7)
    assert not directory.exists()


@pytest.mark.parametrize("count", [499, 500, 501, 2000])
def test_a_report_is_one_json_text_whatever_its_length(tmp_path: Path, count: int) -> None:
    many = [WEB._replace(name=f"n{number}") for number in range(count)]
    fleet_report.write(tmp_path, REPORT._replace(addresses=many))
    found = fleet_report.read(tmp_path, NETNS)
    assert found is not None
    assert found.addresses == many


def test_fields_of_another_version(tmp_path: Path) -> None:
    """Read a report without most fields, and one with fields that this version does not know."""
    at = fleet_report.path_of(tmp_path, NETNS)
    at.write_text(json.dumps({"host": "h1", "netns": NETNS, "pid": 1}))
    assert fleet_report.read(tmp_path, NETNS) == FleetReport("h1", NETNS, 1, 0, [])
    entry = {"segment": "s", "name": "n", "prefix": "2001:DB8:0::1/128", "colour": "green"}
    at.write_text(json.dumps(data_of(REPORT) | {"addresses": [entry], "more": 1}))
    found = fleet_report.read(tmp_path, NETNS)
    assert found is not None
    assert found.addresses == [SharedAddressEntry("s", "n", "2001:db8::1", [], False, "", 0, "")]


def data_of(report: FleetReport) -> dict[str, Any]:
    return report._asdict() | {"addresses": [each._asdict() for each in report.addresses]}


DAMAGED: dict[str, Any] = {
    "no JSON": "{",
    "no object": [],
    "no text": 7,
    "another namespace": {"netns": 1},
    "netns": {"netns": str(NETNS)},
    "pid": {"pid": None},
    "host": {"host": 5},
    "a host with a surrogate": {"host": "\ud800"},
    "written": {"written": float("nan")},
    "addresses": {"addresses": 5},
    "an address": {"addresses": ["web"]},
    "no name": {"addresses": [{"segment": "s", "prefix": "::1/128"}]},
    "no prefix": {"addresses": [{"segment": "s", "name": "n", "prefix": "::1/129"}]},
    "no address": {"addresses": [{"segment": "s", "name": "n", "prefix": "web"}]},
    "hosts": {"addresses": [data_of(REPORT)["addresses"][0] | {"hosts": [1]}]},
    "since": {"addresses": [data_of(REPORT)["addresses"][0] | {"since": "now"}]},
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_report_is_ignored(tmp_path: Path, change: Any) -> None:
    whole = isinstance(change, dict)
    text = json.dumps(data_of(REPORT) | change if whole else change)
    fleet_report.path_of(tmp_path, NETNS).write_text(change if change == "{" else text)
    assert fleet_report.read(tmp_path, NETNS) is None


def test_what_is_no_report_of_this_user_is_ignored(tmp_path: Path) -> None:
    at = fleet_report.path_of(tmp_path, NETNS)
    fleet_report.write(tmp_path, REPORT)
    os.chown(at, 12345, 12345)
    assert fleet_report.read(tmp_path, NETNS) is None
    os.chown(at, 0, 0)
    assert fleet_report.read(tmp_path, NETNS) == REPORT
    at.rename(tmp_path / "elsewhere")
    at.symlink_to(tmp_path / "elsewhere")
    assert fleet_report.read(tmp_path, NETNS) is None
    at.unlink()
    os.mkfifo(at)
    assert fleet_report.read(tmp_path, NETNS) is None
    at.unlink()
    at.write_text("[" * 100_000)
    assert fleet_report.read(tmp_path, NETNS) is None


def test_a_directory_that_others_can_change_gets_no_report(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(NdxdpError, match="can be changed by others"):
        fleet_report.write(directory, REPORT)
    assert list(directory.iterdir()) == []


def test_the_report_of_a_killed_daemon_is_told_apart(tmp_path: Path) -> None:
    mine = REPORT._replace(pid=os.getpid())
    fleet_report.write(tmp_path, mine)
    with daemon_report.Publisher(tmp_path, NETNS, None, DaemonStatus()):
        assert fleet_report.is_running(mine, daemon_report.daemons(tmp_path))
        assert not fleet_report.is_running(REPORT, daemon_report.daemons(tmp_path))
    assert not fleet_report.is_running(mine, daemon_report.daemons(tmp_path))


# ---- the writer ----------------------------------------------------------------------------------


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[FleetReport]:
    """Return the reports that are written; 0.05 s have to lie between two."""
    monkeypatch.setattr(fleet_reporter, "_PERIOD", 0.05)
    found: list[FleetReport] = []
    write = fleet_report.write

    def noted(directory: Path, report: FleetReport) -> None:
        try:
            write(directory, report)
        finally:
            found.append(report)

    monkeypatch.setattr(fleet_report, "write", noted)
    return found


def reporting(directory: Path, steps: Callable[[FleetReporter], Awaitable[None]]) -> None:
    """Run steps with a reporter in an event loop."""

    async def run() -> None:
        reporter = FleetReporter(directory, NETNS)
        try:
            await steps(reporter)
        finally:
            reporter.close()

    asyncio.run(run())


async def until(probe: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not probe():
            await asyncio.sleep(0.01)


def test_a_change_is_written_and_nothing_else(tmp_path: Path, writes: list[FleetReport]) -> None:
    async def steps(reporter: FleetReporter) -> None:
        asked = 0

        def addresses() -> list[SharedAddressEntry]:
            nonlocal asked
            asked += 1
            return [WEB]

        reporter.note("h1", addresses)
        await until(lambda: len(writes) == 1)
        found = fleet_report.read(tmp_path, NETNS)
        assert found is not None
        assert (found.host, found.pid, found.addresses) == ("h1", os.getpid(), [WEB])
        for number in range(2, 5):  # the same again
            reporter.note("h1", addresses)
            await until(lambda wanted=number: asked == wanted)  # type: ignore[misc]
        reporter.note("h1", lambda: [MAIL])
        await until(lambda: len(writes) == 2)
        reporter.note("h2", lambda: [MAIL])
        await until(lambda: len(writes) == 3)

    reporting(tmp_path, steps)
    assert [(each.host, each.addresses) for each in writes] == [
        ("h1", [WEB]),
        ("h1", [MAIL]),
        ("h2", [MAIL]),
    ]


def test_many_changes_make_few_reports_and_the_last_one_counts(
    tmp_path: Path, writes: list[FleetReport]
) -> None:
    async def steps(reporter: FleetReporter) -> None:
        for burst in (1, 2):
            for number in range(500):
                reporter.note("h1", lambda since=burst * number: [WEB._replace(since=since)])  # type: ignore[misc]
            await until(lambda wanted=burst: len(writes) == wanted)  # type: ignore[misc]

    reporting(tmp_path, steps)
    assert [each.addresses[0].since for each in writes] == [499, 998]


def test_two_reports_are_apart_the_more_the_more_addresses_there_are(
    tmp_path: Path, writes: list[FleetReport]
) -> None:
    many = [WEB._replace(name=f"n{number}") for number in range(2000)]  # 1 s more

    async def steps(reporter: FleetReporter) -> None:
        for number in range(2):
            reporter.note("h1", lambda since=number: [*many, WEB._replace(since=since)])  # type: ignore[misc]
            await until(lambda wanted=number: len(writes) == wanted + 1)  # type: ignore[misc]

    reporting(tmp_path, steps)
    gaps = [later.written - former.written for former, later in itertools.pairwise(writes)]
    assert min(gaps) > 0.5


def test_the_report_goes_with_the_daemon(tmp_path: Path, writes: list[FleetReport]) -> None:
    directory = tmp_path / "run"

    async def steps(reporter: FleetReporter) -> None:
        reporter.note("h1", lambda: [WEB])
        await until(lambda: len(writes) == 1)
        reporter.note("h1", lambda: [MAIL])

    reporting(directory, steps)
    assert not directory.exists()
    assert len(writes) == 1


def test_a_failure_is_logged_once_and_tried_again(
    tmp_path: Path, writes: list[FleetReport], caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "run"
    directory.touch()

    async def steps(reporter: FleetReporter) -> None:
        for number in range(3):
            reporter.note("h1", lambda since=number: [WEB._replace(since=since)])  # type: ignore[misc]
            await until(lambda wanted=number: len(writes) == wanted + 1)  # type: ignore[misc]
        directory.unlink()
        reporter.note("h1", lambda: [WEB])
        await until(lambda: fleet_report.read(directory, NETNS) is not None)

    reporting(directory, steps)
    (message,) = [each for each in caplog.messages if "report" in each]
    assert message.startswith("shared addresses: cannot write a report:")
