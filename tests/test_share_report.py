"""The report of a share: written whole, read by processes of other versions, never trusted."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from ndxdp.errors import NdxdpError
from ndxdp.runtime import report as daemon_report
from ndxdp.runtime import share_report
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.runtime.share_report import (
    COUNTERS,
    IGNORED,
    REFUSALS,
    HeardRouter,
    SharedHost,
    SharedLink,
    SharedPrefix,
    ShareReport,
)

NETNS = 4026531840
REPORT = ShareReport(
    "eth0",
    NETNS,
    4711,
    1000.5,
    [SharedLink("eth0", "upstream"), SharedLink("wg0", "routes", "there is no such interface")],
    [SharedPrefix("2001:db8::/64", 5000.0), SharedPrefix("fd00::/64")],
    [HeardRouter("fe80::1", 999.0, 1800)],
    True,
    4096,
    [
        SharedHost("2001:db8::10", "lan0", "02:00:00:00:00:10", 10.0, 990.0),
        SharedHost("2001:db8::11", "wg0", None, 11.0, 991.0),
    ],
    dict.fromkeys(COUNTERS, 3),
    dict.fromkeys(REFUSALS, 2),
    dict.fromkeys(IGNORED, 1),
)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    share_report.write(directory, REPORT)
    other = REPORT._replace(upstream="eth.1", netns=7)
    share_report.write(directory, other)
    assert share_report.reports(directory, NETNS) == [REPORT]
    assert share_report.reports(directory) == [other, REPORT]
    made = directory / f"share-{NETNS}-eth0.json"
    assert made.stat().st_mode & 0o777 == 0o640
    assert sorted(directory.iterdir()) == sorted([made, directory / "share-7-eth.1.json"])


def test_the_last_report_removed_takes_the_directory_with_it(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    share_report.remove(directory, NETNS, "eth0")  # there is none
    for name in ("eth0", "eth1"):
        share_report.write(directory, REPORT._replace(upstream=name))
    share_report.remove(directory, NETNS, "eth0")
    assert [each.upstream for each in share_report.reports(directory)] == ["eth1"]
    share_report.remove(directory, NETNS, "eth1")
    assert not directory.exists()
    assert share_report.reports(directory) == []


def test_fields_of_another_version(tmp_path: Path) -> None:
    """Read a report without most fields, and one with fields that this version does not know."""
    old = {"upstream": "eth0", "netns": NETNS, "pid": 1}
    at = share_report.path_of(tmp_path, NETNS, "eth0")
    at.write_text(json.dumps(old))
    assert share_report.reports(tmp_path) == [
        ShareReport("eth0", NETNS, 1, 0, [], [], [], False, 0, [], {}, {}, {})
    ]
    new = share_report.report_data(REPORT) | {"colour": "green"}
    new["hosts"][0] |= {"name": "printer"}
    at.write_text(json.dumps(new))
    assert share_report.reports(tmp_path) == [REPORT]


DAMAGED: dict[str, Any] = {
    "no JSON": "{",
    "no object": [],
    "no text": 7,
    "nothing": {},
    "another upstream": {"upstream": "eth1"},
    "another namespace": {"netns": 1},
    "netns": {"netns": str(NETNS)},
    "pid": {"pid": None},
    "written": {"written": float("nan")},
    "huge": {"written": 10**400},
    "links": {"links": 5},
    "a link": {"links": ["lan0"]},
    "prefixes": {"prefixes": [{"prefix": 7}]},
    "a prefix": {"prefixes": [{"prefix": "2001:db8::/129"}]},
    "a prefix without a length": {"prefixes": [{"prefix": "2001:db8::"}]},
    "an address": {"hosts": [{"address": "2001:db8::x", "interface": "lan0"}]},
    "an address with a surrogate": {"hosts": [{"address": "\ud800", "interface": "lan0"}]},
    "an interface with a surrogate": {"hosts": [{"address": "::1", "interface": "\ud800"}]},
    "seen": {"hosts": [{"address": "::1", "interface": "lan0", "seen": "now"}]},
    "counters": {"counters": ["learned"]},
    "a counter": {"counters": {"learned": True}},
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_report_is_ignored(tmp_path: Path, change: Any) -> None:
    other = REPORT._replace(upstream="eth2")
    share_report.write(tmp_path, other)
    if isinstance(change, dict) and change:
        text = json.dumps(share_report.report_data(REPORT) | change)
    else:
        text = change if isinstance(change, str) else json.dumps(change)
    share_report.path_of(tmp_path, NETNS, "eth0").write_text(text)
    assert share_report.reports(tmp_path) == [other]


def test_what_is_no_report_of_this_user_is_ignored(tmp_path: Path) -> None:
    whole = json.dumps(share_report.report_data(REPORT._replace(upstream="a")))
    foreign = share_report.path_of(tmp_path, NETNS, "a")
    foreign.write_text(whole)
    assert len(share_report.reports(tmp_path)) == 1
    os.chown(foreign, 12345, 12345)
    share_report.path_of(tmp_path, NETNS, "b").symlink_to(foreign)
    os.mkfifo(share_report.path_of(tmp_path, NETNS, "c"))
    share_report.path_of(tmp_path, NETNS, "d").mkdir()
    (tmp_path / "share-x").write_bytes(b"\xff")
    share_report.path_of(tmp_path, NETNS, "e").write_text("[" * 100_000)
    assert share_report.reports(tmp_path) == []


def test_a_report_replaces_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    directory = tmp_path / "run"
    directory.mkdir()
    share_report.path_of(directory, NETNS, "eth0").symlink_to(victim)
    share_report.write(directory, REPORT)
    assert victim.read_text() == "mine"
    assert share_report.reports(directory) == [REPORT]


def test_a_directory_that_others_can_change_gets_no_report(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(NdxdpError, match="can be changed by others"):
        share_report.write(directory, REPORT)
    assert list(directory.iterdir()) == []


def test_a_report_without_a_place_is_an_error_with_its_path(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(NdxdpError, match=f"cannot write {blocked}/run/share-"):
        share_report.write(blocked / "run", REPORT)


def test_a_reader_sees_a_whole_report_at_each_moment(tmp_path: Path) -> None:
    """Read a complete report at any time while reports of different sizes replace each other."""
    long = REPORT._replace(hosts=REPORT.hosts * 500)
    share_report.write(tmp_path, REPORT)
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            share_report.write(tmp_path, long)
            share_report.write(tmp_path, REPORT)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [len(share_report.reports(tmp_path)[0].hosts) for _ in range(100)]
    finally:
        ended.set()
        writer.join()
    assert set(seen) <= {2, 1000}


def test_a_report_outlives_its_daemon(tmp_path: Path) -> None:
    """Tell the report of a running daemon from that of one that has ended."""
    mine = REPORT._replace(pid=os.getpid())
    share_report.write(tmp_path, mine)
    share_report.write(tmp_path, REPORT._replace(upstream="eth1", pid=os.getpid(), netns=1))

    def running() -> list[str]:
        daemons = daemon_report.daemons(tmp_path)
        found = share_report.reports(tmp_path)
        return [each.upstream for each in found if share_report.is_running(each, daemons)]

    with daemon_report.Publisher(tmp_path, NETNS, None, DaemonStatus()):
        assert running() == ["eth0"]
    assert running() == []
    assert len(share_report.reports(tmp_path)) == 2
