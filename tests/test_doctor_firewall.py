"""Rules that eat neighbor discovery are found, by what they do and not by what they look like."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ndxdp.doctor.netfilter import Ruleset
from tests.network import BEHIND, GATEWAY, HOST, TARGET, UPLINK, Network, call, done, sh, take_off
from tests.test_doctor import bad, conf, follow, found_one, ip, mends

BASE = "type filter hook {0} priority 0; policy {1};"


@pytest.fixture
def healthy(net: Network) -> Iterator[Network]:
    """A host that forwards, without any rule of a firewall."""
    conf("forwarding", 1, "all")
    yield net
    conf("forwarding", 0, "all")
    sh("nft", "flush", "ruleset")


def rules(hook: str, *lines: str, policy: str = "drop", more: str = "") -> None:
    """A table `inet guard` with a base chain of these rules."""
    body = "\n".join([BASE.format(hook, policy), *lines])
    sh("nft", "-f", "-", stdin=f"table inet guard {{\n{more}\nchain {hook} {{\n{body}\n}}\n}}\n")


def gateway_is_reachable() -> bool:
    """The kernel resolves it anew."""
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
def test_input_that_eats(healthy: Network, lines: list[str]) -> None:
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
def test_input_that_lets_in(healthy: Network, lines: list[str]) -> None:
    rules("input", *lines, more="chain more { meta nfproto ipv6 accept; }")
    assert bad() == []
    assert healthy.ask(HOST) is not None
    assert gateway_is_reachable()


def test_output_that_eats(healthy: Network) -> None:
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
def test_ip6tables_that_eats(healthy: Network, lines: list[str]) -> None:
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
def test_ip6tables_that_lets_in(healthy: Network, lines: list[str]) -> None:
    sh("ip6tables", "-P", "INPUT", "DROP")
    for line in lines:
        sh("ip6tables", "-A", "INPUT", *line.split())
    assert bad() == []
    assert healthy.ask(HOST) is not None


@pytest.fixture
def reached(healthy: Network) -> Iterator[Network]:
    """ndxdp answers for a container, and the router reaches it."""
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
    take_off()
    sh("ip", "link", "delete", "br9")
    sh("ip", "netns", "delete", "container")


def reaches(net: Network) -> bool:
    return net.at_router("ping", "-c1", "-W1", TARGET).code == 0


def test_forwarding_that_eats(reached: Network) -> None:
    assert reaches(reached)
    rules("forward", 'iifname "x0" oifname "x1" accept', "ip version 4 accept")
    assert not reaches(reached)
    into, out = bad()
    assert "drops all that is forwarded from up0" in into["what"]
    assert "drops all that is forwarded to up0" in out["what"]
    follow(into["cure"])
    follow(out["cure"])
    assert bad() == []
    assert reaches(reached)


def test_ip6tables_forwarding_that_eats(reached: Network) -> None:
    sh("ip6tables", "-P", "FORWARD", "DROP")
    assert not reaches(reached)
    into, out = bad()
    follow(into["cure"])
    follow(out["cure"])
    assert bad() == []
    assert reaches(reached)


def test_a_router_that_lets_out_only(reached: Network) -> None:
    """A firewall as it should be: from inside to outside, and what belongs to that."""
    rules("forward", "ct state established,related accept", 'iifname "br9" accept')
    assert not reaches(reached)
    assert bad() == []


def test_no_ruleset() -> None:
    wrong: list[object] = [{}, [], {"nftables": [{"rule": {}}]}, {"nftables": 1}]
    for said in wrong:
        with pytest.raises(ValueError, match="no ruleset of nft"):
            Ruleset.of(said)
    assert Ruleset.of(json.loads('{"nftables": [{"metainfo": {}}]}')).chains == {}
