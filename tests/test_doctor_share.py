"""Doctor proposes a share where one fits, and finds the usual mistakes of a configured one."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndxdp.doctor import share_loop
from ndxdp.doctor.share_members import Member
from ndxdp.netlink import links
from ndxdp.netlink.netns import netns
from ndxdp.runtime import report, share_report
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.runtime.share_report import (
    SharedLink,
)
from tests.fixtures.doctor import bad, conf, findings, follow, ip, notes
from tests.fixtures.network import (
    FILES,
    HOST,
    ROUTER,
    ROUTER_LINK,
    UPLINK,
    Network,
    call,
    done,
    eventually,
    remove_instance,
    sh,
)
from tests.fixtures.share_facts import HOSTS, LAN, ON_LINK, report_of, running

CLIENT, CLIENT_LINK = "client", "eth0"

# ---- in namespaces -------------------------------------------------------------------------------


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


@pytest.fixture
def shared(lan: Network) -> Iterator[Network]:
    """Yield a host with a share of up0 and lan0."""
    with running(report_of()):
        assert bad() == []
        yield lan


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
