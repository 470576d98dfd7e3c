"""`--dry-run`: it prints what the command then does, and changes nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ndxdp.kernel.abi import Mode
from ndxdp.rules.difference import difference
from ndxdp.rules.prefix import parse_prefix
from ndxdp.rules.rule import DOCKER_ORIGIN, Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.session import attach_preview, detach_preview
from ndxdp.session.request import AttachOptions, AttachRequest
from ndxdp.session.session import Session
from ndxdp.store.directories import Trees
from tests.fixtures.documented import json_of, shape
from tests.fixtures.network import (
    BEHIND,
    FILES,
    GATEWAY,
    HOST,
    HOST_LINK_LOCAL,
    NDXDP,
    PINS,
    TARGET,
    UPLINK,
    Network,
    call,
    done,
    eventually,
    has_allmulti,
    leftovers,
    ndxdp,
    remove_instance,
    rules,
    sh,
    snapshot,
    status,
)
from tests.fixtures.tap import tap

OTHER = "2001:db8::d:0:0:1"
HOLES = {HOST, HOST_LINK_LOCAL, GATEWAY}


def everything() -> dict[str, Any]:
    """Return all that a command could change: links, hooks, pins, maps, files and sysctls."""
    state = snapshot()
    state["sysctls"] = {
        str(path): path.read_text()
        for path in sorted(Path("/proc/sys/net/ipv6/conf").glob("*/*"))
        if os.access(path, os.R_OK) and path.name != "stable_secret"
    }
    state["files"] = {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(FILES.rglob("*"))
        if path.is_file() and not path.name.startswith("report-")  # a daemon renews its own
    }
    state["times"] = {
        str(path): path.stat().st_mtime_ns for path in (PINS.parent, *sorted(PINS.rglob("*")))
    }
    # The interface, the group and its users; the rest is a timer.
    groups = Path("/proc/net/igmp6").read_text().splitlines()
    state["groups"] = [line.split()[1:4] for line in groups]
    state["addresses"] = re.sub(r"(valid|preferred)_lft \d+sec", "", sh("ip", "-6", "address"))
    return state


@contextmanager
def unchanged() -> Iterator[None]:
    """Check that the block changes nothing."""
    before = everything()
    yield
    assert everything() == before


def dry(*words: str, stdin: str = "") -> list[str]:
    """Run a command with --dry-run, which changes nothing; return the lines of stdout."""
    with unchanged():
        result = ndxdp(*words, "--dry-run", stdin=stdin)
    assert (result.code, result.err) == (0, ""), result
    return result.out.splitlines()


def set_up(name: str) -> None:
    """Set an interface up without an address, which would be tentative for a second."""
    sh("ip", "link", "set", name, "addrgenmode", "none")
    sh("ip", "link", "set", name, "up")


def prefixes(lines: list[str], sign: str) -> list[str]:
    """Return the prefixes of the rules with a sign, in their order."""
    words = [line.split() for line in lines if line.startswith(f"{sign} ")]
    return [word for _, word, *_ in words if ":" in word]


# ---- attach --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_attach_does_what_it_printed(net: Network, mode: str) -> None:
    words = ("attach", UPLINK, "--mode", mode, "-n", BEHIND, "--except", TARGET, "--rate", "50")
    lines = dry(*words)
    assert lines[0].startswith(f"{UPLINK}  would be attached in {mode} mode")
    assert leftovers() == []
    assert ndxdp(*words).code == 0
    assert prefixes(lines, "+") == list(rules())
    assert set(prefixes(lines, "+")) == {BEHIND, TARGET, *HOLES}
    assert prefixes(lines, "-") == []
    shown = status()
    for line in (
        f"+ mode {shown['mode']}",
        f"+ loader {shown['loader']}",
        f"+ mac {shown['mac']}",
        f"+ rate {shown['rate']:g}",
        f"+ burst {shown['burst']}",
        f"+ max_addresses {shown['rules']['max_addresses']}",
        "- allmulti off",
        "+ allmulti on",
        f"+ {BEHIND} always (manual)",
    ):
        assert line in lines
    assert has_allmulti()
    remove_instance()


def test_attach_names_the_modes_in_their_order(net: Network) -> None:
    """XDP on a veth needs its peer: the mode is tc, and the reason is named."""
    (first, *_) = dry("attach", UPLINK, "-n", BEHIND)
    assert first.startswith(f"{UPLINK}  would be attached in tc mode (native: what XDP sends")
    data = ndxdp("attach", UPLINK, "-n", BEHIND, "--dry-run", "--json").json()
    assert (data["mode"], data["other_modes"]) == ("tc", [])
    assert [each["mode"] for each in data["steps_down"]] == ["native"]
    assert leftovers() == []


def test_attach_to_a_driver_that_may_refuse(net: Network) -> None:
    with tap("tap9"):
        set_up("tap9")
        first, *rest = dry("attach", "tap9", "-n", BEHIND)
        assert "in native mode, or in tc mode if the driver refuses" in first
        assert "+ mode native" in rest
        (first, *_) = dry("attach", "tap9", "-n", BEHIND, "--mode", "native")
        assert "in native mode, unless the driver refuses" in first
        done("attach", "tap9", "-n", BEHIND)
        assert status("tap9")["mode"] == "native"
        (first, *_) = dry("attach", "tap9", "-n", BEHIND)
        assert first == "tap9  stays in native mode"
        done("detach", "tap9")


def test_a_renewal(attached: Network) -> None:
    assert dry("attach", UPLINK, "-n", BEHIND) == [
        f"{UPLINK}  stays in tc mode (native: what XDP sends from a veth arrives only if its peer"
        " runs XDP, too)"
        if status()["steps_down"]
        else f"{UPLINK}  stays in tc mode",
        "  the program is renewed",
    ]
    lines = dry("attach", UPLINK, "-n", OTHER, "--max-addresses", "200", "--rate", "7")
    assert "- max_addresses 131072" in lines
    assert "+ max_addresses 200" in lines
    assert "+ rate 7" in "".join(f"{line}\n" for line in lines)
    assert prefixes(lines, "+") == [OTHER]
    assert prefixes(lines, "-") == []


def test_attach_after_a_rename(attached: Network) -> None:
    sh("ip", "link", "set", UPLINK, "down")
    sh("ip", "link", "set", UPLINK, "name", "renamed0", "up")
    eventually(lambda: "NO-CARRIER" not in sh("ip", "link", "show", "renamed0"))
    try:
        lines = dry("attach", "renamed0", "-n", BEHIND)
        assert f"  the pins of {UPLINK}, its former name, become those of renamed0" in lines
    finally:
        sh("ip", "link", "set", "renamed0", "down")
        sh("ip", "link", "set", "renamed0", "name", UPLINK, "up")


def test_attach_over_damaged_pins(attached: Network) -> None:
    (directory,) = PINS.glob(f"v*/{UPLINK}")
    (directory / "settings").unlink()
    lines = dry("attach", UPLINK, "-n", BEHIND, "--mode", "generic")
    assert "are incomplete" in lines[1]
    assert lines[1].endswith("they are replaced")
    lines = dry("detach", UPLINK)
    assert lines[1].endswith("they are removed")


# ---- the JSON of attach --------------------------------------------------------------------------


def test_json_of_a_dry_run_is_that_of_the_attach(net: Network) -> None:
    words = ("attach", UPLINK, "-n", BEHIND, "--except", TARGET, "--json")
    with unchanged():
        would = ndxdp(*words, "--dry-run").json()
    did = ndxdp(*words).json()
    assert (would.pop("dry_run"), did.pop("dry_run")) == (True, False)
    assert would == did
    assert shape(did | {"dry_run": False}) == shape(json_of("attach"))
    assert {each["prefix"] for each in did["rules"]["add"]} == set(rules())
    assert did["before"]["mode"] is None
    assert did["after"]["allmulti"] is True

    with unchanged():
        again = ndxdp(*words, "--dry-run").json()
    assert again["rules"] == {"add": [], "remove": []}
    assert again["before"] == again["after"] == did["after"]
    assert again["notes"] == ["the program is renewed"]
    assert ndxdp(*words).json() == again | {"dry_run": False, "notes": []}
    remove_instance()


# ---- prefix --------------------------------------------------------------------------------------


def test_prefix_does_what_it_printed(attached: Network) -> None:
    done("prefix", "add", "2001:db8::d:0:0:7")
    many = ["2001:db8::d:0:0:9", "2001:db8:0:0:e::/96", "2001:db8::d:0:0:8"]
    lines = dry("prefix", "add", *many, "2001:db8::d:0:0:7")
    assert lines == [
        f"{UPLINK}  rules: 3 added, 0 removed",
        "+ 2001:db8::d:0:0:8 always (manual)",
        "+ 2001:db8::d:0:0:9 always (manual)",
        "+ 2001:db8:0:0:e::/96 always (manual)",
    ]
    before = set(rules())
    done("prefix", "add", *many, "2001:db8::d:0:0:7")
    assert set(rules()) - before == set(prefixes(lines, "+"))

    lines = dry("prefix", "replace", many[0], "--override", "--origin", "manual")
    assert lines == [
        f"{UPLINK}  rules: 1 added, 1 removed",
        f"- {many[0]} always (manual)",
        f"+ {many[0]} always override=true (manual)",
    ]
    assert dry("prefix", "del", *many[1:]) == [
        f"{UPLINK}  rules: 0 added, 2 removed",
        "- 2001:db8::d:0:0:8 always (manual)",
        "- 2001:db8:0:0:e::/96 always (manual)",
    ]
    assert prefixes(dry("prefix", "del", "--all"), "-") == [
        *(prefix for prefix, rule in rules().items() if rule["source"] == "manual")
    ]
    listed = dry("prefix", "add", "--file", "-", stdin="2001:db8::a:0:0:2\n2001:db8::a:0:0:1\n")
    assert prefixes(listed, "+") == ["2001:db8::a:0:0:1", "2001:db8::a:0:0:2"]


def test_nothing_to_change_is_no_error(attached: Network) -> None:
    same = [f"{UPLINK}  rules: 0 added, 0 removed", "  nothing would change"]
    assert dry("prefix", "add", BEHIND) == same
    assert dry("prefix", "replace", BEHIND) == same
    assert dry("prefix", "del", OTHER, "--missing-ok") == same
    assert dry("prefix", "del", "--all", "--origin", "wg0") == same


def test_an_address_of_the_host(attached: Network) -> None:
    """A rule for an owned address is marked, and becomes a hole again when it is deleted."""
    owned = "[owned: an address of this host or of its gateway]"
    lines = dry("prefix", "add", HOST)
    assert lines == [
        f"{UPLINK}  rules: 1 added, 1 removed",
        f"- {HOST} never {owned} (host, own)",
        f"+ {HOST} always {owned} (manual)",
    ]
    done("prefix", "add", HOST)
    assert dry("prefix", "del", HOST) == [
        lines[0],
        f"- {HOST} always {owned} (manual)",
        f"+ {HOST} never {owned} (host, own)",
    ]


# ---- detach --------------------------------------------------------------------------------------


def test_detach_does_what_it_printed(net: Network) -> None:
    found = link_facts()
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    assert link_facts() != found
    lines = dry("detach", UPLINK)
    assert lines[0] == f"{UPLINK}  would be detached from tc mode"
    assert "- allmulti on" in lines
    assert "+ allmulti off" in lines
    assert "- mode tc" in lines
    assert prefixes(lines, "-") == list(rules())
    assert prefixes(lines, "+") == []
    done("detach", UPLINK)
    assert link_facts() == found


def link_facts() -> tuple[bool, str]:
    return has_allmulti(), sh("tc", "qdisc", "show", "dev", UPLINK)


def test_detach_restores_what_it_found_only(net: Network) -> None:
    sh("ip", "link", "set", UPLINK, "allmulticast", "on")
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    assert not any("allmulti" in line for line in dry("detach", UPLINK))
    done("detach", UPLINK)
    sh("ip", "link", "set", UPLINK, "allmulticast", "off")


def test_a_bridge(net: Network) -> None:
    sh("ip", "link", "add", "br9", "type", "bridge", "mcast_snooping", "1")
    set_up("br9")
    try:
        lines = dry("attach", "br9", "--mode", "tc", "-n", BEHIND)
        assert "- mcast_router 1" in lines
        assert "+ mcast_router 2" in lines
        done("attach", "br9", "--mode", "tc", "-n", BEHIND)
        lines = dry("detach", "br9")
        assert "- mcast_router 2" in lines
        assert "+ mcast_router 1" in lines
        done("detach", "br9")
        assert dry("attach", "br9", "--mode", "tc")[1:]
    finally:
        sh("ip", "link", "delete", "br9")


def test_a_qdisc_stays_where_another_program_has_a_filter(net: Network) -> None:
    """Attach as on a kernel without links at tc, where a clsact qdisc is needed."""
    request = AttachRequest(UPLINK, options=AttachOptions(Mode.TC, links=False))
    found = attach_preview.attaching(Trees(), request)
    assert (found.before["clsact"], found.after["clsact"]) == (False, True)
    with Session.attach(Trees(), request):
        pass
    assert "clsact" in sh("tc", "qdisc", "show", "dev", UPLINK)
    with unchanged():
        found = detach_preview.detaching(Trees(), UPLINK)
    assert (found.before["clsact"], found.after["clsact"]) == (True, False)
    for hook in ("ingress", "egress"):
        place = ("dev", UPLINK, hook, "protocol", "all", "pref", "7")
        sh("tc", "filter", "add", *place, "bpf", "bytecode", "1,6 0 0 0")  # matches nothing
        assert detach_preview.detaching(Trees(), UPLINK).after["clsact"] is True
        sh("tc", "filter", "del", *place)
    done("detach", UPLINK)
    assert "clsact" not in sh("tc", "qdisc", "show", "dev", UPLINK)


def test_detach_names_the_lifetimes_that_it_restores(net: Network, tmp_path: Path) -> None:
    file = tmp_path / "ndxdp.toml"
    file.write_text(
        f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\n'
        f'[interface.addresses]\ndeprecate = ["{HOST}"]\npreferred = "2001:db8::77"\n'
    )
    assert f"  addresses would be deprecated: {HOST}" in dry("run", "-c", str(file))
    sh("ip", "address", "add", "2001:db8::77/64", "dev", UPLINK, "nodad")
    running = net.run("-c", str(file))
    eventually(lambda: "deprecated" in sh("ip", "-6", "address", "show", "to", HOST))
    running.kill()
    lines = dry("detach", UPLINK)
    assert f"  the preferred lifetimes of {HOST} are restored" in lines
    done("detach", UPLINK)
    assert "deprecated" not in sh("ip", "-6", "address", "show", "to", HOST)
    sh("ip", "address", "del", "2001:db8::77/64", "dev", UPLINK)


def test_detach_all_and_missing(attached: Network) -> None:
    sh("ip", "link", "add", "up1", "type", "veth", "peer", "far1")
    set_up("up1")
    done("attach", "up1", "--mode", "tc", "-n", "2001:db8:0:0:e::/96")
    try:
        lines = dry("detach", "--all")
        assert [line for line in lines if "would be detached" in line] == [
            f"{UPLINK}  would be detached from tc mode",
            "up1  would be detached from tc mode",
        ]
    finally:
        done("detach", "up1")
        sh("ip", "link", "delete", "up1")
    assert dry("detach", "nosuch", "--missing-ok") == []


# ---- run -----------------------------------------------------------------------------------------


def test_run_does_what_it_printed(net: Network) -> None:
    lines = dry("run", UPLINK, "--mode", "tc", "-n", BEHIND, "-N", "web")
    assert lines[0] == f"{UPLINK}  would be attached in tc mode"
    assert f"+ {BEHIND} always (run)" in lines
    assert "  answering ends with the process, which receives all multicast until then" in lines
    assert "  the rules of containers (web) follow from the engine" in lines
    running = net.run(UPLINK, "--mode", "tc", "-n", BEHIND)
    assert prefixes(lines, "+") == list(rules())
    with unchanged():
        refused = ndxdp("run", UPLINK, "--mode", "tc", "-n", BEHIND, "--dry-run")
    assert (refused.code, "locked by a running" in refused.err) == (1, True)
    running.end_cleanly()


def test_run_in_userspace(net: Network) -> None:
    lines = dry("run", UPLINK, "--mode", "userspace", "-n", BEHIND)
    assert lines[0] == f"{UPLINK}  would be attached in userspace mode"
    assert "+ mode userspace" in lines
    assert not FILES.exists()
    running = net.run(UPLINK, "--mode", "userspace", "-n", BEHIND)
    assert prefixes(lines, "+") == list(rules())
    assert prefixes(dry("prefix", "add", OTHER), "+") == [OTHER]
    running.end_cleanly()


def config(path: Path, *names: str, prefix: str = BEHIND, more: str = "") -> str:
    """Write a file for some interfaces. A daemon joins no groups, which would change by itself."""
    path.write_text(
        "".join(
            f'[[interface]]\nname = "{name}"\njoin = "never"\n{more}'
            f'[[interface.prefix]]\nprefix = "{prefix}"\n'
            for name in names
        )
    )
    return str(path)


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_run_with_a_file_before_and_beside_the_daemon(
    net: Network, tmp_path: Path, mode: str
) -> None:
    file = tmp_path / "ndxdp.toml"
    more = f'mode = "{mode}"\n'
    path = config(file, UPLINK, "nosuch", more=more)
    lines = dry("run", "-c", path)
    assert lines[0] == f"{UPLINK}  would be attached in {mode} mode"
    assert lines[-1] == "nosuch  would not be answered on yet: there is no interface 'nosuch'"
    assert f"+ {BEHIND} always (config)" in lines
    running = net.run("-c", path)
    assert set(prefixes(lines, "+")) == set(rules())
    path = config(file, UPLINK, prefix="2001:db8:0:0:e::/96", more=more)
    lines = dry("run", "-c", path)
    assert lines[0].startswith(f"{UPLINK}  stays in {mode} mode")
    assert "ndxdp reload" in lines[1]
    assert prefixes(lines, "-") == [BEHIND]
    assert prefixes(lines, "+") == ["2001:db8:0:0:e::/96"]
    done("reload", "-c", path)
    assert BEHIND not in rules()
    assert "2001:db8:0:0:e::/96" in rules()
    running.end_cleanly()
    ndxdp("detach", UPLINK)


@pytest.mark.parametrize(("before", "after"), [("tc", "userspace"), ("userspace", "tc")])
def test_another_mode_in_the_file(net: Network, tmp_path: Path, before: str, after: str) -> None:
    file = tmp_path / "ndxdp.toml"
    path = config(file, UPLINK, more=f'mode = "{before}"\n[interface.limit]\nrate = 20\n')
    running = net.run("-c", path)
    done("prefix", "add", OTHER)
    path = config(file, UPLINK, prefix="2001:db8:0:0:e::/96", more=f'mode = "{after}"\n')
    lines = dry("run", "-c", path)
    assert lines[0] == f"{UPLINK}  would change from {before} to {after} mode"
    assert f"- mode {before}" in lines
    assert f"+ mode {after}" in lines
    assert "- rate 20" in lines
    assert "+ rate 0" in lines
    assert prefixes(lines, "-") == [BEHIND]
    assert prefixes(lines, "+") == ["2001:db8:0:0:e::/96"]
    held = set(rules())
    done("reload", "-c", path)
    assert set(rules()) == held - {BEHIND} | {"2001:db8:0:0:e::/96"}
    assert (status()["mode"], status()["rate"]) == (after, 0)
    running.end_cleanly()
    ndxdp("detach", UPLINK)


def test_rules_of_containers_that_nobody_answers_for_any_more(net: Network, tmp_path: Path) -> None:
    path = config(tmp_path / "ndxdp.toml", UPLINK, more='mode = "tc"\n')
    with Session.attach(Trees(), AttachRequest(UPLINK, options=AttachOptions(Mode.TC))) as session:
        found = Rules.of({parse_prefix(OTHER): Rule(origin=DOCKER_ORIGIN)})
        session.maps.apply(difference(session.maps.rules() | found, session.maps.rules()), Rules())
    assert OTHER in rules()
    assert prefixes(dry("run", "-c", path), "-") == [OTHER]
    running = net.run("-c", path)
    eventually(lambda: OTHER not in rules())
    running.end_cleanly()
    ndxdp("detach", UPLINK)


# ---- bad input fails as without it ---------------------------------------------------------------

REFUSED = [
    f"attach {UPLINK} --mode tc -n nonsense",
    f"attach {UPLINK} --mode tc -n 2001:db8::/64",
    f"attach {UPLINK} --mode tc -n {OTHER} --except {BEHIND}",
    f"attach {UPLINK} --mode generic",
    f"attach {UPLINK} --mode userspace",
    f"attach {UPLINK} --max-addresses 2",
    f"attach {UPLINK} --burst 5",
    "attach nosuch",
    "attach lo",
    "attach eth/0",
    f"run {UPLINK} -n {BEHIND}",
    f"run {UPLINK} --mode userspace",
    f"run {UPLINK} --keep --mode userspace",
    f"run {UPLINK} --keep --mode generic",
    "run nosuch",
    "run",
    "run -c /nonexistent",
    f"run -c /nonexistent -n {BEHIND}",
    "prefix add 2001:db8::1/64",
    "prefix add 2001:db8::/64",
    f"prefix add --override {BEHIND}",
    f"prefix replace --origin wg0 --override {BEHIND}",
    "prefix add",
    "prefix add nosuch 2001:db8::1",
    f"prefix del {OTHER}",
    f"prefix del {HOST}",
    f"prefix del --origin run {BEHIND}",
    "prefix del --all --origin host",
    "detach",
    "detach nosuch",
    "detach with/slash",
    f"--bpffs /tmp attach {UPLINK} --mode tc",
    f"--bpffs /tmp detach {UPLINK}",
]


def test_bad_input_fails_as_without(attached: Network) -> None:
    for line in REFUSED:
        words = line.split()
        really = ndxdp(*words)
        assert really.code in (1, 2), line
        with unchanged():
            assert ndxdp(*words, "--dry-run") == really, line


def test_a_full_table_fails_as_without(net: Network) -> None:
    fit = [word for number in range(7) for word in ("-n", f"2001:db8::c:0:0:{number:x}")]
    words = ("attach", UPLINK, "--mode", "tc", "--max-addresses", "10")
    with unchanged():
        dried = ndxdp(*words, *fit, "-n", OTHER, "--dry-run")
    assert dried == ndxdp(*words, *fit, "-n", OTHER)
    assert "limit of 10" in dried.err
    done(*words, *fit)
    for more in (("prefix", "add", OTHER), ("attach", UPLINK, "-n", OTHER)):
        with unchanged():
            dried = ndxdp(*more, "--dry-run")
        assert dried == ndxdp(*more)
        assert "limit of 10" in dried.err
    remove_instance()


def test_without_rights_it_fails_as_without(net: Network) -> None:
    nobody = (
        *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
        *("--inh-caps=-all", "--bounding-set=-all"),
    )

    for words in (("attach", UPLINK, "--mode", "tc"), ("run", UPLINK, "-n", BEHIND)):
        really, dried = (call(*nobody, *NDXDP, *words, *more) for more in ((), ("--dry-run",)))
        assert (really.code, dried.code) == (1, 1)
        assert dried.err in really.err
