"""Firewall rules that drop neighbor discovery are found by their effect, not by their text."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.capture import packet_socket
from ndxdp.doctor import firewall
from ndxdp.doctor.netfilter import Ruleset
from ndxdp.ndp.frame import destination_of
from ndxdp.rules.address import parse_address
from tests.fixtures.doctor import bad, conf, follow, found_one, ip, mends
from tests.fixtures.network import (
    BEHIND,
    GATEWAY,
    HOST,
    HOST_MAC,
    TARGET,
    UPLINK,
    Network,
    call,
    done,
    remove_instance,
    sh,
)

BASE = "type filter hook {0} priority 0; policy {1};"


@pytest.fixture
def healthy(net: Network) -> Iterator[Network]:
    """Yield a host that forwards, without firewall rules."""
    conf("forwarding", 1, "all")
    yield net
    conf("forwarding", 0, "all")
    sh("nft", "flush", "ruleset")


def rules(hook: str, *lines: str, policy: str = "drop", more: str = "") -> None:
    """Add a table `inet guard` with a base chain of these rules."""
    body = "\n".join([BASE.format(hook, policy), *lines])
    sh("nft", "-f", "-", stdin=f"table inet guard {{\n{more}\nchain {hook} {{\n{body}\n}}\n}}\n")


def gateway_is_reachable() -> bool:
    """Return True if the kernel can resolve the gateway again."""
    call("ip", "-6", "neighbour", "flush", "dev", UPLINK)
    call("ping", "-c1", "-W1", GATEWAY)
    return "REACHABLE" in sh("ip", "-6", "neighbour", "show", "dev", UPLINK)


EATS = {
    "nothing": [],
    "established": ["ct state established,related accept"],
    "other types": ["icmpv6 type { echo-request, packet-too-big } accept"],
    "elsewhere": ['iifname != "up0" accept', 'iifname "docker*" accept'],
    "other protocols": ["meta l4proto { tcp, udp } accept", "ip6 nexthdr tcp accept"],
    "verdict map": ["ct state vmap { established : accept, invalid : drop }"],
    "ports": ["tcp dport 22 accept", "udp sport 53 accept", "ip saddr 192.0.2.1 accept"],
    "rejects": ["meta l4proto ipv6-icmp reject"],
    "a counter": ['counter log prefix "in: "', "drop"],
}


@pytest.mark.parametrize("lines", EATS.values(), ids=EATS)
def test_input_that_drops(healthy: Network, lines: list[str]) -> None:
    rules("input", *lines)
    assert healthy.silent(HOST)
    found = found_one("firewall", "the firewall drops nd-neighbor-advert, nd-neighbor-solicit")
    assert "inet guard input" in found["what"]
    follow(found["cure"])
    assert bad() == []
    assert healthy.ask(HOST) is not None
    assert gateway_is_reachable()


LETS_IN = {
    "all of it": ["meta l4proto ipv6-icmp accept"],
    "by types": ["icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"],
    "by ranges": ["icmpv6 type 133-137 accept"],
    "by hop limit": ["ip6 hoplimit 255 icmpv6 type >= 133 accept"],
    "by jump": ["meta l4proto ipv6-icmp jump more"],
    "by goto": ["goto more"],
    "by interface": ['iifname "up*" accept'],
    "by map": ["meta l4proto vmap { tcp : drop, ipv6-icmp : jump more }"],
    "untracked": ["ct state untracked accept"],
    "limited": ["meta l4proto ipv6-icmp limit rate 1000/second accept"],
}


@pytest.mark.parametrize("lines", LETS_IN.values(), ids=LETS_IN)
def test_input_that_accepts(healthy: Network, lines: list[str]) -> None:
    rules("input", *lines, more="chain more { meta nfproto ipv6 accept; }")
    assert bad() == []
    assert healthy.ask(HOST) is not None
    assert gateway_is_reachable()


def test_output_that_drops(healthy: Network) -> None:
    rules("output", "ct state established accept")
    assert healthy.silent(HOST)
    mends("firewall", "nd-neighbor-solicit, nd-neighbor-advert in inet guard output")
    assert healthy.ask(HOST) is not None


IP6TABLES = {
    "nothing": [],
    "established": ["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"],
    "state": ["-m state --state RELATED,ESTABLISHED -j ACCEPT"],
    "a port": ["-p tcp -m tcp --dport 22 -j ACCEPT", "-p tcp -j REJECT"],
    "ping": ["-p ipv6-icmp --icmpv6-type 128 -j ACCEPT"],
    "others": ["! -i up0 -j ACCEPT", "-m conntrack ! --ctstate UNTRACKED -j ACCEPT"],
}


@pytest.mark.parametrize("lines", IP6TABLES.values(), ids=IP6TABLES)
def test_ip6tables_that_drops(healthy: Network, lines: list[str]) -> None:
    sh("ip6tables", "-P", "INPUT", "DROP")
    for line in lines:
        sh("ip6tables", "-A", "INPUT", *line.split())
    assert healthy.silent(HOST)
    found = found_one("firewall", "in ip6 filter INPUT")
    assert found["cure"].startswith("ip6tables -I INPUT")
    follow(found["cure"])
    assert bad() == []
    assert healthy.ask(HOST) is not None


IP6TABLES_WELL = {
    "by types": [f"-p ipv6-icmp --icmpv6-type {kind} -j ACCEPT" for kind in (135, 136)],
    "untracked": ["-m conntrack --ctstate UNTRACKED,ESTABLISHED -j ACCEPT"],
    "valid": ["-m conntrack ! --ctstate INVALID -j ACCEPT"],
    "by hop limit": ["-p ipv6-icmp -m hl --hl-eq 255 -j ACCEPT"],
}


@pytest.mark.parametrize("lines", IP6TABLES_WELL.values(), ids=IP6TABLES_WELL)
def test_ip6tables_that_accepts(healthy: Network, lines: list[str]) -> None:
    sh("ip6tables", "-P", "INPUT", "DROP")
    for line in lines:
        sh("ip6tables", "-A", "INPUT", *line.split())
    assert bad() == []
    assert healthy.ask(HOST) is not None


@pytest.fixture
def reached(healthy: Network) -> Iterator[Network]:
    """Yield a host that answers for a container, which the router reaches."""
    sh("ip", "netns", "add", "container")
    inside = ["nsenter", "--net=/run/netns/container"]
    ip("link add br9 type veth peer name eth9 netns container")
    sh("ip", "link", "set", "br9", "up")
    ip("-6 address add fe80::9/64 dev br9 nodad")
    sh("ip", "-6", "route", "add", BEHIND, "dev", "br9")
    sh(*inside, "ip", "link", "set", "eth9", "up")
    sh(*inside, "ip", "-6", "address", "add", f"{TARGET}/128", "dev", "eth9", "nodad")
    sh(*inside, "ip", "-6", "route", "add", "default", "via", "fe80::9", "dev", "eth9")
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    yield healthy
    remove_instance()
    sh("ip", "link", "delete", "br9")
    sh("ip", "netns", "delete", "container")


def reaches(net: Network) -> bool:
    return net.at_router("ping", "-c1", "-W1", TARGET).code == 0


def test_forwarding_that_drops(reached: Network) -> None:
    assert reaches(reached)
    rules("forward", 'iifname "x0" oifname "x1" accept', "ip version 4 accept")
    assert not reaches(reached)
    into, out = bad()
    assert "drops all packets forwarded from up0" in into["what"]
    assert "drops all packets forwarded to up0" in out["what"]
    follow(into["cure"])
    follow(out["cure"])
    assert bad() == []
    assert reaches(reached)


def test_ip6tables_forwarding_that_drops(reached: Network) -> None:
    sh("ip6tables", "-P", "FORWARD", "DROP")
    assert not reaches(reached)
    into, out = bad()
    follow(into["cure"])
    follow(out["cure"])
    assert bad() == []
    assert reaches(reached)


def test_a_router_that_lets_out_only(reached: Network) -> None:
    """Accept a correct firewall: connections from inside to outside, and their replies."""
    rules("forward", "ct state established,related accept", 'iifname "br9" accept')
    assert not reaches(reached)
    assert bad() == []


def test_no_ruleset() -> None:
    wrong: list[object] = [{}, [], {"nftables": [{"rule": {}}]}, {"nftables": 1}]
    for wrong_text in wrong:
        with pytest.raises(ValueError, match="no ruleset of nft"):
            Ruleset.of(wrong_text)
    assert Ruleset.of(json.loads('{"nftables": [{"metainfo": {}}]}')).chains == {}


# ---- before routing ------------------------------------------------------------------------------


def test_one_container_is_dropped(reached: Network) -> None:
    """Find rules like those of Docker 28, which drop packets that do not arrive by its bridge."""
    done("prefix", "add", TARGET, "-i", UPLINK)
    condition = f'ip6 daddr {TARGET} iifname != "br9"'
    rules("prerouting", f"{condition} drop", policy="accept")
    assert not reaches(reached)
    found = mends("firewall", f"forwarded from up0 for {TARGET}, in inet guard prerouting")
    assert found["cure"].endswith(f"ip6 daddr {{ {TARGET} }} accept'")
    assert reaches(reached)


def test_ip6tables_before_routing(reached: Network) -> None:
    sh("ip6tables", "-t", "raw", "-A", "PREROUTING", "-d", BEHIND, "!", "-i", "br9", "-j", "DROP")
    assert not reaches(reached)
    found = mends("firewall", "drops all packets forwarded from up0, in ip6 raw PREROUTING")
    assert found["cure"].startswith("ip6tables -t raw -I PREROUTING -i up0 -d")
    assert reaches(reached)


ELSEWHERE = {
    "another address": "ip6 daddr 2001:db8::c:0:0:98 drop",
    "another prefix": "ip6 daddr 2001:db8:0:0:d::/80 drop",
    "some of them": "ip6 daddr 2001:db8::c:0:0:0-2001:db8::c:0:0:98 drop",
    "a set": "ip6 daddr { 2001:db8:0:0:d::/80, 2001:db8::1 } drop",
}


@pytest.mark.parametrize("line", ELSEWHERE.values(), ids=ELSEWHERE)
def test_others_are_dropped(reached: Network, line: str) -> None:
    rules("prerouting", line, policy="accept")
    assert bad() == []
    assert reaches(reached)


@pytest.fixture
def asymmetric(reached: Network) -> Iterator[Network]:
    """Route the Internet by another interface: a tunnel, or a second provider."""
    ip("link add other0 type veth peer name far0")
    sh("ip", "link", "set", "other0", "up")
    ip("-6 route delete default")
    ip("-6 route add default via fe80::77 dev other0")
    yield reached
    sh("ip", "link", "delete", "other0")


RPFILTERS = {
    "firewalld": "meta nfproto ipv6 fib saddr . mark . iif oif missing drop",
    "strict": "fib saddr . iif oif 0 drop",
}


@pytest.mark.parametrize("line", RPFILTERS.values(), ids=RPFILTERS)
def test_reverse_path_filter(asymmetric: Network, line: str) -> None:
    rules("prerouting", "icmpv6 type { 134, 135 } accept", line, policy="accept")
    assert not reaches_from_internet(asymmetric)
    found = mends("firewall", "the way back leads out of other0")
    assert "inet guard prerouting" in found["what"]
    assert reaches_from_internet(asymmetric)


def test_reverse_path_filter_of_ip6tables(asymmetric: Network) -> None:
    sh("ip6tables", "-t", "raw", "-A", "PREROUTING", *["-m", "rpfilter", "--invert", "-j", "DROP"])
    assert not reaches_from_internet(asymmetric)
    mends("firewall", "the way back leads out of other0")
    assert reaches_from_internet(asymmetric)


@pytest.mark.parametrize("line", [*RPFILTERS.values(), "fib saddr oif missing drop"])
def test_reverse_path_filter_that_is_right(reached: Network, line: str) -> None:
    rules("prerouting", line, policy="accept")
    assert bad() == []
    assert reaches_from_internet(reached)


def test_loose_reverse_path_filter(asymmetric: Network) -> None:
    follow("ip6tables -t raw -A PREROUTING -m rpfilter --loose --invert -j DROP")
    rules("prerouting", "fib saddr oif missing drop", policy="accept")
    assert bad() == []
    assert reaches_from_internet(asymmetric)


def reaches_from_internet(net: Network) -> bool:
    """Return True if a packet from an address of the Internet reaches the container."""
    with packet_socket("container", "eth9") as packets:
        packets.settimeout(0.5)
        ping = ("ping", "-c1", "-W1", "-I", "2001:db8:ffff::1", TARGET)
        net.at_router("ip", "-6", "address", "replace", "2001:db8:ffff::1/128", "dev", "lo")
        net.at_router(*ping)
        with contextlib.suppress(TimeoutError):
            while True:
                frame = packets.recv(2048)
                if destination_of(frame) == parse_address(TARGET) and frame[54:55] == b"\x80":
                    return True
    return False


# ---- bridges -------------------------------------------------------------------------------------


@pytest.fixture
def bridge(healthy: Network) -> Iterator[Network]:
    """Move the host's addresses to br7, of which the uplink is a port."""
    ip(f"link add br7 address {HOST_MAC} type bridge mcast_snooping 0")
    try:
        sh("ip", "-6", "address", "flush", "dev", UPLINK)
        sh("ip", "link", "set", UPLINK, "master", "br7")
        ip("link set br7 addrgenmode none up")
        ip(f"-6 address add {HOST}/64 dev br7 nodad")
        ip("-6 address add fe80::2/64 dev br7 nodad")
        ip(f"-6 route replace default via {GATEWAY} dev br7")
        assert bad(interface="br7") == []
        yield healthy
    finally:
        sh("ip", "link", "delete", "br7")


BRIDGED = {
    "all of IPv6": "ebtables -A INPUT -p IPv6 -j DROP",
    "solicitations": "ebtables -A INPUT -p IPv6 --ip6-proto ipv6-icmp --ip6-icmp-type"
    " neighbour-solicitation -j DROP",
    "the policy": "ebtables -P INPUT DROP",
    "by nft": "nft add table bridge b; nft add chain bridge b c"
    " '{ type filter hook input priority 0; policy drop; }'",
    "answers": "ebtables -A OUTPUT -p IPv6 --ip6-proto ipv6-icmp -j DROP",
}


@pytest.mark.parametrize("command", BRIDGED.values(), ids=BRIDGED)
def test_a_bridge_that_drops(bridge: Network, command: str) -> None:
    assert bridge.ask(HOST) is not None
    follow(command)
    assert bridge.silent(HOST)
    found = mends("firewall", "nd-neighbor-solicit", interface="br7")
    assert "in bridge " in found["what"]
    assert bridge.ask(HOST) is not None


BRIDGED_WELL = {
    "IPv4": "ebtables -A INPUT -p IPv4 -j DROP",
    "advertisements of routers": "ebtables -A INPUT -p IPv6 --ip6-proto ipv6-icmp --ip6-icmp-type"
    " router-advertisement -j DROP",
    "another port": "ebtables -A INPUT -i tap9 -j DROP",
    "another source": "ebtables -A INPUT -p IPv6 --ip6-src 2001:db8:9::/64 -j DROP",
}


@pytest.mark.parametrize("command", BRIDGED_WELL.values(), ids=BRIDGED_WELL)
def test_a_bridge_that_accepts(bridge: Network, command: str) -> None:
    follow(command)
    assert bad(interface="br7") == []
    assert bridge.ask(HOST) is not None


def test_a_port_whose_bridge_drops(bridge: Network) -> None:
    follow(f"ebtables -A INPUT -i {UPLINK} -p IPv6 -j DROP")
    found = found_one("firewall", "in bridge filter INPUT")
    follow(found["cure"])
    assert bad() == []


# ---- without nft ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "cure", "why"),
    [
        (("ip6tables", "apt-get"), "ip6tables -S", "ip6tables is installed"),
        (("apt-get",), "apt install nftables", "doctor reads the rules with nft"),
        (("dnf",), "dnf install nftables", "doctor reads the rules with nft"),
        (("apk",), "apk add nftables", "doctor reads the rules with nft"),
        ((), "", "doctor reads the rules with nft"),
    ],
)
def test_nft_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], cure: str, why: str
) -> None:
    """Print no command of a program that is not installed."""
    for name in there:
        (tmp_path / name).touch(0o755)
    monkeypatch.setattr(firewall, "_path", lambda: str(tmp_path))
    ruleset, reason = firewall._list(False)
    assert ruleset is None
    (found,) = firewall.judge(
        firewall.Facts("eth0", ruleset, reason, legacy=False, advertisements=False, behind=())
    )
    assert found.what == "cannot check the firewall's rules: nft is not installed"
    assert found.cure == cure
    assert found.why.startswith(why)
