"""Doctor on shares: judgement of facts, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ndxdp.config.model import Share
from ndxdp.doctor import share, share_case, share_loop, share_members
from ndxdp.doctor.finding import Finding, Level
from ndxdp.doctor.listeners import Listener
from ndxdp.doctor.manager import Manager
from ndxdp.doctor.share import Found
from ndxdp.doctor.share_case import LinkBehind, Surroundings
from ndxdp.doctor.share_members import Member
from ndxdp.netlink.neighbour_table import NeighbourTable
from ndxdp.rules.address import parse_address
from ndxdp.rules.prefix import Prefix, parse_prefix
from ndxdp.runtime.share_report import (
    SharedLink,
    ShareReport,
)
from tests.fixtures.network import (
    UPLINK,
)
from tests.fixtures.share_facts import HOSTS, LAN, ON_LINK, report_of

PREFIX = parse_prefix(ON_LINK)
OTHER = parse_prefix("2001:db8:7::/64")
PART = parse_prefix("2001:db8:0:0:c::/80")
PRIVATE = parse_prefix("fd00:7::/64")
GUEST = Prefix(parse_address("2001:db8::77"), 128)

# ---- which share fits ----------------------------------------------------------------------------

LAN0 = LinkBehind(LAN, neighbours=2)


@pytest.mark.parametrize(
    ("links", "downstream"),
    [
        pytest.param([LAN0], [LAN], id="second-lan"),
        pytest.param([LinkBehind("br0", "bridge", ports=3)], ["br0"], id="bridge-with-guests"),
        pytest.param([LinkBehind("br0", "bridge")], None, id="empty-bridge"),
        pytest.param([LinkBehind("eth1")], None, id="interface-without-hosts"),
        pytest.param([LAN0._replace(prefixes=(PREFIX,))], [LAN], id="same-prefix"),
        pytest.param([LAN0._replace(prefixes=(PRIVATE,))], [LAN], id="private-prefix-there"),
        pytest.param([LAN0._replace(prefixes=(PART,))], None, id="part-of-the-prefix"),
        pytest.param([LAN0._replace(prefixes=(OTHER,))], None, id="prefix-of-its-own"),
        pytest.param([LAN0, LinkBehind("br1", prefixes=(OTHER,))], None, id="delegated"),
        pytest.param([LAN0, LinkBehind("br1", gateways=(OTHER,))], None, id="delegated-onward"),
        pytest.param([LAN0._replace(leads_out=True)], None, id="another-uplink"),
        pytest.param([LAN0._replace(disabled=True)], None, id="ipv6-is-disabled"),
        pytest.param([LAN0._replace(hosts=(GUEST,))], None, id="host-routes-of-another-program"),
        pytest.param([LAN0._replace(neighbours=0, learned=3)], [LAN], id="learned-hosts"),
        pytest.param(
            [LinkBehind("docker0", "bridge", ports=2, neighbours=2)], None, id="docker's-bridge"
        ),
        pytest.param(
            [LinkBehind("wg0", "wireguard", quiet=True, hosts=(GUEST,))], None, id="only-wireguard"
        ),
        pytest.param(
            [LAN0, LinkBehind("wg0", "wireguard", quiet=True, hosts=(GUEST,))],
            [LAN, "wg0"],
            id="lan-and-wireguard",
        ),
        pytest.param(
            [LAN0, LinkBehind("wg0", "wireguard", quiet=True)], [LAN], id="wireguard-without-hosts"
        ),
    ],
)
def test_which_share_fits(links: list[LinkBehind], downstream: list[str] | None) -> None:
    case = share_case.find([PREFIX, PRIVATE], Surroundings(tuple(links)))
    if downstream is None:
        assert case is None
        return
    assert case is not None
    assert case.prefixes == (PREFIX,)
    assert [link.name for link in case.downstream] == downstream


def test_links_without_known_hosts() -> None:
    links = (
        LinkBehind("lan1"),
        LinkBehind("br0", "bridge", ports=1),
        LinkBehind("br1", "bridge"),
        LinkBehind("lan2", carrier=False),
        LinkBehind("lan3", leads_out=True),
        LinkBehind("lan4", disabled=True),
        LinkBehind("lan5", prefixes=(PRIVATE,)),
        LinkBehind("cali1", "veth", hosts=(GUEST,)),
        LinkBehind("wg0", "wireguard", quiet=True),
        LAN0,
    )
    found = share_case.empty([PREFIX], Surroundings(links))
    assert [link.name for link in found] == ["lan1"]
    assert share_case.empty([PRIVATE], Surroundings(links)) == ()
    delegated = Surroundings(links, (parse_prefix("2001:db8:100::/56"),))
    assert share_case.empty([PREFIX], delegated) == ()


def test_a_discarded_prefix_is_delegated() -> None:
    surroundings = Surroundings((LAN0,), (parse_prefix("2001:db8:100::/56"),))
    assert share_case.find([PREFIX], surroundings) is None
    assert share_case.find([PREFIX], replace(surroundings, discarded=(PRIVATE,))) is not None


def test_without_a_public_prefix_nothing_fits() -> None:
    assert share_case.find([PRIVATE], Surroundings((LAN0,))) is None
    assert share_case.find([], Surroundings((LAN0,))) is None


# ---- judged facts --------------------------------------------------------------------------------


DOWN = Member(LAN, 7, mac=b"\2\0\0\0\0\7", macs={})
UP = Member("eth0", 2, mac=b"\2\0\0\0\0\2", on_link=frozenset({PREFIX}), macs={})


def found_of(made: ShareReport, **changes: Any) -> Found:
    return replace(Found(UPLINK, UPLINK, (LAN,), None, "", made, running=True), **changes)


def whats(some: Iterator[Finding] | list[Finding], level: Level | None = None) -> list[str]:
    return [each.what for each in some if level in (None, each.level)]


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"prefixes": []}, Level.FAILURE, "has no prefix"),
        ({"routers": []}, Level.WARNING, "no router on up0 has advertised itself"),
        ({"max_hosts": 4, "hosts": HOSTS}, Level.WARNING, "has no room: hosts 4 of 4"),
        ({"refused": {"limit": 3}}, Level.WARNING, "3 claims refused"),
        ({"refused": {"mac_limit": 9}}, Level.WARNING, "max_hosts_per_mac allows: 9 claims"),
        (
            {"links": [SharedLink(UPLINK, "upstream"), SharedLink(LAN, "neighbors", "no MAC")]},
            Level.WARNING,
            "does not work on lan0 yet: no MAC",
        ),
    ],
)
def test_the_report_of_a_share(changes: dict[str, object], level: Level, words: str) -> None:
    (one,) = [
        each
        for each in share.judge(found_of(report_of(**changes)))
        if each.level in (Level.WARNING, Level.FAILURE)
    ]
    assert one.level is level
    assert words in one.what
    assert one.why
    assert one.cure


def test_a_share_that_is_well_has_one_note() -> None:
    (one,) = share.judge(found_of(report_of(hosts=HOSTS)))
    assert one.what == f"{ON_LINK} is shared with {LAN}: hosts 4 of 256"
    assert one.level is Level.NOTE


def test_without_a_relay_no_router_is_missed() -> None:
    assert whats(share.judge(found_of(report_of(routers=[], relay=False))), Level.WARNING) == []


@pytest.mark.parametrize(
    ("most", "hosts", "level"),
    [(256, 0, None), (255, 0, Level.NOTE), (6, 4, Level.WARNING), (4, 4, Level.WARNING)],
)
def test_the_neighbour_table_is_smaller(most: int, hosts: int, level: Level | None) -> None:
    found = found_of(report_of(hosts=HOSTS[:hosts]), table=NeighbourTable(most, 0, 0))
    small = [each for each in share.judge(found) if "gc_thresh3" in each.what]
    assert [each.level for each in small] == ([level] if level else [])
    if small:
        assert "gc_thresh3=1024" in small[0].cure  # four times the hosts


def test_a_share_without_its_daemon() -> None:
    (one,) = share.judge(found_of(report_of(hosts=HOSTS), running=False))
    assert one.level is Level.NOTE
    assert (
        one.what == f"the share of {UPLINK} has ended: the routes of 4 hosts stay, and no host"
        " is learned"
    )
    configured = found_of(
        report_of(hosts=HOSTS), running=False, share=Share(UPLINK, (LAN,)), file="/tmp/a b.toml"
    )
    (one,) = share.judge(configured)
    assert one.level is Level.FAILURE
    assert one.cure == "ndxdp run -c '/tmp/a b.toml'"


RADVD = Listener(41, "radvd", "radvd.service", raw=True)
DNSMASQ = Listener(42, "dnsmasq", "", raw=True)
NETWORKD = Listener(43, "systemd-network", "systemd-networkd.service", raw=True)


@pytest.mark.parametrize(
    ("running", "manager", "who", "cure"),
    [
        ([RADVD], None, "radvd (pid 41)", "systemctl disable --now radvd.service"),
        ([RADVD._replace(unit="")], None, "radvd (pid 41)", "kill 41"),
        ([DNSMASQ], None, "dnsmasq (pid 42)", "grep -rnE"),
        (
            [NETWORKD],
            Manager("systemd-networkd", "/etc/systemd/network/20-lan.network"),
            "systemd-network (pid 43)",
            "printf '[Network]\\nIPv6SendRA=no\\n' >"
            " /etc/systemd/network/20-lan.network.d/no-ra.conf",
        ),
        ([Listener(44, "sshd", "", raw=False)], None, "another program", "ss -lwp6"),
    ],
)
def test_another_sender_of_advertisements(
    running: list[Listener], manager: Manager | None, who: str, cure: str
) -> None:
    member = replace(DOWN, soliciting=1)
    (one,) = share_members.advertisers(member, running, manager, relay=True)
    assert one.what.startswith(f"{who} sends router advertisements on {LAN}")
    assert one.level is Level.WARNING
    assert cure in one.cure
    assert list(share_members.advertisers(member, running, manager, relay=False)) == []
    assert list(share_members.advertisers(DOWN, running, manager, relay=True)) == []


def test_nobody_sends_advertisements() -> None:
    (one,) = share_members.advertisers(DOWN, [], None, relay=False)
    assert one.level is Level.NOTE
    assert "no program sends router advertisements" in one.what


A, B = parse_address("fe80::a"), parse_address("fe80::b")


@pytest.mark.parametrize(
    ("up", "down", "routers", "level", "words"),
    [
        ({A: b"\2\0\0\0\0\1"}, {B: b"\2\0\0\0\0\3"}, [A], None, ""),
        ({A: b"\2\0\0\0\0\1"}, {B: b"\2\0\0\0\0\1"}, [A], Level.WARNING, "both have the neighbour"),
        (
            {A: b"\2\0\0\0\0\1"},
            {A: b"\2\0\0\0\0\1"},
            [A],
            Level.WARNING,
            "hears the router fe80::a",
        ),
        ({}, {A: UP.mac}, [], Level.FAILURE, "one hears this host's own frames"),
        ({A: DOWN.mac}, {}, [], Level.FAILURE, "one hears this host's own frames"),
    ],
)
def test_one_link(
    up: dict[bytes, bytes],
    down: dict[bytes, bytes],
    routers: list[bytes],
    level: Level | None,
    words: str,
) -> None:
    found = share_loop.seen(replace(UP, macs=up), replace(DOWN, macs=down), {}, routers, {})
    assert (found.level if found else None) is level
    if found is not None:
        assert words in found.what
        # Two VLANs of one NIC have its MAC, and each other as no neighbour.
        same = replace(UP, macs={A: UP.mac})
        assert share_loop.seen(same, replace(DOWN, mac=UP.mac), {}, [], {}) is None


def test_this_host_is_its_own_router() -> None:
    """The kernel believes the relayed advertisements that come back."""
    own = parse_address("fe80::10")
    found = share_loop.seen(UP, DOWN, {}, [], {own: LAN})
    assert found is not None
    assert found.level is Level.FAILURE
    assert found.what.startswith("the default route of eth0 leads to fe80::10, which is this host")
    assert found.cure == "ip -6 route delete default via fe80::10 dev eth0"
    assert share_loop.seen(UP, DOWN, {}, [], {own: "lan1"}) is None
