"""The configuration file: valid and invalid values of each key, with message, line and key path."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import pytest

from ndxdp.config import model, reader, toml_lines
from ndxdp.config.model import (
    Addresses,
    Announce,
    Config,
    Gateway,
    Interface,
    Limit,
    Metrics,
    Resolve,
)
from ndxdp.config.reader import parse
from ndxdp.errors import UsageError
from ndxdp.ndp.profile import Answer, NaSource, Profile
from ndxdp.rules.address import parse_address
from ndxdp.rules.prefix import parse_pattern
from ndxdp.rules.rule import Rule
from ndxdp.sources.selector import Selector
from tests.fixtures.configured import EXAMPLE, HEAD, PREFIX, WITH, P, refused

A = parse_address
PAT = parse_pattern


def interface(text: str) -> Interface:
    """Return the interface that `text` below its name configures."""
    return parse(HEAD + text, "ndxdp.toml").interfaces[0]


# ---- valid files ---------------------------------------------------------------------------------


DOCKER = '[[interface.docker]]\nnetwork = "web"\n'


def rule(**other: Any) -> dict[str, Any]:
    """Return the rules of PREFIX with another profile."""
    made = Rule(profile=Profile(**other), origin="config", label="2001:db8::/64")
    return {"rules": {P("2001:db8::/64"): made}}


def docker(**words: Any) -> dict[str, Any]:
    return {"docker": (Selector(**words),)}


# Text below an interface's name, and its differences from Interface("eth0").
INTERFACES: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    *((f'mode = "{mode}"', {"mode": mode}) for mode in reader.MODES),
    ('loader = "prebuilt"', {"loader": "prebuilt"}),
    ('loader = "bcc"', {"loader": "bcc"}),
    ("max_addresses = 1", {"max_addresses": 1}),
    ("max_addresses = 0x1000000", {"max_addresses": 1 << 24}),
    ('on_stop = "keep"', {}),
    ('on_stop = "detach"', {"on_stop": "detach"}),
    ('mode = "userspace"\non_stop = "detach"', {"mode": "userspace", "on_stop": "detach"}),
    *((f'join = "{join}"', {"join": join}) for join in model.JOIN),
    ("heartbeat_timeout = 0", {}),
    ("paused = false", {}),
    ("paused = true", {"paused": True}),
    ("heartbeat_timeout = 30", {"heartbeat_timeout": 30.0}),
    ("heartbeat_timeout = 1.5", {"heartbeat_timeout": 1.5}),
    (PREFIX, rule()),
    (PREFIX + 'answer = "always"', rule()),
    (
        PREFIX + 'answer = "never"',
        {"rules": {P("2001:db8::/64"): Rule(Answer.NEVER, origin="config", label="2001:db8::/64")}},
    ),
    (PREFIX + 'source = "target"', rule()),
    (PREFIX + 'source = "link-local"', rule(source=NaSource.LINK_LOCAL)),
    (PREFIX + 'source = "2001:db8::1"', rule(source=A("2001:db8::1"))),
    (PREFIX + "router = true", rule()),
    (PREFIX + "router = false", rule(router=False)),
    (PREFIX + "override = true", rule(override=True)),
    (PREFIX + 'dad = "defend"', rule()),
    (PREFIX + 'dad = "ignore"', rule(defend=False)),
    (PREFIX + 'lladdr = "02:00:5e:10:00:01"', rule(lladdr=bytes.fromhex("02005e100001"))),
    (
        'prefix = [{ prefix = "2001:db8::1" }, { prefix = "2001:db8::2", router = false }]',
        {
            "rules": {
                P("2001:db8::1"): Rule(origin="config", label="2001:db8::1"),
                P("2001:db8::2"): Rule(
                    profile=Profile(router=False), origin="config", label="2001:db8::2"
                ),
            }
        },
    ),
    (DOCKER, docker(network="web")),
    (
        DOCKER + 'source = "link-local"\nrouter = false\noverride = true\ndad = "ignore"',
        docker(profile=Profile(NaSource.LINK_LOCAL, False, True, False), network="web"),
    ),
    (
        '[[interface.docker]]\nnetwork_label = "v6"',
        docker(network_label="v6"),
    ),
    (
        '[[interface.docker]]\ncontainer_label = "v6=a=b"',
        docker(container_label="v6=a=b"),
    ),
    (
        '[[interface.docker]]\nwithin = "2001:db8::/48"\nexcept_label = "v6="',
        docker(within=P("2001:db8::/48"), except_label="v6="),
    ),
    ("[interface.announce]", {"announce": Announce(True, True, True)}),
    (
        "[interface.announce]\ninterval = 60\nrate = 5",
        {"announce": Announce(True, True, True, 60.0, 5.0)},
    ),
    (
        "[interface.announce]\nneighbours = true",
        {"announce": Announce(True, True, True, neighbours=True)},
    ),
    (
        "[interface.announce]\nneighbours = true\nadvertise = true",
        {"announce": Announce(advertise=True, neighbours=True)},
    ),
    ("[interface.announce]\nprobe = true", {"announce": Announce(probe=True)}),
    ("announce.solicit_gateway = true", {"announce": Announce(solicit_gateway=True)}),
    ("announce = { advertise = true, probe = false }", {"announce": Announce(advertise=True)}),
    ("[interface.gateway]", {"gateway": Gateway(True)}),
    ("[interface.gateway]\nkeep = false", {}),
    (
        '[interface.gateway]\nsource = "2001:db8::9"\ninterval = 7.5',
        {"gateway": Gateway(True, A("2001:db8::9"), 7.5)},
    ),
    (
        '[interface.addresses]\npreferred = "fd00::1"\ndeprecate = ["2001:db8::/64", "fd00::/64"]',
        {"addresses": Addresses((PAT("fd00::1"),), (PAT("2001:db8::/64"), PAT("fd00::/64")))},
    ),
    (
        '[interface.addresses]\npreferred = ["::1/-64", "2001:db8::2"]\n'
        'deprecate = ["::/0", "::3/-16"]',
        {
            "addresses": Addresses(
                (PAT("::1/-64"), PAT("2001:db8::2")), (PAT("::/0"), PAT("::3/-16"))
            )
        },
    ),
    (
        '[interface.addresses]\npreferred = []\ndeprecate = ["::9"]',
        {"addresses": Addresses((), (PAT("::9"),))},
    ),
    ("[interface.addresses]\ndeprecate = []", {}),
    ("[interface.resolve]", {}),
    (
        "[interface.resolve]\ndeadline = 1.5\nrate = 20\nburst = 4\npending = 16",
        {"resolve": Resolve(1.5, 20.0, 4, 16)},
    ),
    ("[interface.limit]", {}),
    ("[interface.limit]\nrate = 0", {}),
    ("[interface.limit]\nrate = 10", {"limit": Limit(10.0)}),
    ("[interface.limit]\nrate = 0.5\nburst = 3", {"limit": Limit(0.5, 3)}),
]


@pytest.mark.parametrize(("text", "changes"), INTERFACES, ids=[case[0] for case in INTERFACES])
def test_interface(text: str, changes: dict[str, Any]) -> None:
    assert interface(text) == Interface("eth0", **changes)
    assert model.summary(interface(text))


GATEWAY_TABLE = "[interface.gateway]\n"
ON_NETWORK = '[[interface.docker]]\nnetwork = "n"\n'


def exact_rule(more: str = "") -> str:
    return f'[[interface.prefix]]\nprefix = "2001:db8::9"\n{more}\n'


SOLICITED = [
    (exact_rule() + GATEWAY_TABLE, "from the host's address or an exact rule's"),
    (ON_NETWORK + GATEWAY_TABLE, "from the host's address or an exact rule's"),
    (
        '[[interface.prefix]]\nprefix = "2001:db8::/64"\n' + GATEWAY_TABLE,
        "from the host's address only: there is no exact rule",
    ),
    (
        exact_rule('lladdr = "02:00:5e:10:00:01"') + GATEWAY_TABLE,
        "from the host's address only: there is no exact rule",
    ),
    (exact_rule() + GATEWAY_TABLE + 'source = "2001:db8::9"', "from 2001:db8::9"),
    (
        exact_rule() + GATEWAY_TABLE + 'source = "2001:db8::8"',
        "from 2001:db8::8 only while it is the host's own: no rule here answers for it",
    ),
    (
        exact_rule('answer = "never"') + GATEWAY_TABLE + 'source = "2001:db8::9"',
        "from 2001:db8::9 only while it is the host's own: no rule here answers for it",
    ),
    (
        ON_NETWORK + GATEWAY_TABLE + 'source = "2001:db8::8"',
        "from 2001:db8::8 only while it is the host's own, or a container's: no rule here answers"
        " for it",
    ),
]


@pytest.mark.parametrize(("text", "expected"), SOLICITED)
def test_the_summary_of_gateway_care(text: str, expected: str) -> None:
    """Summarize the source of gateway care, as far as the file alone determines it."""
    assert f"keeps its gateway, {expected}" in model.summary(interface(text))


# Text above the interface, and its differences from the default.
TOPS: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    *((f'log_level = "{level}"', {"log_level": level}) for level in reader.LOG_LEVELS),
    *((f'log_format = "{name}"', {"log_format": name}) for name in reader.LOG_FORMATS),
    ("[metrics]", {"metrics": Metrics("::1", 9877)}),
    ('[metrics]\nlisten = "[::]:1"', {"metrics": Metrics("::", 1)}),
    ('metrics.listen = "127.0.0.1:65535"', {"metrics": Metrics("127.0.0.1", 65535)}),
    ('metrics = { listen = "localhost:9877" }', {"metrics": Metrics("localhost", 9877)}),
    ('[metrics]\nlisten = "[fe80::1%eth0]:99"', {"metrics": Metrics("fe80::1%eth0", 99)}),
    ("[docker]", {}),
    ('[docker]\nsocket = "/run/podman/podman.sock"', {"docker_socket": "/run/podman/podman.sock"}),
    ('[docker]\nsocket = "unix:///a"', {"docker_socket": "/a"}),
]


@pytest.mark.parametrize(("text", "changes"), TOPS, ids=[case[0] for case in TOPS])
def test_top(text: str, changes: dict[str, Any]) -> None:
    found = parse(f"{text}\n{HEAD}", "ndxdp.toml")
    assert found == Config(interfaces=(Interface("eth0"),), **changes)


def test_equal_content_is_equal() -> None:
    again = "# moved\n\n" + EXAMPLE.replace("= ", "=  ").replace(
        "2001:db8:0:1:c::/80", "2001:DB8:0:1:C:0::/80"
    )
    assert parse(again, "other") == parse(EXAMPLE, "ndxdp.toml")
    for old, new in (("rate = 50", "rate = 51"), ("dead", "deae"), ("ipv6exposed", "web")):
        assert parse(EXAMPLE.replace(old, new), "x") != parse(EXAMPLE, "x")


def test_a_valid_file_needs_no_line_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute no line numbers for a valid file: only messages need them."""
    monkeypatch.setattr(toml_lines, "lines", None)
    assert parse(EXAMPLE, "ndxdp.toml").interfaces


def test_long_labels_that_begin_alike() -> None:
    text = "".join(f'[[interface.docker]]\nnetwork = "{"n" * 60}{end}"\n' for end in "ab")
    assert [each.network for each in interface(text).docker] == ["n" * 60 + "a", "n" * 60 + "b"]


def test_several_interfaces_in_their_order() -> None:
    names = ["eth1", "eth0", "br-0"]
    text = "".join(f'[[interface]]\nname = "{name}"\n{PREFIX}' for name in names)
    found = parse(text, "ndxdp.toml")
    assert [each.name for each in found.interfaces] == names
    assert all(len(each.rules) == 1 for each in found.interfaces)


# ---- invalid files -------------------------------------------------------------------------------


class Bad(NamedTuple):
    """A text below an interface's name (line 3 on), and the message after `ndxdp.toml:`."""

    text: str
    expected: str
    hint: str = ""
    also: int = 0  # number of other errors


def in_prefix(key: str, expected: str, hint: str = "") -> Bad:
    return Bad(PREFIX + key, f"5: interface[0].prefix[0].{expected}", hint)


def in_docker(key: str, expected: str, hint: str = "") -> Bad:
    return Bad(DOCKER + key, f"5: interface[0].docker[0].{expected}", hint)


def within(table: str, line: str, expected: str, hint: str = "") -> Bad:
    """Return a bad line in a table of the interface; it is line 4."""
    return Bad(f"[interface.{table}]\n{line}", f"4: interface[0].{table}.{expected}", hint)


TWICE = '[[interface.prefix]]\nprefix = "2001:db8::/64"\nrouter = false'
BAD_INTERFACES = [
    Bad(
        'mode = "fast"',
        "3: interface[0].mode: 'fast' is not one of auto, native, generic, tc, userspace",
        "without this key it is auto",
    ),
    Bad(
        '\nmode = "natve"',
        "4: interface[0].mode: 'natve' is not one of auto, native, generic, tc, userspace",
        "did you mean 'native'?",
    ),
    Bad(
        "mode = 1", "3: interface[0].mode: an integer, not a string", 'put it in quotes: mode = "…"'
    ),
    Bad("mode = true", "3: interface[0].mode: a boolean, not a string"),
    Bad('mode = ["tc"]', "3: interface[0].mode: an array, not a string"),
    Bad("mode = 2024-01-01", "3: interface[0].mode: a date or time, not a string"),
    Bad("mode.x = 1", "3: interface[0].mode: a table, not a string"),
    Bad('loader = "libbpf"', "3: interface[0].loader: 'libbpf' is not one of prebuilt, bcc"),
    Bad(
        'mode = "userspace"\nloader = "bcc"',
        "4: interface[0].loader: userspace mode loads no program",
        "remove this key, or choose another mode",
    ),
    Bad(
        'mode = "userspace"\non_stop = "keep"',
        "4: interface[0].on_stop: userspace mode ends with the process",
    ),
    Bad(
        "max_addresses = 0",
        "3: interface[0].max_addresses: 0 is out of range",
        "it may be from 1 to 16777216",
    ),
    Bad("max_addresses = 16777217", "3: interface[0].max_addresses: 16777217 is out of range"),
    Bad("max_addresses = -1", "3: interface[0].max_addresses: -1 is out of range"),
    Bad(
        f"max_addresses = 0x{'f' * 5000}",
        "3: interface[0].max_addresses: this number is out of range",
    ),
    Bad("max_addresses = 1.0", "3: interface[0].max_addresses: a number, not an integer"),
    Bad("max_addresses = true", "3: interface[0].max_addresses: a boolean, not an integer"),
    Bad(
        'max_addresses = "1"',
        "3: interface[0].max_addresses: a string, not an integer",
        "write it without quotes or brackets",
    ),
    Bad('on_stop = "stay"', "3: interface[0].on_stop: 'stay' is not one of keep, detach"),
    Bad('join = "maybe"', "3: interface[0].join: 'maybe' is not one of auto, never, always"),
    Bad("join = true", "3: interface[0].join: a boolean, not a string"),
    Bad(
        "heartbeat_timeout = 0.5",
        "3: interface[0].heartbeat_timeout: 0.5 is out of range",
        "it may be 0, or from 1 to 86400",
    ),
    *(
        Bad(
            f"heartbeat_timeout = {number}",
            f"3: interface[0].heartbeat_timeout: {number} is out of range",
        )
        for number in ("-1", "nan", "inf", "86401")
    ),
    Bad("paused = 1", "3: interface[0].paused: an integer, not true or false"),
    Bad("heartbeat_timeout = false", "3: interface[0].heartbeat_timeout: a boolean, not a number"),
    # unknown keys, and keys that are no tables
    Bad("mod = 1", "3: interface[0].mod: [[interface]] has no such key", "did you mean 'mode'?"),
    Bad(
        '"a b\\n" = 1',
        '3: interface[0]."a b\\n": [[interface]] has no such key',
        "the keys are name, mode, loader, max_addresses, on_stop, join, heartbeat_timeout, paused,"
        " prefix, docker, announce, gateway, addresses, limit",
    ),
    Bad(
        "rate = 1",
        "3: interface[0].rate: [[interface]] has no such key",
        "it is a key of [interface.announce] and [interface.limit]",
    ),
    Bad(
        PREFIX + "mode = 1",
        "5: interface[0].prefix[0].mode: [[interface.prefix]] has no such key",
        "it is a key of [[interface]]",
    ),
    Bad(
        'log_level = "info"',
        "3: interface[0].log_level: [[interface]] has no such key",
        "it belongs at the top of the file, above all tables",
    ),
    Bad("\n[interface.gateways]", "4: interface[0].gateways: [[interface]] has no such key"),
    Bad("x.y.z = 1", "3: interface[0].x: [[interface]] has no such key"),
    Bad(
        '[interface.prefix]\nprefix = "::2"',
        "3: interface[0].prefix: a table, not an array of tables",
        "write it as [[interface.prefix]]",
    ),
    Bad("prefix = []", "3: interface[0].prefix: an empty array, not an array of tables"),
    Bad('prefix = "::2"', "3: interface[0].prefix: a string, not an array of tables"),
    Bad('prefix = [\n"::2"]', "4: interface[0].prefix[0]: a string, not a table"),
    Bad(
        "[[interface.gateway]]",
        "3: interface[0].gateway: an array, not a table",
        "write it as [interface.gateway]",
    ),
    Bad("gateway = true", "3: interface[0].gateway: a boolean, not a table"),
    # prefixes
    Bad(
        "\n[[interface.prefix]]\nrouter = false",
        "4: interface[0].prefix[0]: one of prefix, file is missing",
        'write it as in prefix = "2001:db8::/64"',
    ),
    Bad(
        PREFIX + 'file = "x"',
        "5: interface[0].prefix[0].file: this key cannot be combined with prefix",
        "write exactly one of prefix, file",
        also=1,  # the file does not exist, either
    ),
    in_prefix(
        'answer = "sometimes"',
        "answer: 'sometimes' is not one of always, local, routed, neighbour, never",
    ),
    in_prefix(
        'via = ["docker0"]',
        'via: this key selects routes, but answer = "always" does not ask for one',
        'write answer = "routed" or',
    ),
    in_prefix(
        'dev = ["docker0"]\nanswer = "local"',
        'dev: this key selects routes, but answer = "local" does not ask for one',
    ),
    in_prefix('dev = ["br 0"]\nanswer = "routed"', "dev[0]: 'br 0' matches no interface's name"),
    in_prefix('dev = "docker0"\nanswer = "routed"', "dev: a string, not an array"),
    Bad(
        PREFIX + 'answer = "routed"\ndev = ["a"]\nvia = ["a"]',
        "7: interface[0].prefix[0].via: dev and via are the same key",
        "keep dev, and remove via",
    ),
    in_prefix('via = ["br 0"]\nanswer = "routed"', "via[0]: 'br 0' matches no interface's name"),
    in_prefix('via = "docker0"\nanswer = "routed"', "via: a string, not an array"),
    in_prefix(
        "via = " + str([f"interface{n:06}" for n in range(9)]) + '\nanswer = "neighbour"',
        "via: the interfaces of one rule take more than 127 bytes",
    ),
    in_prefix('answer = "Never"', "answer: 'Never' is not one of", "did you mean 'never'?"),
    in_prefix("answer = true", "answer: a boolean, not a string"),
    in_prefix('source = "nowhere"', "source: 'nowhere' is not an IPv6 address"),
    in_prefix('source = "ff02::1"', "source: 'ff02::1' is no source that a host can have"),
    in_prefix('source = "::"', "source: '::' is no source that a host can have"),
    in_prefix('source = "192.0.2.1"', "source: '192.0.2.1' is an IPv4 address"),
    in_prefix("router = 1", "router: an integer, not true or false"),
    in_prefix('override = "yes"', "override: a string, not true or false"),
    in_prefix('dad = "defnd"', "dad: 'defnd' is not one of defend, ignore"),
    in_prefix('lladdr = "02:00"', "lladdr: '02:00' is not a MAC address"),
    in_prefix('lladdr = "ff:ff:ff:ff:ff:ff"', "lladdr: 'ff:ff:ff:ff:ff:ff' is no MAC that"),
    Bad(
        PREFIX + 'answer = "never"\nrouter = true',
        '6: interface[0].prefix[0].router: this key has no effect with answer = "never"',
    ),
    *(
        Bad(
            f'[[interface.prefix]]\n\nprefix = "{prefix}"',
            f"5: interface[0].prefix[0].prefix: {expected}",
        )
        for prefix, expected in (
            ("2001:db8::1/64", "'2001:db8::1/64' has bits set behind the first 64"),
            ("2001:db8::/129", "'2001:db8::/129' has no prefix length from 0 to 128"),
            ("", "'' is not an IPv6 address"),
            ("a\\nb\\u001b", "'a\\nb\\x1b' is not an IPv6 address"),
            ("ff02::1", "ff02::1 is multicast: no router solicits it"),
            ("::1", "no router solicits ::1"),
        )
    ),
    Bad(
        PREFIX + TWICE,
        "6: interface[0].prefix[1].prefix: 2001:db8::/64 is given twice",
        "line 4 has it first: name every prefix once",
    ),
    # Docker
    Bad(
        "\n\n[[interface.docker]]",
        "5: interface[0].docker[0]: one of network, network_label, container_label, within is",
        'write it as in network = "name"',
    ),
    in_docker(
        'within = "2001:db8::/48"',
        "within: this key cannot be combined with network",
        "write exactly one of network, network_label, container_label, within",
    ),
    in_docker('answer = "always"', "answer: [[interface.docker]] has no such key"),
    in_docker('except_label = "=x"', "except_label: '=x' is not a label", "write it as in key or"),
    in_docker('except_label = " "', "except_label: ' ' is not a label"),
    in_docker('lladdr = "x"', "lladdr: 'x' is not a MAC address"),
    Bad(DOCKER + DOCKER, "6: interface[0].docker[1].network: web is given twice", "line 4 has"),
    Bad(
        '[[interface.docker]]\nnetwork = " "',
        "4: interface[0].docker[0].network: ' ' is not the name",
    ),
    Bad(
        '[[interface.docker]]\nwithin = "::/x"',
        "4: interface[0].docker[0].within: '::/x' has no prefix length from 0 to 128",
    ),
    Bad(
        '[[interface.docker]]\nnetwork_label = "a=b"\nexcept_label = "a"',
        "5: interface[0].docker[0].except_label: 'a' excludes all that have 'a=b'",
    ),
    # the other tables
    Bad(
        "\n[interface.announce]\nprobe = false",
        "4: interface[0].announce: this table announces nothing",
    ),
    within("announce", "probe = 1", "probe: an integer, not true or false"),
    within("announce", "interval = 0.1", "interval: 0.1 is out of range", "it may be 0, or from"),
    within("announce", "interval = 86401", "interval: 86401 is out of range"),
    within("announce", "rate = 0", "rate: 0 is out of range", "it may be from 1 to 1000000"),
    within("announce", "neighbours = 1", "neighbours: an integer, not true or false"),
    within("announce", "announce = true", "announce: [interface.announce] has no such key"),
    within("gateway", "keep = 1", "keep: an integer, not true or false"),
    within("gateway", 'source = "::"', "source: '::' is no source that a host can have"),
    within("gateway", "interval = 0", "interval: 0 is out of range", "it may be from 1 to 3600"),
    Bad(
        '\n[interface.addresses]\npreferred = "::2"',
        "4: interface[0].addresses.deprecate: this key is missing",
        'write it as in deprecate = ["2001:db8::1"]',
    ),
    within(
        "addresses", 'deprecate = "::2"', "deprecate: a string, not an array", "put it in brackets"
    ),
    Bad(
        '[interface.addresses]\ndeprecate = [\n"::2",\n3, "::g"]',
        "6: interface[0].addresses.deprecate[1]: an integer, not a string",
        also=1,
    ),
    Bad(
        '[interface.addresses]\ndeprecate = [\n"::2",\n"::3",\n"::2/128"]',
        "7: interface[0].addresses.deprecate[2]: ::2 is given twice",
        "line 5 has it first",
    ),
    Bad(
        '[interface.addresses]\npreferred = "::2"\ndeprecate = ["::/64",\n"::2"]',
        "6: interface[0].addresses.deprecate[1]: ::2 cannot be both preferred and deprecated",
        "deprecate a prefix that contains it: preferred exempts it",
    ),
    Bad(
        '[interface.addresses]\npreferred = ["::1/-64"]\ndeprecate = ["::/0",\n"2001:db8::1"]',
        "6: interface[0].addresses.deprecate[1]: 2001:db8::1 cannot be both preferred and"
        " deprecated",
        "preferred has ::1/-64, and a preferred address is never deprecated",
    ),
    Bad(
        '[interface.addresses]\npreferred = ["::1/-64",\n"::1/-64"]\ndeprecate = ["::/0"]',
        "5: interface[0].addresses.preferred[1]: ::1/-64 is given twice",
        "line 4 has it first",
    ),
    within(
        "addresses",
        'preferred = 7\ndeprecate = ["::/0"]',
        "preferred: an integer, not a string or an array of strings",
        "put it in quotes",
    ),
    within(
        "addresses",
        'preferred = ["::1/-64", 7]\ndeprecate = ["::/0"]',
        "preferred[1]: an integer, not a string",
        "put it in quotes",
    ),
    within(
        "addresses",
        'preferred = "::"\ndeprecate = ["::/0"]',
        "preferred: '::' is no source that a host can have",
    ),
    within(
        "addresses",
        'preferred = ["2001:db8::1/-64"]\ndeprecate = ["::/0"]',
        "preferred[0]: '2001:db8::1/-64' has bits set before the last 64",
        "::1/-64 is the suffix, 2001:db8::1 the address alone",
    ),
    within(
        "addresses",
        'deprecate = ["::1/-129"]',
        "deprecate[0]: '::1/-129' has no suffix length from -1 to -128",
        "write it as in ::1/-64, which is every address whose last 64 bits are those of ::1",
    ),
    within("limit", "rate = -1", "rate: -1 is out of range"),
    within("limit", "rate = nan", "rate: nan is out of range"),
    within("limit", "rate = 1e-9", "rate: 1e-09 is out of range"),
    within("limit", "rate = 1e10", "rate: 10000000000 is out of range"),
    within("limit", "burst = 5", "burst: a burst without a rate limits nothing", "add a rate"),
    within("limit", "burst = 0", "burst: 0 is out of range"),
    within("limit", "burst = 1.5", "burst: a number, not an integer"),
    Bad(
        "[interface.limit]\nburst = 2\nrate = 0",
        "4: interface[0].limit.burst: a burst without a rate limits nothing",
    ),
]


@pytest.mark.parametrize("case", BAD_INTERFACES, ids=lambda case: case.text[:60])
def test_bad_interface(case: Bad) -> None:
    error = refused(HEAD + case.text)
    assert error.message.startswith(f"ndxdp.toml:{case.expected}")
    assert error.hint.startswith(case.hint)
    assert len(error.also) == case.also, error.also


# Complete texts.
BAD_TEXTS = [
    Bad(
        "",
        "1: no interface is configured",
        "write [[interface]], and its name below; ndxdp init proposes a file for this host",
    ),
    Bad("interface = []", "1: interface: an empty array, not an array of tables"),
    Bad(
        '[interface]\nname = "eth0"',
        "1: interface: a table, not an array of tables",
        "write it as [[",
    ),
    Bad(
        "\n[[interface]]",
        "2: interface[0].name: this key is missing",
        'write it as in name = "eth0"',
    ),
    Bad("[[interface]]\nname = 1", "2: interface[0].name: an integer, not a string"),
    *(
        Bad(
            f'[[interface]]\nname = "{name}"',
            f"2: interface[0].name: '{name}' is no interface name",
        )
        for name in ("", "..", "a/b", "a:b", "a b", "gr\u00e0", "%d", "x" * 128)
    ),
    *(
        Bad(f'[[interface]]\nname = "{name}"', f"2: interface[0].name: {message}", hint)
        for name, message, hint in (
            ("tap[0", "'tap[0' has a [ without its ]", 'as in "tap[0-9]"'),
            ("[]", "'[]' has a [ without its ]", 'as in "tap[0-9]"'),
            ("[!]*", "'[!]*' has a [ without its ]", 'as in "tap[0-9]"'),
            ("tap[9-0]*", "'tap[9-0]*' has a range without a member", "the lower end comes first"),
            ("ta p*", "'ta p*' matches no interface's name", 'as in "tap*"'),
            ("tap/*", "'tap/*' matches no interface's name", 'as in "tap*"'),
            ("tap%*", "'tap%*' matches no interface's name", 'as in "tap*"'),
            (
                "a" * 14 + "?[bc]*",
                f"'{'a' * 14}?[bc]*' matches only names longer than 15 bytes",
                "a pattern",
            ),
            (
                "\u00e4" * 8 + "*",
                f"'{chr(0xE4) * 8}*' matches only names longer than 15 bytes",
                "a pattern",
            ),
            ("*" * 256, "the pattern is longer than 255 bytes", "write several"),
        )
    ),
    Bad(
        '[[interface]]\nname = "tap*"\n[[interface]]\nname = "tap*"',
        "4: interface[1].name: tap* is configured twice",
        "line 2 has it first: put both into one table",
    ),
    Bad(
        f"{HEAD}{HEAD}",
        "4: interface[1].name: eth0 is configured twice",
        "line 2 has it first: put both into one table",
    ),
    Bad(
        'log_level = "warn"', "1: log_level: 'warn' is not one of error,", "did you mean 'warning'?"
    ),
    Bad("log_format = 1", "1: log_format: an integer, not a string"),
    Bad('log_format = "xml"', "1: log_format: 'xml' is not one of text, json"),
    Bad("loglevel = 1", "1: loglevel: the file has no such key", "did you mean 'log_level'?"),
    Bad('name = "eth0"', "1: name: the file has no such key"),
    Bad("metrics = true", "1: metrics: a boolean, not a table", "write it as [metrics]"),
    Bad("\n[[metrics]]", "2: metrics: an array, not a table"),
    Bad("[metrics]\nport = 1", "2: metrics.port: [metrics] has no such key", "the keys are listen"),
    Bad("[metrics]\nlisten = 9877", "2: metrics.listen: an integer, not a string"),
    *(
        Bad(
            f'[metrics]\nlisten = "{text}"',
            f"2: metrics.listen: '{text}' is not an address and a port",
        )
        for text in (
            "",
            "9877",
            ":9877",
            "::1",
            "::1:9877",
            "[::1]",
            "[::1]:",
            "[::1]:0",
            "[::1]:65536",
            "[::1]:+1",
            "localhost",
            "[]:1",
            "localhost:１",
        )
    ),
    *(
        Bad(
            f'[metrics]\nlisten = "{text}"',
            f"2: metrics.listen: '{text}' names no host to listen on",
        )
        for text in ("[::g]:1", "[127.0.0.1]:1", "127.0.0.256:1", "*:1", "a b:1", "-a:1")
    ),
    Bad("[docker]\nhost = 1", "2: docker.host: [docker] has no such key"),
    *(
        Bad(
            f'docker.socket = "{text}"',
            f"1: docker.socket: '{text}' is not the path of a unix socket",
        )
        for text in ("", "docker.sock", "tcp://[::1]:2375", "/" + "a" * 107)
    ),
    # messages of tomllib
    Bad("a = ", "1: this is not TOML: invalid value", "strings need quotes"),
    Bad('\n\na = "', "3: this is not TOML: unterminated string"),
    Bad("a = [1,\n2", "2: this is not TOML: "),
    Bad('a = """\n\n', "2: this is not TOML: unterminated string"),
    Bad("mode = tc", "1: this is not TOML: invalid value (column 8)"),
    Bad("a = 1\na = 2", "2: this is not TOML: this key or table exists already"),
    Bad(
        "[a]\n[b]\n[a]",
        "3: this is not TOML: cannot declare 'a' twice",
        "write every key and every [table] once",
    ),
    Bad("[a.b]\n[a.b]", "2: this is not TOML: cannot declare 'a.b' twice (column 5)"),
    Bad("a = 1\r\n\rb", "2: this is not TOML: "),
    Bad("a = 1 b", "1: this is not TOML: expected newline or end of document"),
    Bad("a = '\x00'", "1: this is not TOML: "),
    Bad(f"a = 1\nb = {'9' * 5000}", "2: this is not TOML: a number has too many digits"),
]


@pytest.mark.parametrize("case", BAD_TEXTS, ids=lambda case: case.text[:60])
def test_bad_text(case: Bad) -> None:
    error = refused(case.text)
    found = [sentence for sentence in (error.message, *error.also) if case.expected in sentence]
    assert found, (error.message, error.also)
    assert found[0].startswith(f"ndxdp.toml:{case.expected}")
    if found[0] == error.message:
        assert error.hint.startswith(case.hint)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "{a=" * 100_000])
def test_brackets_without_end(text: str) -> None:
    assert "ndxdp.toml: brackets are nested too deeply" in refused(text).message or (
        "this is not TOML" in refused(text).message
    )


def test_every_depth_that_tomllib_takes_has_a_line() -> None:
    for depth in range(50, 600, 7):
        error = refused(f"{HEAD}x = {'[' * depth}{']' * depth}")
        assert "no such key" in error.message or "too deeply" in error.message


# The subject of a text, and a function that makes the text in a size.
LONG: dict[str, Callable[[int], str]] = {
    "parts of a key": lambda n: ".".join("a" * n) + " = 1",
    "parts of a header": lambda n: f"[{'.'.join('a' * n)}]",
    "parts of a key in an inline table": lambda n: f"a = {{{'.'.join('a' * n)} = 1}}",
    "dots in a comment": lambda n: f"# {'a.' * n}\na = 1",
    "keys": lambda n: "".join(f"a{i} = 1\n" for i in range(n)),
    "tables": lambda n: "".join(f"[a{i}]\n" for i in range(n)),
    "interfaces": lambda n: "".join(f"[[interface]]\nname = 'a{i}'\n" for i in range(n)),
    "addresses": lambda n: HEAD + "".join(f"{WITH}'2001:db8::{i:x}'\n" for i in range(n)),
    "prefixes": lambda n: HEAD + "".join(f"{WITH}'2001:db8:{i:x}::/64'\n" for i in range(n)),
    "prefixes given twice": lambda n: (
        HEAD + "".join(f"{WITH}'2001:db8::{i // 2:x}'\n" for i in range(n))
    ),
    "networks": lambda n: (
        HEAD + "".join(f"[[interface.docker]]\nnetwork = 'a{i}'\n" for i in range(n))
    ),
    "deprecated and preferred addresses": lambda n: (
        HEAD
        + "[interface.addresses]\n"
        + f"deprecate = {[f'2001:db8::{i:x}' for i in range(n)]}\n"
        + f"preferred = {[f'2001:db8:1::{i:x}' for i in range(n)]}\n"
    ),
    "lines of an array": lambda n: "a = [\n" + "1,\n" * n + "]",
    "inline tables": lambda n: f"a = [{'{a = 1},' * n}]",
    "letters of a name": lambda n: f"[[interface]]\nname = '{'a' * n}'",
    "letters of a key": lambda n: "a" * n + " = 1",
    "lines of a string": lambda n: "a = '''" + "a\n" * n + "'''",
    "lines of a string without an end": lambda n: "a = '''" + "a.\n" * n,
    "escapes": lambda n: 'a = "' + "\\n" * n + '"',
    "blank lines": lambda n: "\n" * n + "a = 1",
}


@pytest.mark.parametrize("about", LONG)
def test_the_effort_grows_linearly(about: str) -> None:
    """Execute at most proportionally more Python lines for a text that is four times as long."""

    def steps(text: str) -> int:
        count = 0

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal count
            count += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with contextlib.suppress(UsageError):
                parse(text, "ndxdp.toml")
        finally:
            sys.settrace(before)
        return count

    steps(LONG[about](100))  # imports, and compiles patterns
    assert steps(LONG[about](400)) < 6 * steps(LONG[about](100)) + 1000


def test_huge_texts_are_refused_in_bounded_time() -> None:
    """Refuse huge texts in bounded time; steps inside C functions count here, too."""
    began = time.monotonic()
    for text in (".".join("a" * 20_000) + " = 1", f"{HEAD}[{'.'.join('a' * 20_000)}]"):
        assert "more than 32 parts" in refused(text).message
    assert len(parse(LONG["addresses"](5000), "ndxdp.toml").interfaces[0].rules) == 5000
    assert time.monotonic() - began < 20


def test_a_long_word_is_not_repeated_whole() -> None:
    error = refused(f"[[interface]]\nname = '{'a' * 100_000}'")
    assert len(error.message) < 600
    assert "no interface name" in error.message


def test_all_errors_are_listed_in_the_order_of_the_lines() -> None:
    error = refused(
        "[[interface]]\nmode = 1\n"
        '[[interface.prefix]]\nprefix = "::g"\nanswer = "maybe"\nx = 1\n'
        "[metrics]\nlisten = 0\n"
    )
    assert [text.split(": ")[:2] for text in (error.message, *error.also)] == [
        ["ndxdp.toml:1", "interface[0].name"],
        ["ndxdp.toml:2", "interface[0].mode"],
        ["ndxdp.toml:4", "interface[0].prefix[0].prefix"],
        ["ndxdp.toml:5", "interface[0].prefix[0].answer"],
        ["ndxdp.toml:6", "interface[0].prefix[0].x"],
        ["ndxdp.toml:8", "metrics.listen"],
    ]


def test_the_list_of_errors_is_bounded() -> None:
    error = refused(HEAD + "".join(f"x{number} = 1\n" for number in range(100)))
    assert len(error.also) == 21
    assert error.also[-1] == "and 79 more"
