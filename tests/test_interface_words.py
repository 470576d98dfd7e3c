"""The interface on the command line: as a word, by -i, or none; each ambiguous line is decided."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ndxdp.cli.main import cli
from tests.fixtures.network import (
    BEHIND,
    TARGET,
    UPLINK,
    Network,
    call,
    done,
    ndxdp,
    remove_instance,
    rules,
    sh,
    status,
)

FAR = "up1"
OTHER = "2001:db8::d:0:0:1"
AGAIN = "2001:db8::d:0:0:2"


@pytest.fixture
def both(attached: Network) -> Iterator[Network]:
    """Attach ndxdp to two interfaces."""
    sh("ip", "link", "add", FAR, "up", "type", "veth", "peer", "far1")
    done("attach", FAR, "--mode", "tc", "-n", "2001:db8:0:0:f::/80")
    yield attached
    done("detach", FAR, "--missing-ok")
    sh("ip", "link", "delete", FAR)


def listed(*words: str) -> set[str]:
    """Return the prefixes that `prefix list` shows without those of the host."""
    return {
        line.split()[0]
        for line in done("prefix", "list", *words, "--origin", "manual").splitlines()
    }


# ---- each command takes the word, and the option -------------------------------------------------


@pytest.mark.parametrize("way", [(FAR,), ("-i", FAR), ("--interface", FAR), (FAR, "-i", FAR)])
def test_prefix_takes_the_interface(both: Network, way: tuple[str, ...]) -> None:
    done("prefix", "add", *way, OTHER, AGAIN)
    assert listed(*way) == {"2001:db8:0:0:f::/80", OTHER, AGAIN}
    assert listed(UPLINK) == {BEHIND}
    done("prefix", "replace", *way, OTHER, "--override")
    done("prefix", "del", *way, OTHER)
    done("prefix", "del", *way, "--all")
    assert listed(*way) == set()
    assert "rule     none" in done("explain", *way, TARGET)
    assert "rule     2001:db8" in done("explain", UPLINK, TARGET)


def test_the_option_may_follow(both: Network) -> None:
    done("prefix", "add", OTHER, "-i", FAR, AGAIN)
    assert {OTHER, AGAIN} < listed(FAR)
    assert "rule     2001:db8" in done("explain", OTHER, "-i", FAR)


def test_without_an_interface_the_only_one_is_meant(attached: Network) -> None:
    done("prefix", "add", OTHER, AGAIN)
    assert {OTHER, AGAIN} < set(rules())
    assert f"rule     {OTHER}" in done("explain", OTHER)
    assert listed() == {BEHIND, OTHER, AGAIN}
    done("prefix", "del", OTHER, AGAIN)
    assert listed() == {BEHIND}


@pytest.mark.parametrize("way", [(), ("-i",)])
def test_the_other_commands_take_the_interface(net: Network, way: tuple[str, ...]) -> None:
    here = (*way, UPLINK)
    done("attach", *here, "--mode", "tc", "-n", BEHIND)
    done("pause", *here)
    assert status()["paused"]
    done("resume", *here)
    assert not status()["paused"]
    assert done("status", *here, "--json") == done("status", UPLINK, "--json")
    assert "0 seen" in ndxdp("trace", *here, "--seconds", "0.1").err
    assert f"{UPLINK}  sources" in done("top", *here, "--seconds", "0.1")
    assert done("doctor", "--help")
    assert ndxdp("doctor", *here, "--json").out.count('"interface": "') == 1
    done("detach", *here)
    running = net.run(*here, "--mode", "tc", "-n", BEHIND)
    assert UPLINK in running.ready
    running.end_cleanly()


def test_trace_and_top_take_several(both: Network) -> None:
    for words in ((UPLINK, FAR), ("-i", UPLINK, "-i", FAR), (FAR, "-i", UPLINK)):
        out = done("top", *words, "--seconds", "0.1")
        assert f"{UPLINK}  sources" in out
        assert f"{FAR}  sources" in out
    assert f"{FAR}  sources" not in done("top", UPLINK, "--seconds", "0.1")


def test_top_has_the_natural_order(net: Network) -> None:
    names = ["zz2", "zz10"]
    try:
        for name in names:
            sh("ip", "link", "add", name, "up", "type", "bridge")
            done("attach", name, "--mode", "tc")
        shown = ndxdp("top", "--seconds", "0.1", "--json").json()
        assert [each["interface"] for each in shown["interfaces"]] == names
    finally:
        for name in names:
            call("ip", "link", "delete", name)
            remove_instance(name)


def test_an_alternative_name(attached: Network) -> None:
    sh("ip", "link", "property", "add", "dev", UPLINK, "altname", "wan-of-the-whole-host")
    done("prefix", "add", "wan-of-the-whole-host", OTHER)
    assert OTHER in rules()
    assert OTHER in done("explain", "wan-of-the-whole-host", OTHER)
    done("prefix", "del", "-i", "wan-of-the-whole-host", UPLINK, OTHER)  # both are this one
    assert OTHER not in rules()


# ---- words that could be two things --------------------------------------------------------------


def test_an_interface_that_looks_like_an_address(attached: Network) -> None:
    """A word with dots is an IPv4 address, unless an interface has that name."""
    result = ndxdp("prefix", "add", "192.0.2.1", OTHER)
    assert (result.code, "'192.0.2.1' is an IPv4 address" in result.err) == (2, True)
    sh("ip", "link", "add", "192.0.2.1", "up", "type", "veth", "peer", "far2")
    try:
        done("attach", "192.0.2.1", "--mode", "tc")
        done("prefix", "add", "192.0.2.1", OTHER)
        assert listed("192.0.2.1") == {OTHER}
        assert listed(UPLINK) == {BEHIND}
    finally:
        ndxdp("detach", "192.0.2.1")
        sh("ip", "link", "delete", "192.0.2.1")


def test_an_interface_with_a_name_of_hexadecimal_digits(attached: Network) -> None:
    sh("ip", "link", "add", "dead", "up", "type", "veth", "peer", "beef")
    try:
        result = ndxdp("prefix", "add", "dead", OTHER)
        assert result.code == 1
        assert "not attached to dead" in result.err
        assert OTHER not in rules()
    finally:
        sh("ip", "link", "delete", "dead")


@pytest.mark.parametrize(
    ("line", "code", "sentence", "hint"),
    [
        (f"prefix add {OTHER} {UPLINK}", 2, f"'{UPLINK}' is named behind", f"{UPLINK} {OTHER}"),
        (f"explain {TARGET} {UPLINK}", 2, f"'{UPLINK}' is named behind", f"{UPLINK} {TARGET}"),
        (f"prefix add {UPLINK} {FAR} {OTHER}", 2, f"'{FAR}' is named behind", "one interface"),
        (f"prefix add {UPLINK} -i {FAR} {OTHER}", 2, f"{FAR} and {UPLINK}", "one of them"),
        (f"explain -i {UPLINK} {FAR} {TARGET}", 2, f"{UPLINK} and {FAR}", "one of them"),
        (f"attach {UPLINK} -i {FAR}", 2, f"{FAR} and {UPLINK}", "one of them"),
        (f"prefix add {OTHER}", 2, f"several interfaces: {UPLINK}, {FAR}", f"add {UPLINK}"),
        (f"explain {TARGET}", 2, f"several interfaces: {UPLINK}, {FAR}", f"explain {UPLINK}"),
        ("prefix list", 2, f"several interfaces: {UPLINK}, {FAR}", f"list {UPLINK}"),
        (f"prefix add {UPLINK}", 2, f"no prefix is given for the interface '{UPLINK}'", "name"),
        ("prefix add nosuch", 2, "no prefix is given for the interface 'nosuch'", "name"),
        (f"prefix add nosuch {OTHER}", 1, "not attached to nosuch", "no interface of this name"),
        (f"prefix del nosuch {OTHER}", 1, "not attached to nosuch", "no interface of this name"),
        (f"explain nosuch {TARGET}", 1, "not attached to nosuch", "no interface of this name"),
        (f"prefix add {OTHER} nosuch", 2, "'nosuch' is not an IPv6 address", "2001:db8::1"),
        (f"explain {UPLINK}", 2, f"TARGET is missing: '{UPLINK}' is an interface", UPLINK),
        (f"explain {UPLINK} {TARGET} {OTHER}", 2, f"2 are named: {TARGET}, {OTHER}", "once"),
        ("explain nosuch", 2, "'nosuch' is not an IPv6 address", "2001:db8::1"),
        (f"trace {TARGET}", 2, f"'{TARGET}' is no interface name", f"--target {TARGET}"),
        (f"top {TARGET}", 2, f"'{TARGET}' is no interface name", "--target"),
        (f"attach {TARGET}", 2, f"'{TARGET}' is no interface name", "ip -br link"),
        ("pause", 2, "pause needs the argument IFACE", "pause eth0"),
        ("run", 2, "run needs an interface, or a configuration file", "run -c FILE"),
    ],
    ids=str,
)
def test_a_line_that_says_two_things(
    both: Network, line: str, code: int, sentence: str, hint: str
) -> None:
    result = ndxdp(*line.split())
    assert (result.code, result.out) == (code, ""), result
    assert sentence in result.err
    assert hint in result.err
    assert listed(UPLINK) == {BEHIND}
    assert listed(FAR) == {"2001:db8:0:0:f::/80"}


# ---- files ---------------------------------------------------------------------------------------


def test_check_takes_the_file_as_a_word(net: Network, tmp_path: Path) -> None:
    file, other = tmp_path / "ndxdp.toml", tmp_path / "other.toml"
    file.write_text(f'[[interface]]\nname = "{UPLINK}"\n')
    ways: tuple[tuple[str, ...], ...] = (
        (str(file),),
        ("-c", str(file)),
        ("--config", str(file)),
        (str(file), "-c", str(file)),
    )
    for words in ways:
        assert done("check", *words).splitlines()[0] == f"{file}: good"
    result = ndxdp("check", str(file), "-c", str(other))
    assert (result.code, "two files are named" in result.err) == (2, True)
    assert ndxdp("check", "").code == 2
    for more in ((), ("-n", BEHIND)):
        result = ndxdp("run", str(file), *more)
        assert result.code == 2
        assert f"run -c {file}" in result.err
    result = ndxdp("run", UPLINK, "-c", str(file))
    assert (result.code, f"the interface {UPLINK}" in result.err) == (2, True)
    result = ndxdp("run", "-i", UPLINK, "-c", str(file))
    assert (result.code, f"the interface {UPLINK}" in result.err) == (2, True)


# ---- help ----------------------------------------------------------------------------------------


def commands(group: click.Group, above: str = "ndxdp") -> Iterator[tuple[str, click.Command]]:
    """Yield each command with its full name."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{above} {name}")
        else:
            yield f"{above} {name}", command


@pytest.mark.parametrize(("name", "command"), list(commands(cli)), ids=str)
def test_help_shows_the_word_only(name: str, command: click.Command) -> None:
    text = command.get_help(click.Context(command, info_name=name))
    has_option = any("--interface" in parameter.opts for parameter in command.params)
    assert "--interface " not in text
    assert ("IFACE" in text.splitlines()[0]) is has_option
