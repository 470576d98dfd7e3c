"""Rules: how they are parsed and formatted, and the longest prefix."""

from __future__ import annotations

import ipaddress
import random

import pytest

from ndxdp.errors import NdxdpError, UsageError
from ndxdp.ndp.decision import Match
from ndxdp.ndp.profile import Answer, NaSource, Profile
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.rules.interface_name import natural_order
from ndxdp.rules.prefix import Prefix, mask, parse_prefix
from ndxdp.rules.rule import Rule, parse_source
from ndxdp.rules.table import Table


def packed(text: str) -> bytes:
    return ipaddress.IPv6Address(text).packed


P = parse_prefix


# ---- parsing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["::", "::1", "2001:db8::1", "2001:DB8:0:0::A", "fe80::1", "ff02::1", "::ffff:1.2.3.4"]
)
def test_parse_address(text: str) -> None:
    assert parse_address(text) == packed(text)


BAD_ADDRESSES = [
    "",
    " ",
    ":",
    ":::",
    "2001:db8",
    "2001:db8::1 ",
    " 2001:db8::1",
    "2001:db8::1\n",
    "2001:db8::g",
    "2001:db8::1::2",
    "1:2:3:4:5:6:7:8:9",
    "[::1]",
    "::1/128",
    "fe80::1%eth0",
    "::12345",
    "eth0",
    "2001:db8::１",
    "::\ud800",
]


@pytest.mark.parametrize("text", BAD_ADDRESSES)
def test_parse_address_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="is not an IPv6 address") as error:
        parse_address(text)
    assert error.value.hint
    assert error.value.exit_code == 2


@pytest.mark.parametrize("text", ["::1\0", "\0"])
def test_parse_address_refuses_nul(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


@pytest.mark.parametrize("text", ["192.0.2.1", "0.0.0.0"])
def test_parse_address_knows_ipv4(text: str) -> None:
    with pytest.raises(UsageError, match="is an IPv4 address") as error:
        parse_address(text)
    assert "ARP" in error.value.hint


@pytest.mark.parametrize(
    ("text", "address", "length"),
    [
        ("2001:db8::/32", "2001:db8::", 32),
        ("2001:db8::", "2001:db8::", 128),
        ("2001:db8::1/128", "2001:db8::1", 128),
        ("2001:db8::2/127", "2001:db8::2", 127),
        ("::/0", "::", 0),
        ("8000::/1", "8000::", 1),
        ("2001:db8:f440:2:646f:636b:6572::/112", "2001:db8:f440:2:646f:636b:6572:0", 112),
        ("2001:db8:0:10::/60", "2001:db8:0:10::", 60),
    ],
)
def test_parse_prefix(text: str, address: str, length: int) -> None:
    prefix = P(text)
    assert prefix == Prefix(packed(address), length)
    assert P(str(prefix)) == prefix


def test_a_prefix_of_one_address_is_written_as_the_address() -> None:
    assert str(P("2001:db8::1/128")) == "2001:db8::1"
    assert str(P("2001:DB8:0:0::/64")) == "2001:db8::/64"


@pytest.mark.parametrize(
    "text",
    [
        "::/",
        "::/129",
        "::/-1",
        "::/+1",
        "::/0x10",
        "::/1e1",
        "::/ 64",
        "::/64 ",
        "::/6_4",
        "::/64/64",
        "::/1000",
        "::/0000000064",
        "::/ffff::",
        "::/٦٤",
        "::/６４",
        "::/²",
    ],
)
def test_parse_prefix_refuses_a_mask(text: str) -> None:
    with pytest.raises(UsageError, match="has no prefix length from 0 to 128"):
        P(text)


@pytest.mark.parametrize("text", ["", "/", "/64", "2001:db8/32", "eth0/64", *BAD_ADDRESSES[:8]])
def test_parse_prefix_refuses_an_address(text: str) -> None:
    with pytest.raises(UsageError, match="is not an IPv6 address"):
        P(text)


@pytest.mark.parametrize("text", ["192.0.2.0/24", "192.0.2.1", "10.0.0.0/8"])
def test_parse_prefix_knows_ipv4(text: str) -> None:
    with pytest.raises(UsageError, match="is an IPv4 address"):
        P(text)


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("2001:db8::1/64", "2001:db8::/64"),
        ("2001:db8::3/127", "2001:db8::2/127"),
        ("::1/0", "::/0"),
        ("2001:db8:0:18::/60", "2001:db8:0:10::/60"),
    ],
)
def test_parse_prefix_refuses_host_bits_and_suggests_a_prefix(text: str, prefix: str) -> None:
    with pytest.raises(UsageError, match="has bits set behind the first") as error:
        P(text)
    assert error.value.hint.startswith(f"{prefix} is the prefix")


@pytest.mark.parametrize("text", ["02:00:5e:10:00:01", "02:00:5E:10:00:01", "2:0:5e:10:0:1"])
def test_parse_mac(text: str) -> None:
    assert parse_mac(text) == bytes.fromhex("02005e100001")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":::::",
        "02:00:5e:10:00",
        "02:00:5e:10:00:01:02",
        "02:00:5e:10:00:",
        "02:00:5e:10:00:001",
        "02:00:5e:10:00:0g",
        "02:00:5e:10:00:-1",
        "02-00-5e-10-00-01",
        "02005e100001",
        "02:00:5e::10:00:01",
        "0x:02:00:5e:10:00",
    ],
)
def test_parse_mac_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="is not a MAC address"):
        parse_mac(text)


@pytest.mark.parametrize(
    "text",
    [
        "02:00:5e:10:00:+1",
        "02:00:5e:10:00: 1",
        "02:00:5e:10:00:1 ",
        "02:00:5e:10:00:1\n",
        "02:00:5e:10:00:０１",
    ],
)
def test_parse_mac_refuses_numbers_that_int_accepts(text: str) -> None:
    with pytest.raises(UsageError, match="is not a MAC address"):
        parse_mac(text)


@pytest.mark.parametrize(
    "text", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01", "00:00:00:00:00:00"]
)
def test_parse_mac_refuses_macs_that_no_host_has(text: str) -> None:
    with pytest.raises(UsageError, match="is no MAC that a host can have"):
        parse_mac(text)


def test_parse_source() -> None:
    assert parse_source("target") is NaSource.TARGET
    assert parse_source("link-local") is NaSource.LINK_LOCAL
    assert parse_source("2001:db8::1") == packed("2001:db8::1")


@pytest.mark.parametrize("text", ["::", "ff02::1", "ff00::"])
def test_parse_source_refuses_addresses_that_no_host_sends_from(text: str) -> None:
    with pytest.raises(UsageError, match="is no source that a host can have"):
        parse_source(text)


@pytest.mark.parametrize("text", ["", "Target", "link_local", "2001:db8::/64"])
def test_parse_source_refuses_other_words(text: str) -> None:
    with pytest.raises(UsageError, match="is not an IPv6 address"):
        parse_source(text)


def test_a_usage_error_is_an_ndxdp_error() -> None:
    with pytest.raises(NdxdpError):
        P("eth0")


# ---- prefixes -----------------------------------------------------------------------------------


def test_mask() -> None:
    ones = b"\xff" * 16
    for length in range(129):
        expected = ipaddress.IPv6Network((ones, length), strict=False).network_address.packed
        assert mask(ones, length) == expected


# ---- the table ----------------------------------------------------------------------------------


def nearby(rng: random.Random) -> int:
    """Return an address of a small range, so that prefixes nest and collide."""
    address = 0x20010DB8 << 96
    for shift in (0, 1, 8, 60, 63, 64, 79, 95):
        address |= rng.randrange(2) << shift
    return address


@pytest.mark.parametrize("seed", range(30))
def test_lookup_is_the_longest_prefix(seed: int) -> None:
    rng = random.Random(seed)
    networks: dict[ipaddress.IPv6Network, Rule] = {}
    for number in range(rng.choice((0, 1, 5, 40))):
        length = rng.choice((0, 1, 32, 33, 48, 63, 64, 65, 112, 120, 126, 127, 128))
        network = ipaddress.IPv6Network((nearby(rng), length), strict=False)
        networks[network] = Rule(label=str(number))
    rules = {P(str(network)): rule for network, rule in networks.items()}
    table = Table.of(rules)
    for _ in range(300):
        target = ipaddress.IPv6Address(nearby(rng) ^ rng.choice((0, 0, 2, 1 << 32, 1 << 127)))
        covering = [network for network in networks if target in network]
        found = table.lookup(target.packed)
        if not covering:
            assert found is None
            continue
        best = max(covering, key=lambda network: network.prefixlen)
        assert found is not None
        assert found[0] == P(str(best))
        assert found[1] is networks[best]


def test_match_has_the_facts_for_the_decision() -> None:
    profile = Profile(NaSource.LINK_LOCAL, override=True)
    table = Table.of(
        {
            P("2001:db8::/64"): Rule(profile=profile),
            P("2001:db8::1"): Rule(owned=True),
            P("2001:db8::2"): Rule(Answer.NEVER),
        }
    )
    assert table.match(packed("2001:db8::9")) == Match(Answer.ALWAYS, profile)
    assert table.match(packed("2001:db8::1")) == Match(Answer.ALWAYS, owned=True, exact=True)
    assert table.match(packed("2001:db8::2")) == Match(Answer.NEVER, exact=True)
    assert table.match(packed("2001:db9::")) is None
    assert Table().match(packed("::")) is None


# ---- rules --------------------------------------------------------------------------------------


def test_same_words() -> None:
    rule = Rule(origin="config", label="a")
    assert rule.is_equivalent_to(Rule(origin="docker", label="b", owned=True))
    assert not rule.is_equivalent_to(Rule(Answer.NEVER))
    assert not rule.is_equivalent_to(Rule(dynamic=True))
    assert not rule.is_equivalent_to(Rule(profile=Profile(router=False)))


# ---- names of interfaces ------------------------------------------------------------------------


def test_names_are_in_natural_order() -> None:
    ordered = ["2", "10", "docker0", "eth", "eth0", "eth00", "eth2", "eth2.5", "eth2.10", "eth10"]
    ordered += ["eth10a2", "eth10a10", "wg0"]
    shuffled = random.Random(7).sample(ordered, len(ordered))
    assert sorted(shuffled, key=natural_order) == ordered
