"""`ndxdp convert` into [[share]]: ndppd's autowire, odhcpd's relays, ndp-proxy-go."""

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
from ndxdp.convert import files, ndp_proxy_go, ndppd, openwrt, uci_syntax
from ndxdp.convert.draft import Draft
from ndxdp.convert.width import UNKNOWN, Host
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.rules.prefix import Prefix
from tests.fixtures.network import REPOSITORY, call, done, eventually, ndxdp, sh
from tests.fixtures.shared_link import SharedHost, shared_link


def toml_of(draft: Draft) -> dict[str, Any]:
    """Return the TOML of a draft, which the reader accepts."""
    text = draft.text("x")
    assert reader.parse(text, "ndxdp.toml").with_shared()
    return tomllib.loads(text)


def notes_of(draft: Draft) -> list[str]:
    return [f"{line}: {sentence}" for line, sentence in draft.all_notes()]


def share(upstream: str, *downstream: str, ra: str = "off", **more: Any) -> dict[str, Any]:
    """Return the TOML of a share."""
    made = {"upstream": upstream, "downstream": list(downstream), "router_advertisements": ra}
    return made | more


def assert_notes(draft: Draft, expected: tuple[str, ...]) -> None:
    found = notes_of(draft)
    assert len(found) == len(expected), found
    for note, beginning in zip(found, expected, strict=True):
        assert note.startswith(beginning), (note, beginning)


# ---- ndppd --------------------------------------------------------------------------------------

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


# ---- OpenWrt ------------------------------------------------------------------------------------

NETWORK = """
config interface 'loopback'
	option device 'lo'
	option proto 'static'

config globals 'globals'
	option ula_prefix 'fd12:3456:789a::/48'

config device
	option name 'br-lan'
	option type 'bridge'
	list ports 'lan1'
	list ports 'lan2'

config interface 'lan'
	option device 'br-lan'
	option proto 'static'
	option ip6assign '64'

config interface 'guest'
	option device 'eth0.3'
	option proto 'static'

config interface 'wan'
	option device 'eth1'
	option proto 'dhcp'

config interface 'wan6'
	option device '@wan'
	option proto 'dhcpv6'

config interface 'old'
	option type 'bridge'
	option ifname 'eth5 eth6'

config interface 'dsl'
	option ifname 'eth7'
	option proto 'pppoe'

config interface 'loop1'
	option device '@loop2'

config interface 'loop2'
	option device '@loop1'
"""

# What OpenWrt writes, with the relays that its users' guides describe.
DHCP = """
config dnsmasq
	option domainneeded '1'
	option leasefile '/tmp/dhcp.leases'
	option resolvfile '/tmp/resolv.conf.d/resolv.conf.auto'

config dhcp 'lan'
	option interface 'lan'
	option start '100'
	option limit '150'
	option leasetime '12h'
	option dhcpv4 'server'
	option dhcpv6 'relay'
	option ra 'relay'
	option ndp 'relay'

config dhcp 'wan'
	option interface 'wan'
	option ignore '1'

config dhcp 'wan6'
	option interface 'wan6'
	option ignore '1'
	option master '1'
	option ra 'relay'
	option dhcpv6 'relay'
	option ndp 'relay'

config odhcpd 'odhcpd'
	option maindhcp '0'
	option leasefile '/tmp/hosts/odhcpd'
"""


def dhcp(lan: str, wan6: str = "option master 1\noption ra relay\noption ndp relay\n") -> str:
    return f"config dhcp lan\n{lan}\nconfig dhcp wan6\n{wan6}"


RELAY = "option ra relay\noption ndp relay\n"


class Relayed(NamedTuple):
    """A /etc/config/dhcp, the share that it becomes, and the beginnings of the notes."""

    text: str
    share: dict[str, Any]
    notes: tuple[str, ...] = ()


OPENWRT = {
    "as its users write it": Relayed(
        DHCP,
        share("eth1", "br-lan", ra="relay"),
        ("13: dhcpv6 'relay' is left out: ndxdp relays no DHCPv6", "26: dhcpv6 'relay' is left"),
    ),
    "without relays of advertisements": Relayed(
        dhcp("option ndp relay\noption ra server"),
        share("eth1", "br-lan"),
    ),
    "with a relay downstream only": Relayed(
        dhcp(RELAY, "option master 1\noption ndp relay\n"),
        share("eth1", "br-lan"),
        ("2: ra 'relay' has no effect without ra 'relay' of wan6",),
    ),
    "hybrid": Relayed(
        dhcp("option ndp hybrid\noption ra hybrid"),
        share("eth1", "br-lan", ra="relay"),
        ("2: ndp 'hybrid' is taken for relay", "3: ra 'hybrid' is taken for relay"),
    ),
    "several networks behind": Relayed(
        dhcp(RELAY)
        + f"config dhcp guest\noption ra server\noption ndp relay\nconfig dhcp old\n{RELAY}",
        share("eth1", "br-lan", "eth0.3", "br-old", ra="relay"),
        ("10: guest has ra 'server', but a share relays to all of its interfaces",),
    ),
    "a list of networks": Relayed(
        dhcp(f"list interface 'lan'\nlist interface \"guest\"\n{RELAY}"),
        share("eth1", "br-lan", "eth0.3", ra="relay"),
    ),
    "another interface than the section": Relayed(
        dhcp(RELAY, f"option interface 'wan'\noption master 'on'\n{RELAY}"),
        share("eth1", "br-lan", ra="relay"),
    ),
    "the name of a device": Relayed(
        dhcp(f"option ifname eth9\n{RELAY}"), share("eth1", "eth9", ra="relay")
    ),
    "two masters on one device": Relayed(
        dhcp(RELAY) + f"config dhcp wan\noption master 1\n{RELAY}",
        share("eth1", "br-lan", ra="relay"),
    ),
    "two masters": Relayed(
        dhcp(RELAY) + f"config dhcp guest\noption master 1\n{RELAY}",
        share("eth1", "br-lan", ra="relay"),
        ("10: guest is left out: a share has one upstream, here eth1",),
    ),
    "advertisements alone": Relayed(
        dhcp(RELAY) + "config dhcp guest\noption ra relay\n",
        share("eth1", "br-lan", ra="relay"),
        ("10: guest is left out: with ra 'relay' and without ndp 'relay'",),
    ),
    "options without a counterpart": Relayed(
        dhcp(f"{RELAY}option ndproxy_routing 0\noption ndproxy_slave 1\nlist dns 2001:db8::53"),
        share("eth1", "br-lan", ra="relay"),
        (
            "4: ndproxy_routing '0' is left out",
            "5: ndproxy_slave has no counterpart",
            "6: dns has no counterpart",
        ),
    ),
    "options that are off": Relayed(
        dhcp(f"{RELAY}option ndproxy_routing 1\noption ndproxy_slave 0"),
        share("eth1", "br-lan", ra="relay"),
    ),
    "an anonymous section": Relayed(
        dhcp(RELAY) + f"config dhcp\n{RELAY}",
        share("eth1", "br-lan", ra="relay"),
        ("9: this section names no interface: odhcpd ignores it",),
    ),
    "a PPP link": Relayed(
        dhcp(RELAY, f"option interface dsl\noption master 1\n{RELAY}"),
        share("pppoe-dsl", "br-lan", ra="relay"),
    ),
}


@pytest.mark.parametrize("case", OPENWRT.values(), ids=OPENWRT)
def test_odhcpd_becomes_a_share(case: Relayed) -> None:
    draft = openwrt.convert([("dhcp", case.text), ("network", NETWORK)])
    assert toml_of(draft) == {"share": [case.share]}
    assert_notes(draft, case.notes)
    assert openwrt.convert([("network", NETWORK), ("dhcp", case.text)]).text("x") == draft.text("x")


def test_networks_without_devices_are_named_as_such() -> None:
    draft = openwrt.convert([("/etc/config/dhcp", DHCP)])
    assert toml_of(draft) == {"share": [share("wan6", "lan", ra="relay")]}
    assert [note for note in notes_of(draft) if "dhcpv6" not in note] == [
        "7: lan is the name of an OpenWrt network: write the name of its device instead (uci get"
        " network.lan.device), or give convert /etc/config/network, too",
        "21: wan6 is the name of an OpenWrt network: write the name of its device instead (uci get"
        " network.wan6.device), or give convert /etc/config/network, too",
    ]
    draft = openwrt.convert([("dhcp", dhcp(RELAY + "option interface loop1")), ("n", NETWORK)])
    assert notes_of(draft)[0].startswith("1: loop1 is not in /etc/config/network, or has no device")
    assert "PPP" in openwrt.convert(
        [("dhcp", OPENWRT["a PPP link"].text), ("network", NETWORK)]
    ).text("x")


BAD_OPENWRT = [
    ("config dhcp lan\noption ra server\n", "dhcp: no section has ndp 'relay', so odhcpd is no"),
    (dhcp(RELAY, "option ra relay\n"), "dhcp: no section with ndp 'relay' has master '1'"),
    (dhcp("option ra server"), "dhcp: only master sections have ndp 'relay'"),
    (dhcp("option ndp realy"), "dhcp:2: 'realy' is not one of disabled, server, relay, hybrid"),
    (dhcp(RELAY + "option ifname eth1"), "dhcp: all networks with ndp 'relay' are on eth1"),
    (dhcp(RELAY + "option interface 'a b'"), "dhcp:4: 'a b' is no interface name"),
    (dhcp(RELAY + "option interface aaaaaaaabbbbbbbb"), "dhcp:4: aaaaaaaabbbbbbbb is longer than"),
    ("config dnsmasq\n", "dhcp has no section of type dhcp"),
    ("config dhcp lan\noption ra 'relay\n", "dhcp:2: this quote is not closed"),
    ("config dhcp lan\noption ra relay now\n", "dhcp:2: this option needs a key and one value"),
    ("config dhcp lan\nlist ra\n", "dhcp:2: this list needs a key and one value"),
    ("option ra relay\nconfig dhcp\n", "dhcp:1: this option belongs to no section"),
    ("config\n", "dhcp:1: this config has no type, or too many words"),
    ("config dhcp lan\nra relay\n", "dhcp:2: OpenWrt's files have no statement 'ra'"),
]


@pytest.mark.parametrize(("text", "message"), BAD_OPENWRT, ids=[each for _, each in BAD_OPENWRT])
def test_bad_files_of_openwrt(text: str, message: str) -> None:
    with pytest.raises(NdxdpError) as caught:
        openwrt.convert([("dhcp", text), ("network", NETWORK)])
    assert caught.value.message.startswith(message), caught.value.message
    assert caught.value.hint


def test_two_files_with_sections_of_odhcpd() -> None:
    with pytest.raises(NdxdpError, match="b and a both have sections of type dhcp"):
        openwrt.convert([("a", DHCP), ("b", DHCP)])


def test_the_syntax_of_uci() -> None:
    text = (
        "package dhcp\n\n# a comment\nconfig 'dhcp' \"lan\" # another\n"
        "\toption one 'two  three'\n  option 'quoted' \"a \\\"b\\\" 'c'\"\n"
        "option joined a'b c'\"d\"\n\toption escaped a\\ b\noption hash a#b\r\n"
        "list many x\nlist many 'y\nz'; option last 1\n"
        "config dhcp lan\noption one 4\nconfig dhcp\noption anonymous yes"
    )
    first, second = sorted(uci_syntax.parse(text, "f"), key=lambda section: not section.name)
    assert (first.type, first.name, first.line) == ("dhcp", "lan", 4)
    assert {key: option.values for key, option in first.options.items()} == {
        "one": ["4"],
        "quoted": ["a \"b\" 'c'"],
        "joined": ["ab cd"],
        "escaped": ["a b"],
        "hash": ["a#b"],
        "many": ["x", "y\nz"],
        "last": ["1"],
    }
    assert first.line_of("last") == 12
    assert first.line_of("missing") == 4
    assert (second.name, second.is_on("anonymous"), second.line) == ("", True, 15)


# ---- ndp-proxy-go -------------------------------------------------------------------------------

RC = (
    'ndp_proxy_go_enable="YES"\nndp_proxy_go_upstream="igc1"\n'
    'ndp_proxy_go_downstream="igc0 igc2"\nndp_proxy_go_flags="--debug --cache-ttl=20m"\n'
)


class Command(NamedTuple):
    """A command line, the share that it becomes, and the beginnings of the notes."""

    text: str
    share: dict[str, Any]
    notes: tuple[str, ...] = ()
    log_level: str | None = None


COMMANDS = [
    Command("eth0 eth1", share("eth0", "eth1", ra="relay")),
    Command("eth0 eth1 eth2 eth1", share("eth0", "eth1", "eth2", ra="relay")),
    Command("sudo ndp-proxy-go --debug eth0 eth1", share("eth0", "eth1", ra="relay"), (), "debug"),
    Command("--no-ra eth0 eth1", share("eth0", "eth1")),
    Command("-no-ra=false -- eth0 eth1", share("eth0", "eth1", ra="relay")),
    Command(
        "ExecStart=/usr/local/sbin/ndp-proxy-go --cache-ttl 20m --cache-max 2048 --cache-file"
        " /var/db/ndpproxy/cache.json eth0 eth1",
        share("eth0", "eth1", ra="relay", expire=1200, max_hosts=2048),
        ("0: --cache-file has no counterpart: the kernel's routes are the memory",),
    ),
    Command("--cache-ttl 10m --cache-max 4096 a b", share("a", "b", ra="relay")),
    Command("--cache-ttl 1h30m a b", share("a", "b", ra="relay", expire=5400)),
    Command(
        "--cache-ttl 500ms --cache-max 100000 a b",
        share("a", "b", ra="relay", expire=10, max_hosts=65536),
        ("0: --cache-ttl is 0.5: ndxdp accepts 10 to 86400", "0: --cache-max is 100000"),
    ),
    Command(
        "--static-prefix 2001:db8::/64 --static-prefix fd00::/64 --static-prefix 2001:db8::/56"
        " --static-router fe80::1 a b",
        share("a", "b", ra="relay", prefixes=["fd00::/64", "2001:db8::/56"]),
        (
            "0: --static-router has no counterpart: ndxdp needs to know no router",
            "0: --static-prefix adds to the prefixes that routers advertise",
        ),
    ),
    Command(
        "--pf=:table0 --pf=eth1:table1 --no-rewrite-lla --no-routes --no-dad --route-qps 10"
        " --pf-qps 10 --pcap-timeout 25ms a b",
        share("a", "b", ra="relay"),
        tuple(
            f"0: --{key} has no counterpart"
            for key in (
                *("no-rewrite-lla", "no-routes", "no-dad", "route-qps", "pf-qps", "pf"),
                "pcap-timeout",
            )
        ),
    ),
    Command(RC, share("igc1", "igc0", "igc2", ra="relay", expire=1200), (), "debug"),
    Command(
        'ndp_proxy_go_upstream=a ndp_proxy_go_downstream=b ndp_proxy_go_cache_file="/x y"',
        share("a", "b", ra="relay"),
        ("0: --cache-file has no counterpart",),
    ),
    Command("ndp-proxy-go \\\n --no-ra \\\n eth0 eth1", share("eth0", "eth1")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=[command.text for command in COMMANDS])
def test_ndp_proxy_go_becomes_a_share(command: Command) -> None:
    draft = ndp_proxy_go.convert(command.text)
    found = toml_of(draft)
    assert found.pop("log_level", None) == command.log_level
    assert found == {"share": [command.share]}
    assert_notes(draft, command.notes)


BAD_COMMANDS = [
    ("", "ndp-proxy-go needs an upstream and a downstream interface"),
    ("eth0", "ndp-proxy-go needs an upstream and a downstream interface"),
    ("eth0 eth0", "eth0 is upstream and downstream"),
    ("eth0 eth1 --no-ra", "ndp-proxy-go takes --no-ra for an interface"),
    ("--cache-maximum 1 a b", "ndp-proxy-go has no option --cache-maximum"),
    ("--cache-max", "the option --cache-max of ndp-proxy-go lacks a value"),
    ("--cache-max many a b", "'many' is no number of neighbors"),
    ("--cache-ttl 10 a b", "'10' is no duration of Go"),
    ("--cache-ttl 10mx a b", "'10mx' is no duration of Go"),
    ("--no-ra=maybe a b", "'maybe' is neither true nor false"),
    ("--static-prefix fe80::/64 a b", "--static-prefix: fe80::/64 is link-local"),
    ("--static-prefix x a b", "--static-prefix: 'x' is not an IPv6 address"),
    ("--help", "--help makes ndp-proxy-go print its help"),
    ("a/b c", "'a/b' is no interface name"),
    ("aaaaaaaabbbbbbbb c", "'aaaaaaaabbbbbbbb' is longer than 15 bytes"),
    ("--pf='x a b", "the command line of ndp-proxy-go has a quote that is not closed"),
]


@pytest.mark.parametrize(("text", "message"), BAD_COMMANDS, ids=[text for text, _ in BAD_COMMANDS])
def test_bad_command_lines(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        ndp_proxy_go.convert(text)
    assert caught.value.message.startswith(message), caught.value.message
    assert caught.value.hint


# ---- the command --------------------------------------------------------------------------------

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


# ---- random damage ------------------------------------------------------------------------------


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


# ---- a converted file on a host -----------------------------------------------------------------


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
