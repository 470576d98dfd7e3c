"""Each command as a user runs it, judged by the kernel and by a router on the wire."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import features, network
from tests.fixtures.features import needs
from tests.fixtures.network import (
    BEHIND,
    GATEWAY,
    HOST,
    HOST_LINK_LOCAL,
    HOST_MAC,
    NDXDP,
    REPOSITORY,
    ROUTER_LINK,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    a_way_behind,
    allmulti_count,
    call,
    counts,
    done,
    eventually,
    explain,
    has_allmulti,
    is_answered,
    leftovers,
    ndxdp,
    python,
    remove_instance,
    rules,
    sh,
    status,
    without_gateway,
)

MODES = ("native", "generic", "tc")
ELSEWHERE, ELSEWHERE_TARGET = "2001:db8:0:0:d::/80", "2001:db8::d:0:0:99"


def attach(mode: str = "tc", *args: str) -> None:
    """Run `ndxdp attach`, which prints nothing but a warning of native XDP on a veth."""
    result = ndxdp("attach", UPLINK, "--mode", mode, *args)
    assert (result.code, result.out) == (0, ""), result
    if mode == "native":
        assert "veth" in result.err
        assert len(result.err.splitlines()) == 1
    else:
        assert result.err == ""


def programs() -> list[int]:
    """Return the ids of the programs at the uplink's hooks."""
    return [*network.xdp_ids(), *network.tc_ids()]


# ---- attach and detach --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_attach_answers_until_detach(net: Network, mode: str) -> None:
    if mode == "native":
        net.pass_at_router()
    assert net.silent()

    attach(mode, "-n", BEHIND)
    for source in (GATEWAY, ROUTER_LINK_LOCAL):
        assert net.ask(TARGET, source=source) == (HOST_MAC, TARGET)
    assert net.silent("2001:db8::d:0:0:99")
    shown = status()
    assert (shown["attached"], shown["mode"], shown["loader"]) == (True, mode, "prebuilt")
    assert programs() == [shown["program"]["id"]] == [network.program_id()]
    assert counts() == {"answered": 2, "no_rule": 1}

    assert done("detach", UPLINK) == ""
    assert leftovers() == []
    assert net.silent()


@pytest.fixture
def second(net: Network) -> Iterator[str]:
    """Add a second interface, with an unused far end."""
    sh("ip", "link", "add", "up1", "up", "type", "veth", "peer", "far1")
    yield "up1"
    sh("ip", "link", "delete", "up1")


def test_detach_all_is_on_every_interface(net: Network, second: str) -> None:
    assert done("detach", "--all") == ""
    attach("tc", "-n", BEHIND)
    done("attach", second, "--mode", "generic", "-n", "2001:db8:0:0:e::/96")
    assert net.answers()
    assert done("detach", "--all") == ""
    assert net.silent()
    assert leftovers() == leftovers(second) == []


def test_detach_all_goes_on_after_one_that_fails(net: Network, second: str) -> None:
    done("attach", second, "--mode", "tc", "-n", "2001:db8:0:0:e::/96")
    running = net.run("-i", UPLINK, "--mode", "tc", "-n", BEHIND)
    result = ndxdp("detach", "--all")
    assert result.code == 1
    assert UPLINK in result.err, "a process holds it"
    assert second not in result.err
    assert leftovers(second) == []
    assert net.answers()
    assert running.end().code == 0


def test_each_loader_renews_what_the_other_attached(net: Network) -> None:
    attach("tc", "--loader", "bcc", "-n", BEHIND)
    for loader in ("bcc", "prebuilt", "bcc"):
        assert status()["loader"] == loader
        assert programs() == [network.program_id()]
        with net.solicited_continuously() as missed:
            attach("tc", "--loader", "bcc" if loader == "prebuilt" else "prebuilt")
        assert not missed
    remove_instance()


def test_attach_again_is_a_renewal(net: Network) -> None:
    words = ("--rate", "20000", "--burst", "5000", "-n", BEHIND, "--except", "2001:db8::c:0:0:1")
    attach("generic", *words)
    done("prefix", "add", "2001:db8::d:0:0:1", "--na-source", "link-local")
    assert net.answers()
    before, listed = status(), rules()

    with net.solicited_continuously() as missed:
        done("attach", UPLINK, "-n", "2001:db8:0:0:e::/96")
    assert not missed

    after = status()
    assert (after["mode"], after["rate"]) == ("generic", 20000)
    assert after["program"]["id"] != before["program"]["id"]
    assert programs() == [after["program"]["id"]] == [network.program_id()]
    assert after["reasons"]["answered"] > before["reasons"]["answered"]
    renewed = rules()
    assert set(renewed) - set(listed) == {"2001:db8:0:0:e::/96"}
    assert {prefix: renewed[prefix] for prefix in listed} == listed
    attach("generic", "-n", BEHIND, "--rate", "0")  # a rule that is there is no conflict
    assert rules() == renewed
    assert status()["rate"] == 0
    done("detach", UPLINK)
    assert leftovers() == []


def test_a_renewal_makes_room_for_more_addresses(net: Network) -> None:
    addresses = [f"2001:db8::c:0:0:{number:x}" for number in range(1, 8)]
    attach("tc", "--max-addresses", "10", *(word for one in addresses for word in ("-n", one)))
    assert net.answers(addresses[0])
    before = status()
    assert before["rules"]["max_addresses"] == 10

    with net.solicited_continuously(addresses[3]) as missed:
        attach("tc", "--max-addresses", "100", "-n", TARGET)
    assert not missed

    after = status()
    assert after["rules"]["max_addresses"] == 100
    assert after["rules"]["addresses"] == before["rules"]["addresses"] + 1
    assert after["reasons"]["answered"] > before["reasons"]["answered"]
    answered = {group["label"]: group["answered"] for group in after["groups"]}
    assert answered[addresses[0]] == 1
    assert all(net.answers(one) for one in [*addresses, TARGET])
    done("prefix", "add", "2001:db8::d:0:0:1")  # into the map that the program reads
    assert net.answers("2001:db8::d:0:0:1")
    attach("tc")
    assert status()["rules"]["max_addresses"] == 100
    remove_instance()


@pytest.mark.parametrize("found", ["off", "on"])
def test_detach_leaves_allmulti_as_it_was_found(net: Network, found: str) -> None:
    sh("ip", "link", "set", UPLINK, "allmulticast", found)
    attach()
    assert has_allmulti()
    attach()
    done("detach", UPLINK)
    assert has_allmulti() is (found == "on")
    assert allmulti_count() == (found == "on")
    sh("ip", "link", "set", UPLINK, "allmulticast", "off")


def test_detach_leaves_allmulti_off_if_it_was_switched_off_since(net: Network) -> None:
    attach()
    sh("ip", "link", "set", UPLINK, "allmulticast", "off")
    done("detach", UPLINK)
    assert not has_allmulti()
    assert allmulti_count() == 0


@needs("allmulti")
def test_detach_leaves_others_memberships(net: Network) -> None:
    attach()
    membership = struct.pack("=iHHQ", network.link_state()["ifindex"], 2, 0, 0)  # MR_ALLMULTI
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as somebody:
        somebody.setsockopt(263, 1, membership)  # SOL_PACKET, PACKET_ADD_MEMBERSHIP
        assert allmulti_count() == 2
        done("detach", UPLINK)
        assert allmulti_count() == 1
        assert not has_allmulti()


@needs("rename")
def test_names_with_a_dot(net: Network) -> None:
    sh("ip", "link", "set", UPLINK, "name", "up0.7")
    try:
        done("attach", "up0.7", "--mode", "tc", "-n", BEHIND)
        assert net.answers()
        assert "up0.7  tc" in done("status")
        assert BEHIND in done("prefix", "list", "-i", "up0.7")
        done("detach", "up0.7")
        assert leftovers("up0.7") == []
    finally:
        sh("ip", "link", "set", "up0.7", "name", UPLINK)


@pytest.mark.parametrize("mode", ["tc", "generic"])
def test_an_interface_that_was_deleted_and_created_again(net: Network, mode: str) -> None:
    attach(mode, "-n", BEHIND)
    sh("ip", "link", "delete", UPLINK)
    assert "not attached" in done("status")

    # Another interface of that name: its rules are there, the program is not.
    sh("ip", "link", "add", UPLINK, "address", HOST_MAC, "type", "veth", "peer", "name", "far")
    sh("ip", "link", "set", UPLINK, "up")
    assert status()["attached"] is False
    attach(mode)
    assert programs() == [network.program_id()]
    assert status()["rules"]["by_source"]["manual"] == 1
    sh("ip", "link", "delete", UPLINK)
    done("detach", UPLINK)
    assert leftovers() == []


def test_commands_of_many_at_once(net: Network) -> None:
    """Run many commands at once; each takes the lock."""
    names = [f"many{number}" for number in range(6)]
    for name in names:
        sh("ip", "link", "add", name, "up", "type", "bridge")

    def at_once(*commands: list[str]) -> None:
        started = [
            subprocess.Popen(
                [*NDXDP, *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=REPOSITORY,
            )
            for command in commands
        ]
        ended = [process.communicate(timeout=30) for process in started]
        codes = [process.returncode for process in started]
        assert codes == [0] * len(codes), [errors for _, errors in ended if errors]

    attach()  # or the lock's directory comes and goes
    try:
        at_once(*(["attach", name, "--mode", "tc"] for name in names[:3]))
        at_once(
            *(["attach", name, "--mode", "tc"] for name in names[3:]),
            *(["detach", name] for name in names[:3]),
        )
        assert status(names[5])["attached"]
        at_once(*(["detach", name] for name in names[3:]))
        assert [path.name for path in network.PINS.glob("*/*")] == [UPLINK]
        remove_instance()
    finally:
        for name in names:
            call("ip", "link", "delete", name)


def test_the_lock_of_a_removed_directory(net: Network) -> None:
    """Take the lock again if the locked directory was removed in the meantime."""
    lock = network.PINS / "lock"
    lock.mkdir(parents=True)
    last = os.open(lock, os.O_RDONLY)
    fcntl.flock(last, fcntl.LOCK_EX)
    waiting = subprocess.Popen(
        [*NDXDP, "attach", UPLINK, "--mode", "tc"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    descriptors = Path(f"/proc/{waiting.pid}/fd")
    eventually(lambda: any(path.is_dir() and path.samefile(lock) for path in descriptors.iterdir()))
    lock.rmdir()
    network.PINS.rmdir()
    os.close(last)
    output = waiting.communicate(timeout=10)[1]
    remove_instance()
    assert (waiting.returncode, output) == (0, "")


# ---- status -------------------------------------------------------------------------------------


def test_status_of_nothing(net: Network) -> None:
    assert done("status") == "ndxdp is attached to no interface\n"
    assert ndxdp("status", "--json").json()["interfaces"] == []
    assert leftovers() == []


def test_status_of_several(attached: Network) -> None:
    sh("ip", "link", "add", "second", "up", "type", "bridge")
    try:
        done("attach", "second", "--mode", "tc")
        entries = ndxdp("status", "--json").json()["interfaces"]
        assert [entry["interface"] for entry in entries] == ["second", UPLINK]
        done("prefix", "add", "-i", "second", TARGET)
        assert explain("-i", "second", TARGET)["rule"]["prefix"] == TARGET
        assert explain("-i", UPLINK, TARGET)["rule"]["prefix"] == BEHIND
        remove_instance("second")
    finally:
        sh("ip", "link", "delete", "second")


# ---- profile ------------------------------------------------------------------------------------


@a_way_behind()
def test_the_routers_kernel_finds_a_duplicate(attached: Network) -> None:
    """Defend an address behind the host against DAD, unless the rule ignores DAD."""
    ignored = "2001:db8::d:0:0:1"
    done("prefix", "add", ignored, "--dad", "ignore")
    key = f"net.ipv6.conf.{ROUTER_LINK}"
    attached.at_router("sysctl", "-qw", f"{key}.router_solicitation_delay=0", f"{key}.accept_dad=1")
    for address in (TARGET, ignored):
        attached.at_router("ip", "-6", "address", "add", f"{address}/128", "dev", ROUTER_LINK)

    def flags() -> dict[str, bool] | None:
        shown = attached.at_router("ip", "-6", "-j", "address", "show", "dev", ROUTER_LINK).json()
        found = {entry["local"]: entry for entry in shown[0]["addr_info"]}
        if any(entry.get("tentative") and not entry.get("dadfailed") for entry in found.values()):
            return None
        return {one: found[one].get("dadfailed", False) for one in (TARGET, ignored)}

    assert eventually(flags) == {TARGET: True, ignored: False}
    assert counts() == {"answered_dad": 1, "dad_ignored": 1}


def test_own_and_gateway_addresses_are_never_answered(net: Network) -> None:
    attach("tc", "--force", "-n", "2001:db8::/64", "-n", "fe80::/64", "-n", HOST)

    for own in (HOST, HOST_LINK_LOCAL):
        assert net.ask(own) == (HOST_MAC, own)  # the kernel's own answer
    assert net.silent(GATEWAY)
    assert counts() == {"denied": 3}
    assert net.answers()
    assert rules()[HOST]["held"] is True
    assert rules()[HOST]["source"] == "manual"
    done("prefix", "add", GATEWAY)
    done("prefix", "del", GATEWAY, HOST)
    holes = {prefix: rules()[prefix] for prefix in (GATEWAY, HOST)}
    assert {hole["origin"] for hole in holes.values()} == {"host"}
    assert {prefix: hole["label"] for prefix, hole in holes.items()} == {
        GATEWAY: "gateway",
        HOST: "own",
    }
    remove_instance()


# ---- explain ------------------------------------------------------------------------------------


def test_explain_counts_nothing_and_is_charged_to_no_rate(net: Network) -> None:
    with without_gateway():
        attach("tc", "-n", BEHIND, "--rate", "0.001", "--burst", "2")
        before = status()
        assert before["rate"] == pytest.approx(0.001)
        for _ in range(3):
            assert explain(TARGET, "--mac", ROUTER_MAC)["reason"] == "answered"
        assert status() == before
        assert net.answers()
        assert net.answers()
        assert net.silent()
        assert counts() == {"answered": 2, "rate_limited": 1}
        assert explain(TARGET, "--mac", ROUTER_MAC)["reason"] == "rate_limited"
        assert explain(TARGET, "--mac", "02:00:00:00:00:03")["reason"] == "answered"
        assert counts() == {"answered": 2, "rate_limited": 1}
        remove_instance()


# ---- run ----------------------------------------------------------------------------------------


def test_a_killed_run_answers_no_more(net: Network) -> None:
    run = net.run("-i", UPLINK, "--mode", "tc", "-n", BEHIND)
    assert run.end(signal.SIGKILL).code == -signal.SIGKILL
    if features.lacks("tcx"):
        assert net.answers(), "a filter outlives the process"
    else:
        eventually(lambda: not programs())
        assert net.silent()
    assert allmulti_count() == 0
    assert status()["attached"] is features.lacks("tcx")
    attach("tc", "-n", TARGET)
    assert net.answers()
    shown = status()
    assert shown["held_by"] == "pins"
    done("detach", UPLINK)
    assert leftovers() == []
    assert shown["rules"]["by_source"] == {"host": 3, "manual": 1}


def test_run_keep_leaves_it_answering(net: Network) -> None:
    run = net.run("-i", UPLINK, "--mode", "tc", "-n", BEHIND, "--keep")
    done("prefix", "add", "2001:db8::d:0:0:1")
    assert run.end() == (0, "", "")
    assert net.answers()
    assert status()["held_by"] == "pins"
    assert has_allmulti()

    # Another one takes over: its rules are in the place of the first one's.
    with net.solicited_continuously() as missed:
        run = net.run("-i", UPLINK, "--mode", "tc", "-n", TARGET, "--keep")
    assert not missed
    by_source = {prefix: rule["source"] for prefix, rule in rules().items()}
    assert by_source[TARGET] == "run"
    assert by_source["2001:db8::d:0:0:1"] == "manual"
    assert BEHIND not in by_source
    assert status()["held_by"] == "run"
    assert run.end(signal.SIGKILL).code == -signal.SIGKILL
    assert net.answers()
    done("detach", UPLINK)
    assert leftovers() == []


def test_run_keep_takes_over_an_attached_program(attached: Network) -> None:
    before = status()["program"]["id"]
    run = attached.run("-i", UPLINK, "--mode", "tc", "-n", TARGET, "--keep")
    assert status()["held_by"] == "run"
    assert status()["program"]["id"] != before
    assert {BEHIND, TARGET} <= set(rules())
    sh("ip", "address", "add", "2001:db8::c:0:0:22/128", "dev", UPLINK, "nodad")
    eventually(lambda: is_answered("2001:db8::c:0:0:22") is False)
    assert run.end() == (0, "", "")
    assert attached.answers()


def test_run_refuses_an_interface_that_attach_keeps(attached: Network) -> None:
    before = network.snapshot()
    refused = ndxdp("run", "-i", UPLINK, "--mode", "tc", "-n", TARGET)
    assert (refused.code, refused.out) == (1, "")
    assert "--keep" in refused.err
    assert network.snapshot() == before


# ---- verbosity ----------------------------------------------------------------------------------


def test_verbosity(net: Network) -> None:
    assert "veth" in ndxdp("attach", UPLINK, "--mode", "native").err
    remove_instance()
    assert ndxdp("attach", "-q", UPLINK, "--mode", "native").err == ""
    remove_instance()
    sh("ip", "link", "add", "second", "up", "type", "bridge")
    try:
        for words in (("-q", "attach"), ("attach", "-v"), ("--debug", "attach", "-q")):
            refused = ndxdp(*words, "second", "--mode", "native")
            assert refused.code == 1
            assert "second does not run XDP" in refused.err
            assert (len(refused.err.splitlines()) > 2) is ("--debug" in words)
    finally:
        sh("ip", "link", "delete", "second")


def test_verbose_output_lists_the_actions(net: Network) -> None:
    found = [
        ndxdp(*words)
        for words in (
            ("-v", "attach", UPLINK, "--mode", "tc", "-n", BEHIND),
            ("attach", "-v", UPLINK, "--loader", "prebuilt"),
            ("detach", "-v", UPLINK),
        )
    ]
    assert [result.code for result in found] == [0, 0, 0]
    assert all(UPLINK in result.err for result in found)


def test_verbose_run_lists_what_it_follows(net: Network) -> None:
    run = net.run("-v", "-i", UPLINK, "--mode", "tc", "-n", BEHIND)
    sh("ip", "address", "add", "2001:db8::c:0:0:22/128", "dev", UPLINK, "nodad")
    eventually(lambda: is_answered("2001:db8::c:0:0:22") is False)
    ended = run.end()
    assert (ended.code, ended.out) == (0, "")
    assert "2001:db8::c:0:0:22" in ended.err


_WITHOUT_LINKS = """
import sys
from ndxdp.rules.rule_lists import compile_rules
from ndxdp.session.request import AttachOptions, AttachRequest
from ndxdp.session.session import Session
from ndxdp.kernel.abi import Mode
from ndxdp.store.directories import Trees
interface, mode, *prefixes = sys.argv[1:]
options = AttachOptions(mode=Mode[mode.upper()], links=False)
rules = compile_rules(prefixes)
Session.attach(Trees(), AttachRequest(interface, rules, options)).close()
"""


def attach_without_links(mode: str, *prefixes: str) -> None:
    result = python(_WITHOUT_LINKS, UPLINK, mode, *prefixes)
    assert result.code == 0, result


# ---- interrupting -------------------------------------------------------------------------------

_MOMENTS = random.Random(1).sample(range(100, 400, 5), 9)  # ms; attach takes some 300


def test_an_interrupted_attach_is_complete_or_undone(net: Network) -> None:
    """Complete or undo an attach that a signal interrupts, on three interfaces at once."""

    def interrupt(name: str, number: int, moments: list[int]) -> None:
        for moment in moments:
            process = subprocess.Popen(
                [*NDXDP, "attach", name, "--mode", "tc", "-n", BEHIND],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=REPOSITORY,
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment / 1000)
            process.send_signal(number)
            process.communicate(timeout=10)
            left = leftovers(name)
            if left and number != signal.SIGKILL:
                assert has_allmulti(name), moment
                assert network.tc_ids(name) == [network.program_id(name)], moment
                assert BEHIND in done("prefix", "list", "-i", name), moment
            if number == signal.SIGKILL and moment % 2:
                done("attach", name, "--mode", "tc", "-n", BEHIND)
                assert network.tc_ids(name) == [network.program_id(name)], moment
            if leftovers(name):
                done("detach", name)
            assert leftovers(name) == [], moment

    attach()  # or the lock's directory comes and goes
    signals = {"up1": signal.SIGINT, "up2": signal.SIGTERM, "up3": signal.SIGKILL}
    for name in signals:
        sh("ip", "link", "add", name, "up", "type", "bridge")
    try:
        with ThreadPoolExecutor() as pool:
            ended = [
                pool.submit(interrupt, name, number, _MOMENTS[index::3])
                for index, (name, number) in enumerate(signals.items())
            ]
        for each in ended:
            each.result()
        remove_instance()
    finally:
        for name in signals:
            sh("ip", "link", "delete", name)


# ---- at the worst moment ------------------------------------------------------------------------

# Preloaded, it sends a signal to its process right after the first call of a kind.
_SIGNAL_AFTER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static void reached(const char *call, long number)
{
	static int done;

	if (done || strcmp(getenv("AFTER_CALL"), call) || atoi(getenv("AFTER_NUMBER")) != number)
		return;
	done = 1;
	kill(getpid(), atoi(getenv("SIGNAL")));
}

long syscall(long number, ...)
{
	long (*real)(long, ...) = dlsym(RTLD_NEXT, "syscall");
	long a[6], result;
	va_list list;

	va_start(list, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	result = real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (number == SYS_bpf)
		reached("bpf", a[0]);
	return result;
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
	ssize_t (*real)(int, const void *, size_t, int) = dlsym(RTLD_NEXT, "send");
	ssize_t result = real(fd, data, size, flags);

	if (size >= 16)
		reached("netlink", ((const unsigned short *)data)[2]);
	return result;
}
"""


@pytest.fixture(scope="session")
def signal_after(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("signal_after") / "signal_after.so"
    options = ("-O1", "-shared", "-fPIC", "-x", "c", "-", "-o", str(made))
    sh("clang", *options, stdin=_SIGNAL_AFTER)
    return made


OBJ_PIN, LINK_CREATE = ("bpf", "6"), ("bpf", "28")
NEW_LINK, NEW_QDISC, DEL_FILTER = ("netlink", "16"), ("netlink", "36"), ("netlink", "45")


@pytest.mark.parametrize(
    ("command", "moment", "number"),
    [
        pytest.param("attach", OBJ_PIN, signal.SIGKILL, id="first pin"),
        pytest.param("attach", LINK_CREATE, signal.SIGTERM, id="attached, TERM"),
        pytest.param("attach", LINK_CREATE, signal.SIGKILL, id="attached"),
        pytest.param("attach", NEW_LINK, signal.SIGTERM, id="allmulti on, TERM"),
        pytest.param("attach", NEW_LINK, signal.SIGKILL, id="allmulti on"),
        pytest.param("attach*", NEW_QDISC, signal.SIGKILL, id="clsact made"),
        pytest.param("detach", NEW_LINK, signal.SIGKILL, id="allmulti off"),
        pytest.param("detach*", DEL_FILTER, signal.SIGTERM, id="filter gone, TERM"),
        pytest.param("detach*", DEL_FILTER, signal.SIGKILL, id="filter gone"),
    ],
)
def test_the_worst_moments(
    net: Network, signal_after: Path, command: str, moment: tuple[str, str], number: int
) -> None:
    """Leave a complete state or none after a signal; detach repairs the state after SIGKILL.

    command: with a star, as on a kernel without BPF links.
    """
    if command == "detach":
        attach("tc", "-n", BEHIND)
    elif command == "detach*":
        attach_without_links("tc", BEHIND)
    words = {
        "attach": [*NDXDP, "attach", UPLINK, "--mode", "tc", "-n", BEHIND],
        "attach*": [sys.executable, "-c", _WITHOUT_LINKS, UPLINK, "tc", BEHIND],
    }.get(command, [*NDXDP, "detach", UPLINK])
    when = dict(zip(("AFTER_CALL", "AFTER_NUMBER"), moment, strict=True))
    preload = {"LD_PRELOAD": str(signal_after), "SIGNAL": str(int(number))}
    ended = call(*words, env=when | preload)
    assert ended.code == (-number if number == signal.SIGKILL else 130), ended

    left = leftovers()
    if left and (number == signal.SIGKILL or (has_allmulti() and net.answers())):
        done("detach", UPLINK)
        left = leftovers()
    remove_instance()
    call("tc", "qdisc", "delete", "dev", UPLINK, "clsact")
    assert left == []


# ---- kernels without BPF links ------------------------------------------------------------------


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
