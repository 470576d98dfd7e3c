"""Converted configurations of ndppd, compared with the real ndppd and on the wire."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ndxdp.config import reader
from ndxdp.convert import ndppd, ndppd_syntax, ndpresponder
from ndxdp.convert.draft import DraftInterface
from ndxdp.errors import NdxdpError
from tests.fixtures import network, peer
from tests.fixtures.converted import ALWAYS, DB8, PAGE, RULE, notes_of, prefixes, rule, text_of

# ---- ndppd: valid --------------------------------------------------------------------------------


class Good(NamedTuple):
    """A configuration, the resulting TOML, and parts of its notes in their order."""

    text: str
    toml: dict[str, Any]
    notes: tuple[str, ...] = ()


CACHE = "no counterpart: the kernel's neighbor table"
ASKS = "no counterpart: the kernel solicits"
FOLLOWED = "no counterpart: ndxdp asks the kernel"
GOOD = {
    "static": Good(f"proxy eth0 {{\n  {RULE}\n}}\n", ALWAYS),
    "auto": Good(
        f"proxy eth0 {{\n rule {DB8} {{\n auto\n }}\n}}",
        prefixes(rule(DB8, "neighbour")),
    ),
    "iface": Good(
        f"proxy eth0 {{ rule {DB8} {{ iface docker0 }} }}",
        prefixes(rule(DB8, "neighbour", dev=["docker0"])),
    ),
    "an address": Good("proxy eth0 { rule 2001:db8::9 { static } }", prefixes(rule("2001:db8::9"))),
    "/128": Good("proxy eth0 { rule 2001:db8::9/128 { static } }", prefixes(rule("2001:db8::9"))),
    "/0": Good("proxy eth0 { rule ::/0 { static } }", prefixes(rule("::/0"))),
    "host bits": Good("proxy eth0 { rule 2001:db8::9/64 { static } }", ALWAYS),
    "zeros in the length": Good("proxy eth0 { rule 2001:db8::/064 { static } }", ALWAYS),
    "spaces": Good(f"proxy eth0\t{{\r\n\v\f{RULE}\r\n}}\r\n", ALWAYS),
    "equals signs": Good(f"proxy = eth0 {{ rule = {DB8} {{ static }} router = yes }}", ALWAYS),
    "semicolons": Good(f"proxy eth0 {{ rule {DB8} {{ static; }} }}", ALWAYS),
    "router yes": Good(f"proxy eth0 {{ router YES\n{RULE} }}", ALWAYS),
    "router true": Good(f"proxy eth0 {{ router true {RULE} }}", ALWAYS),
    "router no": Good(f"proxy eth0 {{ {RULE} router no }}", prefixes(rule(DB8, router=False))),
    "router false": Good(
        f"proxy eth0 {{ router False {RULE} }}", prefixes(rule(DB8, router=False))
    ),
    "router off": Good(
        f"proxy eth0 {{ router on {RULE} }}",
        prefixes(rule(DB8, router=False)),
        ("1: router is neither yes nor no: ndppd takes 'on' for no",),
    ),
    "router twice": Good(
        f"proxy eth0 {{ router no\nrouter yes {RULE} }}",
        prefixes(rule(DB8, router=False)),
        ("2: router is given twice: the first one counts",),
    ),
    "timeout": Good(
        f"proxy eth0 {{ timeout 700 rule {DB8} {{ iface br0 }} }}",
        prefixes(rule(DB8, "neighbour", dev=["br0"]), resolve={"deadline": 0.7}),
    ),
    "timeout like C": Good(
        f"proxy eth0 {{ timeout 1500ms; rule {DB8} {{ iface br0 }} }}",
        prefixes(rule(DB8, "neighbour", dev=["br0"]), resolve={"deadline": 1.5}),
    ),
    "timeout below 0": Good(
        f"proxy eth0 {{ timeout -1 rule {DB8} {{ iface br0 }} }}",
        prefixes(rule(DB8, "neighbour", dev=["br0"]), resolve={"deadline": 0.5}),
    ),
    "timeout 0": Good(
        f"proxy eth0 {{ timeout none rule {DB8} {{ iface br0 }} }}",
        prefixes(rule(DB8, "neighbour", dev=["br0"])),
        ("1: timeout is left out: ndppd takes it for 0",),
    ),
    "timeout for ever": Good(
        f"proxy eth0 {{\ntimeout 999999 rule {DB8} {{ iface br0 }} }}",
        prefixes(rule(DB8, "neighbour", dev=["br0"]), resolve={"deadline": 60.0}),
        ("2: timeout is 999999 ms: ndxdp accepts 10 to 60000",),
    ),
    "timeout of a moment": Good(
        f"proxy eth0 {{\ntimeout 5 rule {DB8} {{ iface br0 }} }}",
        prefixes(rule(DB8, "neighbour", dev=["br0"]), resolve={"deadline": 0.01}),
        ("2: timeout is 5 ms: ndxdp accepts 10 to 60000",),
    ),
    "timeout for nothing": Good(
        f"proxy eth0 {{\ntimeout 700 {RULE} }}", ALWAYS, ("2: timeout is left out",)
    ),
    "times": Good(
        f"route-ttl 1\naddress-ttl 2\nproxy eth0 {{ {RULE}\nttl 3\ndeadtime 4\n}}",
        ALWAYS,
        (
            f"1: route-ttl has {FOLLOWED}",
            f"2: address-ttl has {FOLLOWED}",
            f"4: ttl has {CACHE}",
            f"5: deadtime has {CACHE}",
        ),
    ),
    "of later versions": Good(
        f"proxy eth0 {{ retries 3\nkeepalive no\npromiscuous yes\nautowire yes\nrule {DB8} {{"
        " iface br0\nautovia yes } }",
        {
            "share": [
                {
                    "upstream": "eth0",
                    "downstream": ["br0"],
                    "prefixes": [DB8],
                    "router_advertisements": "off",
                }
            ]
        },
        (
            f"1: retries has {ASKS}",
            f"2: keepalive has {ASKS}",
            "3: promiscuous has no counterpart: ndxdp receives multicast",
            "4: autowire becomes a share",
            "6: autovia has no counterpart: the routes of a share name no gateway",
        ),
    ),
    "of later versions, off": Good(
        f"proxy eth0 {{ promiscuous no autowire no rule {DB8} {{ iface br0 autovia no }} }}",
        prefixes(rule(DB8, "neighbour", dev=["br0"])),
    ),
    "comments": Good(
        f"# proxy no {{\n// proxy no {{\n/* proxy\nno {{ */proxy/**/eth0 {{ # }}\n"
        f"rule {DB8} /* no {{ */ {{ static// }}\n}} /*/ }} /* never closed",
        ALWAYS,
    ),
    "no comment in a word": Good(
        "proxy eth0#1 { rule 2001:db8::/64 { static } }",
        {"interface": [{"name": "eth0#1", "prefix": [rule(DB8)]}]},
    ),
    "after NUL": Good(f"proxy eth0 {{ {RULE} }}\0 proxy {{", ALWAYS),
    "static with a word": Good(
        f"proxy eth0 {{ rule {DB8} {{ static auto }} }}",
        ALWAYS,
        ("1: static takes no value: ndppd ignores 'auto'",),
    ),
    "quotes": Good(
        f"proxy eth0 {{ rule {DB8} {{\niface 'br0'\n}}\n}}",
        prefixes(rule(DB8, "neighbour", dev=["br0"])),
    ),
    "a quote and a comment": Good(
        f'proxy eth0 {{ rule {DB8} {{ iface "br0" # the bridge\n }} }}',
        prefixes(rule(DB8, "neighbour", dev=["br0"])),
    ),
    "a { behind a quote": Good(
        f'proxy "eth0" {{\n{RULE}\n}}\n',
        {"interface": [{"name": "eth0"}]},
        (
            "1: ndppd ignores '{', which follows a quoted word",
            "2: ndppd knows no keyword 'rule' at the top",
            "3: this } closes nothing",
        ),
    ),
    "a { on its own line": Good(
        f"proxy eth0\n{{\n{RULE}\n}}\n",
        {"interface": [{"name": "eth0"}]},
        ("2: ndppd ignores a { … }, which has no keyword",),
    ),
    "a } too many": Good(
        f"proxy eth0 {{ {RULE} }}\n}} proxy eth1 {{ {RULE} }}",
        ALWAYS,
        ("2: this } closes nothing",),
    ),
    "no keyword": Good(
        f"proxy eth0 {{ {RULE}\nttl-of 9\n;\n}}\nttl 9",
        ALWAYS,
        (
            "2: ndppd knows no keyword 'ttl-of' in a proxy section",
            "3: ndppd ignores ';', which has no keyword",
            "5: ndppd knows no keyword 'ttl' at the top",
        ),
    ),
    "no rule": Good("proxy eth0 {}", {"interface": [{"name": "eth0"}]}),
    "several interfaces": Good(
        f"proxy eth0 {{ {RULE} }} proxy eth1 {{ router no {RULE} }}",
        {
            "interface": [
                {"name": "eth0", "prefix": [rule(DB8)]},
                {"name": "eth1", "prefix": [rule(DB8, router=False)]},
            ]
        },
    ),
    "one interface in two sections": Good(
        f"proxy eth0 {{ {RULE} }}\nproxy eth0 {{ router no rule 2001:db8:1::/64 {{ static }} }}",
        prefixes(rule(DB8), rule("2001:db8:1::/64", router=False)),
        ("2: eth0 has several proxy sections",),
    ),
    "no router solicits it": Good(
        f"proxy eth0 {{ {RULE}\nrule ff02::/16 {{ static }}\nrule :: {{ auto }} }}",
        ALWAYS,
        ("2: the rule for ff02::/16 is left out", "3: the rule for :: is left out"),
    ),
    "iface is the proxy's": Good(
        f"proxy eth0 {{ {RULE}\nrule 2001:db8:1::/64 {{ iface eth0 }} }}",
        ALWAYS,
        ("2: the rule for 2001:db8:1::/64 is left out: nodes on eth0",),
    ),
    "twice": Good(
        f"proxy eth0 {{ rule {DB8} {{ iface br0 }}\nrule {DB8} {{ iface br1 }} }}",
        prefixes(rule(DB8, "neighbour", dev=["br0", "br1"])),
        (f"2: {DB8} has a rule in line 1 already",),
    ),
    "auto in static": Good(
        f"proxy eth0 {{ rule 2001:db8::/80 {{ auto }}\n{RULE} timeout 90 }}",
        prefixes(rule("2001:db8::/80"), rule(DB8)),
        ("1: in ndppd the wider rule in line 2 also answers here", "2: timeout is left out"),
    ),
    "static in auto": Good(
        f"proxy eth0 {{ rule {DB8} {{ auto }} rule 2001:db8::/80 {{ static }} }}",
        prefixes(rule(DB8, "neighbour"), rule("2001:db8::/80")),
    ),
    "iface in iface in iface": Good(
        f"proxy eth0 {{ rule 2001:db8::1 {{ iface br0 }}\nrule {DB8} {{ iface br2 }}\n"
        "rule 2001:db8::/80 { iface br1 } }",
        prefixes(
            rule("2001:db8::1", "neighbour", dev=["br0", "br1", "br2"]),
            rule(DB8, "neighbour", dev=["br2"]),
            rule("2001:db8::/80", "neighbour", dev=["br1", "br2"]),
        ),
        ("1: in ndppd the wider rule in line 2", "3: in ndppd the wider rule in line 2"),
    ),
    "iface in static, timed": Good(
        f"proxy eth0 {{ timeout 700 rule 2001:db8::1 {{ iface br0 }} {RULE} }}",
        prefixes(rule("2001:db8::1"), rule(DB8)),
        (
            "1: timeout is left out",
            "1: in ndppd the wider rule in line 1",
        ),
    ),
    "escapes": Good(
        "proxy 'a\\\"b\x01\x7f'\nproxy 'ä'\n",
        {"interface": [{"name": 'a\\"b\x01\x7f'}, {"name": "ä"}]},
    ),
}


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD)
def test_ndppd_is_converted(good: Good) -> None:
    draft = ndppd.convert(good.text, "ndppd.conf")
    assert tomllib.loads(draft.text("ndppd.conf")) == good.toml
    noted = notes_of(draft)
    assert len(noted) == len(good.notes), noted
    for found, wanted in zip(noted, good.notes, strict=True):
        line, _, words = wanted.partition(": ")
        assert found.startswith(f"{line}: "), noted
        assert words in found


@pytest.mark.parametrize("text", [pytest.param(good.text, id=name) for name, good in GOOD.items()])
def test_check_accepts_converted_ndppd(text: str) -> None:
    found = reader.parse(text_of(text), "ndxdp.toml")
    assert found.with_shared()


def test_every_keyword_is_tried_and_documented() -> None:
    page = PAGE.read_text()
    known = {*ndppd._AT_TOP, *ndppd._IN_PROXY, *ndppd._IN_RULE}
    tried = " ".join(good.text for good in GOOD.values())
    for keyword in known:
        assert re.search(rf"\b{keyword}\b", tried), keyword
        assert re.search(rf"`{keyword}[ `]", page), keyword


# ---- ndppd: invalid ------------------------------------------------------------------------------


class Bad(NamedTuple):
    """A configuration, and the expected message. ndppd: True if ndppd refuses it, too."""

    text: str
    message: str
    ndppd: bool = True


BAD = {
    "proxy without a name": Bad(f"\nproxy {{ {RULE} }}", ":2: this proxy names no interface"),
    "interface": Bad("proxy eth/0 {}", ":1: 'eth/0' is no interface name"),
    "long interface": Bad(f"proxy {'a' * 128} {{}}", ":1: 'aaaa"),
    "pattern": Bad("proxy tap* {}", ":1: 'tap*' is a pattern"),
    "rule without a prefix": Bad("proxy e0 {\nrule { static } }", ":2: this rule names no prefix"),
    "no method": Bad(f"proxy e0 {{ rule {DB8} {{ }} }}", ":1: this rule has none of static"),
    "no block": Bad(f"proxy e0 {{\n\nrule {DB8}\n}}", ":3: this rule has none of static"),
    "method on the rule's line": Bad(f"proxy e0 {{ rule {DB8} static }}", ":1: this rule has none"),
    "two methods": Bad(
        f"proxy e0 {{ rule {DB8} {{ auto\nstatic }} }}",
        ":1: this rule has auto and static, which cannot be combined",
    ),
    "two other methods": Bad(
        f"proxy e0 {{ rule {DB8} {{ static\niface e1 }} }}", ":1: this rule has iface and static"
    ),
    "iface and auto": Bad(
        f"proxy e0 {{ rule {DB8} {{ auto\niface e1 }} }}", ":1: this rule has iface and auto"
    ),
    "iface without a name": Bad(
        f"proxy e0 {{ rule {DB8} {{\niface\ne1 }} }}", ":2: this iface names no interface"
    ),
    "proxy not closed": Bad(f"\nproxy e0 {{\n{RULE}", ":2: the { of this entry is not closed"),
    "rule not closed": Bad(
        f"proxy e0 {{\nrule {DB8} {{ static\n", ":2: the { of this entry is not closed"
    ),
    "closed in a comment": Bad("proxy e0 { # }", ":1: the { of this entry is not closed"),
    "swallowed by a comment": Bad("proxy e0 { /* }", ":1: the { of this entry is not closed"),
    "swallowed by a quote": Bad(
        f"proxy e0 {{\nrule {DB8} {{ iface 'e1' }}\n}}", ":1: the { of this entry is not closed"
    ),
    "umlaut": Bad("proxy e0 {}\nä", ":2: ndppd does not get past the character '\\xe4'"),
    "umlaut in a word": Bad("proxy eä0 {}", ":1: ndppd does not get past the character '\\xe4'"),
    "control character": Bad("proxy e0 { \x01 }", ":1: ndppd does not get past the character"),
    # Texts that ndppd misinterprets.
    "no proxy": Bad("route-ttl 1", ":1: there is no proxy section", False),
    "nothing": Bad("", ":1: there is no proxy section", False),
    "word for a prefix": Bad(
        "proxy e0 {\nrule garbage { static } }", ":2: 'garbage' is not a prefix", False
    ),
    "IPv4": Bad("proxy e0 { rule 192.0.2.0/24 { static } }", ":1: '192.0.2.0/24' is no", False),
    "address": Bad(
        "proxy e0 { rule 2001::db8::/64 { static } }", ":1: '2001::db8::' is not", False
    ),
    "no length": Bad("proxy e0 { rule 2001:db8::/ { static } }", ":1: '2001:db8::/' is no", False),
    "bad length": Bad("proxy e0 { rule 2001:db8::/6x { static } }", ":1: '2001:db8::/6x'", False),
    "long length": Bad(
        "proxy e0 { rule 2001:db8::/129 { static } }", ":1: '2001:db8::/129' has no", False
    ),
    "iface": Bad(f"proxy e0 {{ rule {DB8} {{\niface e/1 }} }}", ":2: 'e/1' is no", False),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_ndppd_is_refused(bad: Bad, links: None) -> None:
    with pytest.raises(NdxdpError) as caught:
        ndppd.convert(bad.text, "ndppd.conf")
    error = caught.value
    assert error.exit_code == 1
    assert error.message.startswith(f"ndppd.conf{bad.message}")
    assert error.message.isprintable()
    assert error.hint
    verdict = peer.judge(bad.text.encode())
    assert verdict.accepted != bad.ndppd, verdict.log


def test_all_errors_are_named() -> None:
    text = "proxy eth0 {\nrule x { static }\nrule 2001:db8::1 {}\n}\nproxy {}\n"
    with pytest.raises(NdxdpError) as caught:
        ndppd.convert(text, "ndppd.conf")
    output = (caught.value.message, *caught.value.also)
    assert [re.findall(r":(\d):", sentence) for sentence in output] == [["2"], ["3"], ["5"]]


# ---- compared with the real ndppd ----------------------------------------------------------------


LINKS = ("e0", "e1", "e2", "e3")


@pytest.fixture(scope="module")
def links(privacy: None) -> Iterator[None]:
    """Create interfaces for ndppd, which refuses a proxy on an interface that does not exist."""
    pairs = (LINKS[:2], LINKS[2:])
    for one, other in pairs:
        network.sh("ip", "link", "add", one, "type", "veth", "peer", "name", other)
    for name in LINKS:
        network.sh("ip", "link", "set", name, "addrgenmode", "none")
        network.sh("ip", "link", "set", name, "up")
    yield
    for one, _ in pairs:
        network.sh("ip", "link", "delete", one)


def test_ndppd_reads_the_same_entries(links: None) -> None:
    """Read all valid texts, and 300 random ones, exactly as ndppd does according to its log."""
    random_texts = [random_text(random.Random(seed)) for seed in range(300)]
    accepted = refused = differing = 0
    for text in [good.text.replace("eth0", "e0") for good in GOOD.values()] + random_texts:
        verdict = peer.judge(text.encode(errors="surrogateescape"))
        try:
            root = ndppd_syntax.parse(text, "x").root
        except NdxdpError:
            assert not verdict.accepted, text
            assert not verdict.tree, text
            refused += 1
            continue
        assert peer.tree_of(root) == verdict.tree, text
        found = problems_of(text)
        # ndppd looks for the interfaces of its proxies after it has read the file.
        opens = all(proxy.value in LINKS for proxy in root.find_all("proxy"))
        if all(differs(problem) for problem in found):
            assert verdict.accepted == opens, (text, found, verdict.log)
        else:
            assert not verdict.accepted, (text, found)
        accepted += verdict.accepted
        refused += not verdict.accepted
        differing += bool(found) and verdict.accepted
    assert min(accepted, refused) > 80, (accepted, refused, differing)
    assert differing > 5


def problems_of(text: str) -> list[str]:
    """Return all problems that convert finds in a text."""
    try:
        ndppd.convert(text, "x")
    except NdxdpError as error:
        return [error.message, *error.also]
    return []


def differs(problem: str) -> bool:
    """Return True if ndppd misinterprets such a problem (docs/migrating.md)."""
    kinds = ("no proxy section", "is not a prefix", "no prefix length", "is not an IPv6 address")
    return any(kind in problem for kind in (*kinds, "is no interface name"))


_PREFIXES = (
    "2001:db8::/64",
    "2001:db8::/80",
    "2001:db8::9",
    "2001:db8:1::/48",
    "::/0",
    "fe80::/10",
)
_ODD = ("x", "2001:db8::/", "2001:db8::/200", "1.2.3.4", "", "ff02::/16", "2001:db8::1/64")
_PROXY_WORDS = (
    "router yes",
    "router no",
    "ttl 9",
    "timeout 600",
    "timeout",
    "retries 3",
    "autowire yes",
    "wrong x",
)
_METHODS = ("static", "auto", "iface e1", "iface e2", 'iface "e3"\n', "iface nope")


def random_text(choose: random.Random) -> str:
    """Make a random plausible configuration, half of them with the damage of an editor."""

    def gap() -> str:
        return choose.choice((" ", " ", " ", "\t", "  ", " = ", " /* c { */ ", "/**/", " \r"))

    def end() -> str:
        return choose.choice(("\n", "\n", "\n", " ", " # c }\n", " // '\n", ";\n", "\r\n", "\n\n"))

    def block(lines: list[str]) -> str:
        return "{" + end() + "".join(line + end() for line in lines) + "}"

    def some(words: tuple[str, ...], most: int) -> list[str]:
        return [choose.choice(words) for _ in range(choose.randrange(most + 1))]

    text = ""
    for _ in range(choose.choice((0, 1, 1, 1, 2, 3))):
        lines = some(_PROXY_WORDS, 2)
        for _ in range(choose.randrange(4)):
            prefix = choose.choice(_PREFIXES if choose.random() < 0.9 else _ODD)
            methods = some(_METHODS, 2) if choose.random() < 0.2 else [choose.choice(_METHODS)]
            lines.append(f"rule{gap()}{prefix}{gap()}{block(methods)}")
        choose.shuffle(lines)
        name = choose.choice((*LINKS, *LINKS, "'e0'\n", "", "nope"))
        text += f"proxy{gap()}{name}{gap()}{block(lines)}{end()}"
    if choose.random() < 0.5:
        for _ in range(choose.randrange(1, 4)):
            at = choose.randrange(len(text) + 1)
            to = min(len(text), at + choose.choice((0, 0, 1, 1, 5)))
            text = (
                text[:at]
                + choose.choice(("", "{", "}", "'", '"', "#", "/*", "\n", "ä", "="))
                + text[to:]
            )
    return text


def test_check_accepts_converted_random_texts() -> None:
    """Write only configurations that `check` accepts; otherwise name the refused statement."""
    choose = random.Random(8)
    numbers = ("0", "1", "9", "10", "600", "60000", "60001", "999999999", "-1", "x")
    names = (*LINKS, "tap*", "tap%d", "x" * 15, "x" * 100, "y" * 60, "z" * 127, "a b", "\x01", "à")
    taken = 0
    for _ in range(1500):
        text = "".join(random_text(choose) for _ in range(choose.randrange(1, 4)))
        text = re.sub(r"timeout \d+", lambda _: f"timeout {choose.choice(numbers)}", text)
        text = re.sub(r"(?<=iface )\w+", lambda _: choose.choice(names), text)
        try:
            made = text_of(text)
        except NdxdpError as error:
            message = error.message
        else:
            reader.parse(made, "ndxdp.toml")
            taken += 1
            continue
        assert re.match(r"ndppd\.conf:\d+: ", message)
    assert 100 < taken < 1400


def test_more_rules_than_ndxdp_takes_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndppd, "MAX_RULE_CLASSES", 1024)
    rules = "".join(f"rule 2001:db8:{n:x}::/80 {{ static }}\n" for n in range(1023))
    with pytest.raises(NdxdpError) as caught:
        text_of("proxy eth0 {\n" + rules + "}")
    assert caught.value.message.startswith("ndppd.conf:1024: eth0 has 1023 rules,")
    assert "file" in caught.value.hint
    reader.parse(text_of("proxy eth0 {\n" + rules.partition("\n")[2] + "}"), "ndxdp.toml")


def test_thousands_of_statements_take_no_minutes() -> None:
    began = time.process_time()
    ways = "".join(f"rule 2001:db8::/80 {{ iface a{n} }}\n" for n in range(20_000))
    with pytest.raises(NdxdpError):
        text_of("proxy eth0 {\n" + ways + "}")
    subnets = ",".join(f"2001:db8:{n:x}::/80" for n in range(20_000))
    assert len(ndpresponder.convert(f"-i eth0 -n {subnets}").interfaces[0].rules) == 20_000
    assert time.process_time() - began < 20


def test_more_interfaces_than_a_rule_may_name() -> None:
    ways = [letter * 50 for letter in "abc"]
    rules = "\n".join(f"rule 2001:db8::/{80 + n} {{ iface {way} }}" for n, way in enumerate(ways))
    with pytest.raises(NdxdpError) as caught:
        text_of(f"proxy eth0 {{\n{rules}\n}}")
    assert caught.value.message.startswith("ndppd.conf:4: the interfaces of one rule take more")


_WITH_LESS_ROOM = """
from ndxdp.cli.main import main
from ndxdp.config import reader
reader.MAX_RULE_CLASSES = 1024
raise SystemExit(main())
"""


def test_configurations_that_check_refuses_are_not_written(tmp_path: Path) -> None:
    made = tmp_path / "ndxdp.toml"
    subnets = ",".join(f"2001:db8:{n:x}::/80" for n in range(1023))
    words = ["convert", "--ndpresponder", f"-i eth0 -n {subnets}", "-o", str(made)]
    result = subprocess.run(
        [sys.executable, "-c", _WITH_LESS_ROOM, *words], check=False, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "1023 rule classes are more than the limit of 1022" in result.stderr
    assert not made.exists()


def test_the_most_specific_rule_answers_as_ndppd() -> None:
    """Answer for the same targets as ndppd, whose evaluation is repeated here in full."""
    asked = set()
    for seed in range(200):
        choose = random.Random(seed)
        rules = [
            (
                IPv6Network(
                    (int(IPv6Address("2001:db8::")) | choose.getrandbits(4), length), False
                ),
                how,
            )
            for length in (choose.randrange(122, 129) for _ in range(choose.randrange(1, 9)))
            for how in [choose.choice(("static", "auto", "iface br0", "iface br1", "iface br2"))]
        ]
        text = "".join(f"rule {prefix} {{ {how} }}\n" for prefix, how in rules)
        draft = ndppd.convert(f"proxy eth0 {{ {text} }}", "ndppd.conf").interfaces[0]
        for last in range(64):
            target = IPv6Address("2001:db8::") + last
            matching = {how for prefix, how in rules if target in prefix}
            wanted: tuple[str, set[str]] | None = None
            if "static" in matching:
                wanted = ("always", set())
            elif "auto" in matching:
                wanted = ("neighbour", set())
            elif matching:
                wanted = ("neighbour", {how.removeprefix("iface ") for how in matching})
            assert looked_up(draft, target) == wanted, (text, target)
            asked.add(wanted[0] if wanted else None)
    assert asked == {"always", "neighbour", None}


def looked_up(draft: DraftInterface, target: IPv6Address) -> tuple[str, set[str]] | None:
    around = [
        (rule.prefix.length, rule.answer, set(rule.dev))
        for rule in draft.rules
        if target in IPv6Network(str(rule.prefix))
    ]
    return max(around, key=lambda found: found[0])[1:] if around else None


def test_the_example_that_ndppd_ships() -> None:
    text = Path(peer.EXAMPLE).read_text()
    draft = ndppd.convert(text, "ndppd.conf-dist")
    (interface,) = tomllib.loads(draft.text("x"))["interface"]
    assert interface["prefix"] == [rule("1111::", "neighbour")]
    assert interface["resolve"] == {"deadline": 0.5}
    found = [sentence.partition(": ")[2].split()[0] for sentence in notes_of(draft)]
    assert found == ["route-ttl", "ttl"]


def test_check_accepts_the_example_that_ndppd_ships() -> None:
    assert reader.parse(text_of(Path(peer.EXAMPLE).read_text()), "ndxdp.toml").interfaces
