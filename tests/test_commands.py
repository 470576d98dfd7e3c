"""Each command as a user runs it, judged by the kernel and by a router; test_run.py has `run`."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import network
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
    leftovers,
    ndxdp,
    remove_instance,
    rules,
    sh,
    status,
    without_gateway,
)
from tests.fixtures.without_links import MODES, attach, programs

# ---- attach and detach ---------------------------------------------------------------------------


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


# ---- status --------------------------------------------------------------------------------------


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


# ---- profile -------------------------------------------------------------------------------------


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


# ---- explain -------------------------------------------------------------------------------------


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
