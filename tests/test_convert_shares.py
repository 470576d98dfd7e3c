"""`ndxdp convert` into [[share]]: ndppd's autowire, the command, and a converted file."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lab.nodes import LINK
from lab.shared_prefix import INTERNET_ADDRESS, LAN0, PREFIX
from ndxdp.config import reader
from ndxdp.convert import files, ndppd, openwrt
from ndxdp.convert.width import UNKNOWN, Host
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.rules.prefix import Prefix
from tests.fixtures.converted_shares import (
    DHCP,
    NETWORK,
    RC,
    RELAY,
    assert_notes,
    dhcp,
    share,
    toml_of,
)
from tests.fixtures.network import REPOSITORY, call, done, eventually, ndxdp, sh
from tests.fixtures.shared_link import SharedHost, shared_link

# ---- ndppd ---------------------------------------------------------------------------------------


NO_SHARE = "becomes no share, and needs a route"
DB8, DB9 = "2001:db8:1:2::/64", "2001:db8:9::/64"


class Good(NamedTuple):
    """A configuration of ndppd, the TOML that it becomes, and the beginnings of the notes."""

    text: str
    toml: dict[str, Any]
    notes: tuple[str, ...] = ()
    host: Host = UNKNOWN


def routed(*pairs: tuple[str, str], present: tuple[str, ...] = (), uplink: str = "eth0") -> Host:
    """Return a host that has routes for prefixes by interfaces, and other interfaces."""
    known = {name for _, name in pairs} | set(present)

    def leads(prefix: Prefix, name: str) -> bool | None:
        return (str(prefix), name) in pairs if name in known else None

    return Host(leads=leads, uplinks=frozenset({uplink}))


BOTH = (
    f"proxy eth0 {{\n autowire yes\n rule {DB8} {{ iface tun0 }}\n}}\n"
    f"proxy tun0 {{\n autowire yes\n rule {DB8} {{ iface eth0 }}\n}}\n"
)
NO_ROUTE = f"proxy eth0 {{\n rule {DB8} {{ iface br0 }}\n}}\n"
WITH_ROUTE = {
    "interface": [
        {"name": "eth0", "prefix": [{"prefix": DB8, "answer": "neighbour", "dev": ["br0"]}]}
    ]
}
NDPPD = {
    "a home router of one /64": Good(
        # Published for EdgeRouters, where the prefix of the day is not known.
        "proxy eth0 {\n   router no\n   timeout 500\n   autowire yes\n   keepalive yes\n"
        "   retries 3\n   ttl 30000\n   rule ::/0 {\n      iface switch0\n   }\n}\n\n"
        "proxy switch0 {\n   router yes\n   timeout 500\n   autowire yes\n   keepalive yes\n"
        "   retries 3\n   ttl 30000\n   rule ::/0 {\n      auto\n   }\n}\n",
        {
            "interface": [
                {
                    "name": "switch0",
                    "resolve": {"deadline": 0.5},
                    "prefix": [{"prefix": "::/0", "answer": "neighbour"}],
                }
            ],
            "share": [share("eth0", "switch0")],
        },
        (
            "0: router no is left out",
            "4: autowire becomes a share, which learns the hosts and sets their routes",
            "5: keepalive",
            "6: retries",
            "7: ttl",
            "8: ::/0 is no prefix of a link: the share is for those that the routers advertise",
            "17: keepalive",
            "18: retries",
            "19: ttl",
        ),
    ),
    "both directions": Good(
        BOTH,
        {"share": [share("eth0", "tun0", prefixes=[DB8])]},
        (
            "2: autowire becomes a share",
            f"7: the rule for {DB8} on tun0 is left out: the share of eth0 answers on both sides",
        ),
    ),
    "both directions, the uplink last": Good(
        BOTH.replace("eth0", "@").replace("tun0", "eth0").replace("@", "tun0"),
        {"share": [share("eth0", "tun0", prefixes=[DB8])]},
        (f"3: the rule for {DB8} on tun0 is left out", "6: autowire becomes a share"),
        host=Host(uplinks=frozenset({"eth0"})),
    ),
    "three interfaces": Good(
        "".join(
            f"proxy eth{at} {{\n autowire yes\n"
            + "".join(f" rule {DB8} {{ iface eth{to} }}\n" for to in range(3) if to != at)
            + "}\n"
            for at in range(3)
        ),
        {"share": [share("eth0", "eth1", "eth2", prefixes=[DB8])]},
        (
            "2: autowire becomes a share",
            f"4: {DB8} has a rule in line 3 already: convert combines them",
            f"9: the rule for {DB8} on eth1 is left out",
            f"9: {DB8} has a rule in line 8 already",
            f"14: the rule for {DB8} on eth2 is left out",
            f"14: {DB8} has a rule in line 13 already",
        ),
    ),
    "beside static rules": Good(
        f"proxy eth0 {{\n autowire yes\n timeout 2000\n rule {DB8} {{ iface br0 }}\n"
        f" rule {DB9} {{ iface br1 }}\n rule 2001:db8:1:2:c::/80 {{ static }}\n}}\n",
        {
            "interface": [
                {
                    "name": "eth0",
                    "resolve": {"deadline": 2.0},
                    "prefix": [
                        {"prefix": "2001:db8:1:2:c::/80", "answer": "always", "dad": "ignore"}
                    ],
                }
            ],
            "share": [share("eth0", "br0", "br1", prefixes=[DB8, DB9])],
        },
        ("2: autowire becomes a share",),
    ),
    "prefixes inside each other": Good(
        f"proxy eth0 {{\n autowire yes\n rule 2001:db8:1:2:c::/80 {{ iface br1 }}\n"
        f" rule {DB8} {{ iface br0 }}\n rule 2001:db8:1:2::5 {{ iface br2 }}\n}}\n",
        {"share": [share("eth0", "br0", "br1", "br2", prefixes=[DB8])]},
        ("2: autowire becomes a share",),
    ),
    "one address": Good(
        "proxy eth0 {\n autowire yes\n rule 2001:db8::5 { iface br0 }\n"
        " rule fe80::/64 { iface br0 }\n}\n",
        {
            "interface": [
                {
                    "name": "eth0",
                    "prefix": [
                        {"prefix": "2001:db8::5", "answer": "neighbour", "dev": ["br0"]},
                        {"prefix": "fe80::/64", "answer": "neighbour", "dev": ["br0"]},
                    ],
                }
            ]
        },
        (
            "2: autowire is left out: no rule here that it concerns becomes part of a share",
            f"3: the rule for 2001:db8::5 {NO_SHARE}: 2001:db8::5 is one address",
            f"4: the rule for fe80::/64 {NO_SHARE}: fe80::/64 is link-local",
        ),
    ),
    "without rules that it concerns": Good(
        f"proxy eth0 {{\n autowire yes\n rule {DB8} {{ auto }}\n}}\n",
        {"interface": [{"name": "eth0", "prefix": [{"prefix": DB8, "answer": "neighbour"}]}]},
        ("2: autowire is left out: no rule here that it concerns becomes part of a share",),
    ),
    "one link behind two uplinks": Good(
        f"proxy eth0 {{\n autowire yes\n rule {DB8} {{ iface br0 }}\n}}\n"
        f"proxy eth1 {{\n autowire yes\n rule {DB9} {{ iface br0 }}\n}}\n",
        {
            "interface": [
                {"name": "eth1", "prefix": [{"prefix": DB9, "answer": "neighbour", "dev": ["br0"]}]}
            ],
            "share": [share("eth0", "br0", prefixes=[DB8])],
        },
        (
            "2: autowire becomes a share",
            "6: autowire is left out",
            f"7: the rule for {DB9} {NO_SHARE}: br0 is in another share",
        ),
    ),
    "one prefix behind two uplinks": Good(
        f"proxy eth0 {{\n autowire yes\n rule {DB8} {{ iface br0 }}\n}}\n"
        f"proxy eth1 {{\n autowire yes\n rule 2001:db8::/32 {{ iface br1 }}\n}}\n",
        {
            "interface": [
                {
                    "name": "eth1",
                    "prefix": [{"prefix": "2001:db8::/32", "answer": "neighbour", "dev": ["br1"]}],
                }
            ],
            "share": [share("eth0", "br0", prefixes=[DB8])],
        },
        (
            "2: autowire becomes a share",
            "6: autowire is left out",
            f"7: the rule for 2001:db8::/32 {NO_SHARE}: the share of eth0",
        ),
    ),
    "long names": Good(
        f"proxy eth0 {{\n autowire yes\n rule {DB8} {{ iface inside-the-house }}\n"
        + "".join(f" rule 2001:db8:9:{at}::/64 {{ iface interface{at:06} }}\n" for at in range(9))
        + "}\n",
        {
            "interface": [
                {
                    "name": "eth0",
                    "prefix": [
                        {"prefix": DB8, "answer": "neighbour", "dev": ["inside-the-house"]},
                        *(
                            {
                                "prefix": f"2001:db8:9:{at}::/64",
                                "answer": "neighbour",
                                "dev": [f"interface{at:06}"],
                            }
                            for at in (7, 8)
                        ),
                    ],
                }
            ],
            "share": [
                share(
                    "eth0",
                    *(f"interface{at:06}" for at in range(7)),
                    prefixes=[f"2001:db8:9:{at}::/64".replace(":0::", "::") for at in range(7)],
                )
            ],
        },
        (
            "2: autowire becomes a share",
            f"3: the rule for {DB8} {NO_SHARE}: inside-the-house is an",
            f"11: the rule for 2001:db8:9:7::/64 {NO_SHARE}: the interfaces",
            f"12: the rule for 2001:db8:9:8::/64 {NO_SHARE}: the interfaces",
        ),
    ),
    "no route": Good(
        NO_ROUTE,
        {"share": [share("eth0", "br0", prefixes=[DB8])]},
        (f"2: no route of this machine leads to {DB8} by br0, so a share learns the hosts there",),
        host=routed(present=("br0",)),
    ),
    "a route": Good(NO_ROUTE, WITH_ROUTE, host=routed((DB8, "br0"))),
    "no such interface here": Good(NO_ROUTE, WITH_ROUTE, host=routed()),
    "an uplink as iface": Good(NO_ROUTE, WITH_ROUTE, host=routed(present=("br0",), uplink="br0")),
    "autowire off, and a route": Good(
        NO_ROUTE.replace(" rule", " autowire no\n rule"), WITH_ROUTE, host=routed((DB8, "br0"))
    ),
}


@pytest.mark.parametrize("good", NDPPD.values(), ids=NDPPD)
def test_ndppd_becomes_a_share(good: Good) -> None:
    draft = ndppd.convert(good.text, "ndppd.conf", good.host)
    assert toml_of(draft) == good.toml
    assert_notes(draft, good.notes)


# ---- the command ---------------------------------------------------------------------------------


UNIT = (
    "[Unit]\nDescription=Neighbor Discovery proxy for one /64\nAfter=network-online.target\n\n"
    "[Service]\n# ndp-proxy-go of the repository\nExecStart=/usr/local/sbin/ndp-proxy-go \\\n"
    "    --no-ra eth0 lan0\nRestart=always\n\n[Install]\nWantedBy=multi-user.target\n"
)


@pytest.mark.parametrize(
    ("text", "upstream"),
    [
        (UNIT, "eth0"),
        (f'hostname="router"\nifconfig_igc0="DHCP"\n{RC}', "igc1"),
        ("#!/bin/sh\nexec /usr/local/sbin/ndp-proxy-go eth0 lan0\n", "eth0"),
        (DHCP, "wan6"),
        (f"package dhcp\n{DHCP}", "wan6"),
        (f"# like ndp-proxy-go\n{BOTH}", "eth0"),
    ],
    ids=["unit", "rc.conf", "script", "UCI", "uci export", "ndppd"],
)
def test_the_kind_of_a_file_follows_from_its_content(text: str, upstream: str) -> None:
    assert files.convert([("file", text)], UNKNOWN).shares[0].upstream == upstream


def test_only_files_of_openwrt_come_together() -> None:
    with pytest.raises(UsageError, match="only OpenWrt's files are converted together, and b is"):
        files.convert([("a", DHCP), ("b", BOTH)], UNKNOWN)


@pytest.fixture
def bridge(privacy: None) -> Iterator[None]:
    """Return a host with a bridge, br0, and no route to what is behind it."""
    sh("ip", "link", "add", "br0", "type", "bridge")
    try:
        sh("ip", "link", "set", "br0", "up")
        yield
    finally:
        call("ip", "link", "delete", "br0")


def test_the_routes_of_this_host_decide(bridge: None, tmp_path: Path) -> None:
    conf, made = tmp_path / "ndppd.conf", tmp_path / "ndxdp.toml"
    conf.write_text(NO_ROUTE)

    def converted() -> dict[str, Any]:
        result = ndxdp("convert", str(conf), "-o", str(made), "--force")
        assert result.code == 0, result
        assert ndxdp("check", str(made)).code == 0
        return tomllib.loads(made.read_text())

    assert converted() == {"share": [share("eth0", "br0", prefixes=[DB8])]}
    assert "# line 2: no route of this machine leads to" in made.read_text()
    for route in (DB8, "2001:db8:1:2::5/128", "2001:db8::/32"):
        sh("ip", "-6", "route", "add", route, "dev", "br0")
        assert converted() == WITH_ROUTE, route
        sh("ip", "-6", "route", "delete", route, "dev", "br0")
    sh("ip", "-6", "route", "add", DB9, "dev", "br0")
    assert "share" in converted()
    sh("ip", "link", "delete", "br0")
    assert converted() == WITH_ROUTE  # nothing is known of another machine


def test_the_command_converts_each(privacy: None, tmp_path: Path) -> None:
    dhcp_file, network_file, made = (tmp_path / name for name in ("dhcp", "network", "ndxdp.toml"))
    dhcp_file.write_text(DHCP)
    network_file.write_text(NETWORK)
    result = ndxdp("convert", str(dhcp_file), str(network_file), "-o", str(made))
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith(f"ndxdp: {dhcp_file}:13, 26: dhcpv6 'relay' is left out: ")
    first = made.read_text().splitlines()[0]
    assert first == f"# Made from {dhcp_file} and {network_file} by ndxdp convert."
    assert "eth1  shared with br-lan" in ndxdp("check", str(made)).out
    assert tomllib.loads(done("convert", "--ndp-proxy-go", "--no-ra eth0 lan0")) == {
        "share": [share("eth0", "lan0")]
    }
    both = ndxdp("convert", str(dhcp_file), "--ndp-proxy-go", "a b")
    assert both.code == 2
    assert both.err.startswith("ndxdp: convert needs either files, --ndpresponder or")
    bad = ndxdp("convert", "--ndp-proxy-go", "a")
    assert (bad.code, bad.out) == (2, "")
    unit = tmp_path / "proxy.service"
    unit.write_text(UNIT.replace("eth0 lan0", "eth0"))
    bad = ndxdp("convert", str(unit))
    assert bad.code == 1
    assert bad.err.startswith(f"ndxdp: {unit}: ndp-proxy-go needs an upstream and a downstream")


def test_the_page_shows_the_output() -> None:
    page = (REPOSITORY / "docs" / "migrating.md").read_text().partition("\n## OpenWrt")[2]
    blocks = re.findall(r"^```(uci|toml)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    before, after = (
        next(text for kind, text in blocks if kind == each) for each in ("uci", "toml")
    )
    draft = openwrt.convert([("/etc/config/dhcp", before), ("/etc/config/network", NETWORK)])
    assert draft.text("/etc/config/dhcp and /etc/config/network") == after


# ---- random damage -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [DHCP, RC, UNIT, BOTH], ids=["UCI", "rc.conf", "unit", "ndppd"])
def test_damage_raises_errors_only(text: str) -> None:
    """Convert a randomly damaged file into one that `check` accepts, or refuse it in a sentence."""
    choose = random.Random(19)
    bits = [
        *"{}\"'=.,#\\\n \0\r\x1b;",
        "config ",
        "option ndp ",
        "list ",
        "--no-ra ",
        "lan",
        "\udcfc",
    ]
    converted = 0
    for _ in range(1500):
        damaged = text
        for _ in range(choose.randrange(1, 4)):
            at = choose.randrange(len(damaged))
            to = min(len(damaged), at + choose.choice((0, 0, 1, 1, 9)))
            damaged = damaged[:at] + choose.choice(["", "", *bits]) + damaged[to:]
        try:
            made = files.convert([("file", damaged)], UNKNOWN).text("file")
        except NdxdpError:
            continue
        assert reader.parse(made, "ndxdp.toml").with_shared(), damaged
        converted += 1
    assert 100 < converted < 1490


# ---- a converted file on a host ------------------------------------------------------------------


@pytest.fixture
def site(privacy: None, tmp_path: Path) -> Iterator[SharedHost]:
    """Return the lab's network of one /64, without a daemon and without clients."""
    with shared_link(tmp_path) as made:
        yield made


AT_HOST_DHCP = dhcp(RELAY) + f"config dhcp guests\n{RELAY}"
AT_HOST_NETWORK = (
    "config interface wan6\noption device eth0\nconfig interface lan\noption device lan0\n"
    "config interface guests\noption device br-guests\n"
)


@pytest.mark.parametrize("kind", ["odhcpd", "ndp-proxy-go", "ndppd"])
def test_a_client_is_reached_with_the_converted_file(
    site: SharedHost, tmp_path: Path, kind: str
) -> None:
    """A host behind is reached from the Internet, and learned, after a conversion alone."""
    texts = {
        "dhcp": AT_HOST_DHCP,
        "network": AT_HOST_NETWORK,
        "ndppd.conf": f"proxy eth0 {{\n rule {PREFIX} {{ iface lan0 }}\n}}\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    words = {
        "odhcpd": [str(tmp_path / "dhcp"), str(tmp_path / "network")],
        "ndp-proxy-go": ["--ndp-proxy-go", "ndp-proxy-go eth0 lan0 lan1"],
        "ndppd": [str(tmp_path / "ndppd.conf")],
    }[kind]
    converted = site.ndxdp("convert", *words, "-o", str(site.configure()), "--force")
    assert converted.code == 0, converted
    site.start_again()
    client = site.lab.client("a0", LAN0)
    address = client.slaac(PREFIX)
    if kind == "ndppd":  # ndppd relays no advertisements: another program gives the address
        client.ip(f"address add {address}/64 dev {LINK}")
        client.ip(f"route add default via {site.lab.link_local(LAN0)} dev {LINK}")
    else:
        site.lab.wait_for_addresses(client)
    site.await_routes({address: LAN0})
    assert site.reaches(site.lab.internet, address)
    assert site.reaches(client, INTERNET_ADDRESS)
    eventually(lambda: site.state().hosts.get(address) == LAN0)
    site.stop()
