"""The views of a share: `status`, the page, the metrics, from report files that a daemon writes."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ndxdp.netlink.host_routes import PROTOCOL
from ndxdp.netlink.netns import netns
from ndxdp.observe import shares, status, status_page
from ndxdp.observe.metric_kinds import KINDS
from ndxdp.observe.metrics import Exposition
from ndxdp.observe.status import Snapshot
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
from ndxdp.store.directories import Trees
from tests.fixtures.documented import json_of, shape
from tests.fixtures.network import (
    FILES,
    REPOSITORY,
    UPLINK,
    Network,
    call,
    done,
    ndxdp,
    remove_instance,
    sh,
)
from tests.fixtures.prometheus import Samples, parsed
from tests.test_status_page import Page

INNER, TUNNEL = "lan0", "tun0"
FIRST, SECOND, PEER = "2001:db8::10", "2001:db8::11", "2001:db8::20"
MAC = "02:00:00:00:00:10"
ENDED = 1 << 23  # no process has such a number
NO_PREFIX = "no prefix is shared yet: no router on up0 has advertised an on-link prefix"
NO_DAEMON = "the daemon of this share does not run: no host is learned or forgotten"


@pytest.fixture
def inner(net: Network) -> Iterator[Network]:
    """Add a downstream link with two learned hosts, and a tunnel, and a running daemon's report."""
    sh("ip", "link", "add", INNER, "up", "type", "veth", "peer", "name", f"{INNER}-end")
    sh("ip", "link", "set", f"{INNER}-end", "up")
    sh("ip", "tuntap", "add", TUNNEL, "mode", "tun")
    sh("ip", "link", "set", TUNNEL, "up")
    sh("ip", "-6", "route", "add", PEER, "dev", TUNNEL)
    for address in (FIRST, SECOND):
        sh("ip", "-6", "route", "add", address, "dev", INNER, "proto", str(PROTOCOL))
    with daemon_report.Publisher(FILES, netns(), None, DaemonStatus()):
        yield net
    share_report.remove(FILES, netns(), UPLINK)
    for name in (INNER, TUNNEL):
        call("ip", "link", "delete", name)


def made(**changes: Any) -> ShareReport:
    """Write and return a report of this process, which is a daemon with two hosts and a tunnel."""
    now = time.time()
    report = ShareReport(
        UPLINK,
        netns(),
        os.getpid(),
        now,
        [
            SharedLink(UPLINK, "upstream"),
            SharedLink(INNER, "neighbors"),
            SharedLink(TUNNEL, "routes"),
        ],
        [SharedPrefix("2001:db8::/64", now + 9000), SharedPrefix("fd00::/64")],
        [HeardRouter("fe80::1", now - 12, 1800)],
        True,
        4096,
        [
            SharedHost(FIRST, INNER, MAC, now - 3 * 3600, now - 12),
            SharedHost(SECOND, INNER, MAC, now - 300, now - 40),
        ],
        dict.fromkeys(COUNTERS, 0) | {"learned": 2, "asked": 4, "relayed": 17},
        dict.fromkeys(REFUSALS, 0),
        dict.fromkeys(IGNORED, 0),
    )._replace(**changes)
    share_report.write(FILES, report)
    return report


def text(*words: str) -> list[str]:
    """Return the lines of `status` from the share on; elapsed seconds become N."""
    shown = re.sub(r"\b\d+ s\b", "N s", done("status", *words))
    return re.sub(r"^.*?(?=^share )", "", shown, flags=re.DOTALL | re.MULTILINE).splitlines()


# ---- status -------------------------------------------------------------------------------------


def test_status_shows_a_share(inner: Network) -> None:
    made()
    assert text() == [
        "share up0  hosts 2 of 4096, router advertisements are relayed",
        "  link      up0: upstream",
        "  link      lan0: hosts 2",
        "  link      tun0: hosts 1, those that the kernel has routes for: it has no MAC addresses",
        "  prefix    2001:db8::/64, valid for 2 h",
        "  prefix    fd00::/64, valid without an end",
        "  router    fe80::1, heard N s ago, with a lifetime of 30 min",
        "  counts    learned 2, asked 4, advertisements relayed 17",
        f"  host      {FIRST} on lan0, {MAC}, learned 3 h ago, seen N s ago",
        f"  host      {SECOND} on lan0, {MAC}, learned 5 min ago, seen N s ago",
        f"  host      {PEER} on tun0",
    ]


def test_the_hosts_are_those_that_the_kernel_has_routes_for(inner: Network) -> None:
    made()
    sh("ip", "-6", "route", "delete", FIRST, "proto", str(PROTOCOL))
    sh("ip", "-6", "route", "add", "2001:db8::12", "dev", INNER, "proto", str(PROTOCOL))
    assert [line.split()[1] for line in text() if line.startswith("  host ")] == [
        SECOND,
        "2001:db8::12",
        PEER,
    ]


def test_problems_of_a_share_come_first(inner: Network) -> None:
    made(
        links=[SharedLink(UPLINK, "upstream", "it is down"), SharedLink(INNER, "neighbors")],
        prefixes=[],
        routers=[HeardRouter("fe80::1", time.time() - 7200, 1800)],
        max_hosts=2,
        refused={"limit": 3},
        ignored={"downstream": 1},
    )
    done("attach", UPLINK, "--mode", "tc", "-n", "2001:db8:0:0:c::/80")
    try:
        lines = text()
        assert lines[1:5] == [
            "  WARNING   up0: it is down",
            f"  WARNING   {NO_PREFIX}",
            "  WARNING   no default router is on up0: the last advertisement came 2 h ago",
            "  WARNING   there are 2 hosts, as many as max_hosts allows: new ones are refused",
        ]
        assert "  router    fe80::1, heard 2 h ago, its lifetime has ended" in lines
        assert "  refused   limit 3" in lines
        assert "  ignored   downstream 1" in lines
    finally:
        remove_instance()


def test_with_several_interfaces_each_problem_is_shown_once(inner: Network) -> None:
    made(prefixes=[])
    for name in (UPLINK, INNER):
        done("attach", name, "--mode", "tc", "-n", "2001:db8:0:0:c::/80")
    try:
        shown = done("status")
        assert shown.count("no prefix is shared yet") == 1
        assert shown.index("\nshare up0\n  WARNING") < shown.index("\nshare up0  hosts")
    finally:
        for name in (UPLINK, INNER):
            ndxdp("-q", "detach", name)


def test_many_hosts_are_counted(inner: Network) -> None:
    made(links=[SharedLink(UPLINK, "upstream"), SharedLink(INNER, "neighbors")], max_hosts=150)
    batch = "".join(
        f"route add 2001:db8::1:{n:x} dev {INNER} proto {PROTOCOL}\n" for n in range(120)
    )
    sh("ip", "-6", "-batch", "-", stdin=batch)
    lines = text()
    assert sum(line.startswith("  host ") for line in lines) == 101
    assert lines[-1] == "  host      and 22 more: see `ndxdp hosts`"
    assert "  WARNING   the share is nearly full: it has room for 28 more hosts" in lines
    assert len(json.loads(done("status", "--json"))["shares"][0]["hosts"]) == 122


def test_a_share_whose_daemon_was_killed(inner: Network) -> None:
    made(pid=ENDED)
    assert text()[1] == f"  WARNING   {NO_DAEMON}, and the routes to 2 of them stay"


def test_status_of_an_interface_of_the_share(inner: Network) -> None:
    made()
    assert text(INNER)[0].startswith("share up0  ")
    assert text(TUNNEL)[0].startswith("share up0  ")  # nothing is attached to it
    other = ndxdp("status", f"{INNER}-end")
    assert other.code == 1
    assert "share" not in other.out


def test_the_json_has_the_documented_fields(inner: Network) -> None:
    made()
    (share,) = json.loads(done("status", "--json"))["shares"]
    documented = json_of("shares of status")
    assert shape(share) == shape(documented)
    for key in ("counters", "refused", "ignored"):
        assert list(share[key]) == list(documented[key])
    assert [each["hosts"] for each in share["links"]] == [0, 2, 1]
    assert share["prefixes"][1] == {"prefix": "fd00::/64", "until": None}
    assert shape(json.loads(done("hosts", "--json"))) == shape(json_of("hosts"))


def test_a_report_of_an_older_version_has_all_fields(inner: Network) -> None:
    old = {"upstream": UPLINK, "netns": netns(), "pid": ENDED}
    share_report.path_of(FILES, netns(), UPLINK).write_text(json.dumps(old))
    (share,) = json.loads(done("status", "--json"))["shares"]
    assert share.keys() == json_of("shares of status").keys()
    assert share["counters"] == dict.fromkeys(COUNTERS, 0)
    assert text()[0] == "share up0  hosts 0 of 0, router advertisements are not relayed"


# ---- explain ------------------------------------------------------------------------------------


def test_explain_says_where_a_target_is_learned(inner: Network) -> None:
    made()
    done("attach", UPLINK, "--mode", "tc", "-n", f"{FIRST}/128", "--answer", "routed")
    try:
        explained = done("explain", FIRST).splitlines()
        assert re.sub(r"\d+ s", "N s", explained[-1]) == (
            f"host     {FIRST} on lan0, {MAC}, learned 3 h ago, seen N s ago"
        )
        assert done("explain", PEER).splitlines()[-1] == (
            f"host     {PEER} on tun0, by a route of another program"
        )
        assert "host " not in done("explain", "2001:db8::77")
        host = json.loads(done("explain", FIRST, "--json"))["host"]
        assert shape(host) == shape(json_of("hosts")[0])
        assert json.loads(done("explain", "2001:db8::77", "--json"))["host"] is None
        share_report.remove(FILES, netns(), UPLINK)
        assert "host " not in done("explain", FIRST)  # an interface of no share
    finally:
        remove_instance()


# ---- the page -----------------------------------------------------------------------------------


def page_of(found: list[shares.ShareStatus]) -> str:
    snapshot = Snapshot(0.0, {}, shares=found)
    return status_page.html(snapshot, snapshot, None, "http://[::1]:9877/")


def test_the_page_shows_a_share(inner: Network) -> None:
    made(prefixes=[], refused={"limit": 3})
    html = page_of(status.take_snapshot(Trees()).shares)
    shown = Page(html)
    assert "share-up0" in shown.ids
    for words in (
        "Share of up0: no prefix is shared yet",
        "2 of 4\N{NARROW NO-BREAK SPACE}096 hosts",
        FIRST,
        MAC,
        "3 h ago",
        "router advertisements that were relayed",
        "claims refused: there are as many hosts as max_hosts allows",
    ):
        assert words in html, words


def test_the_page_escapes_names_of_a_share(inner: Network) -> None:
    evil = "\"><script>'&"
    report = made(links=[SharedLink(evil, "upstream", evil)], routers=[])._replace(upstream=evil)
    html = page_of([shares.ShareStatus(report, True, (), time.time())])
    Page(html)
    assert "<script" not in html
    assert html.count("&lt;script") >= 3


# ---- metrics ------------------------------------------------------------------------------------


def metrics() -> dict[str, Samples]:
    """Return the samples of the metrics of shares."""
    found = parsed(Exposition(Trees(), process=False).text().decode())
    return {name: each for name, each in found.items() if name.startswith("ndxdp_share_")}


def test_all_series_exist_from_the_start(inner: Network) -> None:
    assert metrics() == {}
    made(counters={}, refused={}, ignored={}, hosts=[], prefixes=[], routers=[])
    found = metrics()
    kinds = {name for name in KINDS if name.startswith("ndxdp_share_")}
    assert found.keys() == kinds
    assert {name for name, each in found.items() if set(each.values()) != {0}} == {
        "ndxdp_share_running",
        "ndxdp_share_link_working",
        "ndxdp_share_hosts_limit",
    }
    assert set(found["ndxdp_share_hosts"]) == {(INNER, UPLINK), (TUNNEL, UPLINK)}
    assert {reason for reason, _ in found["ndxdp_share_refused_total"]} == set(REFUSALS)
    ignored = found["ndxdp_share_advertisements_ignored_total"]
    assert {reason for reason, _ in ignored} == set(IGNORED)


def test_each_count_has_its_metric(inner: Network) -> None:
    """Distinguish all counts: each has another value."""
    made(
        counters={name: nth for nth, name in enumerate(COUNTERS, 1)},
        refused={name: nth for nth, name in enumerate(REFUSALS, 100)},
        ignored={name: nth for nth, name in enumerate(IGNORED, 200)},
        links=[
            SharedLink(UPLINK, "upstream", "it is down"),
            SharedLink(INNER, "neighbors"),
            SharedLink(TUNNEL, "routes"),
        ],
        max_hosts=77,
        routers=[
            HeardRouter("fe80::1", time.time(), 1800),
            HeardRouter("fe80::2", time.time() - 1801, 1800),
            HeardRouter("fe80::3", time.time(), 0),
        ],
    )
    found = metrics()
    assert found["ndxdp_share_hosts"] == {(INNER, UPLINK): 2, (TUNNEL, UPLINK): 1}
    assert found["ndxdp_share_link_working"] == {
        (UPLINK, "upstream", UPLINK): 0,
        (INNER, "neighbors", UPLINK): 1,
        (TUNNEL, "routes", UPLINK): 1,
    }
    of_share = {
        name.removeprefix("ndxdp_share_"): each[UPLINK,]
        for name, each in found.items()
        if (UPLINK,) in each
    }
    assert of_share == {
        "running": 1,
        "hosts_limit": 77,
        "routers": 1,
        "prefixes": 2,
        "learned_total": 1,
        "moved_total": 2,
        "expired_total": 3,
        "forgotten_total": 4,
        "conflicts_defended_total": 5,
        "asked_total": 6,
        "found_total": 7,
        "announced_total": 8,
        "advertisements_relayed_total": 9,
        "router_solicitations_answered_total": 10,
    }
    for metric, reasons, first in (
        ("refused", REFUSALS, 100),
        ("advertisements_ignored", IGNORED, 200),
    ):
        assert found[f"ndxdp_share_{metric}_total"] == {
            (reason, UPLINK): nth for nth, reason in enumerate(reasons, first)
        }


def test_the_metrics_of_a_killed_daemon(inner: Network) -> None:
    made(pid=ENDED)
    assert metrics()["ndxdp_share_running"] == {(UPLINK,): 0}
    assert metrics()["ndxdp_share_learned_total"] == {(UPLINK,): 2}


@pytest.mark.parametrize(
    ("metric", "reasons"),
    [("refused", REFUSALS), ("advertisements_ignored", IGNORED)],
)
def test_every_reason_is_documented(metric: str, reasons: dict[str, str]) -> None:
    page = (REPOSITORY / "docs/monitoring.md").read_text()
    table = page.partition(f"| `reason` of `ndxdp_share_{metric}_total` |")[2].partition("\n\n")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE)) == reasons
