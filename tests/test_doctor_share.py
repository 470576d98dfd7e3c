"""Doctor proposes a share where one fits, and finds the usual mistakes of a configured one."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
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
from ndxdp.netlink import links
from ndxdp.netlink.neighbour_table import NeighbourTable
from ndxdp.netlink.netns import netns
from ndxdp.rules.address import parse_address
from ndxdp.rules.prefix import Prefix, parse_prefix
from ndxdp.runtime import report, share_report
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.runtime.share_report import (
    HeardRouter,
    SharedHost,
    SharedLink,
    SharedPrefix,
    ShareReport,
)
from tests.fixtures.network import (
    FILES,
    HOST,
    ROUTER,
    ROUTER_LINK,
    ROUTER_LINK_LOCAL,
    UPLINK,
    Network,
    call,
    done,
    eventually,
    remove_instance,
    sh,
)
from tests.test_doctor import bad, conf, findings, follow, ip, notes

ON_LINK = "2001:db8::/64"
LAN = "lan0"
CLIENT, CLIENT_LINK = "client", "eth0"

PREFIX = parse_prefix(ON_LINK)
OTHER = parse_prefix("2001:db8:7::/64")
PART = parse_prefix("2001:db8:0:0:c::/80")
PRIVATE = parse_prefix("fd00:7::/64")
GUEST = Prefix(parse_address("2001:db8::77"), 128)


# ---- which share fits ---------------------------------------------------------------------------

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


# ---- judged facts -------------------------------------------------------------------------------

DOWN = Member(LAN, 7, mac=b"\2\0\0\0\0\7", macs={})
UP = Member("eth0", 2, mac=b"\2\0\0\0\0\2", on_link=frozenset({PREFIX}), macs={})


def report_of(**changes: Any) -> ShareReport:
    made = ShareReport(
        UPLINK,
        netns(),
        os.getpid(),
        time.time(),
        [SharedLink(UPLINK, "upstream"), SharedLink(LAN, "neighbors")],
        [SharedPrefix(ON_LINK)],
        [HeardRouter(ROUTER_LINK_LOCAL, time.time(), 1800)],
        True,
        256,
        [],
        {},
        {},
        {},
    )
    return made._replace(**changes)


def found_of(made: ShareReport, **changes: Any) -> Found:
    return replace(Found(UPLINK, UPLINK, (LAN,), None, "", made, running=True), **changes)


def whats(some: Iterator[Finding] | list[Finding], level: Level | None = None) -> list[str]:
    return [each.what for each in some if level in (None, each.level)]


HOSTS = [
    SharedHost(f"2001:db8::{number:x}", LAN, "02:00:00:00:01:01", 0.0, 0.0) for number in range(4)
]


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


# ---- in namespaces ------------------------------------------------------------------------------


@pytest.fixture
def lan(net: Network) -> Iterator[Network]:
    """Yield a host that forwards, with a client on a second interface."""
    conf("forwarding", 1, "all")
    sh("ip", "netns", "add", CLIENT)
    ip(f"link add {LAN} type veth peer name {CLIENT_LINK} netns {CLIENT}")
    ip(f"link set {LAN} up")
    ip(f"-n {CLIENT} link set {CLIENT_LINK} addrgenmode none")
    ip(f"-n {CLIENT} link set {CLIENT_LINK} up")
    ip(f"-n {CLIENT} address add fe80::77/64 dev {CLIENT_LINK} nodad")
    try:
        yield net
    finally:
        sh("nft", "flush", "ruleset")
        call("ip", "link", "delete", LAN)
        call("ip", "netns", "delete", CLIENT)
        conf("forwarding", 0, "all")
        remove_instance()
        share_report.remove(FILES, netns(), UPLINK)


@contextlib.contextmanager
def running(made: ShareReport | None = None, config: Path | None = None) -> Iterator[None]:
    """Be the daemon of a share: publish the report of a daemon, and of its share."""
    with report.Publisher(FILES, netns(), config, DaemonStatus()):
        if made is not None:
            share_report.write(FILES, made)
        yield
        share_report.remove(FILES, netns(), UPLINK)


@pytest.fixture
def shared(lan: Network) -> Iterator[Network]:
    """Yield a host with a share of up0 and lan0."""
    with running(report_of()):
        assert bad() == []
        yield lan


def at_client(*command: str) -> None:
    sh("nsenter", f"--net=/run/netns/{CLIENT}", *command)


def of_share() -> list[dict[str, str]]:
    return [each for each in findings() if each["check"] == "share"]


def one(words: str) -> dict[str, str]:
    """Return the only warning or failure, which is about the share."""
    (found,) = bad()
    assert found["check"] == "share"
    assert words in found["what"], found
    assert found["why"]
    return found


def mends(words: str) -> dict[str, str]:
    """Check that a fault is the only finding, and that its command leaves none."""
    found = one(words)
    follow(found["cure"])
    assert bad() == []
    return found


def ping_from_client() -> None:
    """Let the client's kernel be a neighbour: it solicits the host's link-local address."""
    link_local = sh("ip", "-6", "-o", "address", "show", "dev", LAN, "scope", "link").split()[3]
    eventually(
        lambda: (
            call(
                "nsenter", f"--net=/run/netns/{CLIENT}", "ping", "-c1", "-W1",
                f"{link_local.partition('/')[0]}%{CLIENT_LINK}",
            ).code
            == 0
        ),
        within=20,
    )  # fmt: skip


def test_it_proposes_a_share(lan: Network, tmp_path: Path) -> None:
    ping_from_client()
    file = tmp_path / "my ndxdp.toml"
    file.write_text(f'[[interface]]\nname = "{UPLINK}"\n')
    with running(config=file):
        (found,) = of_share()
        assert found["level"] == "note"
        assert found["what"] == (
            f"hosts behind this host have no prefix of their own ({LAN}: 1 neighbour); a share lets"
            f" them use {ON_LINK} of {UPLINK}"
        )
        assert f"ndxdp share {UPLINK} {LAN}" in found["why"]
        printed = found["cure"].partition(" && ")[0]
        sh("sh", "-c", printed)
    assert tomllib.loads(file.read_text())["share"] == [{"upstream": UPLINK, "downstream": [LAN]}]


def test_hosts_are_known_by_ipv4(lan: Network) -> None:
    """A host that does not forward IPv6 yet takes no neighbour from router solicitations."""
    sh("ip", "-6", "neighbour", "flush", "dev", LAN)
    ip(f"neighbour add 192.0.2.7 lladdr 02:00:00:00:00:77 dev {LAN} nud stale")
    assert any(f"{LAN}: " in each["what"] for each in of_share())
    sh("sysctl", "-qw", f"net.ipv6.conf.{LAN}.disable_ipv6=1")
    assert of_share() == []


def test_it_proposes_none_where_a_prefix_is_delegated(lan: Network) -> None:
    ping_from_client()
    assert len(of_share()) == 1
    ip("-6 route add unreachable 2001:db8:100::/56")
    try:
        assert of_share() == []
    finally:
        ip("-6 route delete unreachable 2001:db8:100::/56")
    ip(f"address add 2001:db8:7::1/64 dev {LAN} nodad")
    assert of_share() == []


def test_the_same_prefix_without_a_share(lan: Network) -> None:
    ip(f"address add 2001:db8::e/64 dev {LAN} nodad")
    (found,) = [each for each in bad() if each["check"] == "share"]
    assert found["what"].startswith(f"{ON_LINK} is on-link on {UPLINK} and on {LAN}")


def test_the_same_prefix_on_both_sides(shared: Network) -> None:
    ip(f"address add 2001:db8::e/64 dev {LAN} nodad")
    (found,) = [each for each in bad() if each["check"] == "share"]
    assert f"the one by {UPLINK} wins now" in found["what"]
    assert f"make the address on {LAN} a /128" in found["why"]
    follow(found["cure"])
    assert bad() == []
    assert "2001:db8::e/128" in sh("ip", "-6", "address", "show", "dev", LAN)


def test_which_of_two_routes_wins(shared: Network) -> None:
    ip(f"-6 route add {ON_LINK} dev {LAN} metric 10")
    found = [each for each in bad() if each["check"] == "share"]
    assert [f"the one by {LAN} wins now" in each["what"] for each in found] == [True]
    assert f"hosts on {UPLINK} are unreachable" in found[0]["why"]
    follow(found[0]["cure"])
    assert bad() == []


def test_no_connected_route(shared: Network) -> None:
    ip(f"address delete {HOST}/64 dev {UPLINK}")
    ip(f"address add {HOST}/128 dev {UPLINK} nodad")
    ip(f"-6 route add 2001:db8::1 dev {UPLINK}")
    ip(f"-6 route replace default via 2001:db8::1 dev {UPLINK}")
    try:
        mends(f"no route says that {ON_LINK} is on the link of {UPLINK}")
    finally:
        ip(f"address delete {HOST}/128 dev {UPLINK}")


def test_forwarding_is_off_downstream(shared: Network) -> None:
    conf("forwarding", 0, LAN)
    conf("accept_ra", 0, LAN)
    mends(f"forwarding is off on {LAN}")


def test_ipv6_is_disabled_downstream(shared: Network) -> None:
    """Incus, LXD and libvirt do that to a bridge without an IPv6 address."""
    conf("disable_ipv6", 1, LAN)
    mends(f"IPv6 is disabled on {LAN}")


def test_an_empty_bridge_is_no_mistake(lan: Network) -> None:
    ip("link add br-empty type bridge")
    ip("link set br-empty up")
    links_ = [
        SharedLink(UPLINK, "upstream"),
        SharedLink("br-empty", "neighbors", "it has no usable link-local address yet"),
    ]
    try:
        with running(report_of(links=links_)):
            assert bad() == []
            assert (
                "no host is on br-empty: without carrier, or without a port with carrier" in notes()
            )
    finally:
        ip("link delete br-empty")


def test_downstream_accepts_advertisements(shared: Network) -> None:
    conf("accept_ra", 2, LAN)
    mends(f"{LAN} accepts router advertisements from the hosts behind it")


def test_a_host_behind_has_taken_the_default_route(shared: Network) -> None:
    conf("accept_ra", 2, LAN)
    with radvd(CLIENT, CLIENT_LINK, "2001:db8:66::/64"):  # at its end, it withdraws the route
        eventually(
            lambda: "proto ra" in sh("ip", "-6", "route", "show", "default", "dev", LAN), within=20
        )
        (found,) = [each for each in bad() if each["check"] == "share"]
        assert found["what"] == (
            f"a router advertisement from a host on {LAN} has brought a default route"
        )
        follow(found["cure"])
        assert [each for each in bad() if each["check"] == "share"] == []


def test_the_prefix_expires(shared: Network) -> None:
    """The default route is static, the address is not."""
    ip(f"address delete {HOST}/64 dev {UPLINK}")
    ip(f"address add {HOST}/64 dev {UPLINK} nodad valid_lft 900 preferred_lft 600")
    ip(f"-6 route replace default via 2001:db8::1 dev {UPLINK}")
    conf("accept_ra", 1)
    mends(f"{HOST} and the route to {ON_LINK} expire in")


@contextlib.contextmanager
def radvd(namespace: str | None, interface: str, prefix: str) -> Iterator[None]:
    """Run radvd on an interface of a namespace; None for this one."""
    folder = Path("/run")
    config, pid = folder / f"radvd-{interface}.conf", folder / f"radvd-{interface}.pid"
    config.write_text(
        f"interface {interface} {{ AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4;"
        f" prefix {prefix} {{ }}; }};\n"
    )
    config.chmod(0o644)
    enter = ["nsenter", f"--net=/run/netns/{namespace}"] if namespace else []
    process = subprocess.Popen(
        [*enter, "radvd", "-C", str(config), "-n", "-p", str(pid), "-m", "stderr"],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=10)


def test_radvd_on_the_downstream_interface(shared: Network) -> None:
    assert not any("router advertisements on" in each["what"] for each in findings())
    with radvd(None, LAN, "2001:db8:66::/64"):
        eventually(lambda: bad() != [], within=20)
        found = one(f"sends router advertisements on {LAN}")
        assert re.match(r"radvd \(pid \d+\)", found["what"])
        assert 'router_advertisements = "off"' in found["why"]
    with running(report_of(relay=False)), radvd(None, LAN, "2001:db8:66::/64"):
        assert bad() == []


def test_proxy_entries(shared: Network) -> None:
    ip(f"-6 neighbour add proxy 2001:db8::77 dev {LAN}")
    ip(f"-6 neighbour add proxy 2001:db8:9::77 dev {LAN}")  # not of the shared prefix
    found = mends(f"the kernel's proxy_ndp answers on {LAN} for 2001:db8::77")
    assert "2001:db8:9::77" not in found["what"]


TABLE = (
    "add table inet guard; add chain inet guard forward"
    " {{ type filter hook forward priority 0;{} }}"
)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (f"iifname {UPLINK} oifname {LAN} drop", f"drops packets from {UPLINK} to {LAN}, in inet"),
        (
            f"iifname {LAN} oifname {UPLINK} reject",
            f"drops packets from {LAN} to {UPLINK}, in inet",
        ),
        (
            f"iifname {UPLINK} oifname {LAN} icmpv6 type packet-too-big drop",
            f"drops ICMPv6 errors (packet-too-big) from {UPLINK} to {LAN}",
        ),
        (
            f"iifname {LAN} oifname {UPLINK} meta l4proto ipv6-icmp drop",
            f"drops ICMPv6 errors (packet-too-big) from {LAN} to {UPLINK}",
        ),
        # Chains of the administrator, with the uplink's other traffic accepted.
        (f"iifname {UPLINK} oifname != docker0 drop", f"drops packets from {UPLINK} to {LAN}"),
    ],
)
def test_the_firewall_between_them(shared: Network, rule: str, words: str) -> None:
    sh("nft", f"{TABLE.format('')}; add rule inet guard forward {rule}")
    mends(words)


def test_the_firewall_drops_discovery_downstream(shared: Network) -> None:
    chain = (
        "add table inet guard; add chain inet guard input { type filter hook input priority 0; }"
    )
    drop = f"add rule inet guard input iifname {LAN} meta l4proto ipv6-icmp drop"
    sh("nft", f"{chain}; {drop}")
    mends("the firewall drops nd-neighbor-advert, nd-neighbor-solicit in inet guard input")


def test_a_stateful_firewall_is_no_mistake(shared: Network) -> None:
    rules = (
        "ct state established,related accept",
        f"iifname {LAN} oifname {UPLINK} accept",
    )
    added = "; ".join(f"add rule inet guard forward {rule}" for rule in rules)
    sh("nft", f"{TABLE.format(' policy drop;')}; {added}")
    assert bad() == []


def test_both_interfaces_in_one_switch(shared: Network) -> None:
    """The client's end, and the router's, become ports of one bridge."""
    sh("ip", "netns", "add", "switch")
    try:
        for line in (
            f"-n {CLIENT} link set {CLIENT_LINK} netns switch name to-lan",
            "-n switch link add br0 type bridge",
            "-n switch link set br0 up",
            "-n switch link set to-lan master br0 up",
            f"-n {ROUTER} link add to-switch type veth peer name to-router netns switch",
            f"-n {ROUTER} link add br1 type bridge",
            f"-n {ROUTER} link set {ROUTER_LINK} master br1",
            f"-n {ROUTER} link set to-switch master br1 up",
            f"-n {ROUTER} link set br1 up",
            "-n switch link set to-router master br0 up",
        ):
            ip(line)
        # Which neighbour is seen first, by which kernel, is open.
        eventually(lambda: any("one link" in each["what"] for each in bad()), within=20)
        one("one link")
        assert loops()
        sh("ip", "-6", "neighbour", "flush", "dev", LAN)
        sh("ip", "-6", "neighbour", "flush", "dev", UPLINK)
        assert any("one link" in each["what"] for each in bad("--probe", "--watch", "0"))
    finally:
        call("ip", "netns", "delete", "switch")


def loops() -> bool:
    up, down = links.any_link(UPLINK), links.any_link(LAN)
    return share_loop.reaches(
        Member(UPLINK, up.ifindex, mac=up.mac), Member(LAN, down.ifindex, mac=down.mac)
    )


def test_the_probe_for_a_loop_finds_none_on_separate_links(shared: Network) -> None:
    assert not loops()
    assert bad("--probe", "--watch", "0") == []


@pytest.mark.parametrize(
    ("namespace", "link", "interface"),
    [(ROUTER, ROUTER_LINK, UPLINK), (CLIENT, CLIENT_LINK, LAN)],
    ids=["upstream", "downstream"],
)
def test_the_probe_for_a_node_that_answers_for_all(
    shared: Network, tmp_path: Path, namespace: str, link: str, interface: str
) -> None:
    """A real ndppd does, with a rule for the whole prefix."""
    file = tmp_path / "ndppd.conf"
    file.write_text(f"proxy {link} {{ rule {ON_LINK} {{ static }} }}")
    at = ("nsenter", f"--net=/run/netns/{namespace}")
    mac = sh("ip", "-n", namespace, "-br", "link", "show", link).split()[2]
    process = subprocess.Popen([*at, "ndppd", "-c", str(file)], stderr=subprocess.DEVNULL)
    try:
        words = f"{mac} answers on {interface} for an address of {ON_LINK} that nobody has"
        eventually(lambda: any(words == each["what"] for each in probed()))
        assert len(probed()) == 1
    finally:
        process.kill()
        process.wait()
    assert probed() == []


def probed() -> list[dict[str, str]]:
    return bad("--probe", "--watch", "0")


def test_a_part_of_the_prefix_is_on_another_link(shared: Network, tmp_path: Path) -> None:
    ip("link add br-0123456789ab type bridge")
    ip("link set br-0123456789ab up")
    ip("address add 2001:db8:0:0:d::1/80 dev br-0123456789ab nodad")
    try:
        found = one("2001:db8:0:0:d::/80 of the shared prefix is on br-0123456789ab, which is not")
        assert "[[interface.docker]]" in found["why"]
        done("attach", UPLINK, "--mode", "tc", "-n", "2001:db8:0:0:d::10")
        assert bad() == []  # a rule answers there
    finally:
        ip("link delete br-0123456789ab")


def test_downstream_refers_to_upstream(shared: Network) -> None:
    found = [each for each in findings(interface=LAN) if each["check"] == "share"]
    assert [(each["level"], each["cure"]) for each in found] == [("note", f"ndxdp doctor {UPLINK}")]
    assert f"{ON_LINK} is shared with {LAN}: hosts 0 of 256" in notes()


def test_a_share_whose_daemon_was_killed(lan: Network) -> None:
    ip(f"address add 2001:db8::e/64 dev {LAN} nodad")
    with report.Publisher(FILES, netns(), None, DaemonStatus()):
        share_report.write(FILES, report_of(hosts=HOSTS))
    assert [each["what"] for each in of_share()] == [
        f"the share of {UPLINK} has ended: the routes of 4 hosts stay, and no host is learned"
    ]


def test_a_member_that_disappears(shared: Network) -> None:
    ip(f"link delete {LAN}")
    assert bad() == []
