"""Kernels without BPF links, and rules of an older ndxdp."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures import network
from tests.fixtures.features import needs
from tests.fixtures.network import (
    BEHIND,
    NDXDP,
    TARGET,
    UPLINK,
    Network,
    done,
    eventually,
    is_answered,
    leftovers,
    ndxdp,
    remove_instance,
    rules,
    sh,
    status,
)
from tests.fixtures.without_links import MODES, attach, attach_without_links, programs

ELSEWHERE, ELSEWHERE_TARGET = "2001:db8:0:0:d::/80", "2001:db8::d:0:0:99"

# ---- kernels without BPF links -------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_without_bpf_links(net: Network, mode: str) -> None:
    if mode == "native":
        net.pass_at_router()
    attach_without_links(mode, BEHIND)
    assert not any(path.endswith("/link") for path in network.pins())
    assert net.answers()
    assert programs() == [network.program_id()]
    assert status()["attached"]
    assert network.clsact() is (mode == "tc")

    before = network.program_id()
    with net.solicited_continuously() as missed:
        done("attach", UPLINK)  # where links are known, this stays what it is
    assert not missed
    assert programs() == [network.program_id()] != [before]
    assert not any(path.endswith("/link") for path in network.pins())
    done("detach", UPLINK)
    assert leftovers() == []
    assert net.silent()


@pytest.mark.parametrize("mode", ["generic", "tc"])
def test_without_bpf_links_the_interface_is_deleted(net: Network, mode: str) -> None:
    attach_without_links(mode, BEHIND)
    sh("ip", "link", "delete", UPLINK)
    shown, ended = ndxdp("status"), ndxdp("detach", UPLINK)
    left = leftovers()
    remove_instance()
    assert "not attached" in shown.out
    assert (ended, left) == ((0, "", ""), [])


FOREIGN = ("protocol", "all", "pref", "7", "bpf", "bytecode", "1,6 0 0 0")  # matches nothing


def test_filters_of_others_survive(net: Network) -> None:
    sh("tc", "qdisc", "add", "dev", UPLINK, "clsact")
    sh("tc", "filter", "add", "dev", UPLINK, "ingress", *FOREIGN)
    foreign = network.filters()
    assert foreign
    attach_without_links("tc", BEHIND)
    assert set(foreign) < set(network.filters())
    assert net.answers()
    done("detach", UPLINK)
    assert network.filters() == foreign
    sh("tc", "filter", "del", "dev", UPLINK, "ingress")
    attach_without_links("tc", BEHIND)
    done("detach", UPLINK)
    assert network.clsact()  # it existed before ndxdp, though unused
    sh("tc", "qdisc", "del", "dev", UPLINK, "clsact")


@pytest.mark.parametrize("side", ["ingress", "egress"])
def test_a_qdisc_of_ours_stays_while_it_is_used(net: Network, side: str) -> None:
    attach_without_links("tc", BEHIND)
    sh("tc", "filter", "add", "dev", UPLINK, side, *FOREIGN)
    attach_without_links("tc")
    assert net.answers()
    done("detach", UPLINK)
    assert network.clsact()
    assert "bytecode" in sh("tc", "filter", "show", "dev", UPLINK, side)
    assert not programs()
    sh("tc", "qdisc", "del", "dev", UPLINK, "clsact")


@pytest.mark.parametrize("mode", ["tc", "generic"])
def test_a_program_detached_by_hand_is_restored(net: Network, mode: str) -> None:
    attach_without_links(mode, BEHIND)
    if mode == "tc":
        sh("tc", "qdisc", "del", "dev", UPLINK, "clsact")
    else:
        sh("ip", "link", "set", "dev", UPLINK, "xdpgeneric", "off")
    assert status()["attached"] is False
    assert net.silent()
    attach(mode)
    assert status()["attached"] is True
    assert net.answers()
    done("detach", UPLINK)
    assert leftovers() == []


def test_a_killed_run_is_followed_by_another(net: Network) -> None:
    """Detach the program that a killed run left behind on a kernel without BPF links."""
    run = (
        "import sys; from ndxdp.daemon import service, spec; from ndxdp.kernel.abi import Mode;"
        "from ndxdp.rules.rule import Rule; from ndxdp.rules.rule_lists import compile_rules;"
        "from ndxdp.store.directories import Trees;"
        "from ndxdp.session.request import AttachOptions;"
        f"rules = compile_rules(['{BEHIND}'], rule=Rule(origin='run'));"
        "options = AttachOptions(Mode.TC, links=False);"
        f"task = spec.DaemonSpec([spec.InterfaceSpec('{UPLINK}', options, rules)]);"
        "service.run(Trees(), task, ready=lambda spec, instance: print('ready', flush=True))"
    )
    for ending in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen([sys.executable, "-c", run], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(ending)
        process.wait(timeout=10)
    assert leftovers() == []


@contextlib.contextmanager
def renamed(name: str = "renamed0") -> Iterator[str]:
    """Rename the uplink while it is up, as kernels since 6.2 allow."""
    sh("ip", "link", "set", UPLINK, "name", name)
    try:
        yield name
    finally:
        sh("ip", "link", "set", name, "name", UPLINK)


@needs("rename")
@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_attach_follows_a_rename(net: Network, mode: str) -> None:
    """Continue under the new name with all rules and counters, and lose no answer."""
    net.pass_at_router()
    assert ndxdp("attach", UPLINK, "--mode", mode, "-n", BEHIND).code == 0
    assert net.answers()
    with net.solicited_continuously() as missed, renamed() as name:
        assert [name in warning for warning in status()["warnings"]] == [True]
        assert ndxdp("attach", name, "-n", ELSEWHERE).code == 0
        assert status(name)["warnings"] == []
        assert {BEHIND, ELSEWHERE} <= set(rules())
        assert status(name)["reasons"]["answered"] > 0
        assert ndxdp("detach", UPLINK).code == 1
    assert missed == []
    assert ndxdp("attach", UPLINK).code == 0
    done("detach", UPLINK)


@needs("rename")
@pytest.mark.parametrize("mode", ["generic", "tc"])
def test_detach_by_a_former_name(net: Network, mode: str) -> None:
    done("attach", UPLINK, "--mode", mode, "-n", BEHIND)
    with renamed() as name:
        done("detach", UPLINK)
        assert leftovers(name) == []


@needs("rename")
def test_two_sets_of_pins_for_one_device(net: Network) -> None:
    """Refuse to guess which of two sets of pins belongs to a renamed interface."""
    sh("ip", "link", "add", "renamed0", "up", "type", "bridge")
    done("attach", "renamed0", "--mode", "tc", "-n", ELSEWHERE)
    sh("ip", "link", "del", "renamed0")
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    with renamed() as name:
        refusal = ndxdp("attach", name)
        assert refusal.code == 1
        assert f"under its former name, {UPLINK}" in refusal.err
        done("detach", UPLINK)
        done("attach", name)
        assert net.answers(ELSEWHERE_TARGET)
        done("detach", name)


def test_a_hole_that_finds_no_room_does_not_end_a_run(net: Network) -> None:
    """Report a hole without room, continue to answer, and add the hole once there is room."""
    own = len(rules_of_an_attach())
    full = [f"2001:db8::c:0:0:{n:x}" for n in range(1, 4)]
    words = [word for target in full for word in ("-n", target)]
    room = ("--max-addresses", str(own + len(full)))
    run = net.run("-i", UPLINK, "--mode", "tc", *room, *words)
    output = run.process.stderr
    assert output is not None
    sh("ip", "address", "add", "2001:db8::77/128", "dev", UPLINK, "nodad")
    assert "more than the limit" in output.readline()
    assert is_answered(full[0])
    eventually(lambda: "more than the limit" in status()["problem"])
    done("prefix", "del", "--source", "run", full[1])
    eventually(lambda: "2001:db8::77" in rules())
    sh("ip", "address", "add", "2001:db8::78/128", "dev", UPLINK, "nodad")
    eventually(lambda: "more than the limit" in status()["problem"])
    assert "2001:db8::78" not in rules()
    done("prefix", "del", "--source", "run", full[2])
    eventually(lambda: "2001:db8::78" in rules())
    sh("ip", "address", "del", "2001:db8::78/128", "dev", UPLINK)
    eventually(lambda: "2001:db8::78" not in rules())
    assert "2001:db8::77" in rules()
    assert run.end().code == 0
    sh("ip", "address", "del", "2001:db8::77/128", "dev", UPLINK)


def rules_of_an_attach() -> dict[str, Any]:
    """Return the holes that any attachment has."""
    done("attach", UPLINK, "--mode", "tc")
    found = rules()
    remove_instance()
    return found


def test_the_next_run_replaces_the_rules_of_the_last(net: Network) -> None:
    """Replace the rules of the last run, also contrary rules for the same prefix."""
    run = ("run", "-i", UPLINK, "--mode", "tc", "--keep")
    for words, answer in ((("--except", TARGET), "never"), (("-n", TARGET), "always")):
        with subprocess.Popen([*NDXDP, *run, *words], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready")
            assert rules()[TARGET]["answer"] == answer
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 0
    remove_instance()


def test_pins_of_a_renamed_interface_are_not_taken_over(net: Network) -> None:
    """Leave the program of a renamed interface alone if a new interface gets the old name."""
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    sh("ip", "link", "set", UPLINK, "down")
    sh("ip", "link", "set", UPLINK, "name", "renamed0")
    sh("ip", "link", "set", "renamed0", "up")
    sh("ip", "link", "add", UPLINK, "up", "type", "bridge")
    try:
        refusal = ndxdp("attach", UPLINK, "--mode", "tc")
        assert refusal.code == 1
        assert "another name now" in refusal.err
        done("detach", UPLINK)
    finally:
        sh("ip", "link", "del", UPLINK)
        sh("ip", "link", "set", "renamed0", "down")
        sh("ip", "link", "set", "renamed0", "name", UPLINK)


def test_a_command_that_waited_for_the_lock_changes_the_new_table(net: Network) -> None:
    """Write to the new table if a renewal replaced it while the command waited for the lock."""
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    lock = os.open(network.PINS / "lock", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    renewal = subprocess.Popen([*NDXDP, "attach", UPLINK, "--max-addresses", "200000"])
    time.sleep(1)
    addition = subprocess.Popen([*NDXDP, "prefix", "add", TARGET])
    time.sleep(1)
    os.close(lock)
    assert (renewal.wait(timeout=20), addition.wait(timeout=20)) == (0, 0)
    assert TARGET in rules()
    remove_instance()
