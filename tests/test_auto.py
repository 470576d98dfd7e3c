"""`auto` chooses the best working mode, reports why better ones are unavailable, and answers.

Every interface here is one of the kernel's own, and every answer is checked at its far end: a mode
that attaches without receiving solicitations would be the worst choice.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from lab.programs import build_xdp_pass
from tests.fixtures import features, network
from tests.fixtures.auto import (
    CANNOT,
    USAGE,
    VETH,
    WITHOUT_BPF,
    Tap,
    steps_down,
    tapped,
    without_driver,
)
from tests.fixtures.network import (
    BEHIND,
    GATEWAY,
    HOST,
    HOST_LINK_LOCAL,
    HOST_MAC,
    NDXDP,
    ROUTER_LINK_LOCAL,
    TARGET,
    UPLINK,
    Network,
    call,
    counts,
    done,
    eventually,
    explain,
    leftovers,
    ndxdp,
    rules,
    sh,
    status,
    wait_for_link,
)
from tests.test_bad_input import refused

BRIDGE, BRIDGE_MAC = "br0", "02:00:00:00:00:b0"

# ---- a veth --------------------------------------------------------------------------------------


def test_veth(net: Network) -> None:
    """Choose tc on a veth: its driver takes a native program whose answers would never arrive."""
    assert done("attach", UPLINK, "-n", BEHIND) == ""
    assert net.answers()
    assert counts() == {"answered": 1}
    shown = status()
    assert (shown["mode"], shown["steps_down"]) == ("tc", [{"mode": "native", "why": VETH}])
    text = done("status").splitlines()
    assert text[0] == f"{UPLINK}  tc, prebuilt program {network.program_id()}"
    assert text[1] == f"  not       native: {VETH}"
    done("detach", UPLINK)


def test_veth_with_run(net: Network) -> None:
    run = net.run("-i", UPLINK, "-n", BEHIND)
    assert run.ready == f"ready: {UPLINK} answers in tc mode (native: {VETH}), rules: 1\n"
    assert net.answers()
    assert steps_down() == {"native": VETH}
    assert run.end() == (0, "", "")


def test_veth_with_keep(net: Network) -> None:
    """Choose a program with --keep: userspace mode would need a process."""
    run = net.run("-i", UPLINK, "-n", BEHIND, "--keep")
    assert run.ready.startswith(f"ready: {UPLINK} answers in tc mode (native: ")
    assert run.end() == (0, "", "")
    assert net.answers()
    assert steps_down() == {"native": VETH}
    done("detach", UPLINK)


@pytest.mark.parametrize("mode", ["generic", "tc"])
def test_auto_keeps_the_attached_mode(net: Network, mode: str) -> None:
    """Keep the mode of an attached interface; `auto` chooses a mode only if there is none."""
    done("attach", UPLINK, "--mode", mode, "-n", BEHIND)
    for words in ((), ("--mode", "auto")):
        before = network.program_id()
        done("attach", UPLINK, *words)
        assert network.program_id() != before
        assert (status()["mode"], steps_down()) == (mode, {})
    run = net.run("-i", UPLINK, "--mode", "auto", "--keep")
    assert run.ready == f"ready: {UPLINK} answers in {mode} mode, rules: 0\n"
    assert run.end() == (0, "", "")
    assert net.answers()
    done("detach", UPLINK)


def test_a_renewal_keeps_the_reasons(net: Network) -> None:
    done("attach", UPLINK, "-n", BEHIND)
    done("attach", UPLINK, "--mode", "tc")
    assert (status()["mode"], steps_down()) == ("tc", {"native": VETH})
    done("detach", UPLINK)


@pytest.mark.parametrize("words", [("attach", UPLINK), ("run", "--keep", "-i", UPLINK)])
def test_no_process_stays_for_userspace(net: Network, words: tuple[str, ...]) -> None:
    """Refuse userspace mode for commands that leave no process."""
    # `timeout` ends a `run` that is not refused.
    command = ("timeout", "10", *NDXDP, *words, "--mode", "userspace", "-n", BEHIND)
    refused(call(*command), USAGE, "userspace")
    assert leftovers() == []


# ---- a bridge ------------------------------------------------------------------------------------


@contextlib.contextmanager
def bridged(*options: str) -> Iterator[None]:
    """Make the uplink a port of a bridge, which gets the host's addresses."""
    sh("ip", "address", "flush", "dev", UPLINK)
    commands = f"""
        link add {BRIDGE} address {BRIDGE_MAC} type bridge forward_delay 0
        link set {BRIDGE} addrgenmode none up
        link set {UPLINK} master {BRIDGE}
        address add {HOST}/64 dev {BRIDGE} nodad
        address add {HOST_LINK_LOCAL}/64 dev {BRIDGE} nodad
        route replace default via {GATEWAY} dev {BRIDGE}
    """
    try:
        sh("ip", "-6", "-batch", "-", stdin=commands)
        for option in options:  # comes last: a querier needs an address
            sh("ip", "link", "set", BRIDGE, "type", "bridge", *option.split())
        eventually(_forwards)
        wait_for_link(BRIDGE, HOST, HOST_LINK_LOCAL)
        yield
        assert leftovers(BRIDGE) == []
    finally:
        call("ip", "link", "delete", BRIDGE)


def _forwards() -> bool:
    state: str = network.link_state()["linkinfo"]["info_slave_data"]["state"]
    return state == "forwarding"


SNOOPING = {
    "flooding": ["mcast_snooping 0"],
    "snooping": ["mcast_snooping 1"],
    # A querier takes effect after the time that it gives others to respond: 10 ms.
    "querier": ["mcast_snooping 1", "mcast_query_response_interval 1", "mcast_querier 1"],
}
"""The bridge's treatment of multicast. Snooping keeps groups from ports that have not joined only
with a querier."""
_ETH_P_ALL = 3  # linux/if_ether.h


def receives_solicitations(net: Network, interface: str) -> bool:
    """Return True if a solicitation reaches the interface while no process wants all multicast."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as listening:
        listening.setblocking(False)
        listening.bind((interface, _ETH_P_ALL))
        assert net.silent()
        with contextlib.suppress(BlockingIOError):
            while True:
                if listening.recv(2048)[54:55] == b"\x87":
                    return True
    return False


def answered_and_denied(interface: str) -> tuple[int, int]:
    reasons = status(interface)["reasons"]
    return reasons["answered"], reasons["denied"]


@pytest.mark.parametrize("snooping", SNOOPING)
@pytest.mark.parametrize("mode", ["auto", "userspace"])
def test_bridge(net: Network, mode: str, snooping: str) -> None:
    """Answer with the bridge's own MAC, which the host's kernel uses as well."""
    with bridged(*SNOOPING[snooping]):
        if snooping == "querier":
            eventually(lambda: not receives_solicitations(net, BRIDGE))
        run = net.run("-i", BRIDGE, "--mode", mode, "-n", BEHIND, "-n", HOST)
        for source in (GATEWAY, ROUTER_LINK_LOCAL):
            assert net.ask(TARGET, source=source) == (BRIDGE_MAC, TARGET)
        assert net.ask(HOST) == (BRIDGE_MAC, HOST)  # answered by the kernel
        eventually(
            lambda: answered_and_denied(BRIDGE) == (2, 1)
        )  # a process counts after the kernel has answered
        shown = status(BRIDGE)
        assert shown["mac"] == BRIDGE_MAC
        if mode == "auto":
            assert shown["mode"] == "tc"
            assert list(steps_down(BRIDGE)) == ["native"]
            assert steps_down(BRIDGE)["native"].startswith(without_driver(BRIDGE))
        assert run.end() == (0, "", "")
        assert multicast_router(BRIDGE) == 1, "as it was"


def multicast_router(bridge: str) -> int:
    return int(network.link_state(bridge)["linkinfo"]["info_data"]["mcast_router"])


@pytest.mark.parametrize("mode", ["auto", "userspace"])
def test_port_of_a_bridge(net: Network, mode: str) -> None:
    """Answer on a port before the bridge sees the frame, with holes for the bridge's addresses."""
    with bridged():
        run = net.run(
            "-i", UPLINK, "--mode", mode, "-n", "2001:db8::/64", "-n", "fe80::/64", "--force"
        )
        assert net.answers()
        assert status()["mode"] == ("tc" if mode == "auto" else "userspace")
        for own in (HOST, HOST_LINK_LOCAL):
            assert net.ask(own) == (BRIDGE_MAC, own)  # answered by the kernel, at the bridge
            assert explain(own)["reason"] == "denied"
        assert explain(GATEWAY)["reason"] == "denied"
        assert status()["rules"]["by_source"] == {"host": 3, "run": 2}
        eventually(lambda: answered_and_denied(UPLINK) == (1, 2))

        # The holes follow the bridge's addresses.
        own = "2001:db8::c:0:0:22"
        assert net.answers(own)
        sh("ip", "address", "add", f"{own}/128", "dev", BRIDGE, "nodad")
        eventually(lambda: own in rules())
        wait_for_link(BRIDGE, own)
        assert net.ask(own) == (BRIDGE_MAC, own)
        sh("ip", "address", "delete", f"{own}/128", "dev", BRIDGE)
        eventually(lambda: own not in rules())
        assert net.answers(own)
        assert run.end() == (0, "", "")


def test_bridge_without_ports(net: Network) -> None:
    sh("ip", "link", "add", BRIDGE, "up", "type", "bridge")
    try:
        done("attach", BRIDGE, "-n", BEHIND)
        assert status(BRIDGE)["mode"] == "tc"
        done("detach", BRIDGE)
    finally:
        sh("ip", "link", "delete", BRIDGE)


# ---- a macvlan -----------------------------------------------------------------------------------


def test_macvlan(net: Network) -> None:
    name, mac = "mv0", "02:00:00:00:00:aa"
    sh("ip", "link", "add", name, "link", UPLINK, "address", mac, "type", "macvlan")
    sh("ip", "link", "set", name, "addrgenmode", "none", "up")
    run = net.run("-i", name, "-n", BEHIND)
    assert net.ask(TARGET) == (mac, TARGET)
    assert status(name)["mode"] == "tc"
    assert list(steps_down(name)) == ["native"]
    assert steps_down(name)["native"].startswith(without_driver(name))
    assert run.end() == (0, "", "")
    assert leftovers(name) == []


# ---- a tap, which runs XDP in its driver ---------------------------------------------------------


@pytest.fixture(params=["blocking", "nonblocking"])
def tap(net: Network, request: pytest.FixtureRequest) -> Iterator[Tap]:
    with tapped(request.param == "blocking") as made:
        yield made


@features.needs("xdp")
def test_tap(net: Network, tap: Tap) -> None:
    done("attach", Tap.name, "-n", BEHIND)
    assert tap.ask(TARGET) == (HOST_MAC, TARGET)
    assert tap.ask("2001:db8::d:0:0:1", wait=0.1) is None
    shown = status(Tap.name)
    assert (shown["mode"], shown["steps_down"]) == ("native", [])
    assert (shown["reasons"]["answered"], shown["reasons"]["no_rule"]) == (1, 1)
    assert done("status").splitlines()[0].startswith(f"{Tap.name}  native, prebuilt program ")
    assert network.xdp_ids(Tap.name) == [network.program_id(Tap.name)]
    done("detach", Tap.name)


@features.needs("xdp")
def test_run_on_a_tap_that_is_deleted_and_created_again(net: Network) -> None:
    """Resume when the tap is deleted and created again, as when a virtual machine restarts."""

    def one(run: network.Running | None) -> network.Running:
        tap = Tap(blocking=False)
        try:
            sh("ip", "link", "set", Tap.name, "address", HOST_MAC, "addrgenmode", "none", "up")
            run = run or net.run("-i", Tap.name, "-n", BEHIND)
            assert eventually(lambda: tap.ask(TARGET, wait=0.1)) == (HOST_MAC, TARGET)
            assert status(Tap.name)["mode"] == "native"
        finally:
            tap.close()
        return run

    ended = one(one(None)).end()
    assert (ended.code, "Traceback" in ended.err) == (0, False)
    assert leftovers(Tap.name) == []


# ---- a foreign program has the XDP slot ----------------------------------------------------------


@features.needs("xdp")
def test_occupied_slot(net: Network, tap: Tap) -> None:
    """Choose tc if a foreign program has the slot of native mode; it is not replaced."""
    sh("ip", "link", "set", Tap.name, "xdp", "obj", str(build_xdp_pass()), "sec", "xdp")
    (foreign,) = network.xdp_ids(Tap.name)
    taken = f"{Tap.name} already runs an XDP program 'pass' (id {foreign})"

    done("attach", Tap.name, "-n", BEHIND)
    assert tap.ask(TARGET) == (HOST_MAC, TARGET)
    assert status(Tap.name)["mode"] == "tc"
    assert list(steps_down(Tap.name)) == ["native"]
    assert steps_down(Tap.name)["native"].startswith(taken)
    assert network.xdp_ids(Tap.name) == [foreign]
    done("detach", Tap.name)

    for mode in ("native", "generic"):
        refused(ndxdp("attach", Tap.name, "--mode", mode), CANNOT, taken)
        refused(ndxdp("run", "-i", Tap.name, "--mode", mode), CANNOT, taken)
    assert network.xdp_ids(Tap.name) == [foreign]
    sh("ip", "link", "set", Tap.name, "xdp", "off")


def test_occupied_slot_without_bpf(net: Network, tap: Tap) -> None:
    """Answer from a packet socket behind a foreign program that passes frames on."""
    sh("ip", "link", "set", Tap.name, "xdp", "obj", str(build_xdp_pass()), "sec", "xdp")
    run = net.run("-i", Tap.name, "-n", BEHIND, command=WITHOUT_BPF)
    assert tap.ask(TARGET) == (HOST_MAC, TARGET)
    assert status(Tap.name)["mode"] == "userspace"
    assert run.end().code == 0
    sh("ip", "link", "set", Tap.name, "xdp", "off")
