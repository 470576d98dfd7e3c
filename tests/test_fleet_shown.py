"""Shared addresses as a host shows them: `explain`, `status`, the page and `prefix list`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ndxdp.ndp.profile import Answer
from ndxdp.netlink.netns import netns
from ndxdp.observe import holders, status_page
from ndxdp.observe.fleet_text import fleet_problems
from ndxdp.observe.holders import Holding, holding_text
from ndxdp.observe.status import Snapshot
from ndxdp.rules.prefix import parse_prefix
from ndxdp.rules.rule import MANUAL_ORIGIN, SHARED_ORIGIN, Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime import fleet_report
from ndxdp.runtime import report as daemon_report
from ndxdp.runtime.daemon_status import DaemonStatus, FleetStatus, SegmentStatus
from ndxdp.runtime.fleet_report import FleetReport, SharedAddressEntry
from ndxdp.session.rule_changes import add_rules
from ndxdp.store.directories import Trees
from tests.fixtures.documented import json_of, shape
from tests.fixtures.network import FILES, UPLINK, Network, done, ndxdp, sh

ADDRESS, NETWORK, OTHER = "2001:db8::20", "2001:db8::e:0:0:0/80", "2001:db8::21"
WEB = SharedAddressEntry("vlan7", "web", ADDRESS, ["h1", "h2"], False, "h2", 0)
SEGMENT = SegmentStatus("vlan7", True, "", ["h1", "h2", "h3"], 12, 5, 0, 7, 2)
FLEET = FleetStatus(True, "", None, False, [SEGMENT], 0, [], 0, 0.002)


@pytest.fixture
def shared(attached: Network) -> Iterator[Network]:
    """Attach ndxdp with the rules of three shared addresses that another host answers for."""
    rule = Rule(Answer.NEVER, origin=SHARED_ORIGIN, label="vlan7")
    rules = Rules.of({parse_prefix(each): rule for each in (ADDRESS, OTHER, NETWORK)})
    add_rules(Trees().of(UPLINK), UPLINK, rules, force=True)
    yield attached
    fleet_report.remove(FILES, netns())


def report(*addresses: SharedAddressEntry, **more: Any) -> FleetReport:
    """Write and return the report of this process, which is the daemon of h1."""
    made = FleetReport("h1", netns(), os.getpid(), time.time(), list(addresses))
    fleet_report.write(FILES, made._replace(**more))
    return made


@pytest.fixture
def daemon() -> Iterator[DaemonStatus]:
    """Return the status of this process, which is a daemon with a report."""
    state = DaemonStatus(fleet=lambda: FLEET)
    with daemon_report.Publisher(FILES, netns(), None, state):
        yield state


def holder_line(*words: str) -> str:
    lines = done("explain", *words).splitlines()
    found = [line for line in lines if line.startswith("holder ")]
    return found[0].removeprefix("holder   ") if found else ""


# ---- explain -------------------------------------------------------------------------------------


def test_explain_says_who_holds_a_shared_address(shared: Network, daemon: DaemonStatus) -> None:
    report(WEB._replace(since=time.time() - 3 * 3600))
    assert holder_line(ADDRESS) == "vlan7/web is held by h2, since 3 h ago"
    found = ndxdp("explain", ADDRESS, "--json").json()
    assert found["reason"] == "denied"
    assert found["rule"]["origin"] == "shared"
    since = found["holder"].pop("since")
    assert found["holder"] == {
        "key": "shared/vlan7/web",
        "host": "h2",
        "here": False,
        "lapsed": False,
        "running": True,
        "problem": "",
    }
    assert (
        abs(time.time() - 3 * 3600 - time.mktime(time.strptime(since, "%Y-%m-%dT%H:%M:%SZ"))) < 60
    )
    assert found.keys() == json_of("explain").keys()


def test_explain_says_why_nobody_holds_it(shared: Network, daemon: DaemonStatus) -> None:
    problem = "none of its hosts is a member: h4"
    net = WEB._replace(name="net", prefix=NETWORK, holder="", problem=problem)
    report(WEB, net._replace(segment="other", name="same", holder="h9"), net)
    target = "2001:db8::e:0:0:7"  # in the prefix
    assert holder_line(target) == f"nobody holds vlan7/net: {problem}"
    found = ndxdp("explain", target, "--json").json()["holder"]
    assert (found["key"], found["host"], found["since"]) == ("shared/vlan7/net", None, None)
    assert found["problem"] == problem
    assert holder_line(OTHER) == "no daemon on this host reports who answers for it"
    unknown = ndxdp("explain", OTHER, "--json").json()["holder"]
    assert (unknown["key"], unknown["host"], unknown["running"]) == (None, None, True)


def test_explain_does_not_believe_a_daemon_that_has_ended(shared: Network) -> None:
    report(WEB, written=time.time() - 600)
    text = holder_line(ADDRESS)
    assert text == (
        "vlan7/web is held by h2; so it was 10 min ago, when the daemon last reported:"
        " it does not run any more"
    )
    assert ndxdp("explain", ADDRESS, "--json").json()["holder"]["running"] is False


def test_explain_without_a_report(shared: Network) -> None:
    assert holder_line(ADDRESS) == "no daemon on this host reports who answers for it"
    found = ndxdp("explain", ADDRESS, "--json").json()["holder"]
    assert (found["key"], found["host"], found["running"]) == (None, None, False)
    fleet_report.path_of(FILES, netns()).parent.mkdir(exist_ok=True)
    fleet_report.path_of(FILES, netns()).write_text("{")
    assert holder_line(ADDRESS) == "no daemon on this host reports who answers for it"


def test_explain_of_other_rules_says_nothing_of_holders(
    attached: Network, daemon: DaemonStatus
) -> None:
    done("prefix", "add", ADDRESS)
    report(WEB)
    assert holder_line(ADDRESS) == ""
    assert ndxdp("explain", ADDRESS, "--json").json()["holder"] is None
    fleet_report.remove(FILES, netns())


def test_the_text_of_a_lapsed_lease() -> None:
    mine = WEB._replace(holder="h1", since=time.time() - 300)
    lapsed = Holding(mine, "h1", time.time(), is_running=True, lapsed=True)
    here = "vlan7/web is held by this host, h1, since 5 min ago"
    assert holding_text(lapsed) == f"the lease of this host has lapsed; {here}"
    assert holding_text(lapsed._replace(lapsed=False)) == here
    assert holders.holding_data(lapsed)["here"] is True
    assert holders.holding_data(lapsed)["lapsed"] is True
    assert holding_text(Holding(None, "", 0, is_running=False, lapsed=True)) == (
        "the lease of this host has lapsed; no daemon on this host reports who answers for it"
    )
    full = mine._replace(problem="the maps have no room")
    text = holding_text(Holding(full, "h1", time.time(), is_running=True, lapsed=False))
    assert text == f"{here}: the maps have no room"


def test_which_rules_have_a_holder(shared: Network) -> None:
    prefix = parse_prefix(ADDRESS)
    assert holders.find(FILES, prefix, Rule(origin=MANUAL_ORIGIN), "denied") is None
    found = holders.find(FILES, prefix, Rule(origin=SHARED_ORIGIN, leased=True), "lapsed")
    assert found is not None
    assert found.lapsed


# ---- prefix list ---------------------------------------------------------------------------------


def test_prefix_list_shows_shared_rules(shared: Network) -> None:
    lines = done("prefix", "list", "--origin", "shared").splitlines()
    assert f"{ADDRESS} never [not held by this host] (shared, vlan7)" in lines
    assert len(lines) == 3
    found = ndxdp("prefix", "list", "--json").json()
    assert shape(found[0]) == shape(json_of("prefix list")[0])
    assert {each["leased"] for each in found} == {False}
    refused = ndxdp("prefix", "add", "2001:db8::99", "--origin", "shared")
    assert (refused.code, refused.out) == (2, "")


# ---- status --------------------------------------------------------------------------------------


def lines_of_status() -> list[str]:
    return done("status").splitlines()


def test_status_shows_the_segments(attached: Network, daemon: DaemonStatus) -> None:
    lines = lines_of_status()
    at = lines.index("shared addresses  held by this host 5 of 12")
    assert lines[at + 1] == (
        "  segment   vlan7: members 3 (h1, h2, h3), shared 12, held by this host 5"
    )
    assert not [line for line in lines if "WARNING" in line]
    (found,) = ndxdp("status", "--json").json()["daemons"]
    assert shape(found["fleet"]) == {
        "connected": "bool",
        "problem": "str",
        "drained": "bool",
        "segments": [shape(SEGMENT._asdict())],
        "refused": "int",
        "refused_values": [],
        "rivals": "int",
        "lease": "int",
        "rivals_seen": [],
    }


def test_status_shows_it_below_the_table_of_several_interfaces(
    attached: Network, daemon: DaemonStatus
) -> None:
    sh("ip", "link", "add", "more0", "type", "veth", "peer", "name", "more1")
    for name in ("more0", "more1"):
        sh("ip", "link", "set", name, "up")
    done("attach", "more0", "--mode", "tc", "-n", "2001:db8:5::/80")
    try:
        lines = lines_of_status()
    finally:
        done("detach", "more0")
        sh("ip", "link", "delete", "more0")
    assert lines[lines.index("shared addresses  held by this host 5 of 12") - 1] == ""


def test_status_shows_what_is_wrong(attached: Network, daemon: DaemonStatus) -> None:
    many = [f"h{number}" for number in range(20)]
    wrong = FLEET._replace(
        connected=False,
        problem="the lease has lapsed: no member of etcd answers",
        drained=True,
        segments=[
            SEGMENT._replace(unheld=3, members=many),
            SEGMENT._replace(segment="b", joined=False, problem="eth1 has no carrier", members=[]),
        ],
        rivals_seen=[{"address": ADDRESS, "mac": "02:00:00:00:00:99"}],
        refused=7,
        refused_values=[{"key": f"shared/vlan7/k{n}", "reason": "no JSON"} for n in range(6)],
    )
    daemon.fleet = lambda: wrong
    daemon.changed()
    lines = lines_of_status()
    assert [line for line in lines if line.startswith("  WARNING   ")] == [
        f"  WARNING   {sentence}"
        for sentence in fleet_problems(daemon_report.daemon_of(daemon).fleet or {})
    ]
    assert "  WARNING   segment vlan7: nobody answers for 3 of 12 shared addresses" in lines
    assert (
        f"  WARNING   another node, 02:00:00:00:00:99, advertises {ADDRESS}, too, which this host"
        " answers for"
    ) in lines
    assert "  WARNING   segment b: this host is no member: eth1 has no carrier" in lines
    assert (
        "  WARNING   this host answers for no shared address: the lease has lapsed: no member of"
        " etcd answers"
    ) in lines
    assert "  WARNING   etcd: shared/vlan7/k4 is refused: no JSON" in lines
    assert "  WARNING   etcd: 2 more values of shared addresses are refused" in lines
    (headline,) = [line for line in lines if line.startswith("shared addresses  ")]
    assert "drained" in headline
    assert "as they were when etcd was last reached" in headline
    assert (
        "  segment   vlan7: members 20, shared 12, held by this host 5, held by nobody 3" in lines
    )
    assert (
        "  segment   b: this host is no member, members 0, shared 12, held by this host 5" in lines
    )


def test_a_report_of_an_older_version_has_no_fleet(attached: Network) -> None:
    with daemon_report.Publisher(FILES, netns(), None, DaemonStatus()):
        assert not [line for line in lines_of_status() if line.startswith("shared")]
        assert ndxdp("status", "--json").json()["daemons"][0]["fleet"] is None


# ---- the page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False], ids=["of its daemon", "of another process"])
def test_the_page_shows_the_segments(own: bool) -> None:
    evil = "<b>vlan7</b>"
    segment = SEGMENT._replace(segment=evil, unheld=2)
    state = DaemonStatus(fleet=lambda: FLEET._replace(segments=[segment]))
    found = Snapshot(1.0, {}, daemons=[daemon_report.daemon_of(state)])
    html = status_page.html(found, found, state if own else None, "http://[::1]:9877/")
    assert "<dt>Shared addresses</dt><dd>held by this host 5 of 12</dd>" in html
    assert "<dt>Segment &lt;b&gt;vlan7&lt;/b&gt;</dt>" in html
    assert "members 3 (h1, h2, h3), shared 12, held by this host 5, held by nobody 2" in html
    assert "nobody answers for 2 of 12 shared addresses" in html
    assert evil not in html
