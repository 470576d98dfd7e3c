"""The plan of `ndxdp init`: no rule, and why; sysctls; and what follows."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from ndxdp.proposal import plan as plans
from ndxdp.proposal import settings
from ndxdp.proposal.facts import ContainerNetwork, Daemon, Host, Responder, Uplink, Way
from ndxdp.proposal.relations import Relation, called, relation
from ndxdp.proposal.steps import Installation, commands
from ndxdp.rules.address import parse_address
from ndxdp.rules.prefix import free_part, parse_prefix
from tests.fixtures.surveyed import (
    ETH0,
    ON_LINK,
    OTHER_PART,
    PART,
    ROUTED,
    SINGLE,
    SIX,
    VIRBR0,
    notes,
    proposed,
)

PRIVATE = parse_prefix("fd00:7::/64")

# ---- no rule, and why ----------------------------------------------------------------------------


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


# ---- sysctls -------------------------------------------------------------------------------------


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


# ---- what follows --------------------------------------------------------------------------------


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
