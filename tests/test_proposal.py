"""Rules and shares that `ndxdp init` proposes from facts about a host: narrow and accepted."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

import pytest

from ndxdp.config import reader
from ndxdp.doctor.share_case import LinkBehind, Surroundings
from ndxdp.proposal import text
from ndxdp.proposal.facts import ContainerNetwork, Host, Way
from ndxdp.proposal.steps import Installation, commands
from ndxdp.rules import breadth
from ndxdp.rules.address import parse_address
from ndxdp.rules.prefix import parse_prefix
from ndxdp.sources.selector import ENGINE_SOCKET
from tests.fixtures.surveyed import (
    ETH0,
    ON_LINK,
    OTHER_PART,
    PART,
    ROUTED,
    SINGLE,
    SIX,
    SYSCTLS,
    VIRBR0,
    notes,
    proposed,
)

PHONE = parse_prefix("2001:db8:0:1::77/128")


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


# ---- rules ---------------------------------------------------------------------------------------


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


# ---- shares --------------------------------------------------------------------------------------


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
