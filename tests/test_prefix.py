"""`ndxdp prefix`: rules of scripts and other programs, each with its own origin."""

from __future__ import annotations

import re
import signal
from functools import partial
from pathlib import Path

from tests.fixtures.network import (
    BEHIND,
    HOST,
    REPOSITORY,
    TARGET,
    UPLINK,
    Network,
    done,
    eventually,
    ndxdp,
    remove_instance,
    rules,
    status,
)

COMMANDS = REPOSITORY / "docs" / "commands.md"
ONE, TWO, THREE = (f"2001:db8::d:0:0:{number}" for number in range(1, 4))
WIDE = "2001:db8:0:0:e::/96"


def written() -> dict[str, str]:
    """Return the origin of each rule that is not the host's own, by prefix."""
    return {prefix: rule["source"] for prefix, rule in rules().items() if rule["source"] != "host"}


def test_prefix_add_del_and_list(attached: Network, tmp_path: Path) -> None:
    one, two, three, four, five = (f"2001:db8::d:0:0:{number}" for number in range(1, 6))
    wide = "2001:db8:0:0:e::/96"
    assert done("prefix", "add", one, wide) == ""
    assert attached.answers(one)
    assert attached.answers("2001:db8::e:0:0:5")
    done("prefix", "add", "--answer", "never", TARGET)
    assert attached.silent()

    listing = tmp_path / "guests.txt"
    listing.write_text(f"# guests\n\n{two}   # the second\n{three}/128\n")
    done("prefix", "add", "--file", str(listing))
    assert attached.answers(two)
    done("prefix", "add", "--file", "-", four, stdin=f"{five}\r\n")
    assert attached.answers(five)

    listed = rules()
    labels = {prefix: rule["label"] for prefix, rule in listed.items() if rule["source"] != "host"}
    assert labels == {
        BEHIND: BEHIND,
        one: one,
        wide: wide,
        TARGET: TARGET,
        two: "guests.txt",
        three: "guests.txt",
        four: four,
        five: "stdin",
    }
    assert listed[TARGET]["answer"] == "never"
    assert listed[one] == {
        "prefix": one,
        "answer": "always",
        "owned": False,
        "paused": False,
        "leased": False,
        "dev": [],
        "origin": "manual",
        "label": one,
        "profile": {
            "source": "target",
            "router": True,
            "override": False,
            "dad": "defend",
            "lladdr": None,
        },
        "held": False,
        "via": [],
        "source": "manual",
    }
    text = done("prefix", "list").splitlines()
    assert [line.split()[0] for line in text] == list(listed)
    assert f"{two} always (manual, guests.txt)" in text
    assert f"{BEHIND} always (manual)" in text
    assert any(line.startswith(f"{HOST} never [owned: ") for line in text)

    assert done("prefix", "del", one, TARGET) == ""
    assert attached.silent(one)
    assert attached.answers()
    done("prefix", "del", "--file", str(listing), "--file", "-", stdin=five)
    assert attached.silent(two)
    assert {prefix for prefix, rule in rules().items() if rule["source"] == "manual"} == {
        BEHIND,
        wide,
        four,
    }
    done("prefix", "del", "--all")
    assert {rule["source"] for rule in rules().values()} == {"host"}
    assert attached.silent()


def test_prefix_del_by_source(net: Network) -> None:
    run = net.run("-i", UPLINK, "--mode", "tc", "-n", BEHIND, "-n", TARGET)
    done("prefix", "add", "2001:db8::d:0:0:1")
    refused = ndxdp("prefix", "del", BEHIND)
    assert refused.code == 1
    assert "'run'" in refused.err
    done("prefix", "del", "--origin", "run", TARGET)
    done("prefix", "del", "--all", "--origin", "run")
    assert {rule["source"] for rule in rules().values()} == {"host", "manual"}
    assert run.end().code == 0


# ---- again --------------------------------------------------------------------------------------


def test_add_of_an_existing_rule_adds_the_rest(attached: Network) -> None:
    for _ in range(2):
        assert done("prefix", "add", ONE, BEHIND, WIDE) == ""
        assert written() == dict.fromkeys((BEHIND, ONE, WIDE), "manual")
    assert attached.answers(ONE)


def test_add_of_another_rule_adds_nothing(attached: Network) -> None:
    refused = ndxdp("prefix", "add", "--answer", "never", ONE, BEHIND)
    assert refused.code == 1
    assert f"{BEHIND} has a rule already: always, by 'manual'" in refused.err
    assert "ndxdp prefix replace" in refused.err
    assert written() == {BEHIND: "manual"}


def test_a_rule_stays_its_writers(attached: Network) -> None:
    """Keep the first writer's origin; a second writer of the same rule has nothing to delete."""
    result = ndxdp("prefix", "add", "--origin", "wg0", BEHIND, ONE)
    assert (result.code, result.out, result.err) == (0, "", "")
    assert written() == {BEHIND: "manual", ONE: "wg0"}
    result = ndxdp("prefix", "add", "-v", "--origin", "wg0", BEHIND)
    assert result.code == 0
    assert f"{BEHIND} already has that rule; its origin stays 'manual'" in result.err

    refused = ndxdp("prefix", "del", "--origin", "wg0", ONE, BEHIND)
    assert refused.code == 1
    assert written() == {BEHIND: "manual", ONE: "wg0"}
    done("prefix", "del", "--origin", "wg0", "--missing-ok", ONE, BEHIND, HOST)
    assert written() == {BEHIND: "manual"}


def test_attach_with_a_rule_of_another_origin(net: Network) -> None:
    done("attach", UPLINK, "--mode", "tc")
    done("prefix", "add", "--origin", "wg0", BEHIND)
    done("attach", UPLINK, "-n", BEHIND, "-n", ONE)
    assert written() == {BEHIND: "wg0", ONE: "manual"}
    remove_instance()


def test_replace_adds_or_changes(attached: Network) -> None:
    for answer in ("never", "never", "always"):
        assert done("prefix", "replace", "--answer", answer, ONE, BEHIND) == ""
        assert {rules()[prefix]["answer"] for prefix in (ONE, BEHIND)} == {answer}
        assert attached.answers() is (answer == "always")
    assert written() == {BEHIND: "manual", ONE: "manual"}


def test_replace_leaves_other_origins_alone(attached: Network) -> None:
    done("prefix", "add", "--origin", "wg0", ONE)
    refused = ndxdp("prefix", "replace", "--override", TWO, ONE)
    assert refused.code == 1
    assert "ndxdp prefix replace --origin wg0" in refused.err
    assert written() == {BEHIND: "manual", ONE: "wg0"}
    done("prefix", "replace", ONE)  # an equal rule
    done("prefix", "replace", "--origin", "wg0", "--override", TWO, ONE)
    assert written() == {BEHIND: "manual", ONE: "wg0", TWO: "wg0"}
    assert rules()[ONE]["profile"]["override"]


def test_replace_of_a_rule_for_an_own_address(attached: Network) -> None:
    """Keep a rule for an own address suspended when its properties change."""
    done("prefix", "add", HOST)
    done("prefix", "replace", "--override", HOST)
    assert rules()[HOST]["profile"]["override"]
    assert rules()[HOST]["held"]
    done("prefix", "del", HOST)
    assert rules()[HOST]["source"] == "host"


def test_del_of_a_missing_rule(attached: Network) -> None:
    refused = ndxdp("prefix", "del", BEHIND, ONE)
    assert refused.code == 1
    assert f"{ONE} has no rule" in refused.err
    assert written() == {BEHIND: "manual"}
    assert done("prefix", "del", "--missing-ok", BEHIND, ONE) == ""
    assert written() == {}


def test_missing_ok_where_nothing_is_attached(net: Network) -> None:
    for words in (("prefix", "del", "--all"), ("prefix", "del", BEHIND, "-i", UPLINK)):
        assert ndxdp(*words).code == 1
        assert done(*words, "--missing-ok") == ""
    assert ndxdp("detach", UPLINK).code == 1
    assert done("detach", "--missing-ok", UPLINK) == ""


def test_pause_and_resume_twice(attached: Network) -> None:
    for command in ("pause", "resume"):
        for _ in range(2):
            assert done(command, UPLINK) == ""
            assert status()["paused"] is (command == "pause")


# ---- origins ------------------------------------------------------------------------------------


def test_origins_are_separate_and_cleared(attached: Network) -> None:
    done("prefix", "add", "--origin", "wg0", ONE, TWO)
    done("prefix", "add", "--origin", "vm-12.a_b", THREE)
    shown = done("prefix", "list", "--origin", "wg0").splitlines()
    assert shown == [f"{prefix} always (wg0)" for prefix in (ONE, TWO)]
    assert done("prefix", "list", "--origin", "nobody") == ""
    assert status()["rules"]["by_source"] == {"host": 3, "manual": 1, "vm-12.a_b": 1, "wg0": 2}
    metrics = done("metrics")
    assert f'ndxdp_rules{{interface="{UPLINK}",source="wg0"}} 2.0' in metrics

    for _ in range(2):
        assert done("prefix", "del", "--all", "--origin", "wg0") == ""
        assert written() == {BEHIND: "manual", THREE: "vm-12.a_b"}


def test_wg_quick(attached: Network) -> None:
    """Run the hooks of docs/commands.md twice; wg-quick stops at the first one that fails."""
    found = re.findall(r"^(PostUp|PreDown) = (ndxdp .*)$", COMMANDS.read_text(), re.MULTILINE)
    assert [name for name, _ in found] == ["PostUp", "PreDown"]
    up, down = (line.replace("%i", "wg0").replace("eth0", UPLINK).split()[1:] for _, line in found)
    before = written()
    for words in (up, up):
        assert done(*words) == ""
        assert "wg0" in written().values()
    for words in (down, down):
        assert done(*words) == ""
        assert written() == before
    remove_instance()
    assert done(*down) == ""
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)


def test_rules_of_other_programs_outlive_daemons(net: Network, tmp_path: Path) -> None:
    """Keep the rules of another origin through restarts, reloads and changes of mode."""
    file = tmp_path / "ndxdp.toml"

    def write(mode: str, prefix: str) -> None:
        interface = f'[[interface]]\nname = "{UPLINK}"\nmode = "{mode}"\n'
        file.write_text(f'{interface}[[interface.prefix]]\nprefix = "{prefix}"\n')

    def is_now(mode: str, expected: dict[str, str]) -> bool:
        return status()["mode"] == mode and written() == expected

    write("tc", BEHIND)
    daemon = net.run("-c", str(file))
    done("prefix", "add", "--origin", "wg0", ONE, WIDE)
    theirs = {ONE: "wg0", WIDE: "wg0"}
    for mode, prefix in (("tc", TWO), ("generic", BEHIND), ("userspace", TWO), ("tc", BEHIND)):
        write(mode, prefix)
        daemon.process.send_signal(signal.SIGHUP)
        eventually(partial(is_now, mode, {prefix: "config"} | theirs))
        assert net.answers(ONE)
    daemon.end(signal.SIGKILL)
    daemon = net.run("-c", str(file))
    assert written() == {BEHIND: "config"} | theirs
    assert net.answers(ONE)
    daemon.end()
    remove_instance()
