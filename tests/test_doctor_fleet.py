"""Doctor on shared addresses: who answers for them, and who else could."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ndxdp.boot_clock import boot_ns
from ndxdp.doctor import clock, etcd, fleet
from ndxdp.doctor.finding import Finding, Level
from ndxdp.doctor.fleet import Facts
from ndxdp.netlink.addresses import OwnAddress
from ndxdp.netlink.netns import netns
from ndxdp.rules.prefix import parse_prefix
from ndxdp.rules.rule import SHARED_ORIGIN, Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime import fleet_report, report
from ndxdp.runtime.daemon_status import (
    DaemonStatus,
    EtcdStatus,
    FleetStatus,
    InterfaceStatus,
    SegmentStatus,
)
from ndxdp.runtime.fleet_report import FleetReport, SharedAddressEntry
from ndxdp.session.rule_changes import add_rules
from ndxdp.sources.etcd_settings import Endpoint, Etcd
from ndxdp.store.directories import Trees
from ndxdp.store.instance import open_instance
from tests.fixtures import etcd as etcd_cluster
from tests.fixtures.doctor import findings
from tests.fixtures.etcd import Cluster
from tests.fixtures.network import FILES, UPLINK, Network, eventually, sh

FOREVER = 0xFFFFFFFF
DAD_FAILED = 0x08
ENTRY = SharedAddressEntry("vlan7", "web", "2001:db8::20/128", [], False, "h1", 1.0)
SEGMENT = SegmentStatus("vlan7", True, "", ["h1", "h2"], 1, 1, 0, 1, 0, answering=True)
STATUS = FleetStatus(True, "", None, False, [SEGMENT], 0, [], 0, 0.01, 5)


def part(status: FleetStatus = STATUS, **segment: Any) -> dict[str, Any]:
    """Return the host's part in shared addresses, as a report has it."""
    changed = status._replace(segments=[SEGMENT._replace(**segment)])
    found = report.daemon_of(DaemonStatus(fleet=lambda: changed)).fleet
    assert found
    return found


def own(text: str, length: int = 64, flags: int = 0) -> OwnAddress:
    address = socket.inet_pton(socket.AF_INET6, text)
    return OwnAddress(address, length, flags, FOREVER, FOREVER)


GOOD = Facts(
    "eth0", "eth0", "h1", 5, part(), ("vlan7",), frozenset({"vlan7"}), True, [ENTRY],
    [own("2001:db8::1")], drained=frozenset(), round_trips={"http://a:1": 0.001},
    config="/etc/ndxdp/ndxdp.toml", named=3, cluster=3,
)  # fmt: skip
LEASED = Rule(origin=SHARED_ORIGIN, label="vlan7", leased=True)
UNHELD = ENTRY._replace(holder="")
NAMED = UNHELD._replace(hosts=["h3", "h4"])
WIDE = ENTRY._replace(name="net", prefix="2001:db8::/64")
RULES = Rules.of({parse_prefix("2001:db8::20"): Rule()})
FAILURE, WARNING, NOTE = Level.FAILURE, Level.WARNING, Level.NOTE

CASES: dict[str, tuple[Facts, Level, str]] = {
    "all is well": (GOOD, NOTE, "this host answers for 1 of 1 shared addresses"),
    "no lease": (
        replace(GOOD, fleet=part(STATUS._replace(problem="another host has the name h1"), held=0)),
        FAILURE,
        "this host answers for no shared address: another host has the name h1",
    ),
    "a request failed": (
        replace(GOOD, fleet=part(STATUS._replace(problem="connection refused"))),
        WARNING,
        "the last request about shared addresses failed: connection refused",
    ),
    "no permission, and no shared address": (
        replace(GOOD, entries=[], fleet=part(STATUS._replace(problem="permission denied"), held=0)),
        NOTE,
        "this host takes no part in shared addresses: permission denied",
    ),
    "drained": (replace(GOOD, fleet=part(STATUS._replace(drained=True))), NOTE, "is drained"),
    "drained, and so no member": (
        replace(GOOD, fleet=part(STATUS._replace(drained=True), joined=False)),
        NOTE,
        "this host is drained",
    ),
    "a member without an answer": (
        replace(GOOD, answered=False),
        FAILURE,
        "a member of the segment vlan7, and does not answer on eth0",
    ),
    "no member": (
        replace(GOOD, fleet=part(joined=False, problem="the link has no carrier")),
        WARNING,
        "no member of the segment vlan7: the link has no carrier",
    ),
    "another host has its name": (
        replace(GOOD, fleet=part(joined=False, problem="another host has the name h1, and is one")),
        WARNING,
        "no member of the segment vlan7: another host has the name h1",
    ),
    "a slow member of etcd": (
        replace(GOOD, round_trips={"http://a:1": 1.7, "http://b:1": 0.01}),
        WARNING,
        "http://a:1 answers after 1.7 s; the lease of 5 s is renewed every 1.7 s",
    ),
    "a member of etcd that is too slow": (
        replace(GOOD, round_trips={"http://a:1": 2.9}),
        FAILURE,
        "http://a:1 answers after 2.9 s",
    ),
    "a short lease": (replace(GOOD, lease=2, round_trips={"http://a:1": 1.1}), FAILURE, "of 2 s"),
    "etcd has one member": (
        replace(GOOD, named=1, cluster=1),
        NOTE,
        "etcd has one member: if that fails, no host answers for shared addresses",
    ),
    "the file names one member": (
        replace(GOOD, named=1, cluster=5),
        WARNING,
        "the file names one of the 5 members of etcd",
    ),
    "etcd does not tell its members": (replace(GOOD, named=1, cluster=0), NOTE, "answers for 1"),
    "nobody is alive": (
        replace(GOOD, entries=[UNHELD], fleet=part(members=[])),
        FAILURE,
        "nobody answers for 2001:db8::20 (vlan7/web): no host is a member of the segment",
    ),
    "none of its hosts is a member": (
        replace(GOOD, entries=[NAMED]),
        FAILURE,
        "(vlan7/web): none of its hosts is a member: h3, h4",
    ),
    "all are drained": (
        replace(GOOD, entries=[UNHELD], drained=frozenset({"h1", "h2", "h9"})),
        FAILURE,
        "(vlan7/web): all members of the segment are drained",
    ),
    "one is not drained": (
        replace(GOOD, entries=[UNHELD], drained=frozenset({"h1"})),
        FAILURE,
        "nobody answers for 2001:db8::20 (vlan7/web)",
    ),
    "the daemon knows why": (
        replace(GOOD, entries=[UNHELD._replace(problem="its prefix is too broad")]),
        FAILURE,
        "nobody answers for 2001:db8::20 (vlan7/web): its prefix is too broad",
    ),
    "a value that is refused": (
        replace(
            GOOD,
            entries=[UNHELD._replace(prefix="", problem="it is no JSON")],
            local={"config": RULES},
        ),
        FAILURE,
        "nobody answers for vlan7/web: it is no JSON",
    ),
    "many without a holder": (
        replace(GOOD, entries=[NAMED._replace(name=f"n{number}") for number in range(9)]),
        FAILURE,
        "2001:db8::20 (vlan7/n2) and 6 more: none of its hosts is a member",
    ),
    "the interface has it": (
        replace(GOOD, own=[own("2001:db8::20", 128)]),
        FAILURE,
        "eth0 has 2001:db8::20 itself, of the shared 2001:db8::20",
    ),
    "the interface has one of the prefix": (
        replace(GOOD, entries=[WIDE]),
        FAILURE,
        "eth0 has 2001:db8::1 itself, of the shared 2001:db8::/64",
    ),
    "the interface has it as a duplicate": (
        replace(GOOD, own=[own("2001:db8::20", flags=DAD_FAILED)]),
        NOTE,
        "answers for 1 of 1",
    ),
    "the file has it": (
        replace(GOOD, local={"config": RULES, "docker": Rules()}),
        WARNING,
        "2001:db8::20 (vlan7/web) has a rule in /etc/ndxdp/ndxdp.toml, too",
    ),
    "a container has it": (
        replace(GOOD, local={"docker": RULES}),
        WARNING,
        "2001:db8::20 (vlan7/web) has a rule of a container, too",
    ),
    "a rival": (
        replace(
            GOOD,
            fleet=part(STATUS._replace(rivals_seen=[{"address": "2001:db8::20", "mac": "02::7"}])),
        ),
        FAILURE,
        "02::7 has advertised 2001:db8::20, which this host answers for",
    ),
    "a prefix of another version": (
        replace(GOOD, entries=[ENTRY._replace(prefix="what?")]),
        NOTE,
        "answers for 1 of 1",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_findings(name: str) -> None:
    facts, level, words = CASES[name]
    (found,) = fleet.judge(facts)
    assert found.level is level
    assert words in found.what
    assert "\n" not in found.what
    assert found.why or level is NOTE or "nobody answers" in found.what


def test_a_disconnected_daemon_claims_nothing_about_holders() -> None:
    away = STATUS._replace(connected=False, problem="etcd is out of reach")
    (found,) = fleet.judge(replace(GOOD, entries=[UNHELD], fleet=part(away, held=0)))
    assert found.what == "this host answers for no shared address: etcd is out of reach"


@pytest.mark.parametrize(
    ("source", "rate", "levels"),
    [
        ("tsc", 1.0005, []),
        ("", 0.9995, []),
        ("kvm-clock", 1.0, [NOTE]),
        ("jiffies", 1.0, [WARNING]),
        ("tsc", 1.05, [WARNING]),
        ("tsc", 0.95, [WARNING]),
    ],
)
def test_clocks(source: str, rate: float, levels: list[Level]) -> None:
    found = clock.judge(clock.Facts(source, rate), 5)
    assert [each.level for each in found] == levels


def test_the_clock_of_this_machine() -> None:
    facts = clock.gather()
    assert abs(facts.rate - 1) < 0.01


# ---- a host --------------------------------------------------------------------------------------


@contextlib.contextmanager
def published(
    tmp_path: Path, entries: list[SharedAddressEntry], text: str = ""
) -> Iterator[Cluster]:
    """Publish what a daemon of the uplink would, with a cluster of etcd."""
    with etcd_cluster.cluster(tmp_path / "etcd") as cluster:
        url = cluster.members[0].url
        file = tmp_path / "ndxdp.toml"
        file.write_text(
            f'[etcd]\nendpoints = ["{url}"]\nhost = "h1"\n[[interface]]\nname = "{UPLINK[:2]}*"\n'
            f'[[interface.etcd]]\nsegment = "vlan7"\n{text}'
        )
        away = EtcdStatus(True, url, "", 0.0, 1, None, None, 0, 0, [], {})
        state = DaemonStatus(
            etcd=lambda: away,
            fleet=lambda: STATUS,
            interfaces={UPLINK: InterfaceStatus(answered=True)},
        )
        with report.Publisher(FILES, netns(), file, state):
            fleet_report.write(FILES, FleetReport("h1", netns(), os.getpid(), 1.0, entries))
            try:
                yield cluster
            finally:
                fleet_report.remove(FILES, netns())


def about(check: str) -> list[str]:
    return [each["what"] for each in findings() if each["check"] == check]


def test_doctor_on_a_host_with_shared_addresses(net: Network, tmp_path: Path) -> None:
    other = ENTRY._replace(segment="vlan8", name="other", holder="")
    local = '[[interface.prefix]]\nprefix = "2001:db8::21"\n'
    entries = [ENTRY, other, ENTRY._replace(name="db", prefix="2001:db8::21/128", holder="h2")]
    with published(tmp_path, [*entries[:2]], local) as cluster:
        one_member = "etcd has one member: if that fails, no host answers for shared addresses"
        assert about("fleet")[0] == one_member
        assert about("etcd") == ["every member of etcd answers"]
        fleet_report.write(FILES, FleetReport("h1", netns(), os.getpid(), 1.0, entries))
        sh("ip", "address", "add", "2001:db8::20/128", "dev", UPLINK, "nodad")
        try:
            found = about("fleet")
        finally:
            sh("ip", "address", "del", "2001:db8::20/128", "dev", UPLINK)
        assert f"{UPLINK} has 2001:db8::20 itself, of the shared 2001:db8::20" in found
        assert f"2001:db8::21 (vlan7/db) has a rule in {tmp_path}/ndxdp.toml, too" in found
        # Nobody may take it: etcd says who is drained.
        nobody = [ENTRY._replace(holder="")]
        fleet_report.write(FILES, FleetReport("h1", netns(), os.getpid(), 1.0, nobody))
        what = "nobody answers for 2001:db8::20 (vlan7/web)"
        assert what in about("fleet")
        for name in ("h1", "h2"):
            cluster.put(name, {}, "/ndxdp/v1/drained/")
        assert f"{what}: all members of the segment are drained" in about("fleet")
        # The report of another daemon, which has ended, is not believed.
        fleet_report.write(
            FILES, FleetReport("h1", netns(), 4_000_000, 1.0, [ENTRY._replace(holder="")])
        )
        assert about("fleet") == []


# ---- the quorum of etcd --------------------------------------------------------------------------


def judged(settings: Etcd) -> dict[str, Finding]:
    return {found.what: found for found in etcd.judge(etcd.examine(settings))}


def test_a_member_that_has_lost_the_others(
    privacy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd, "_WITHIN", 1.5)
    with etcd_cluster.cluster(tmp_path / "etcd", 3) as cluster:
        endpoints = tuple(
            Endpoint(member.url.removeprefix("http://").removesuffix(":2379"), 2379, False)
            for member in cluster.members
        )
        settings = Etcd(endpoints, "h1")
        facts = etcd.examine(settings)
        assert set(facts.members.values()) == {""}
        assert set(facts.cluster.values()) == {3}
        assert set(facts.round_trips) == {member.url for member in cluster.members}
        assert all(0 < seconds < 1.5 for seconds in facts.round_trips.values())
        cluster.members[0].signal(signal.SIGSTOP)
        cluster.members[1].kill()
        last = cluster.members[2].url
        what = f"{last} does not answer: {etcd.NO_QUORUM}"
        eventually(lambda: what in judged(settings), within=20)
        found = judged(settings)
        assert found[what].level is Level.FAILURE
        assert len(found) == 3
        assert f"{cluster.members[0].url} does not answer: no answer within 1.5 s" in found
        cluster.members[0].signal(signal.SIGCONT)


# ---- the lease of the program --------------------------------------------------------------------


def test_a_lease_that_nobody_renews(attached: Network) -> None:
    tree, rules = Trees().of(UPLINK), Rules.of({parse_prefix("2001:db8::20"): LEASED})

    def lapsed() -> list[str]:
        return [what for what in about("program") if "lease" in what]

    assert lapsed() == []  # no rule is leased
    add_rules(tree, UPLINK, rules, force=True)
    assert lapsed() == [f"the lease of the shared addresses on {UPLINK} has lapsed"]
    with open_instance(tree, UPLINK) as instance:
        instance.maps.write_lease(boot_ns() + 60 * 10**9)
    assert lapsed() == []
