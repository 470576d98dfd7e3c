"""[[share]] in the configuration file: each key, each error with its line, and what follows."""

from __future__ import annotations

import itertools
import random
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import pytest

from ndxdp.config.model import Interface, Share, share_downstream, share_summary
from ndxdp.config.reader import parse
from ndxdp.errors import UsageError
from ndxdp.rules.interface_pattern import overlap
from ndxdp.rules.prefix import parse_prefix

HEAD = '[[share]]\nupstream = "eth0"\ndownstream = ["lan0"]\n'
SECOND = '[[share]]\nupstream = "{}"\ndownstream = ["{}"]\n'


def share(text: str) -> Share:
    """Return the share of a text."""
    (found,) = parse(text, "ndxdp.toml").shares
    return found


# Text below HEAD, and the differences from the share of HEAD alone.
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ('prefixes = "advertised"', {}),
    ('prefixes = ["2001:db8::/64"]', {"prefixes": (parse_prefix("2001:db8::/64"),)}),
    (
        'prefixes = ["2001:db8::/64", "fd00::/80", "2001:db9::/32"]',
        {"prefixes": tuple(map(parse_prefix, ("2001:db8::/64", "fd00::/80", "2001:db9::/32")))},
    ),
    ('prefixes = ["2001:db8::2/127"]', {"prefixes": (parse_prefix("2001:db8::2/127"),)}),
    ('router_advertisements = "relay"', {}),
    ('router_advertisements = "off"', {"relay": False}),
    ("max_hosts = 1", {"max_hosts": 1, "max_hosts_per_mac": 1}),
    ("max_hosts = 65536", {"max_hosts": 65536, "max_hosts_per_mac": 16384}),
    ("max_hosts = 10\nmax_hosts_per_mac = 10", {"max_hosts": 10, "max_hosts_per_mac": 10}),
    ("max_hosts_per_mac = 5", {"max_hosts_per_mac": 5}),
    ("expire = 10", {"expire": 10.0}),
    ("expire = 86400", {"expire": 86400.0}),
    ("expire = 12.5", {"expire": 12.5}),
]


@pytest.mark.parametrize(("text", "different"), GOOD, ids=[text for text, _ in GOOD])
def test_a_key_has_its_effect(text: str, different: dict[str, Any]) -> None:
    expected: dict[str, Any] = {"upstream": "eth0", "downstream": ("lan0",)}
    assert share(HEAD + text) == Share(**(expected | different))


def test_patterns_may_match_the_upstream_and_each_other() -> None:
    """A pattern never makes the upstream a downstream interface, so `eth*` is for the others."""
    text = '[[share]]\nupstream = "eth0"\ndownstream = ["eth*", "br-[0-9]", "br-*", "wg?"]\n'
    assert share(text).downstream == ("eth*", "br-[0-9]", "br-*", "wg?")


def test_shares_of_different_interfaces() -> None:
    text = (
        '[[share]]\nupstream = "eth0"\ndownstream = ["lan[01]"]\nprefixes = ["2001:db8::/64"]\n'
        '[[share]]\nupstream = "eth1"\ndownstream = ["lan[23]"]\nprefixes = ["2001:db8:1::/64"]\n'
    )
    assert [each.upstream for each in parse(text, "ndxdp.toml").shares] == ["eth0", "eth1"]


# ---- errors -------------------------------------------------------------------------------------


class Bad(NamedTuple):
    """A wrong text, the beginning of its only error without the file, and that of the hint."""

    text: str
    message: str
    hint: str


TOO_LONG = ", ".join(f'"interface{number:03}"' for number in range(10))

BAD = [
    Bad(
        '[[share]]\ndownstream = ["lan0"]',
        "1: share[0].upstream: this key is missing",
        'write it as in upstream = "eth0"',
    ),
    Bad(
        '[[share]]\nupstream = "eth0"',
        "1: share[0].downstream: this key is missing",
        'write it as in downstream = ["lan0", "br-*"]',
    ),
    Bad("share = []", "1: share: an empty array, not an array of tables", "write it as [[share]]"),
    Bad('[share]\nupstream = "eth0"', "1: share: a table, not an array", "write it as [[share]]"),
    Bad(
        '[[share]]\nupstream = "eth*"\ndownstream = ["lan0"]',
        "2: share[0].upstream: 'eth*' is a pattern, but this must be the name of one interface",
        "name each interface on its own",
    ),
    Bad(
        '[[share]]\nupstream = "a b"\ndownstream = ["lan0"]',
        "2: share[0].upstream: 'a b' is no interface name",
        "see: ip -br link",
    ),
    Bad(
        '[[share]]\nupstream = "uplink-to-provider"\ndownstream = ["lan0"]',
        "2: share[0].upstream: 'uplink-to-provider' is longer than 15 bytes",
        "a share needs the interface's own name",
    ),
    Bad(
        '[[share]]\nupstream = "eth0"\ndownstream = "lan0"',
        "3: share[0].downstream: a string, not an array",
        "put it in brackets",
    ),
    Bad(
        '[[share]]\nupstream = "eth0"\ndownstream = []',
        "3: share[0].downstream: this names no interface behind this host",
        'write it as in downstream = ["lan0", "br-*"]',
    ),
    Bad(
        '[[share]]\nupstream = "eth0"\ndownstream = ["lan0", 7]',
        "3: share[0].downstream[1]: an integer, not a string",
        "put it in quotes",
    ),
    Bad(
        '[[share]]\nupstream = "eth0"\ndownstream = [\n"lan0",\n"eth0"]',
        "5: share[0].downstream[1]: eth0 is the upstream of this share",
        "name the interfaces behind this host",
    ),
    Bad(
        '[[share]]\nupstream = "eth0"\ndownstream = [\n"lan0",\n"lan0"]',
        "5: share[0].downstream[1]: lan0 is given twice",
        "line 4 has it first",
    ),
    Bad(
        '[[share]]\nupstream = "eth0"\ndownstream = ["tap[0"]',
        "3: share[0].downstream[0]: 'tap[0' has a [ without its ]",
        'as in "tap[0-9]"',
    ),
    Bad(
        f'[[share]]\nupstream = "eth0"\ndownstream = [{TOO_LONG}]',
        "3: share[0].downstream: the interfaces of one share take more than 127 bytes",
        "use patterns",
    ),
    Bad(
        HEAD + 'prefixes = "2001:db8::/64"',
        "4: share[0].prefixes: '2001:db8::/64' is neither advertised nor an array",
        'write prefixes = "advertised", or an array',
    ),
    Bad(HEAD + "prefixes = 7", "4: share[0].prefixes: an integer, not an array", "put it in"),
    Bad(HEAD + "prefixes = []", "4: share[0].prefixes: this names no prefix", "write prefixes ="),
    *(
        Bad(HEAD + f'prefixes = ["{text}"]', f"4: share[0].prefixes[0]: {message}", hint)
        for text, message, hint in (
            ("advertised", "'advertised' cannot be combined with prefixes", "write prefixes ="),
            ("fe80::/64", "fe80::/64 is link-local: each link has it", "leave it out"),
            ("fe80::/10", "fe80::/10 is link-local: each link has it", "leave it out"),
            ("ff02::/16", "ff02::/16 is multicast", "name unicast addresses"),
            ("::/0", "::/0 is too wide for the prefix of a link", "write the prefix of the link"),
            ("2002::/31", "2002::/31 is too wide", "write the prefix of"),
            ("2001:db8::1", "2001:db8::1 is one address, not the prefix", "write the prefix of"),
            ("2001:db8::1/128", "2001:db8::1 is one address", "write the prefix of the link"),
            ("::ffff:0:0/96", "::ffff:0.0.0.0/96 is IPv4-mapped", "leave it out"),
            ("2001:db8::1/64", "'2001:db8::1/64' has bits set behind", "2001:db8::/64 is the"),
            ("192.0.2.0/24", "'192.0.2.0' is an IPv4 address", ""),
        )
    ),
    Bad(
        HEAD + 'prefixes = ["2001:db8::/64",\n"2001:db8::/64"]',
        "5: share[0].prefixes[1]: 2001:db8::/64 is given twice",
        "line 4 has it first",
    ),
    Bad(
        HEAD + 'prefixes = ["2001:db8::/64",\n"2001:db8::/48"]',
        "5: share[0].prefixes[1]: 2001:db8::/48 contains 2001:db8::/64",
        "name each prefix once",
    ),
    Bad(
        HEAD + 'router_advertisements = "realy"',
        "4: share[0].router_advertisements: 'realy' is not one of relay, off",
        "did you mean 'relay'?",
    ),
    Bad(
        HEAD + "router_advertisements = false",
        "4: share[0].router_advertisements: a boolean, not a string",
        "put it in quotes",
    ),
    *(
        Bad(HEAD + f"{key} = {value}", f"4: share[0].{key}: {value} is out of range", hint)
        for key, value, hint in (
            ("max_hosts", 0, "it may be from 1 to 65536"),
            ("max_hosts", 65537, "it may be from 1 to 65536"),
            ("max_hosts_per_mac", 0, "it may be from 1 to 65536"),
            ("max_hosts_per_mac", 65537, "it may be from 1 to 65536"),
            ("expire", 9.5, "it may be from 10 to 86400"),
            ("expire", 0, "it may be from 10 to 86400"),
            ("expire", 86401, "it may be from 10 to 86400"),
        )
    ),
    Bad(
        HEAD + "max_hosts = 100\nmax_hosts_per_mac = 101",
        "5: share[0].max_hosts_per_mac: 101 hosts for one MAC are more than the 100 of max_hosts",
        "choose a smaller number",
    ),
    Bad(
        HEAD + 'upstreams = "eth1"',
        "4: share[0].upstreams: [[share]] has no such key",
        "did you mean 'upstream'?",
    ),
    # two shares
    Bad(
        HEAD + SECOND.format("eth0", "lan1"),
        "5: share[1].upstream: eth0 is the upstream of two shares",
        "line 2 has it first: name all interfaces behind this host in one share",
    ),
    Bad(
        HEAD + SECOND.format("eth1", "lan0"),
        "6: share[1].downstream[0]: lan0 would be downstream in two shares",
        "line 3 has lan0",
    ),
    Bad(
        HEAD + SECOND.format("eth1", "la?[0-9]"),
        "6: share[1].downstream[0]: an interface that matches la?[0-9] and lan0 would be"
        " downstream in two shares",
        "line 3 has lan0",
    ),
    Bad(
        HEAD + SECOND.format("lan0", "wg0"),
        "5: share[1].upstream: lan0 would be upstream in one share, and downstream in another",
        "see line 3: a proxy behind a proxy may loop",
    ),
    Bad(
        HEAD + SECOND.format("eth1", "eth0"),
        "6: share[1].downstream[0]: eth0 would be upstream in one share, and downstream in another",
        "see line 2: a proxy behind a proxy may loop",
    ),
    Bad(
        HEAD + SECOND.format("eth1", "eth*"),
        "6: share[1].downstream[0]: eth0, which eth* matches, would be upstream in one share",
        "see line 2: a proxy behind a proxy may loop",
    ),
    Bad(
        SECOND.format("eth0", "br-*") + SECOND.format("eth1", "br-[0-9]*"),
        "6: share[1].downstream[0]: an interface that matches br-[0-9]* and br-* would be"
        " downstream in two shares",
        "line 3 has br-*",
    ),
    Bad(
        HEAD
        + 'prefixes = ["2001:db8::/64"]\n'
        + SECOND.format("eth1", "lan1")
        + 'prefixes = ["2001:db8::/60"]\n',
        "8: share[1].prefixes[0]: 2001:db8::/60 is in two shares",
        "line 4 has 2001:db8::/64",
    ),
]


@pytest.mark.parametrize("bad", BAD, ids=[bad.message for bad in BAD])
def test_an_error_names_line_and_key(bad: Bad) -> None:
    with pytest.raises(UsageError) as caught:
        parse(bad.text, "ndxdp.toml")
    error = caught.value
    assert error.message.startswith(f"ndxdp.toml:{bad.message}"), error.message
    assert error.hint.startswith(bad.hint), error.hint
    assert error.hint
    assert not error.also, error.also


def test_all_errors_are_found_at_once() -> None:
    text = (
        '[[share]]\nupstream = "e*"\ndownstream = [7]\nprefixes = ["::/0"]\n'
        'router_advertisements = "on"\nmax_hosts = 0\nmax_hosts_per_mac = 0\nexpire = 0\n'
    )
    with pytest.raises(UsageError) as caught:
        parse(text, "ndxdp.toml")
    sentences = (caught.value.message, *caught.value.also)
    assert [int(sentence.split(":")[1]) for sentence in sentences] == [2, 3, 4, 5, 6, 7, 8]


# Two names or patterns, and whether one name can match both.
OVERLAPS = [
    ("lan0", "lan0", True),
    ("lan0", "lan1", False),
    ("lan*", "lan0", True),
    ("lan*", "lan", True),
    ("lan*", "la", False),
    ("l*", "lan*", True),
    ("lan*", "*0", True),
    ("lan*", "wan*", False),
    ("*lan", "*wan", False),
    ("*a*b*", "*b*a*", True),
    ("a*b", "a*c", False),
    ("a*b*", "a*c", True),
    ("lan?", "lan", False),
    ("lan?", "lan??", False),
    ("lan?*", "lan??", True),
    ("lan[01]", "lan[12]", True),
    ("lan[01]", "lan[23]", False),
    ("lan[0-5]", "lan[5-9]", True),
    ("lan[0-4]", "lan[5-9]", False),
    ("lan[!0-9]", "lan[0-9]", False),
    ("lan[!0-9]", "lan[!a-z]", True),
    ("lan[\u00e0-\u00ef]", "lan[\u00e8-\u00ff]", True),
    ("*", "br-[!0-9]?", True),
    ("*0]", "lan[a0]", False),
    ("[]]", "]", True),
    ("?", "**", True),
    ("**", "*", True),
]


@pytest.mark.parametrize(("first", "second", "expected"), OVERLAPS)
def test_patterns_overlap(first: str, second: str, expected: bool) -> None:
    assert overlap(first, second) is expected
    assert overlap(second, first) is expected


def test_patterns_overlap_as_names_show() -> None:
    """All short names over a few letters decide the same for random patterns."""
    letters, seed = "ab0", random.Random(19)
    names = ["".join(word) for size in range(6) for word in itertools.product(letters, repeat=size)]
    parts = ("a", "b", "0", "*", "?", "[ab]", "[!a]", "[a-b]")
    counts = {True: 0, False: 0}
    for _ in range(400):
        first, second = ("".join(seed.choices(parts, k=seed.randint(1, 3))) for _ in range(2))
        seen = any(fnmatchcase(name, first) and fnmatchcase(name, second) for name in names)
        # [!a] also has characters that no name here has, which both patterns may have.
        assert overlap(first, second) is seen, (first, second)
        counts[seen] += 1
    assert min(counts.values()) > 50


# ---- what follows from a share ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interfaces", "expected"),
    [
        ((), ("eth0", "lan0", "br-*")),
        (("eth0",), ("eth0", "lan0", "br-*")),
        (("br-*", "wan0"), ("br-*", "wan0", "eth0", "lan0")),
        (("lan*",), ("lan*", "eth0", "br-*")),
        (("*",), ("*", "br-*")),
    ],
)
def test_each_interface_of_a_share_has_a_table(
    interfaces: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    own = "".join(f'[[interface]]\nname = "{name}"\nmode = "tc"\n' for name in interfaces)
    text = f'{own}[[share]]\nupstream = "eth0"\ndownstream = ["lan0", "br-*"]\n'
    every = parse(text, "ndxdp.toml").with_shared()
    assert tuple(each.name for each in every) == expected
    for each in every:
        mode = "tc" if each.name in interfaces else "auto"
        assert each == Interface(each.name, mode=mode)


def test_an_interface_is_downstream_in_one_share() -> None:
    text = (
        '[[share]]\nupstream = "eth0"\ndownstream = ["e*", "lan?"]\n'
        '[[share]]\nupstream = "wan1"\ndownstream = ["w*1", "lan?1", "tap0"]\n'
    )
    shares = parse(text, "ndxdp.toml").shares
    found = {
        name: getattr(share_downstream(shares, name), "upstream", None)
        for name in ("eth0", "eth1", "lan1", "lan11", "wan1", "tap0", "tap1")
    }
    assert found == {
        "eth0": None,
        "eth1": "eth0",
        "lan1": "eth0",
        "lan11": "wan1",
        "wan1": None,
        "tap0": "wan1",
        "tap1": None,
    }


def test_the_summary_of_a_share() -> None:
    text = HEAD.replace('"lan0"', '"lan0", "br-*"')
    assert share_summary(share(text)) == [
        "shared with lan0, br-*",
        "prefixes: those that its routers advertise",
        "relays router advertisements",
        "hosts: at most 4096, 1024 of one MAC",
        "forgets a host after 600 s",
    ]
    text += (
        'prefixes = ["2001:db8::/64", "fd00::/64"]\nrouter_advertisements = "off"\n'
        "max_hosts = 10\nmax_hosts_per_mac = 3\nexpire = 60\n"
    )
    assert share_summary(share(text))[1:] == [
        "prefixes: 2001:db8::/64, fd00::/64",
        "does not relay router advertisements",
        "hosts: at most 10, 3 of one MAC",
        "forgets a host after 60 s",
    ]
