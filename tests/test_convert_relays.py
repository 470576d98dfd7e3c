"""Shares from OpenWrt's relays and ndp-proxy-go."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from ndxdp.convert import ndp_proxy_go, openwrt, uci_syntax
from ndxdp.errors import NdxdpError, UsageError
from tests.fixtures.converted_shares import (
    DHCP,
    NETWORK,
    RC,
    RELAY,
    assert_notes,
    dhcp,
    notes_of,
    share,
    toml_of,
)

# ---- OpenWrt -------------------------------------------------------------------------------------


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


# ---- ndp-proxy-go --------------------------------------------------------------------------------


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
