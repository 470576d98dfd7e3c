"""Rules that are paused by their class or prefix, among others that stay: in each mode."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ndxdp.ndp.profile import Answer
from ndxdp.rules.pausing import is_marker, names_of, with_pauses, without_pauses
from ndxdp.rules.prefix import parse_prefix
from ndxdp.rules.rule import PAUSE_ORIGIN, Rule, owned_rule
from ndxdp.rules.ruleset import Rules
from tests.fixtures.network import (
    BEHIND,
    TARGET,
    UPLINK,
    Network,
    done,
    eventually,
    explain,
    ndxdp,
    rules,
    status,
)

VIP, VIP_NET, OTHER = "2001:db8::c:0:0:20", "2001:db8::c:0:0:20/124", "2001:db8::c:0:0:77"


# ---- the rule set --------------------------------------------------------------------------------

CASES = {
    "2001:db8::1": Rule(label="vip"),
    "2001:db8::2": Rule(label="web"),
    "2001:db8:1::/64": Rule(Answer.NEIGHBOUR, label="vip"),
    "2001:db8:2::/64": Rule(Answer.NEIGHBOUR, label="guests"),
    "2001:db8:2::9": Rule(label="web"),
    "2001:db8::3": owned_rule("own"),
}


def paused_by(*names: str) -> set[str]:
    """Return the prefixes that are paused in CASES by names."""
    made = Rules.of({parse_prefix(text): rule for text, rule in CASES.items()})
    return {str(prefix) for prefix, rule in with_pauses(made, names).pairs() if rule.paused}


@pytest.mark.parametrize(
    ("names", "paused"),
    [
        pytest.param([], set(), id="nothing"),
        pytest.param(["vip"], {"2001:db8::1", "2001:db8:1::/64"}, id="a class"),
        pytest.param(["nosuch"], set(), id="a class that comes later"),
        pytest.param(["own"], set(), id="never the host's own"),
        pytest.param(["2001:db8::2/128"], {"2001:db8::2"}, id="an address"),
        pytest.param(
            ["2001:db8:2::/48"],
            {"2001:db8:2::/48", "2001:db8:2::/64", "2001:db8:2::9"},
            id="all inside a prefix",
        ),
        pytest.param(["2001:db8:2::8/128"], {"2001:db8:2::8"}, id="a part of a wider rule"),
        pytest.param(
            ["2001:db8:2::/120"], {"2001:db8:2::/120", "2001:db8:2::9"}, id="a wider part"
        ),
    ],
)
def test_what_a_name_pauses(names: list[str], paused: set[str]) -> None:
    assert paused_by(*names) == paused


def test_what_is_paused_is_part_of_the_rules() -> None:
    made = Rules.of({parse_prefix(text): rule for text, rule in CASES.items()})
    names = {"vip", "2001:db8:2::8/128"}
    paused = with_pauses(made, names)
    assert names_of(paused) == names
    assert without_pauses(paused) == made
    assert with_pauses(paused, names) == paused
    assert names_of(with_pauses(paused, {"vip"})) == {"vip"}
    notes = [prefix for prefix, rule in paused.pairs() if rule.origin == PAUSE_ORIGIN]
    assert sorted(map(is_marker, notes)) == [False, True, True]


# ---- commands ------------------------------------------------------------------------------------


def served(net: Network) -> dict[str, bool]:
    return {address: net.answers(address) for address in (VIP, OTHER)}


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_attached(net: Network, mode: str) -> None:
    """Pause one address of a wide prefix, and an exact one; renewing keeps both paused."""
    if mode == "native":
        net.pass_at_router()
    words = ("attach", UPLINK, "-n", BEHIND, "-n", TARGET, "--mode", mode)
    assert ndxdp(*words).code == 0
    done("pause", UPLINK, "-n", VIP, "--class", TARGET)
    for _ in range(2):
        assert served(net) == {VIP: False, OTHER: True}
        assert not net.answers(TARGET)
        assert ndxdp(*words).code == 0
    assert status()["paused_rules"] == [VIP, TARGET]
    assert status()["paused"] is False
    assert explain(VIP)["reason"] == "paused"
    assert explain(TARGET)["rule"]["paused"] is True
    done("resume", UPLINK, "-n", VIP)
    assert served(net) == {VIP: True, OTHER: True}
    assert not net.answers(TARGET)
    done("resume", UPLINK, "-n", TARGET)
    assert net.answers(TARGET)
    assert status()["paused_rules"] == []
    assert set(rules()) >= {BEHIND, TARGET}
    assert not any(rule["origin"] == PAUSE_ORIGIN for rule in rules().values())
    done("detach", UPLINK)


def test_rules_that_are_added_later(net: Network) -> None:
    done("attach", UPLINK, "-n", BEHIND)
    done("pause", UPLINK, "-n", VIP_NET)
    done("prefix", "add", UPLINK, VIP)
    assert served(net) == {VIP: False, OTHER: True}
    done("prefix", "del", UPLINK, VIP)
    assert served(net) == {VIP: False, OTHER: True}
    done("resume", UPLINK, "-n", VIP_NET)
    assert served(net) == {VIP: True, OTHER: True}
    done("detach", UPLINK)


CONFIG = f"""
[[interface.prefix]]
prefix = "{BEHIND}"
[[interface.prefix]]
prefix = "{VIP}/128"
"""


def configured(folder: Path, mode: str, more: str = "") -> str:
    path = folder / "ndxdp.toml"
    path.write_text(f'[[interface]]\nname = "{UPLINK}"\nmode = "{mode}"\n{CONFIG}{more}')
    return str(path)


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_daemon(net: Network, tmp_path: Path, mode: str) -> None:
    """A reload keeps it paused; in the kernel's modes, so does a restart, without one answer."""
    path = configured(tmp_path, mode)
    run = net.run("-c", path)
    done("pause", UPLINK, "--class", f"{VIP}/128")
    eventually(lambda: served(net) == {VIP: False, OTHER: True})
    configured(tmp_path, mode, '[[interface.prefix]]\nprefix = "2001:db8:0:0:d::/80"\n')
    run.process.send_signal(signal.SIGHUP)
    eventually(lambda: "2001:db8:0:0:d::/80" in rules())
    assert served(net) == {VIP: False, OTHER: True}
    if mode == "tc":
        for number in (signal.SIGTERM, signal.SIGKILL):
            run.process.send_signal(number)
            run.process.wait(10)
            assert served(net) == {VIP: False, OTHER: True}
            run = net.run("-c", path)
            assert served(net) == {VIP: False, OTHER: True}
    assert status()["paused_rules"] == [f"{VIP}/128"]
    done("resume", UPLINK, "--class", f"{VIP}/128")
    eventually(lambda: served(net) == {VIP: True, OTHER: True})
    assert run.end()[0] == 0
    if mode == "tc":
        done("detach", UPLINK)


def test_another_mode_keeps_it(net: Network, tmp_path: Path) -> None:
    path = configured(tmp_path, "tc")
    run = net.run("-c", path)
    done("pause", UPLINK, "-n", VIP)
    for mode in ("userspace", "tc"):
        configured(tmp_path, mode)
        run.process.send_signal(signal.SIGHUP)
        eventually(lambda mode=mode: status()["mode"] == mode)  # type: ignore[misc]
        assert served(net) == {VIP: False, OTHER: True}
    assert run.end()[0] == 0
    done("detach", UPLINK)


def test_both_ways_to_pause(net: Network) -> None:
    done("attach", UPLINK, "-n", BEHIND)
    done("pause", UPLINK)
    done("pause", UPLINK, "-n", VIP)
    resumed = ndxdp("resume", UPLINK)
    assert (resumed.code, f"still paused: {VIP}" in resumed.err) == (0, True)
    assert served(net) == {VIP: False, OTHER: True}
    done("pause", UPLINK)
    done("resume", UPLINK, "-n", VIP)
    assert served(net) == {VIP: False, OTHER: False}
    done("resume", UPLINK)
    assert served(net) == {VIP: True, OTHER: True}
    done("detach", UPLINK)


def test_previews(net: Network) -> None:
    done("attach", UPLINK, "-n", BEHIND, "-n", TARGET)
    shown = done("pause", UPLINK, "-n", TARGET, "--dry-run")
    assert f"- {TARGET} always" in shown
    assert "[paused]" in shown
    shown = done("pause", UPLINK, "-n", VIP, "--dry-run")
    assert f"+ {VIP} never [paused]" in shown
    assert "ff0e" not in shown
    assert "+ paused on" in done("pause", UPLINK, "--dry-run")
    assert served(net) == {VIP: True, OTHER: True}
    assert status()["paused_rules"] == []
    done("detach", UPLINK)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("-n", "nonsense"), 2, "nonsense"),
        (("-n", "2001:db8::1/64"), 2, "2001:db8::1/64"),
        (("--class", ""), 2, "--class is empty"),
        (("--class", "own"), 2, "never answered for"),
        (("--class", "nosuch"), 0, "no rule has the class 'nosuch' yet"),
    ],
)
def test_bad_input(net: Network, words: tuple[str, ...], code: int, says: str) -> None:
    done("attach", UPLINK, "-n", BEHIND)
    found = ndxdp("pause", UPLINK, *words)
    assert (found.code, says in found.err) == (code, True), found
    assert found.out == ""
    assert net.answers(VIP)
    done("detach", UPLINK)


def test_nothing_is_attached(net: Network) -> None:
    for command in ("pause", "resume"):
        found = ndxdp(command, UPLINK, "-n", VIP)
        assert (found.code, "hint:" in found.err) == (1, True), found


def test_status_and_metrics(net: Network) -> None:
    done("attach", UPLINK, "-n", BEHIND)
    done("pause", UPLINK, "-n", VIP)
    assert f"paused: the rules of {VIP}" in done("status")
    assert f'ndxdp_paused_rules{{interface="{UPLINK}"}} 1.0' in done("metrics")
    assert f"{VIP} never [paused] (pause)" in done("prefix", "list")
    done("detach", UPLINK)
