"""Proposals of `ndxdp init` from facts about a host. Each rule is narrow, and ndxdp accepts it."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from typing import Any

import pytest

from ndxdp.config import reader
from ndxdp.doctor.share_case import LinkBehind, Surroundings
from ndxdp.proposal import plan as plans
from ndxdp.proposal import settings, text
from ndxdp.proposal.facts import ContainerNetwork, Daemon, Host, Responder, Uplink, Way
from ndxdp.proposal.plan import Plan
from ndxdp.proposal.relations import Relation, called, relation
from ndxdp.proposal.steps import Installation, commands
from ndxdp.rules import breadth
from ndxdp.rules.address import parse_address
from ndxdp.rules.prefix import free_part, parse_prefix
from ndxdp.sources.selector import ENGINE_SOCKET

SYSCTLS = "/etc/sysctl.d/60-ndxdp.conf"

ON_LINK = parse_prefix("2001:db8:0:1::/64")
PART = parse_prefix("2001:db8:0:1:c::/80")
OTHER_PART = parse_prefix("2001:db8:0:1:d::/80")
ROUTED = parse_prefix("2001:db8:7::/64")
PRIVATE = parse_prefix("fd00:7::/64")

ETH0 = Uplink(
    "eth0",
    gateways=(parse_address("fe80::1"),),
    on_link=(ON_LINK,),
    addresses=(parse_address("2001:db8:0:1::2"),),
)
SINGLE = replace(ETH0, on_link=())  # 2001:db8:0:1::2/128

PHONE = parse_prefix("2001:db8:0:1::77/128")

SIX = ContainerNetwork("six", (PART,), containers=(("web", "2001:db8:0:1:c::10"),))
VIRBR0 = Way(OTHER_PART, "virbr0", guest=parse_address("2001:db8:0:1:d::7"))


def proposed(host: Host) -> Plan:
    return plans.propose(host, default_socket=ENGINE_SOCKET, sysctl_file=SYSCTLS)


def tables(host: Host) -> list[dict[str, Any]]:
    """Return the interfaces of the proposed file, which ndxdp accepts, with no broad rule."""
    written = text.configuration(proposed(host))
    config = reader.parse(written, "ndxdp.toml")
    on_link = {uplink.name: uplink.on_link for uplink in host.uplinks}
    for interface in config.interfaces:
        assert breadth.find_all(interface.rules, on_link[interface.name]) == []
        assert not interface.forced
    found: list[dict[str, Any]] = tomllib.loads(written)["interface"]
    return found


def notes(host: Host) -> str:
    return "\n".join(proposed(host).notes)


# ---- rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "docker", "prefixes"),
    [
        pytest.param(
            Host((ETH0,), (Way(PART, "br-0123456789ab"),), (SIX,)),
            [{"network": "six"}],
            [],
            id="docker",
        ),
        pytest.param(
            Host((ETH0,), (VIRBR0,)),
            [],
            [{"prefix": str(OTHER_PART), "answer": "neighbour", "dev": ["virbr0"]}],
            id="bridge",
        ),
        pytest.param(
            Host((ETH0,), (Way(PART, "wg0", "wireguard", direct=False),)),
            [],
            [{"prefix": str(PART), "answer": "routed", "dev": ["wg0"]}],
            id="tunnel",
        ),
        pytest.param(
            Host((ETH0,), (Way(parse_prefix("2001:db8:0:1::7"), "veth7", "veth"),)),
            [],
            [{"prefix": "2001:db8:0:1::7", "answer": "routed", "dev": ["veth7"]}],
            id="one-address",
        ),
        pytest.param(
            Host((ETH0,), (Way(PART, "br0"), Way(PART, "br1"))),
            [],
            [{"prefix": str(PART), "answer": "neighbour", "dev": ["br0", "br1"]}],
            id="two-bridges",
        ),
        pytest.param(
            Host((ETH0,), (Way(PART, "br0"), Way(PART, "wg0", "wireguard", direct=False))),
            [],
            [{"prefix": str(PART), "answer": "neighbour", "dev": ["br0"]}],
            id="bridge-and-tunnel",
        ),
        pytest.param(
            Host((ETH0,), (Way(ON_LINK, "br0"),)),
            [],
            [{"prefix": str(ON_LINK), "answer": "neighbour", "dev": ["br0"]}],
            id="same-prefix",
        ),
        pytest.param(
            Host((ETH0,), (), (ContainerNetwork("six", (ON_LINK,)),)),
            [{"network": "six"}],
            [],
            id="same-prefix-docker",
        ),
        pytest.param(
            Host((SINGLE,), (Way(ON_LINK, "br0"),)),
            [],
            [{"prefix": str(ON_LINK), "answer": "neighbour", "dev": ["br0"]}],
            id="single-address-on-the-uplink",
        ),
        pytest.param(
            Host((ETH0,), local=(PART,)),
            [],
            [{"prefix": str(PART), "answer": "local"}],
            id="anyip",
        ),
        pytest.param(
            Host((replace(ETH0, proxied=(parse_address("2001:db8:0:1::77"),)),), (VIRBR0,)),
            [],
            [
                {"prefix": "2001:db8:0:1::77", "answer": "routed"},
                {"prefix": str(OTHER_PART), "answer": "neighbour", "dev": ["virbr0"]},
            ],
            id="proxy-entry",
        ),
        pytest.param(
            Host((replace(ETH0, proxied=(parse_address("2001:db8:0:1:c::10"),)),), (), (SIX,)),
            [{"network": "six"}],
            [],
            id="proxy-entry-of-a-container",
        ),
    ],
)
def test_rules(host: Host, docker: list[Any], prefixes: list[Any]) -> None:
    (found,) = tables(host)
    assert found["name"] == "eth0"
    assert (found.get("docker", []), found.get("prefix", [])) == (docker, prefixes)


def test_each_uplink_has_the_rules_of_its_own_prefixes() -> None:
    second = replace(ETH0, name="eth1", on_link=(ROUTED,))
    host = Host((ETH0, second), (VIRBR0, Way(parse_prefix("2001:db8:7:0:1::/80"), "br7")))
    found = {each["name"]: [rule["dev"] for rule in each["prefix"]] for each in tables(host)}
    assert found == {"eth0": [["virbr0"]], "eth1": [["br7"]]}
    assert "eth0 and eth1 are uplinks" in notes(host)


def test_many_routes_are_one_rule() -> None:
    ways = tuple(
        Way(parse_prefix(f"2001:db8:0:1::{number:x}"), f"veth{number}", "veth")
        for number in range(16, 48)
    )
    (found,) = tables(Host((ETH0,), ways))
    assert found["prefix"] == [{"prefix": str(ON_LINK), "answer": "routed"}]
    one = tuple(way._replace(dev="br0") if False else replace(way, dev="br0") for way in ways)
    (found,) = tables(Host((ETH0,), one))
    assert found["prefix"] == [{"prefix": str(ON_LINK), "answer": "routed", "dev": ["br0"]}]
    # Where the prefix is on both sides, `routed` would answer for the nodes of the uplink.
    (found,) = tables(Host((ETH0,), (*one, Way(ON_LINK, "br0"))))
    assert found["prefix"] == [{"prefix": str(ON_LINK), "answer": "neighbour", "dev": ["br0"]}]


def test_a_gateway_for_all_of_the_prefix_is_not_safe() -> None:
    host = Host((ETH0,), (Way(ON_LINK, "wg0", "wireguard", direct=False),))
    assert proposed(host).uplinks == ()
    assert "two routes" in notes(host)


def test_many_networks_are_one_selector() -> None:
    networks = tuple(
        ContainerNetwork(f"project{number}", (parse_prefix(f"2001:db8:0:1:{number}::/80"),))
        for number in range(1, 12)
    )
    (found,) = tables(Host((ETH0,), networks=networks))
    assert found["docker"] == [{"within": str(ON_LINK)}]


def test_another_socket_is_in_the_file() -> None:
    host = Host((ETH0,), networks=(SIX,), engine="/run/podman/podman.sock")
    written = tomllib.loads(text.configuration(proposed(host)))
    assert written["docker"] == {"socket": "/run/podman/podman.sock"}
    assert proposed(replace(host, engine=ENGINE_SOCKET)).socket == ""
    assert proposed(replace(host, networks=(), ways=(VIRBR0,))).socket == ""


def test_names_stay_names() -> None:
    network = ContainerNetwork('a" # \\ [[interface]]', (PART,))
    (found,) = tables(Host((ETH0,), (Way(OTHER_PART, 'b"[0]'),), (network,)))
    assert found["docker"] == [{"network": network.name}]
    assert found["prefix"][0]["dev"] == ['b"[[]0]']  # a pattern that matches only this name


def test_a_name_that_no_file_can_contain() -> None:
    network = ContainerNetwork('a\n[[interface]]\nname = "lo"', (PART,))
    (found,) = tables(Host((ETH0,), networks=(network,)))
    assert found["docker"] == [{"within": str(PART)}]


# ---- shares -------------------------------------------------------------------------------------

LAN0 = LinkBehind("lan0", neighbours=2)
BR0 = LinkBehind("br0", "bridge", ports=3)
ADVERTISED = replace(ETH0, advertised=True, accept_ra=1)


def shared(host: Host) -> list[dict[str, Any]]:
    """Return the shares of the proposed file, which ndxdp accepts."""
    plan = proposed(host)
    written = text.configuration(plan)
    assert len(reader.parse(written, "ndxdp.toml").shares) == len(plan.shares)
    found: list[dict[str, Any]] = tomllib.loads(written).get("share", [])
    return found


@pytest.mark.parametrize(
    ("links", "ways", "downstream"),
    [
        pytest.param((LAN0,), (), ["lan0"], id="second-lan"),
        pytest.param((LAN0, BR0), (), ["lan0", "br0"], id="lan-and-bridge"),
        pytest.param(
            (LAN0._replace(prefixes=(ON_LINK,)),),
            (Way(ON_LINK, "lan0", ""),),
            ["lan0"],
            id="same-prefix",
        ),
        pytest.param(
            (LAN0, LinkBehind("wg0", "wireguard", quiet=True, hosts=(PHONE,))),
            (Way(PHONE, "wg0", "wireguard", direct=False),),
            ["lan0", "wg0"],
            id="lan-and-wireguard",
        ),
    ],
)
def test_a_share(
    links: tuple[LinkBehind, ...], ways: tuple[Way, ...], downstream: list[str]
) -> None:
    host = Host((ADVERTISED,), ways, surroundings=Surroundings(links))
    assert shared(host) == [{"upstream": "eth0", "downstream": downstream}]
    plan = proposed(host)
    assert plan.uplinks == ()  # a rule beside the share would answer for the same hosts
    assert [(each.key, each.value) for each in plan.settings] == [
        ("net.ipv6.conf.eth0.accept_ra", 2),
        ("net.ipv6.conf.all.forwarding", 1),
    ]
    assert f"ndxdp share eth0 {' '.join(downstream)}" in notes(host)
    assert ("two routes" in notes(host)) == bool(links[0].prefixes)


def test_a_share_beside_rules() -> None:
    """A Docker network and a part of the prefix have rules; the other hosts have the share."""
    virbr0 = LinkBehind("virbr0", "bridge", ports=2, prefixes=(OTHER_PART,))
    docker = LinkBehind("br-0123456789ab", "bridge", ports=1, prefixes=(PART,))
    host = Host(
        (ETH0,),
        (VIRBR0, Way(PART, docker.name)),
        (SIX,),
        surroundings=Surroundings((LAN0, virbr0, docker)),
    )
    assert shared(host) == [{"upstream": "eth0", "downstream": ["lan0"]}]
    (found,) = tables(host)
    assert found["docker"] == [{"network": "six"}]
    assert [each["dev"] for each in found["prefix"]] == [["virbr0"]]
    assert proposed(host).names == ("eth0",)


@pytest.mark.parametrize(
    "surroundings",
    [
        pytest.param(Surroundings((LAN0, BR0._replace(prefixes=(ROUTED,)))), id="on-a-bridge"),
        pytest.param(Surroundings((LAN0, BR0._replace(gateways=(ROUTED,)))), id="to-a-router"),
        pytest.param(Surroundings((LAN0,), (parse_prefix("2001:db8:7::/56"),)), id="discarded"),
    ],
)
def test_no_share_where_a_prefix_is_delegated(surroundings: Surroundings) -> None:
    host = Host((ETH0,), surroundings=surroundings)
    assert proposed(host).is_empty
    assert "no share of eth0: 2001:db8:7::/" in notes(host)


def test_an_interface_without_known_hosts_is_named() -> None:
    host = Host((ETH0,), surroundings=Surroundings((LAN0._replace(neighbours=0),)))
    assert proposed(host).is_empty
    assert "no host is known on lan0; if hosts there are to use 2001:db8:0:1::/64" in notes(host)
    assert "ndxdp share eth0 lan0" in notes(host)


def test_an_interface_is_behind_one_uplink() -> None:
    second = replace(ETH0, name="eth1", on_link=(parse_prefix("2001:db8:2::/64"),))
    host = Host((ETH0, second), surroundings=Surroundings((LAN0,)))
    assert shared(host) == [{"upstream": "eth0", "downstream": ["lan0"]}]


def test_the_names_of_a_share_stay_names() -> None:
    host = Host((ETH0,), surroundings=Surroundings((LAN0._replace(name='b"[0]'),)))
    assert shared(host) == [{"upstream": "eth0", "downstream": ['b"[[]0]']}]


def test_the_commands_after_a_share() -> None:
    host = Host((ADVERTISED,), surroundings=Surroundings((LAN0,)))
    installed = Installation("/etc/ndxdp/ndxdp.toml", True, True, True, False)
    assert list(commands(host, proposed(host), installed, SYSCTLS)) == [
        f"sysctl -p {SYSCTLS}",
        "systemctl enable --now ndxdp",
        "ndxdp hosts    # the hosts that the share has learned",
        "ndxdp doctor eth0",
    ]


# ---- no rule, and why ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "reason", "note"),
    [
        pytest.param(
            Host((ETH0,), (Way(ROUTED, "br0"),)),
            "no network behind this host has a part of an on-link prefix of eth0",
            "no rule for 2001:db8:7::/64 (the bridge br0): in no on-link prefix of eth0",
            id="routed",
        ),
        pytest.param(
            Host((ETH0,), (Way(PRIVATE, "br0"),)),
            "no network behind this host has a part of an on-link prefix of eth0",
            "",
            id="private",
        ),
        pytest.param(
            Host((ETH0,), (Way(parse_prefix("2001:db8::/48"), "br0"),)),
            "no network behind this host has a part of an on-link prefix of eth0",
            "it contains an on-link prefix of eth0",
            id="wider",
        ),
        pytest.param(
            Host((ETH0,)), "there is no IPv6 network behind this host", "", id="nothing-behind"
        ),
        pytest.param(
            Host((replace(ETH0, on_link=(), addresses=()),)),
            "eth0 has no global IPv6 address",
            "",
            id="no-address",
        ),
        pytest.param(
            Host((replace(ETH0, quiet=True),), (VIRBR0,)),
            "ndxdp cannot answer on eth0",
            "eth0 has no MAC address, so no router solicits there",
            id="no-mac",
        ),
        pytest.param(
            Host((replace(ETH0, up=False),), (VIRBR0,)),
            "ndxdp cannot answer on eth0",
            "eth0 is down",
            id="down",
        ),
        pytest.param(
            Host((replace(ETH0, disabled=True),), (VIRBR0,)),
            "ndxdp cannot answer on eth0",
            "disable_ipv6 is 1",
            id="disabled",
        ),
        pytest.param(
            Host((ETH0,), networks=(ContainerNetwork("four"), ContainerNetwork("bridge"))),
            "there is no IPv6 network behind this host",
            "the container networks have no IPv6 subnet, and no rule: four, bridge",
            id="docker-without-ipv6",
        ),
        pytest.param(
            Host((ETH0,), networks=(replace(SIX, driver="macvlan"),)),
            "no network behind this host has a part",
            "the containers on the macvlan network six answer themselves",
            id="macvlan",
        ),
        pytest.param(
            Host((ETH0,), (Way(PART, "br-0123456789ab"),), (replace(SIX, internal=True),)),
            "no network behind this host has a part",
            "the network six is internal",
            id="internal",
        ),
    ],
)
def test_nothing_to_answer(host: Host, reason: str, note: str) -> None:
    plan = proposed(host)
    assert (plan.uplinks, plan.settings, plan.proof) == ((), (), None)
    error = plans.nothing(host)
    assert reason in error.message
    assert error.hint
    assert error.exit_code == 1
    assert note in "\n".join(plan.notes)


def test_the_hint_has_a_free_part() -> None:
    assert "2001:db8:0:1:1::/80" in plans.nothing(Host((ETH0,))).hint


@pytest.mark.parametrize(
    ("host", "note"),
    [
        (Host((ETH0,), (Way(ON_LINK, "br0"),)), "such as 2001:db8:0:1:1::/80, or a route each"),
        (
            Host((replace(ETH0, kind="bridge", name="vmbr0"),), (VIRBR0,)),
            "guests on ports of vmbr0",
        ),
        (Host((ETH0,), unknown="/run/docker.sock: permission denied"), "permission denied"),
        (Host((ETH0,), responders=(Responder(7, "ndppd"),)), "ndxdp convert /etc/ndppd.conf"),
        (Host((ETH0,), unseen=("x on eth0: y",)), "not seen: x on eth0: y"),
        (Host((replace(ETH0, proxied=(bytes(16),) * 2),)), "has 2 entries on eth0"),
        (
            Host((replace(ETH0, manager="ifupdown", accept_ra=1, advertised=True),)),
            "write `accept_ra 2` there",
        ),
        (Host((replace(ETH0, attached=True),)), "ndxdp prefix list eth0"),
        (Host((ETH0,), daemons=(Daemon(7, "/x.toml"),)), "runs (pid 7, /x.toml)"),
    ],
)
def test_notes(host: Host, note: str) -> None:
    assert note in notes(host)


@pytest.mark.parametrize(
    ("prefix", "uplink", "expected"),
    [
        (PART, ETH0, Relation.INSIDE),
        (ON_LINK, ETH0, Relation.SAME),
        (parse_prefix("2001:db8::/48"), ETH0, Relation.WIDER),
        (ROUTED, ETH0, Relation.OUTSIDE),
        (ON_LINK, SINGLE, Relation.AROUND),
        (PART, SINGLE, Relation.OUTSIDE),
    ],
)
def test_relations(prefix: Any, uplink: Uplink, expected: Relation) -> None:
    assert relation(prefix, uplink) is expected


@pytest.mark.parametrize(
    ("dev", "kind", "expected"),
    [
        ("virbr0", "bridge", "libvirt's bridge virbr0"),
        ("incusbr0", "bridge", "Incus's bridge incusbr0"),
        ("lxdbr0", "bridge", "LXD's bridge lxdbr0"),
        ("lxcbr0", "bridge", "LXC's bridge lxcbr0"),
        ("vmbr1", "bridge", "Proxmox VE's bridge vmbr1"),
        ("br-0123456789ab", "bridge", "Docker's bridge br-0123456789ab"),
        ("podman1", "bridge", "Podman's bridge podman1"),
        ("br-lan", "bridge", "the bridge br-lan"),
        ("virbr0", "veth", "the interface virbr0"),
        ("wg0", "wireguard", "the WireGuard tunnel wg0"),
    ],
)
def test_names(dev: str, kind: str, expected: str) -> None:
    assert called(Way(PART, dev, kind)) == expected


@pytest.mark.parametrize(
    ("prefix", "addresses", "subnets", "expected"),
    [
        ("2001:db8::/64", [], [], "2001:db8:0:0:1::/80"),
        ("2001:db8::/64", ["2001:db8::1:0:0:7"], ["2001:db8:0:0:2::/79"], "2001:db8:0:0:4::/80"),
        ("2001:db8::/64", [], ["2001:db8::/48", "2001:db8::/64"], "2001:db8:0:0:1::/80"),
        ("2001:db8::/64", [], ["2001:db8:0:0:8000::/65"], "2001:db8:0:0:1::/80"),
        ("2001:db8::/64", [], ["2001:db8::/65"], "2001:db8:0:0:8000::/80"),
        ("2001:db8::/112", [], [], "2001:db8::4/126"),
        ("2001:db8::/127", [], [], "None"),
    ],
)
def test_a_free_part(prefix: str, addresses: list[str], subnets: list[str], expected: str) -> None:
    found = free_part(
        parse_prefix(prefix), map(parse_address, addresses), map(parse_prefix, subnets)
    )
    assert str(found) == expected


# ---- sysctls ------------------------------------------------------------------------------------


def values(host: Host) -> list[tuple[str, int]]:
    return [(each.key, each.value) for each in proposed(host).settings]


FORWARDING = ("net.ipv6.conf.all.forwarding", 1)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        pytest.param(Host((ETH0,), (VIRBR0,)), [FORWARDING], id="static"),
        pytest.param(
            Host((replace(ETH0, advertised=True, accept_ra=1),), (VIRBR0,)),
            [("net.ipv6.conf.eth0.accept_ra", 2), FORWARDING],
            id="advertised",
        ),
        pytest.param(
            Host((replace(ETH0, advertised=True, accept_ra=0),), (VIRBR0,)),
            [FORWARDING],
            id="a-daemon-reads-advertisements",
        ),
        pytest.param(
            Host((replace(ETH0, name="eth0.100", advertised=True, accept_ra=2),), (VIRBR0,)),
            [("net/ipv6/conf/eth0.100/accept_ra", 2), FORWARDING],
            id="dotted",
        ),
        pytest.param(
            Host((replace(ETH0, above="vmbr0", advertised=True, accept_ra=1),), (VIRBR0,)),
            [("net.ipv6.conf.vmbr0.accept_ra", 2), FORWARDING],
            id="port",
        ),
        pytest.param(
            Host((ETH0,), (VIRBR0,), others=(Uplink("eth1", advertised=True, accept_ra=1),)),
            [("net.ipv6.conf.eth1.accept_ra", 2), FORWARDING],
            id="another-uplink-would-lose-its-route",
        ),
        pytest.param(
            Host((replace(ETH0, forwarding=False),), (VIRBR0,), forwarding=True),
            [FORWARDING, ("net.ipv6.conf.eth0.forwarding", 1)],
            id="off-on-the-uplink",
        ),
        pytest.param(Host((ETH0,), local=(PART,)), [], id="anyip-forwards-nothing"),
    ],
)
def test_sysctls(host: Host, expected: list[tuple[str, int]]) -> None:
    assert values(host) == expected


def test_the_file_of_sysctls() -> None:
    host = Host((replace(ETH0, advertised=True, accept_ra=1),), (VIRBR0,))
    written = settings.text(proposed(host).settings, "/etc/sysctl.d/60-ndxdp.conf")
    lines = [line for line in written.splitlines() if line and not line.startswith("#")]
    assert lines == ["net.ipv6.conf.eth0.accept_ra = 2", "net.ipv6.conf.all.forwarding = 1"]
    assert max(map(len, written.splitlines())) <= 110


@pytest.mark.parametrize(
    ("path", "line", "later"),
    [
        ("/etc/sysctl.d/99-x.conf", "net.ipv6.conf.all.forwarding = 0", True),
        ("/usr/lib/sysctl.d/99-x.conf", "net/ipv6/conf/all/forwarding=0", True),
        ("/etc/sysctl.conf", " -net.ipv6.conf.all.forwarding=0", True),
        ("/etc/sysctl.d/99-x.conf", "net.ipv6.conf.all.forwarding = 1", False),
        ("/etc/sysctl.d/10-x.conf", "net.ipv6.conf.all.forwarding = 0", False),
        ("/etc/sysctl.d/99-x.conf", "# net.ipv6.conf.all.forwarding = 0", False),
        ("/etc/sysctl.d/99-x.conf", "net.ipv6.conf.eth0/100.accept_ra = 1", True),
        ("/etc/sysctl.d/99-x.conf", "net.ipv6.conf.eth0.100.accept_ra = 1", False),
    ],
)
def test_a_later_file_that_sets_it_back(path: str, line: str, later: bool) -> None:
    uplink = replace(ETH0, name="eth0.100", advertised=True, accept_ra=1)
    host = Host((uplink,), (VIRBR0,), sysctl_files=((path, f"{line}\n"),))
    assert (f"at each boot, {path} sets net" in notes(host)) is later


# ---- what follows -------------------------------------------------------------------------------

PACKAGED = Installation("/etc/ndxdp/ndxdp.toml", True, systemd=True, has_unit=True, runs=False)


def steps(host: Host, installed: Installation = PACKAGED, sysctls: str = "/s.conf") -> list[str]:
    return list(commands(host, proposed(host), installed, sysctls))


def test_the_next_commands() -> None:
    host = Host((ETH0,), networks=(SIX,))
    assert steps(host) == [
        "sysctl -p /s.conf",
        "systemctl enable --now ndxdp",
        "ndxdp explain eth0 2001:db8:0:1:c::10    # must be answered: the container web",
        "ndxdp doctor eth0",
    ]
    assert steps(replace(host, forwarding=True))[0] == "systemctl enable --now ndxdp"
    assert steps(host, sysctls="")[0] == "systemctl enable --now ndxdp"
    assert steps(host, replace(PACKAGED, runs=True))[1] == "ndxdp reload"
    assert steps(host, replace(PACKAGED, systemd=False))[1] == "ndxdp run -c /etc/ndxdp/ndxdp.toml"
    elsewhere = replace(PACKAGED, config="/srv/n d.toml", is_default=False, has_unit=False)
    assert steps(host, elsewhere)[1:3] == [
        "ndxdp install-service -c '/srv/n d.toml' && systemctl daemon-reload",
        "systemctl enable --now ndxdp",
    ]


def test_another_responder_is_stopped_first() -> None:
    ways = (Way(OTHER_PART, "br1"), VIRBR0)
    host = Host(
        (ETH0,), ways, responders=(Responder(7, "ndppd", "ndppd.service"), Responder(8, "npd6"))
    )
    found = steps(host)
    assert found[:2] == ["systemctl disable --now ndppd.service", "kill 8"]
    assert re.search(r"^ndxdp explain eth0 2001:db8:0:1:d::7 ", "\n".join(found), re.MULTILINE)
