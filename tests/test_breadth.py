"""Rules that are too broad: refused by commands, left out by daemons; and other nodes' addresses.

The router is a kernel of its own: it takes an address, or finds a duplicate.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ndxdp.ndp.profile import Answer
from ndxdp.netlink import onlink
from ndxdp.rules import breadth
from ndxdp.rules.breadth import BroadRule
from ndxdp.rules.prefix import parse_prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.rule_lists import compile_rules
from tests.fixtures.doctor import bad, follow
from tests.fixtures.network import (
    BEHIND,
    GATEWAY,
    HOST,
    OTHER_GATEWAY,
    ROUTER_LINK,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    Running,
    a_way_behind,
    done,
    eventually,
    ndxdp,
    remove_instance,
    rules,
    sh,
    status,
    without_gateway,
)
from tests.test_bad_input import unchanged

ON_LINK = "2001:db8::/64"
UNSEEN = "2001:db8::77"
"""An address of the on-link prefix that the host does not know."""
DOWN = "behind0"

P = parse_prefix


# ---- pure ---------------------------------------------------------------------------------------


def broad(text: str, covers: str | None) -> BroadRule:
    return BroadRule(P(text), Rule(label=text), None if covers is None else P(covers))


@pytest.mark.parametrize(
    ("text", "covers"),
    [
        ("::/0", None),
        ("::/31", None),
        ("2000::/3", None),
        ("8000::/1", None),
        ("fe00::/9", None),
        ("fe80::/10", "fe80::/10"),
        ("fe80::/64", "fe80::/10"),
        ("fe80::5", "fe80::/10"),
        ("febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fe80::/10"),
    ],
)
def test_too_broad_anywhere(text: str, covers: str | None) -> None:
    assert list(breadth.anywhere(compile_rules([text]))) == [broad(text, covers)]
    for answer in (Answer.ROUTED, Answer.NEIGHBOUR, Answer.NEVER):
        assert not list(breadth.anywhere(compile_rules([text], rule=Rule(answer))))


@pytest.mark.parametrize(
    "text", ["2001:db8::/32", "2001:db8::/64", "fec0::/32", "fec0::", "fd00::/48", "2001:db8::1"]
)
def test_not_too_broad_anywhere(text: str) -> None:
    assert not list(breadth.anywhere(compile_rules([text])))


@pytest.mark.parametrize(
    ("text", "is_over"),
    [
        ("2001:db8::/64", True),
        ("2001:db8::/63", True),
        ("2001:db8::/32", True),
        ("::/0", True),
        ("2001:db8::/65", False),
        ("2001:db8:0:0:c::/80", False),
        ("2001:db8:0:1::/64", False),
        ("2001:db8::1", False),
    ],
)
def test_over_an_on_link_prefix(text: str, is_over: bool) -> None:
    here = [P(ON_LINK), P("2001:db8:5::/64")]
    found = list(breadth.covering(compile_rules([text, BEHIND[:-2] + "96"]), here))
    assert found == ([broad(text, ON_LINK)] if is_over else [])
    assert not list(breadth.covering(compile_rules([text]), here, {P(text)}))
    assert not list(breadth.covering(compile_rules([text], rule=Rule(Answer.ROUTED)), here))
    test = breadth.candidates(here)
    assert test(P(text).length, P(text).address) is is_over


def test_each_is_named_once() -> None:
    made = compile_rules(["::/0", ON_LINK, "fe80::/10"])
    found = breadth.find_all(made, [P(ON_LINK), P("2001:db8:5::/64")])
    assert found == [broad("::/0", None), broad(ON_LINK, ON_LINK), broad("fe80::/10", "fe80::/10")]


def test_an_omitted_rule_becomes_a_hole() -> None:
    made = compile_rules([ON_LINK, TARGET], rule=Rule(origin="config"))
    left = breadth.leave_out(made, breadth.covering(made, [P(ON_LINK)]))
    assert [prefix for prefix, rule in left.pairs() if breadth.is_left_out(rule)] == [P(ON_LINK)]
    hole = left[P(ON_LINK)]
    assert (hole.answer, hole.origin) == (Answer.NEVER, "config")
    assert left[P(TARGET)] == made[P(TARGET)]
    assert not breadth.is_left_out(Rule(Answer.NEVER, label=ON_LINK))


# ---- on-link prefixes, and routes behind the host -----------------------------------------------


@pytest.fixture
def link(net: Network) -> Iterator[Network]:
    """Add an interface behind the host to the two ends."""
    sh("ip", "link", "add", DOWN, "type", "bridge")
    sh("ip", "link", "set", DOWN, "addrgenmode", "none", "up")
    yield net
    sh("ip", "link", "delete", DOWN)


def on_link(*names: str) -> set[str]:
    from socket import if_nametoindex

    return {str(each) for each in onlink.read(map(if_nametoindex, names)).prefixes}


def route(words: str) -> None:
    sh("ip", "-6", "route", "add", *words.split())


def test_on_link_prefixes(link: Network) -> None:
    assert on_link(UPLINK) == {ON_LINK}
    sh("ip", "address", "add", "2001:db8:1::2/56", "dev", UPLINK, "nodad", "noprefixroute")
    sh("ip", "address", "add", "2001:db8:2::2", "peer", "2001:db8:3::1/64", "dev", UPLINK, "nodad")
    sh("ip", "address", "add", "2001:db8:4::2/128", "dev", UPLINK, "nodad")
    route(f"2001:db8:5::/64 dev {UPLINK}")
    route(f"2001:db8:6::/64 dev {UPLINK} table 77")
    route(f"2001:db8:8::/64 via {GATEWAY} dev {UPLINK}")
    route(f"2001:db8:9::/64 dev {DOWN}")
    route(f"2001:db8:a::1 dev {UPLINK}")
    expected = {"2001:db8:1::/56", "2001:db8:3::/64", "2001:db8:5::/64", "2001:db8:6::/64"}
    assert on_link(UPLINK) == {ON_LINK, "2001:db8:2::/64", *expected}
    assert onlink.read([0, 99999]).prefixes == frozenset()


def test_routes_behind_the_host(link: Network) -> None:
    from socket import if_nametoindex

    here = frozenset([if_nametoindex(UPLINK)])
    route(f"{BEHIND} dev {DOWN}")
    route(f"{BEHIND.replace('/80', '/96')} dev {DOWN}")  # inside the prefix above
    route(f"2001:db8::d:0:0:1 dev {DOWN}")
    route(f"2001:db8:0:0:e::/80 dev {UPLINK}")
    route("blackhole 2001:db8:0:0:f::/80")
    route(f"2001:db8:9::/64 dev {DOWN}")
    found = [str(each) for each in onlink.behind(P(ON_LINK), here)]
    sh("ip", "-6", "route", "delete", "blackhole", "2001:db8:0:0:f::/80")
    assert found == [BEHIND, "2001:db8::d:0:0:1"]
    assert onlink.behind(P("2001:db8:9::/64"), here) == []


# ---- rules in commands ---------------------------------------------------------------------------

EVERYTHING = (
    "ndxdp: the always rule for {} answers for nearly every address, those of other nodes too\n"
    "  hint: name the prefix of what is behind this host; or --answer neighbour or routed, for no"
    " other node; --force adds it all the same\n"
)
LINK_LOCAL = (
    "ndxdp: the always rule for {} answers for link-local addresses, which no host forwards to\n"
    "  hint: leave it out; --force adds it all the same\n"
)
COVERED = (
    "ndxdp: the always rule for {} answers for the other nodes on up0, too: 2001:db8::/64 is"
    " on-link there\n"
    "  hint: name {}; or --answer neighbour or routed, for no other node; --force adds it all the"
    " same\n"
)
UNKNOWN = "the prefix of what is behind this host"
REFUSED = {
    "::/0": (2, EVERYTHING),
    "2000::/3": (2, EVERYTHING),
    "fe80::/10": (2, LINK_LOCAL),
    "fe80::/64": (2, LINK_LOCAL),
    "fe80::77": (2, LINK_LOCAL),
    "2001:db8::/64": (1, COVERED),
    "2001:db8::/48": (1, COVERED),
    "2001:db8::/32": (1, COVERED),
}


def commands(prefix: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return each command that takes a rule, and its stdin."""
    return {
        "attach": (("attach", UPLINK, "--mode", "tc", "-n", prefix), ""),
        "attach --file": (("attach", UPLINK, "--mode", "tc", "--file", "-"), prefix),
        "run": (("run", "-i", UPLINK, "--mode", "tc", "-n", prefix), ""),
        "run in userspace": (("run", "-i", UPLINK, "--mode", "userspace", "-n", prefix), ""),
        "prefix add": (("prefix", "add", prefix), ""),
        "prefix add --file": (("prefix", "add", "--file", "-"), f"2001:db8::d:0:0:5\n{prefix}\n"),
    }


@pytest.mark.parametrize("prefix", REFUSED)
def test_refused_word_by_word(net: Network, prefix: str) -> None:
    code, sentence = REFUSED[prefix]
    for name, (words, stdin) in commands(prefix).items():
        if name == "prefix add":
            done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
        unchanged(partial(ndxdp, *words, stdin=stdin), code, prefix)
        assert ndxdp(*words, stdin=stdin) == (code, "", sentence.format(prefix, UNKNOWN)), name
    remove_instance()


def test_the_narrower_rules_are_named(link: Network) -> None:
    for number in range(5):
        route(f"2001:db8:0:0:{number + 12:x}::/80 dev {DOWN}")
    known = "what is behind this host: 2001:db8:0:0:c::/80, 2001:db8:0:0:d::/80"
    wanted = COVERED.format(ON_LINK, f"{known}, 2001:db8:0:0:e::/80, …")
    assert ndxdp("attach", UPLINK, "--mode", "tc", "-n", ON_LINK) == (1, "", wanted)
    for number in range(2, 5):
        sh("ip", "-6", "route", "delete", f"2001:db8:0:0:{number + 12:x}::/80", "dev", DOWN)
    wanted = COVERED.format(ON_LINK, known)
    assert ndxdp("attach", UPLINK, "--mode", "tc", "-n", ON_LINK) == (1, "", wanted)


def test_accepted_rules(net: Network) -> None:
    taken = ["2001:db8:0:0:c::/80", "2001:db8::d:0:0:0/112", "2001:db8:1::/64", "2001:db8::/65"]
    done("attach", UPLINK, "--mode", "tc", *(word for each in taken for word in ("-n", each)))
    done("prefix", "add", "--answer", "routed", ON_LINK, "::/0")
    done("prefix", "add", "--answer", "neighbour", "2001:db8::/48", "fe80::/10")
    done("prefix", "add", "--answer", "never", "2001:db8::/47")
    assert status()["warnings"] == []
    done("prefix", "del", ON_LINK, "::/0", "2001:db8::/48", "fe80::/10")
    done("prefix", "add", "--force", ON_LINK, "::/0", "2001:db8::/48", "fe80::/10", "fe80::77")
    done("attach", UPLINK, "--force", "-n", "fe80::/64")
    assert {ON_LINK, "::/0", "2001:db8::/48", "fe80::/10", "fe80::77", "fe80::/64"} < set(rules())
    remove_instance()


def test_run_accepts_it_with_force(net: Network) -> None:
    run = net.run("-i", UPLINK, "--mode", "tc", "-n", ON_LINK, "--force")
    assert net.answers(UNSEEN)
    assert rules()[ON_LINK]["answer"] == "always"
    assert run.end() == (0, "", "")
    words = ("run", "-c", "/nonexistent", "--force")
    assert "-c FILE cannot be combined with other options: --force" in ndxdp(*words).err


def test_a_neighbours_very_address_brings_a_warning(attached: Network) -> None:
    sh("ip", "neighbour", "replace", UNSEEN, "lladdr", ROUTER_MAC, "nud", "stale", "dev", UPLINK)
    sentence = (
        f"ndxdp: {UPLINK}: {UNSEEN} is a present neighbour at {ROUTER_MAC}: the neighbour and ndxdp"
        " both answer for it\n"
    )
    assert ndxdp("prefix", "add", UNSEEN) == (0, "", sentence)
    done("prefix", "del", UNSEEN)
    assert ndxdp("attach", UPLINK, "-n", UNSEEN) == (0, "", sentence)
    done("prefix", "del", UNSEEN)
    done("prefix", "add", "--answer", "neighbour", UNSEEN)
    sh("ip", "neighbour", "replace", GATEWAY, "lladdr", ROUTER_MAC, "nud", "stale", "dev", UPLINK)
    assert ndxdp("attach", UPLINK, "-n", GATEWAY) == (0, "", ""), "a hole"


def test_a_port_has_its_bridges_prefix(net: Network) -> None:
    sh("ip", "link", "add", "br0", "up", "type", "bridge")
    try:
        sh("ip", "link", "set", UPLINK, "master", "br0")
        sh("ip", "address", "add", "2001:db8:5::2/64", "dev", "br0", "nodad")
        result = ndxdp("attach", UPLINK, "-n", "2001:db8:5::/64")
        assert (result.code, "2001:db8:5::/64 is on-link" in result.err) == (1, True)
    finally:
        sh("ip", "link", "delete", "br0")


# ---- the router's own addresses ------------------------------------------------------------------


def takes(net: Network, address: str) -> bool:
    """Return whether the router's kernel takes an address after Duplicate Address Detection."""
    net.at_router("ip", "address", "delete", f"{address}/64", "dev", ROUTER_LINK)
    key = f"net.ipv6.conf.{ROUTER_LINK}"
    net.at_router("sysctl", "-qw", f"{key}.router_solicitation_delay=0", f"{key}.accept_dad=1")
    added = net.at_router("ip", "address", "add", f"{address}/64", "dev", ROUTER_LINK)
    assert added.code == 0

    def outcome() -> dict[str, Any] | None:
        shown = net.at_router("ip", "-6", "-j", "address", "show", "dev", ROUTER_LINK).json()
        found = {one["local"]: one for one in shown[0]["addr_info"]}[address]
        return None if found.get("tentative") and not found.get("dadfailed") else found

    found = eventually(outcome)
    assert found is not None
    failed = bool(found.get("dadfailed", False))
    if failed:
        net.at_router("ip", "address", "delete", f"{address}/64", "dev", ROUTER_LINK)
    return not failed


@a_way_behind()
def test_the_router_keeps_its_addresses(net: Network) -> None:
    """Let the router keep its addresses, though rules for the whole link were requested."""
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    for prefix in REFUSED:
        assert ndxdp("prefix", "add", prefix).code
    assert takes(net, OTHER_GATEWAY)
    assert takes(net, UNSEEN)
    assert not takes(net, TARGET), "what is behind the host is defended"
    remove_instance()


@pytest.mark.parametrize("dad", ["defend", "ignore"])
def test_dad_under_a_forced_rule(net: Network, dad: str) -> None:
    """Defend an address without a route under a forced rule, unless the rule ignores DAD."""
    nowhere = "2001:db8:0:77::5"
    with a_way_behind(), without_gateway():
        done("attach", UPLINK, "--mode", "tc")
        done("prefix", "add", "--force", "--dad", dad, ON_LINK, "2001:db8:0:77::/64")
        assert takes(net, UNSEEN), "the on-link route leads back"
        assert takes(net, nowhere) is (dad == "ignore")
    warned = "\n".join(status()["warnings"])
    assert (f"the always rule for {ON_LINK} answers for" in warned) is (dad == "defend")
    remove_instance()


# ---- the file ------------------------------------------------------------------------------------


def written(path: Path, *tables: str) -> str:
    head = f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\non_stop = "detach"\n'
    path.write_text(head + "".join(f"[[interface.prefix]]\n{table}\n" for table in tables))
    return str(path)


WIDE = f'prefix = "{ON_LINK}"'
NARROW = f'prefix = "{BEHIND}"'
LEFT_OUT = (
    f"ndxdp: {UPLINK}: left out: the always rule for {ON_LINK} answers for the other nodes on"
    f" {UPLINK}, too: {ON_LINK} is on-link there"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ndxdp.toml"


@pytest.mark.parametrize(
    ("prefix", "sentence", "hint"),
    [
        (
            "::/0",
            "answers for nearly every address, those of other nodes too",
            'name the prefix of what is behind this host; or answer = "neighbour" or "routed", for'
            " no other node; force = true adds it all the same",
        ),
        (
            "fe80::/10",
            "answers for link-local addresses, which no host forwards to",
            "leave it out; force = true adds it all the same",
        ),
    ],
)
def test_the_file_is_refused(file: Path, prefix: str, sentence: str, hint: str) -> None:
    name = written(file, NARROW, f'prefix = "{prefix}"')
    for command in (("check",), ("run",)):
        assert ndxdp(*command, "-c", name) == (
            2,
            "",
            f"ndxdp: {name}:8: interface[0].prefix[1].prefix: the always rule for {prefix}"
            f" {sentence}\n  hint: {hint}\n",
        )
    written(file, NARROW, f'prefix = "{prefix}"\nforce = true')
    assert ndxdp("check", "-c", name).code == 0
    written(file, f'prefix = "{prefix}"\nanswer = "neighbour"')
    assert ndxdp("check", "-c", name).code == 0


def test_a_list_is_refused(file: Path) -> None:
    (file.parent / "list").write_text("2001:db8::1\nfe80::1\nfe80::2\n")
    result = ndxdp("check", "-c", written(file, 'file = "list"'))
    assert result.code == 2
    assert "interface[0].prefix[0].file: the always rule for fe80::1" in result.err
    assert "no host forwards to; 1 more are too broad" in result.err


@pytest.fixture
def daemons() -> Iterator[list[Running]]:
    running: list[Running] = []
    yield running
    for each in running:
        each.close()
    ndxdp("-q", "detach", UPLINK)


def test_a_daemon_leaves_it_out(net: Network, file: Path, daemons: list[Running]) -> None:
    """Leave a too broad rule out and serve the others; `status` names the omitted rule."""
    run = Running(("-c", written(file, WIDE, NARROW)))
    daemons.append(run)
    assert net.answers()
    assert net.silent(UNSEEN)
    assert takes(net, OTHER_GATEWAY)
    assert takes(net, UNSEEN)
    (warned,) = status()["warnings"]
    assert warned.startswith(f"the daemon left the rule for {ON_LINK} out")
    assert rules()[ON_LINK]["answer"] == "never"

    # Reloads: forced, narrower, and wide again.
    for tables, answered, warnings in (
        ((f"{WIDE}\nforce = true", NARROW), True, 1),
        ((f'{WIDE}\nforce = true\ndad = "ignore"', NARROW), True, 0),
        ((NARROW,), False, 0),
        ((WIDE, NARROW), False, 1),
    ):
        written(file, *tables)
        run.process.send_signal(signal.SIGHUP)
        eventually(lambda: (ON_LINK in rules()) is (len(tables) == 2))  # noqa: B023
        eventually(lambda: (net.ask(UNSEEN, wait=0.15) is not None) is answered)  # noqa: B023
        eventually(lambda: len(status()["warnings"]) == warnings)  # noqa: B023
    code, _, err = run.end()
    assert code == 0
    found = [line for line in err.splitlines() if ": left out" in line]
    assert [line.partition(" (")[0] for line in found] == [LEFT_OUT, LEFT_OUT]
    assert 'or answer = "neighbour" or "routed"' in err
    assert "force = true" in err
    assert f"{ON_LINK} is no longer left out" in err


def test_a_reload_to_everything_changes_nothing(
    net: Network, file: Path, daemons: list[Running]
) -> None:
    run = Running(("-c", written(file, NARROW)))
    daemons.append(run)
    written(file, NARROW, 'prefix = "::/0"')
    run.process.send_signal(signal.SIGHUP)
    eventually(lambda: net.silent(UNSEEN) and net.answers())
    assert "cannot reload" in run.end().err


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_an_address_that_comes_later(
    net: Network, file: Path, daemons: list[Running], mode: str
) -> None:
    """Reconsider a rule whenever the network changes, for example by SLAAC."""
    sh("ip", "address", "delete", f"{HOST}/64", "dev", UPLINK)
    name = written(file, WIDE, NARROW)
    if mode == "userspace":
        text = file.read_text().replace('"tc"', '"userspace"')
        file.write_text(text)
    daemons.append(Running(("-c", name)))
    eventually(lambda: net.ask(UNSEEN, wait=0.2))
    sh("ip", "address", "add", f"{HOST}/64", "dev", UPLINK, "nodad")
    eventually(lambda: net.ask(UNSEEN, wait=0.15) is None)
    assert net.answers()
    sh("ip", "address", "delete", f"{HOST}/64", "dev", UPLINK)
    eventually(lambda: net.ask(UNSEEN, wait=0.2))
    # On-link without an address, as after a router advertisement.
    sh("ip", "-6", "route", "add", ON_LINK, "dev", UPLINK, "proto", "ra")
    eventually(lambda: net.ask(UNSEEN, wait=0.15) is None)
    sh("ip", "-6", "route", "delete", ON_LINK, "dev", UPLINK, "proto", "ra")
    eventually(lambda: net.ask(UNSEEN, wait=0.2))
    assert daemons[0].end().code == 0


def test_an_address_that_comes_while_a_command_runs(net: Network) -> None:
    """Leave a rule out that `run -i` would refuse at the start."""
    sh("ip", "address", "delete", f"{HOST}/64", "dev", UPLINK)
    run = net.run("-i", UPLINK, "--mode", "tc", "-n", ON_LINK)
    assert net.answers(UNSEEN)
    sh("ip", "address", "add", f"{HOST}/64", "dev", UPLINK, "nodad")
    eventually(lambda: net.ask(UNSEEN, wait=0.15) is None)
    code, _, err = run.end()
    assert (code, err.partition(" (")[0]) == (0, LEFT_OUT)
    assert "--force adds it all the same" in err


def test_a_rule_by_hand_is_left_alone(net: Network, file: Path, daemons: list[Running]) -> None:
    """Keep a rule that was added with --force, and warn of it in `status`."""
    run = Running(("-c", written(file, NARROW)))
    daemons.append(run)
    done("prefix", "add", "--force", ON_LINK)
    sh("ip", "address", "add", "2001:db8:5::2/64", "dev", UPLINK, "nodad")
    eventually(lambda: "2001:db8:5::2" in rules())
    assert net.answers(UNSEEN)
    (warned,) = status()["warnings"]
    assert warned == (
        f"the always rule for {ON_LINK} answers for the other nodes on {UPLINK}, too: {ON_LINK}"
        f" is on-link there; origin 'manual', see ndxdp doctor {UPLINK}"
    )
    assert run.end().code == 0


# ---- check and doctor ----------------------------------------------------------------------------


def test_check_warns(link: Network, file: Path) -> None:
    route(f"{BEHIND} dev {DOWN}")
    name = written(file, WIDE)
    code, out, err = ndxdp("check", "-c", name)
    assert (code, out.splitlines()[0]) == (0, f"{name}: good")
    assert err == (
        f"ndxdp: the always rule for {ON_LINK} answers for the other nodes on {UPLINK}, too:"
        f" {ON_LINK} is on-link there: `run` leaves this rule out\n"
        f"ndxdp:   hint: name what is behind this host: {BEHIND}; or answer ="
        ' "neighbour" or "routed", for no other node; force = true adds it all the same\n'
    )
    written(file, f"{WIDE}\nforce = true", NARROW)
    assert ndxdp("check", "-c", name).err == ""
    file.write_text(file.read_text().replace(UPLINK, "nosuch").replace("force", "router"))
    assert ndxdp("check", "-c", name).err == (
        f"ndxdp: nosuch is not here: not checked whether {ON_LINK} is on-link there, and `run`"
        " leaves out the rule\n"
    )


def doctor_bad() -> list[dict[str, str]]:
    """Return doctor's findings of this check; the neighbour table belongs to the whole machine."""
    return [each for each in bad() if each["check"] == "breadth"]


@pytest.fixture
def forwarding(link: Network) -> Iterator[Network]:
    sh("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    yield link
    sh("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0")


@pytest.mark.parametrize("routed", [True, False])
def test_doctor_has_the_narrower_rule(forwarding: Network, routed: bool) -> None:
    if routed:
        route(f"{BEHIND} dev {DOWN}")
    done("attach", UPLINK, "--mode", "tc", "--force", "-n", ON_LINK, "-n", "fe80::/64")
    found = {each["what"]: each for each in doctor_bad()}
    assert len(found) == 2
    for one in found.values():
        follow(one["cure"])
    assert doctor_bad() == []
    assert ON_LINK not in rules() if routed else rules()[ON_LINK]["answer"] == "neighbour"
    remove_instance()


def test_doctor_on_a_rule_that_leaves_dad_alone(forwarding: Network) -> None:
    done("attach", UPLINK, "--mode", "tc")
    done("prefix", "add", "--force", "--dad", "ignore", ON_LINK)
    assert doctor_bad() == []
    assert "ignores Duplicate Address Detection" in ndxdp("doctor", UPLINK).out
    remove_instance()


def test_doctor_on_a_neighbours_address(forwarding: Network) -> None:
    done("attach", UPLINK, "--mode", "tc", "-n", UNSEEN)
    sh("ip", "neighbour", "replace", UNSEEN, "lladdr", ROUTER_MAC, "nud", "stale", "dev", UPLINK)
    (found,) = doctor_bad()
    assert found["what"].startswith(f"{UNSEEN} is a neighbour on {UPLINK}, with MAC {ROUTER_MAC}")
    follow(found["cure"])
    assert doctor_bad() == []
    remove_instance()


def test_doctor_on_a_rule_that_was_left_out(
    forwarding: Network, file: Path, daemons: list[Running]
) -> None:
    daemons.append(Running(("-c", written(file, WIDE, NARROW))))
    (found,) = doctor_bad()
    assert found["what"].startswith(f"the daemon left the rule for {ON_LINK} out")
    assert daemons[0].end().code == 0
