"""Behaviour that the program in the kernel and the userspace path share.

Each test runs once per backend. test_commands.py has what only the program does, test_serving.py
what only the userspace path does.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import Ether

from tests.fixtures import network
from tests.fixtures.features import needs
from tests.fixtures.network import (
    BEHIND,
    FILES,
    GATEWAY,
    HOST,
    HOST_LINK_LOCAL,
    HOST_MAC,
    NDXDP,
    OTHER_GATEWAY,
    PINS,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    Running,
    a_way_behind,
    allmulti_count,
    call,
    connect,
    done,
    eventually,
    explain,
    is_answered,
    leftovers,
    ndxdp,
    remove_instance,
    rules,
    sh,
    status,
    timeless,
    wait_for_link,
)

OTHER, ANOTHER = "2001:db8::d:0:0:1", "2001:db8::c:0:0:1"

both_backends = pytest.mark.parametrize("mode", ["tc", "userspace"])


def start(net: Network, mode: str, *words: str) -> Running:
    """Start `ndxdp run` in a mode, with one rule."""
    return net.run("-i", UPLINK, "--mode", mode, "-n", BEHIND, *words)


def counts() -> dict[str, int]:
    """Return the solicitations by reason, without the reasons that have none."""
    return {reason: count for reason, count in status()["reasons"].items() if count}


def counted(expected: int) -> dict[str, int]:
    """Return the counts by reason, once `expected` solicitations have been counted."""
    eventually(lambda: sum(counts().values()) >= expected)
    return counts()


# ---- run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "number"),
    [
        pytest.param("tc", signal.SIGINT, id="tc, INT"),
        pytest.param("generic", signal.SIGTERM, id="generic, TERM"),
        pytest.param("userspace", signal.SIGTERM, id="userspace, TERM"),
        pytest.param("userspace", signal.SIGINT, id="userspace, INT"),
    ],
)
def test_run_answers_until_a_signal(net: Network, mode: str, number: int) -> None:
    before = network.link_state()
    run = start(net, mode)
    assert run.ready == f"ready: {UPLINK} answers in {mode} mode, rules: 1\n"
    for source in (GATEWAY, ROUTER_LINK_LOCAL):
        assert net.ask(TARGET, source=source) == (HOST_MAC, TARGET)
    assert net.silent(OTHER)
    assert counted(3) == {"answered": 2, "no_rule": 1}
    shown = status()
    assert (shown["attached"], shown["held_by"], shown["mode"]) == (True, "run", mode)
    assert rules()[BEHIND]["source"] == "run"
    assert allmulti_count() == 1
    assert PINS.exists() is (mode != "userspace")

    assert run.end(number) == (0, "", "")
    assert net.silent()
    assert leftovers() == []
    assert not FILES.exists()
    after = network.link_state()
    for key in ("flags", "promiscuity", "allmulti"):
        assert after.get(key) == before.get(key)  # Linux before 6.0 reports no `allmulti`.


@both_backends
def test_repeated_signals_do_not_interrupt_the_cleanup(net: Network, mode: str) -> None:
    run = start(net, mode)
    for number in range(2000):
        if run.process.poll() is not None:
            break
        run.process.send_signal(signal.SIGTERM)
        time.sleep(0 if number < 50 else 0.001)
    ended, left = run.wait(), leftovers()
    remove_instance()
    assert ended == (0, "", "")
    assert left == []


@both_backends
def test_a_second_process_is_refused(net: Network, mode: str) -> None:
    """While `run` answers on an interface, no other command can attach or detach there."""

    def state() -> tuple[dict[str, Any], dict[Path, bytes]]:
        files = FILES.glob(f"v*/{UPLINK}/*")
        return network.snapshot(), {path: path.read_bytes() for path in files}

    run = start(net, mode)
    before = state()
    for words in (
        ("attach", UPLINK, "-n", TARGET),
        ("attach", UPLINK, "--mode", "tc"),
        ("detach", UPLINK),
        ("run", "-i", UPLINK, "--mode", "userspace", "-n", BEHIND),
        ("run", "-i", UPLINK),
        ("run", "-i", UPLINK, "--mode", "tc"),
        ("run", "-i", UPLINK, "--keep"),
    ):
        # `timeout` ends a run that is not refused.
        refused = call("timeout", "20", *NDXDP, *words)
        assert (refused.code, refused.out) == (1, "")
        assert f"{UPLINK} is locked by a running `ndxdp run`" in refused.err
    assert state() == before
    assert net.answers()
    assert run.end() == (0, "", "")
    assert leftovers() == []


# ---- status -------------------------------------------------------------------------------------


@pytest.fixture(params=["attach, tc", "run, tc", "run, userspace"])
def answering(net: Network, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Yield the command that answers, and the mode; one answer and one `no_rule` are counted."""
    command, mode = request.param.split(", ")
    run = None
    if command == "run":
        run = start(net, mode)
    else:
        done("attach", UPLINK, "--mode", mode, "-n", BEHIND)
    assert net.answers()
    assert net.silent(OTHER)
    counted(2)
    yield command, mode
    if run:
        assert run.end() == (0, "", "")
    else:
        remove_instance()


def test_status_json_has_its_documented_keys(answering: tuple[str, str]) -> None:
    command, mode = answering
    in_kernel = mode != "userspace"
    origin = "run" if command == "run" else "manual"
    data = ndxdp("status", "--json").json()
    assert set(data) == {"version", "interfaces", "addresses", "shares", "daemons", "exporters"}
    assert data["shares"] == []
    (entry,) = data["interfaces"]
    program = entry.pop("program")
    if in_kernel:
        assert set(program) == {"id", "tag"}
        assert re.fullmatch("[0-9a-f]{16}", program["tag"])
    else:
        assert program is None
    listed = entry.pop("rules")
    assert listed == {
        "addresses": 3,
        "prefixes": 1,
        "max_addresses": 131072,
        "max_prefixes": listed["max_prefixes"],
        "by_source": {"host": 3, origin: 1},
    }
    reasons = entry.pop("reasons")
    assert {name: count for name, count in reasons.items() if count} == {
        "answered": 1,
        "no_rule": 1,
    }
    assert set(reasons) == set(network.reason_names().values()) - {"not_ns", "reason_max"}
    groups = entry.pop("groups")
    moments = {group["label"]: group.pop("last_answer") for group in groups}
    assert {label for label, moment in moments.items() if moment} == {BEHIND}
    assert moments[BEHIND] == entry.pop("last_answer")
    passed = datetime.now(UTC) - datetime.fromisoformat(moments[BEHIND])
    assert timedelta() <= passed < timedelta(minutes=1)
    for group in groups:
        assert set(group) == {"source", "label", "solicited", "answered", "rules"}
    group = {"source": origin, "label": BEHIND, "solicited": 1, "answered": 1, "rules": 1}
    assert group in groups
    assert entry == {
        "interface": UPLINK,
        "attached": True,
        "in_other_namespace": False,
        "problem": "",
        "mode": mode,
        "steps_down": [],
        "programs_before": [],
        "interface_rate": 0,
        "gateway_rate": 10_000,
        "loader": "prebuilt" if in_kernel else None,
        "socket": None if in_kernel else {"overflows": 0, "errors": 0},
        "resolver": {"asked": 0, "answered": 0, "failed": 0, "refused": 0},
        "gateway_care": None,
        "multicast": {"join": "auto", "joined": 0, "left_out": 0, "querier": None}
        if command == "run"
        else None,
        "warnings": [],
        "held_by": "run" if command == "run" else "pins",
        "ifindex": network.link_state()["ifindex"],
        "mac": HOST_MAC,
        "link_local": HOST_LINK_LOCAL,
        "paused": False,
        "paused_rules": [],
        "rate": 0,
        "burst": 0,
    }


def test_status_as_text(answering: tuple[str, str]) -> None:
    command, mode = answering
    text = timeless(done("status"))
    assert text == timeless(done("status", UPLINK))
    heading = f"{UPLINK}  {mode}"
    if mode != "userspace":
        heading += f", prebuilt program {network.program_id()}"
    if command == "run":
        heading += ", locked by a running `ndxdp run`"
    assert text.splitlines()[0] == heading
    assert "  last      answered N s ago\n" in text
    assert "answered  1 of 2 solicitations" in text
    origin = "run" if command == "run" else "manual"
    assert f"1 of 1 answered: {BEHIND} ({origin})" in text
    assert "socket" not in text  # The line is left out while both of its counters are 0.


# ---- profile ------------------------------------------------------------------------------------


@both_backends
def test_the_answer_has_the_profile_of_its_rule(net: Network, mode: str) -> None:
    def advertised(target: str, source: str = GATEWAY) -> dict[str, Any]:
        with net.advertisements() as frames:
            # A short wait: ndisc6 ignores an answer that comes from another address.
            net.ask(target, source=source, wait=0.1)
        (frame,) = frames
        packet = Ether(frame)
        na, option = packet[ICMPv6ND_NA], packet[ICMPv6NDOptDstLLAddr]
        wire = {
            "eth_source": packet.src,
            "eth_destination": packet.dst,
            "source": packet[IPv6].src,
            "destination": packet[IPv6].dst,
            "hop_limit": packet[IPv6].hlim,
            "router": bool(na.R),
            "solicited": bool(na.S),
            "override": bool(na.O),
            "target": na.tgt,
            "tllao": option.lladdr,
            "checksum": na.cksum,
            "checksum_correct": True,
            "frame": frame.hex(),
        }
        explained = explain("--from", source, "--mac", ROUTER_MAC, target)
        assert explained["advertisement"] == wire
        return wire

    run = start(net, mode)
    usual = {
        "eth_source": HOST_MAC,
        "eth_destination": ROUTER_MAC,
        "source": TARGET,
        "destination": GATEWAY,
        "hop_limit": 255,
        "router": True,
        "solicited": True,
        "override": False,
        "target": TARGET,
        "tllao": HOST_MAC,
        "checksum_correct": True,
    }
    assert usual.items() <= advertised(TARGET).items()
    assert advertised(TARGET, ROUTER_LINK_LOCAL)["destination"] == ROUTER_LINK_LOCAL

    mac = "02:00:00:00:00:77"
    words = ("--na-source", "link-local", "--no-router", "--override", "--lladdr", mac)
    done("prefix", "add", OTHER, *words)
    changed = {
        "source": HOST_LINK_LOCAL,
        "router": False,
        "override": True,
        "tllao": mac,
        "target": OTHER,
        "eth_source": HOST_MAC,
    }
    assert changed.items() <= advertised(OTHER).items()
    done("prefix", "add", "2001:db8::d:0:0:2", "--na-source", "2001:db8::5")
    assert advertised("2001:db8::d:0:0:2")["source"] == "2001:db8::5"
    assert rules()["2001:db8::d:0:0:2"]["profile"]["source"] == "2001:db8::5"
    assert " source=link-local router=false override=true" in done("prefix", "list")
    assert run.end() == (0, "", "")


# ---- explain ------------------------------------------------------------------------------------


EXPLAINED: list[tuple[tuple[str, ...], str, str | None]] = [
    ((TARGET,), "answered", BEHIND),
    ((TARGET, "--unicast"), "answered", BEHIND),
    ((TARGET, "--dad"), "answered_dad", BEHIND),
    ((OTHER, "--dad"), "dad_ignored", OTHER),
    ((ANOTHER,), "denied", ANOTHER),
    ((HOST,), "denied", HOST),
    ((GATEWAY,), "denied", GATEWAY),
    (("2001:db8::d:0:0:2",), "no_rule", None),
    ((TARGET, "--mac", HOST_MAC), "own_frame", None),
    ((TARGET, "--from", "ff02::1"), "bad_source", None),
    (("ff02::1",), "bad_target", None),
    (("::",), "bad_target", None),
    (("::1",), "bad_target", None),
    ((TARGET, "--dad", "--unicast"), "bad_source", None),
]

EXPLAINED_AS_TEXT = [
    (
        (TARGET,),
        [
            f"target   {TARGET} from fe80::1 (02:00:00:00:00:01) to ff02::1:ff00:99",
            f"rule     {BEHIND} always (run)",
            "reason   answered: ",
            f"answer   Ethernet  {HOST_MAC} > 02:00:00:00:00:01",
            f"         IPv6      {TARGET} > fe80::1, hop limit 255",
            f"         NA        R=1 S=1 O=0 target {TARGET}, checksum 0x",
            f"         TLLAO     {HOST_MAC}",
        ],
    ),
    (("2001:db8::d:0:0:2",), ["target   ", "rule     none", "reason   no_rule: "]),
    (
        (TARGET, "--from", "ff02::1"),
        ["target   ", "rule     not looked up", "reason   bad_source: "],
    ),
]

Explained = dict[tuple[str, ...], str]
"""The output of `ndxdp explain` by its arguments."""


class TestExplain:
    """Verdicts of `ndxdp explain`, which both backends give alike."""

    @pytest.fixture(scope="class")
    @classmethod
    def by_mode(cls) -> dict[str, Explained]:
        """Return the output of all commands by mode; the commands of one mode run at once."""
        commands = [(*form, *words) for words, _, _ in EXPLAINED for form in ((), ("--json",))]

        def outputs(mode: str) -> Explained:
            with network.network() as net, a_way_behind():
                run = start(net, mode, "--except", ANOTHER)
                done("prefix", "add", OTHER, "--dad", "ignore")
                with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
                    texts = pool.map(lambda words: done("explain", *words), commands)
                    found = dict(zip(commands, texts, strict=True))
                assert counts() == {}
                assert run.end() == (0, "", "")
            return found

        return {mode: outputs(mode) for mode in ("tc", "userspace")}

    @both_backends
    @pytest.mark.parametrize(("words", "reason", "prefix"), EXPLAINED)
    def test_json(
        self,
        by_mode: dict[str, Explained],
        mode: str,
        words: tuple[str, ...],
        reason: str,
        prefix: str | None,
    ) -> None:
        verdict = json.loads(by_mode[mode]["--json", *words])
        keys = {"solicitation", "reason", "rule", "forwarding", "host", "holder", "advertisement"}
        assert set(verdict) == keys
        assert verdict["forwarding"] is verdict["host"] is None
        assert verdict["reason"] == reason
        assert (verdict["rule"] and verdict["rule"]["prefix"]) == prefix
        answered = reason.startswith("answered")
        assert (verdict["advertisement"] is not None) is answered
        if answered:
            assert verdict["advertisement"]["target"] == words[0]
            assert verdict["advertisement"]["checksum_correct"] is True
            assert verdict["advertisement"]["solicited"] is (reason == "answered")

    @both_backends
    @pytest.mark.parametrize(("words", "lines"), EXPLAINED_AS_TEXT)
    def test_text(
        self, by_mode: dict[str, Explained], mode: str, words: tuple[str, ...], lines: list[str]
    ) -> None:
        printed = by_mode[mode][words].splitlines()
        assert len(printed) == len(lines)
        for line, opening in zip(printed, lines, strict=True):
            assert line.startswith(opening)

    def test_both_backends_print_the_same(self, by_mode: dict[str, Explained]) -> None:
        assert by_mode["tc"] == by_mode["userspace"]


# ---- addresses and routes of the host -----------------------------------------------------------


def is_denied(mode: str, address: str) -> bool:
    """Return True if the address has a rule of the host; for a program, read its map as well."""
    listed = rules().get(address, {}).get("source") == "host"
    if mode != "userspace" and is_answered(address) is not (False if listed else None):
        return False
    return listed


@both_backends
def test_run_follows_the_addresses_and_gateways_of_the_host(net: Network, mode: str) -> None:
    run = start(net, mode)
    own = "2001:db8::c:0:0:22"
    assert net.answers(own)
    assert counted(1) == {"answered": 1}
    sh("ip", "address", "add", f"{own}/128", "dev", UPLINK, "nodad")
    eventually(lambda: is_denied(mode, own))
    hole = rules()[own]
    assert (hole["answer"], hole["held"], hole["source"]) == ("never", True, "host")
    assert explain(own)["reason"] == "denied"
    wait_for_link(UPLINK, own)
    assert net.ask(own) == (HOST_MAC, own)  # This is the kernel's own answer.
    assert counted(2) == {"answered": 1, "denied": 1}
    sh("ip", "address", "delete", f"{own}/128", "dev", UPLINK)
    eventually(lambda: own not in rules())
    assert net.answers(own)
    assert counted(3) == {"answered": 2, "denied": 1}

    assert is_denied(mode, GATEWAY)
    assert OTHER_GATEWAY not in rules()
    sh("ip", "-6", "route", "replace", "default", "via", OTHER_GATEWAY, "dev", UPLINK)
    eventually(lambda: is_denied(mode, OTHER_GATEWAY))
    assert GATEWAY not in rules()
    sh("ip", "-6", "route", "delete", "default")
    eventually(lambda: OTHER_GATEWAY not in rules())
    assert run.end() == (0, "", "")


@both_backends
def test_run_follows_the_mac_and_the_link_local_address(net: Network, mode: str) -> None:
    run = start(net, mode)
    mac, local = "02:00:00:00:00:22", "fe80::22"
    sh("ip", "link", "set", UPLINK, "address", mac)
    eventually(lambda: net.ask(TARGET) == (mac, TARGET))
    assert explain(TARGET)["advertisement"]["eth_source"] == mac
    sh("ip", "address", "delete", f"{HOST_LINK_LOCAL}/64", "dev", UPLINK)
    sh("ip", "address", "add", f"{local}/64", "dev", UPLINK, "nodad")
    done("prefix", "add", OTHER, "--na-source", "link-local")
    eventually(lambda: explain(OTHER)["advertisement"]["source"] == local)
    assert run.end() == (0, "", "")


@both_backends
def test_a_rule_for_an_address_is_suspended_while_the_host_has_it(net: Network, mode: str) -> None:
    run = net.run("-i", UPLINK, "--mode", mode, "-n", TARGET)
    done("prefix", "add", OTHER)
    for address in (TARGET, OTHER):
        assert net.answers(address)
        sh("ip", "address", "add", f"{address}/128", "dev", UPLINK, "nodad")
    eventually(lambda: [rules()[one]["held"] for one in (TARGET, OTHER)] == [True, True])
    if mode != "userspace":
        assert [is_answered(one) for one in (TARGET, OTHER)] == [False, False]
    owned = rules()[TARGET]
    assert (owned["answer"], owned["held"], owned["source"]) == ("always", True, "run")
    assert explain(TARGET)["reason"] == "denied"
    done("prefix", "del", OTHER)
    assert rules()[OTHER]["source"] == "host"
    for address in (TARGET, OTHER):
        sh("ip", "address", "delete", f"{address}/128", "dev", UPLINK)
    eventually(lambda: not rules()[TARGET]["held"] and OTHER not in rules())
    if mode != "userspace":
        assert [is_answered(one) for one in (TARGET, OTHER)] == [True, None]
    assert rules()[TARGET] == owned | {"owned": False, "held": False}
    assert net.answers()
    assert counted(3) == {"answered": 3}
    assert run.end() == (0, "", "")


# ---- after SIGKILL ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("killed", "next_words"),
    [
        pytest.param("tc", ("generic",), id="tc, generic", marks=needs("xdp")),
        pytest.param("tc", ("userspace",), id="tc, userspace"),
        pytest.param("userspace", ("userspace",), id="userspace, userspace"),
        pytest.param("userspace", ("tc",), id="userspace, tc"),
        pytest.param("userspace", ("tc", "--keep"), id="userspace, tc, --keep"),
    ],
)
def test_a_run_carries_over_the_state_of_a_killed_one(
    net: Network, killed: str, next_words: tuple[str, ...]
) -> None:
    """The rules added by hand stay, and within a backend the counters; the run's rules go."""
    run = start(net, killed)
    done("prefix", "add", OTHER, "--no-router")
    assert net.answers(OTHER)
    assert counted(1) == {"answered": 1}
    before = rules()[OTHER]
    run.kill()
    eventually(lambda: killed == "userspace" or not network.tc_ids())

    run = net.run("-i", UPLINK, "--mode", *next_words, "-n", TARGET)
    if next_words[0] == "userspace":
        assert not PINS.exists()
    else:
        assert list(FILES.glob("v*")) == []
    carried = 1 if (killed == "userspace") == (next_words[0] == "userspace") else 0
    assert sum(counted(carried).values()) == carried
    assert set(rules()) == {TARGET, OTHER, HOST, HOST_LINK_LOCAL, GATEWAY}
    assert rules()[OTHER] == before
    assert net.answers()
    assert net.answers(OTHER)
    assert counted(carried + 2) == {"answered": carried + 2}
    answered = {group["label"]: group["answered"] for group in status()["groups"]}
    assert (answered[OTHER], answered[TARGET]) == (carried + 1, 1)
    assert run.end() == (0, "", "")
    if "--keep" in next_words:
        done("detach", UPLINK)
    assert leftovers() == []


# ---- the interface is deleted and created again -------------------------------------------------

every_way = pytest.mark.parametrize(
    "words",
    [
        pytest.param(("--mode", "userspace"), id="userspace"),
        pytest.param(("--mode", "tc"), id="tc"),
        pytest.param(("--mode", "tc", "--keep"), id="tc, kept"),
        pytest.param(("--mode", "generic"), id="generic"),
        pytest.param((), id="auto"),
    ],
)


def recreate_interface() -> None:
    """Delete the interface and create it again, with the same addresses."""
    sh("ip", "link", "delete", UPLINK)
    connect()


@every_way
def test_run_resumes_on_a_recreated_interface(net: Network, words: tuple[str, ...]) -> None:
    """A restarted container or network needs no restart of ndxdp."""
    run = net.run("-i", UPLINK, *words, "-n", BEHIND)
    done("prefix", "add", OTHER)
    assert net.answers()
    first = status()
    for times in (1, 2):
        recreate_interface()
        eventually(lambda: net.ask(TARGET, wait=0.2) == (HOST_MAC, TARGET), within=10)
        assert net.answers(OTHER)
        shown = status()
        assert (shown["attached"], shown["mode"]) == (True, first["mode"])
        assert shown["ifindex"] == network.link_state()["ifindex"]
        assert shown["steps_down"] == first["steps_down"]
        assert shown["rules"]["by_source"] == {"host": 3, "manual": 1, "run": 1}
        assert shown["reasons"]["answered"] >= 1 + 2 * times
        assert allmulti_count() == (2 if "--keep" in words else 1)

    # The run still follows the addresses of the host.
    own = "2001:db8::c:0:0:22"
    sh("ip", "address", "add", f"{own}/128", "dev", UPLINK, "nodad")
    eventually(lambda: own in rules())
    assert f"{UPLINK} has gone" in run.end_cleanly()
    if "--keep" in words:
        assert net.answers()
        done("detach", UPLINK)
    assert leftovers() == []


@every_way
def test_the_interface_is_recreated_at_any_moment(net: Network, words: tuple[str, ...]) -> None:
    """An interface that disappears while `run` resumes on it does not end the run."""
    run = net.run("-i", UPLINK, *words, "-n", BEHIND)
    done("prefix", "add", OTHER)
    mode = status()["mode"]
    moments = random.Random(1).sample(range(0, 400, 10), 16)  # ms; resuming takes some 300.
    for moment in moments:
        recreate_interface()
        time.sleep(moment / 1000)
    is_over = run.process.poll
    eventually(
        lambda: is_over() is not None or net.ask(TARGET, wait=0.2) == (HOST_MAC, TARGET), within=20
    )
    assert is_over() is None, run.wait()
    assert net.answers(OTHER)
    assert status()["mode"] == mode  # A deleted interface is no reason for a lesser mode.
    run.end_cleanly()
    if "--keep" in words:
        done("detach", UPLINK)
    assert leftovers() == []


@every_way
def test_run_ends_while_it_waits_for_the_interface(net: Network, words: tuple[str, ...]) -> None:
    run = net.run("-i", UPLINK, *words, "-n", BEHIND)
    sh("ip", "link", "delete", UPLINK)
    assert run.next_warning() == f"ndxdp: {UPLINK} has gone; waiting for it\n"
    assert run.end() == (0, "", "")
    if "--keep" in words:  # The pins stay, as those of `attach` do.
        assert status()["attached"] is False
        done("detach", UPLINK)
    assert leftovers() == []


@both_backends
def test_commands_while_run_waits_for_the_interface(net: Network, mode: str) -> None:
    run = start(net, mode)
    sh("ip", "link", "delete", UPLINK)
    assert run.next_warning()
    assert status()["attached"] is False
    assert "not attached" in done("status").splitlines()[0]
    done("prefix", "add", OTHER)
    connect()
    eventually(lambda: net.ask(OTHER, wait=0.2) == (HOST_MAC, OTHER), within=10)
    run.end_cleanly()
    assert leftovers() == []


@both_backends
def test_run_is_killed_while_it_waits_for_the_interface(net: Network, mode: str) -> None:
    run = start(net, mode)
    done("prefix", "add", OTHER)
    sh("ip", "link", "delete", UPLINK)
    assert run.next_warning()
    run.kill()
    connect()
    run = net.run("-i", UPLINK, "--mode", mode, "-n", TARGET)
    assert net.answers(OTHER)
    assert BEHIND not in rules()
    assert run.end() == (0, "", "")
