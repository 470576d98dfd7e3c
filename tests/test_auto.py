"""`auto` chooses the best working mode, reports why better ones are unavailable, and answers.

Every interface here is one of the kernel's own, and every answer is checked at its far end: a mode
that attaches without receiving solicitations would be the worst choice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, IPv6
from scapy.layers.l2 import Ether

from lab.programs import build_xdp_pass
from ndxdp.errors import ModeUnavailable
from ndxdp.kernel import bpf_maps, bpf_programs, libbpf
from ndxdp.kernel.abi import MapSpec, Mode
from ndxdp.netlink import links, vlan_offload
from ndxdp.rules.rule_lists import compile_rules
from ndxdp.session import modes
from ndxdp.session.request import AttachOptions, AttachRequest
from ndxdp.session.session import Session
from ndxdp.store.directories import Trees
from tests import packets
from tests.fixtures import features, network
from tests.fixtures.network import (
    BEHIND,
    GATEWAY,
    HOST,
    HOST_LINK_LOCAL,
    HOST_MAC,
    NDXDP,
    ROUTER,
    ROUTER_LINK,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
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
    timeless,
    wait_for_link,
)
from tests.test_bad_input import refused

CANNOT, USAGE = 1, 2

BRIDGE, BRIDGE_MAC = "br0", "02:00:00:00:00:b0"
VLAN, VLAN_ID = f"{UPLINK}.100", 100
ROUTER_VLAN = f"{ROUTER_LINK}.100"

VETH = "what XDP sends from a veth arrives only if its peer runs XDP, too"

WITHOUT_BPF = ("setpriv", "--bounding-set=-all,+net_raw", "--inh-caps=-all", *NDXDP)
WITHOUT_ANY = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", *NDXDP)
"""A command of root without capabilities, as in an unprivileged container."""


def steps_down(interface: str = UPLINK) -> dict[str, str]:
    """Return the reason of each unavailable mode."""
    return {step["mode"]: step["why"] for step in status(interface)["steps_down"]}


def without_driver(interface: str) -> str:
    """Return the beginning of the refusal for a driver without XDP; the kernel's words follow.

    If the kernel's XDP is insufficient, ndxdp does not try the driver.
    """
    if features.lacks("xdp"):
        return "the kernel has no XDP for frames in several pieces, which came with Linux 5.18"
    return f"{interface} does not run XDP in its driver ("


# ---- a veth -------------------------------------------------------------------------------------


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


# ---- a bridge -----------------------------------------------------------------------------------


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


# ---- a macvlan ----------------------------------------------------------------------------------


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


# ---- a tap, which runs XDP in its driver --------------------------------------------------------


class Tap:
    """An Ethernet interface whose far end is a descriptor of this process."""

    name = "tap0"

    def __init__(self, *, blocking: bool) -> None:
        tunsetiff, iff_tap, iff_no_pi = 0x400454CA, 0x0002, 0x1000
        self._fd = os.open("/dev/net/tun", os.O_RDWR | (0 if blocking else os.O_NONBLOCK))
        request = struct.pack("=16sH22x", self.name.encode(), iff_tap | iff_no_pi)
        fcntl.ioctl(self._fd, tunsetiff, request)

    def close(self) -> None:
        """Close the descriptor, which deletes the interface."""
        os.close(self._fd)

    def ask(self, target: str, *, tag: bytes = b"", wait: float = 2) -> tuple[str, str] | None:
        """Send a solicitation; return MAC and address of the answer within `wait` seconds.

        tag: a VLAN tag for the solicitation.
        """
        frame = bytes(
            packets.to_group(target, ROUTER_LINK_LOCAL, eth_src=ROUTER_MAC)
            / packets.ns(target)
            / packets.sllao(ROUTER_MAC)
        )
        os.write(self._fd, frame[:12] + tag + frame[12:])
        give_up = time.monotonic() + wait
        while select.select([self._fd], [], [], max(give_up - time.monotonic(), 0))[0]:
            packet = Ether(os.read(self._fd, 2048))
            if ICMPv6ND_NA in packet and packet.dst == ROUTER_MAC:
                assert packet[ICMPv6ND_NA].tgt == target
                return packet.src, packet[IPv6].src
        return None


@pytest.fixture(params=["blocking", "nonblocking"])
def tap(net: Network, request: pytest.FixtureRequest) -> Iterator[Tap]:
    """Yield a tap; blocking and nonblocking writes run XDP in different places of its driver."""
    made = Tap(blocking=request.param == "blocking")
    try:
        sh("ip", "link", "set", Tap.name, "address", HOST_MAC, "addrgenmode", "none", "up")
        yield made
        assert leftovers(Tap.name) == []
    finally:
        made.close()


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


# ---- a foreign program has the XDP slot ---------------------------------------------------------


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


def attach(interface: str, mode: Mode) -> None:
    """Attach without rules, in this process."""
    request = AttachRequest(interface, options=AttachOptions(mode))
    Session.attach(Trees(), request).close()


# ---- an older kernel, simulated (scenarios/kernel_groups.py runs real ones) ---------------------


def test_xdp_of_an_older_kernel(net: Network, tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Find the reason if the kernel refuses a program with EINVAL, and choose tc."""
    load = bpf_programs.load_object

    def refuse_xdp(image: bytes, program: str, map_fds: dict[str, int]) -> int:
        if program == Mode.NATIVE.program:
            raise libbpf.BpfError(errno.EINVAL, "bpf_object__load")
        return load(image, program, map_fds)

    monkeypatch.setattr(bpf_programs, "load_object", refuse_xdp)
    monkeypatch.setattr(bpf_programs, "xdp_has_frags", lambda: False)
    Session.attach(Trees(), AttachRequest(Tap.name, compile_rules([BEHIND]))).close()
    why = "the kernel has no XDP for frames in several pieces, which came with Linux 5.18"
    assert (status(Tap.name)["mode"], steps_down(Tap.name)) == ("tc", {"native": why})
    assert tap.ask(TARGET) == (HOST_MAC, TARGET)
    done("detach", Tap.name)
    with pytest.raises(ModeUnavailable, match=why):
        attach(Tap.name, Mode.GENERIC)

    # EINVAL for another reason stays an error.
    monkeypatch.setattr(bpf_programs, "xdp_has_frags", lambda: True)
    with pytest.raises(ModeUnavailable, match="refused the program"):
        attach(Tap.name, Mode.GENERIC)


@pytest.mark.parametrize(
    ("number", "small", "why"),
    [
        (errno.EPERM, True, "the kernel lets this process lock too little memory"),
        (errno.EPERM, False, "the kernel does not let this process make a BPF map"),
        (errno.EINVAL, True, "the kernel does not know the type of the BPF map 'requests'"),
    ],
)
def test_maps_of_an_older_kernel(
    net: Network, monkeypatch: pytest.MonkeyPatch, number: int, small: bool, why: str
) -> None:
    create = bpf_maps.create

    def refuse(spec: MapSpec) -> int:
        if spec.name == "requests" or (spec.name == "small" and not small):
            raise libbpf.BpfError(number, "bpf_map_create")
        return create(spec)

    monkeypatch.setattr(bpf_maps, "create", refuse)
    with pytest.raises(ModeUnavailable, match=why):
        attach(UPLINK, Mode.TC)
    assert leftovers() == []


# ---- a process that may not use BPF -------------------------------------------------------------

NO_MAP = "the kernel does not let this process make a BPF map (Operation not permitted)"


def test_without_cap_bpf(net: Network) -> None:
    run = net.run("-i", UPLINK, "-n", BEHIND, command=WITHOUT_BPF)
    ready = f"ready: {UPLINK} answers in userspace mode (native: {VETH}; tc: {NO_MAP}), rules: 1\n"
    assert run.ready == ready
    assert net.answers()
    shown = status()
    assert (shown["mode"], shown["program"], shown["loader"]) == ("userspace", None, None)
    assert steps_down() == {"native": VETH, "tc": NO_MAP}
    text = done("status").splitlines()
    assert text[:3] == [
        f"{UPLINK}  userspace, locked by a running `ndxdp run`",
        f"  not       native: {VETH}",
        f"  not       tc: {NO_MAP}",
    ]
    shown_without = call(*WITHOUT_BPF, "status")
    assert (shown_without.code, shown_without.err) == (0, "")
    assert timeless(shown_without.out) == timeless(done("status"))
    assert call(*WITHOUT_BPF, "prefix", "add", "2001:db8::d:0:0:1") == (0, "", "")
    assert net.answers("2001:db8::d:0:0:1")
    ended = run.end()
    assert (ended.code, ended.out) == (0, "")
    # The service's log has it once.
    assert ended.err == f"ndxdp: answering from userspace (native: {VETH}; tc: {NO_MAP})\n"
    assert leftovers() == []


def test_a_common_reason_is_given_once(net: Network, tap: Tap) -> None:
    run = net.run("-i", Tap.name, "-n", BEHIND, command=WITHOUT_BPF)
    assert f"in userspace mode (native, tc: {NO_MAP})" in run.ready
    assert tap.ask(TARGET) == (HOST_MAC, TARGET)
    assert f"  not       native, tc: {NO_MAP}" in done("status").splitlines()
    assert steps_down(Tap.name) == {"native": NO_MAP, "tc": NO_MAP}
    assert run.end().code == 0


def test_userspace_needs_cap_net_raw_alone(net: Network) -> None:
    run = net.run("-i", UPLINK, "--mode", "userspace", "-n", BEHIND, command=WITHOUT_BPF)
    assert run.ready == f"ready: {UPLINK} answers in userspace mode, rules: 1\n"
    assert net.answers()
    assert steps_down() == {}
    assert run.end() == (0, "", "")


def test_without_any_capability(net: Network) -> None:
    output = refused_without_capabilities("run", "-i", UPLINK, "-n", BEHIND)
    assert VETH in output
    assert NO_MAP in output
    assert "CAP_NET_RAW" in output
    output = refused_without_capabilities("run", "-i", UPLINK, "--mode", "userspace", "-n", BEHIND)
    assert "packet socket" in output
    assert "CAP_NET_RAW" in output


def refused_without_capabilities(*words: str) -> str:
    before = network.snapshot()
    result = call(*WITHOUT_ANY, *words)
    refused(result, CANNOT)
    assert leftovers() == []
    assert network.snapshot() == before
    return result.err


@pytest.mark.parametrize("words", [("attach", UPLINK), ("run", "--keep", "-i", UPLINK)])
def test_without_cap_bpf_nothing_stays(net: Network, words: tuple[str, ...]) -> None:
    """Refuse commands that leave no process, without the right to load a program."""
    before = network.snapshot()
    refused(call(*WITHOUT_BPF, *words, "-n", BEHIND), CANNOT, NO_MAP)
    refused(call(*WITHOUT_BPF, *words, "-n", BEHIND, "--mode", "tc"), CANNOT, NO_MAP)
    assert network.snapshot() == before
    assert leftovers() == []


def test_without_cap_bpf_beside_an_attached_program(attached: Network) -> None:
    """Refuse to start without the right to read the pins: two instances would both answer."""
    before = network.snapshot()
    for mode in ("auto", "tc", "userspace"):
        refused(call(*WITHOUT_BPF, "run", "-i", UPLINK, "--mode", mode, "-n", BEHIND), CANNOT)
    assert network.snapshot() == before
    with attached.advertisements() as frames:
        assert attached.answers()
    assert len(frames) == 1


# ---- no BPF file system -------------------------------------------------------------------------

NOWHERE = "there is no BPF file system at "
UNMOUNTED = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    'while umount /sys/fs/bpf 2>&-; do :; done; exec "$@"',
    "sh",
    *NDXDP,
)


@pytest.mark.parametrize(
    ("command", "where"),
    [((*NDXDP, "--bpffs", "/nonexistent"), "/nonexistent"), (UNMOUNTED, "/sys/fs/bpf")],
    ids=["elsewhere", "unmounted"],
)
def test_no_bpf_file_system(net: Network, command: tuple[str, ...], where: str) -> None:
    run = net.run("-i", UPLINK, "-n", BEHIND, command=command)
    assert f"in userspace mode (native, tc: {NOWHERE}{where})" in run.ready
    assert net.answers()
    assert steps_down() == {"native": NOWHERE + where, "tc": NOWHERE + where}
    shown = call(*command, "status")
    assert shown.code == 0
    assert timeless(shown.out) == timeless(done("status"))
    assert call(*command, "prefix", "add", "2001:db8::d:0:0:1") == (0, "", "")
    assert net.answers("2001:db8::d:0:0:1")
    ended = run.end()
    assert (ended.code, len(ended.err.splitlines())) == (0, 1)
    assert leftovers() == []

    refused(call(*command, "attach", UPLINK, "-n", BEHIND), CANNOT, NOWHERE + where)
    refused(call(*command, "run", "--keep", "-i", UPLINK), CANNOT, NOWHERE + where)
    refused(call(*command, "run", "-i", UPLINK, "--mode", "tc"), CANNOT, NOWHERE + where)
    assert leftovers() == []


@pytest.mark.parametrize("mode", ["auto", "userspace"])
def test_bpf_file_system_that_is_read_only(net: Network, mode: str) -> None:
    """Answer from userspace if the BPF file system is read-only, as in some containers."""
    read_only = ("unshare", "--mount", "sh", "-c")
    remount = 'mount -o remount,bind,ro /sys/fs/bpf && exec "$@"'
    command = (*read_only, remount, "sh", *NDXDP)
    run = net.run("-i", UPLINK, "--mode", mode, "-n", BEHIND, command=command)
    assert f"{UPLINK} answers in userspace mode" in run.ready
    assert net.answers()
    assert run.end().code == 0
    refused(call(*command, "attach", UPLINK), CANNOT)


# ---- VLAN tags that XDP does not see ------------------------------------------------------------

# As net/8021q/vlanproc.c prints it.
_VLAN_CONFIG = """\
VLAN Dev name	 | VLAN ID
Name-Type: VLAN_NAME_TYPE_RAW_PLUS_VID_NO_PAD
eth0.100       | 100  | eth0
guests         | 7  | eth0
eth0.100.5     | 5  | eth0.100
eth01.3        | 3  | eth01
"""


@pytest.mark.parametrize(
    ("parent", "found"),
    [
        ("eth0", ["eth0.100", "guests"]),
        ("eth0.100", ["eth0.100.5"]),
        ("eth01", ["eth01.3"]),
        ("eth", []),
        ("guests", []),
    ],
)
def test_vlans_on(tmp_path: Path, parent: str, found: list[str]) -> None:
    config = tmp_path / "config"
    config.write_text(_VLAN_CONFIG)
    assert vlan_offload.vlans_on(parent, config) == found


def test_vlans_of_a_kernel_without_them(tmp_path: Path) -> None:
    assert vlan_offload.vlans_on("eth0", tmp_path / "config") == []


def test_strips_tags(net: Network) -> None:
    for setting in ("off", "on", "off"):
        sh("ethtool", "-K", UPLINK, "rxvlan", setting)
        assert vlan_offload.strips_tags(UPLINK) is (setting == "on")
    assert vlan_offload.strips_tags("lo") is False
    assert vlan_offload.strips_tags("nowhere0") is False
    assert vlan_offload.hidden_vlans(UPLINK, "") == []


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", ["", "veth"])
def test_hidden_vlans_rule_xdp_out(monkeypatch: pytest.MonkeyPatch, named: bool, kind: str) -> None:
    """Refuse XDP, even on request, if its answers to VLAN solicitations would lack the tag."""
    monkeypatch.setattr(vlan_offload, "hidden_vlans", lambda name, kind: [f"{name}.100", "…"])
    link = links.Link(7, "eth0", bytes(6), kind, True, True, False)
    for mode in (Mode.NATIVE, Mode.GENERIC):
        with pytest.raises(ModeUnavailable) as caught:
            modes.check(link, mode, named=named)
        assert "eth0.100" in caught.value.message
        # A veth receives such frames with any setting.
        assert ("ethtool -K eth0 rxvlan off" in caught.value.hint) == (kind != "veth")
        assert "tc" in caught.value.hint
    modes.check(link, Mode.TC, named=named)


# ---- real VLAN interfaces and bonds, where the kernel has them ----------------------------------


def needs(*kind: str) -> None:
    """Skip the test if the kernel cannot make such an interface."""
    made = call("ip", "link", "add", "probe0", *kind)
    if made.code:
        pytest.skip(f"this kernel makes none of `{' '.join(kind)}`: {made.err.strip()}")
    sh("ip", "link", "delete", "probe0")


@pytest.fixture
def vlan(net: Network) -> Iterator[Network]:
    """Create a VLAN on the link, with an interface at either end; the router's has addresses."""
    needs("link", UPLINK, "type", "vlan", "id", "5")
    commands = f"""
        link add link {UPLINK} name {VLAN} type vlan id {VLAN_ID}
        link set {VLAN} addrgenmode none up
    """
    sh("ip", "-6", "-batch", "-", stdin=commands)
    far = f"""
        link add link {ROUTER_LINK} name {ROUTER_VLAN} type vlan id {VLAN_ID}
        link set {ROUTER_VLAN} addrgenmode none up
        address add {ROUTER_LINK_LOCAL}/64 dev {ROUTER_VLAN} nodad
    """
    sh("nsenter", f"--net=/run/netns/{ROUTER}", "ip", "-6", "-batch", "-", stdin=far)
    yield net
    assert leftovers(VLAN) == []


def test_hidden_vlan(vlan: Network) -> None:
    vlan.pass_at_router()  # so that answers of native mode would arrive
    sh("ethtool", "-K", UPLINK, "rxvlan", "on")
    assert vlan_offload.hidden_vlans(UPLINK, "") == [VLAN]
    hidden = f"{UPLINK} takes the VLAN tags off before XDP sees them, and has {VLAN} on top"

    for mode in ("native", "generic"):
        for words in (("attach", UPLINK), ("run", "-i", UPLINK)):
            refusal = ndxdp(*words, "--mode", mode, "-n", BEHIND)
            refused(refusal, CANNOT, hidden)
            assert leftovers() == []
    done("attach", UPLINK, "-n", BEHIND)
    assert (status()["mode"], steps_down()) == ("tc", {"native": hidden})
    assert vlan.answers()
    assert vlan.ask(TARGET, link=ROUTER_VLAN, wait=0.3) is None
    assert counts() == {"answered": 1}
    done("detach", UPLINK)


def test_tags_that_stay_in_the_frames_hide_nothing(vlan: Network) -> None:
    sh("ethtool", "-K", UPLINK, "rxvlan", "off")
    assert vlan_offload.hidden_vlans(UPLINK, "") == []
    assert vlan_offload.hidden_vlans(UPLINK, "veth") == [VLAN], "its peer may keep them outside"


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_vlan_that_comes_later(net: Network, mode: str) -> None:
    """Warn in `status` if a VLAN that makes the attached mode wrong is created later."""
    needs("link", UPLINK, "type", "vlan", "id", str(VLAN_ID))
    net.pass_at_router()
    assert ndxdp("attach", UPLINK, "--mode", mode, "-n", BEHIND).code == 0
    assert status()["warnings"] == []
    sh("ip", "link", "add", "link", UPLINK, "name", VLAN, "type", "vlan", "id", str(VLAN_ID))
    (warning,) = status()["warnings"]
    assert VLAN in warning
    assert "tc" in warning
    assert any("  WARNING   " in line for line in done("status").splitlines())
    done("detach", UPLINK)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_tags_that_a_veths_peer_keeps_outside(vlan: Network, mode: str) -> None:
    """Answer no VLAN solicitation untagged, even if the veth's peer hides the tags from XDP."""
    vlan.pass_at_router()
    sh("ethtool", "-K", UPLINK, "rxvlan", "off")
    assert vlan.at_router("ethtool", "-K", ROUTER_LINK, "txvlan", "on").code == 0
    attached = ndxdp("attach", UPLINK, "--mode", mode, "-n", BEHIND).code == 0
    answer = vlan.ask(TARGET, link=ROUTER_VLAN, wait=0.3)
    if attached:
        answered = counts().get("answered", 0)
        done("detach", UPLINK)
        assert (answer, answered) == (None, 0)


@features.needs("xdp")
def test_vlan_on_a_tap(net: Network, tap: Tap) -> None:
    """Choose native mode on a tap, whose driver keeps tags in frames; ignore tagged frames."""
    name = f"{Tap.name}.100"
    needs("link", Tap.name, "type", "vlan", "id", "5")
    sh("ip", "link", "add", "link", Tap.name, "name", name, "type", "vlan", "id", "100")
    sh("ip", "link", "set", name, "addrgenmode", "none", "up")
    assert not vlan_offload.strips_tags(Tap.name)
    done("attach", Tap.name, "-n", BEHIND)
    assert (status(Tap.name)["mode"], steps_down(Tap.name)) == ("native", {})
    assert tap.ask(TARGET) == (HOST_MAC, TARGET)
    assert tap.ask(TARGET, tag=bytes.fromhex("81000064"), wait=0.3) is None
    done("detach", Tap.name)


@pytest.mark.parametrize("mode", ["auto", "userspace"])
@pytest.mark.parametrize("rxvlan", ["on", "off"])
def test_vlan_interface(vlan: Network, mode: str, rxvlan: str) -> None:
    """Answer the VLAN's solicitations, tagged, on the VLAN's own interface."""
    sh("ethtool", "-K", UPLINK, "rxvlan", rxvlan)
    run = vlan.run("-i", VLAN, "--mode", mode, "-n", BEHIND)
    assert vlan.ask(TARGET, link=ROUTER_VLAN) == (HOST_MAC, TARGET)
    assert vlan.silent()  # without a tag
    shown = status(VLAN)
    assert shown["reasons"]["answered"] == sum(shown["reasons"].values()) == 1
    if mode == "auto":
        assert shown["mode"] == "tc"
        assert list(steps_down(VLAN)) == ["native"]
        assert steps_down(VLAN)["native"].startswith(without_driver(VLAN))
    assert run.end() == (0, "", "")


@pytest.mark.parametrize("mode", ["tc", "userspace"])
@pytest.mark.parametrize("rxvlan", ["on", "off"])
def test_tagged_solicitations_are_left_alone(vlan: Network, mode: str, rxvlan: str) -> None:
    """Ignore tagged solicitations on the parent: they belong to the VLAN's interface."""
    sh("ethtool", "-K", UPLINK, "rxvlan", rxvlan)
    run = vlan.run("-i", UPLINK, "--mode", mode, "-n", BEHIND)
    assert vlan.ask(TARGET, link=ROUTER_VLAN, wait=0.3) is None
    assert vlan.answers()
    assert vlan.ask(TARGET, link=ROUTER_VLAN, wait=0.3) is None
    shown = status()["reasons"]
    assert shown["answered"] == sum(shown.values()) == 1
    assert run.end() == (0, "", "")


def test_vlan_and_parent_side_by_side(vlan: Network) -> None:
    done("attach", UPLINK, "-n", BEHIND)
    run = vlan.run("-i", VLAN, "-n", BEHIND)
    with vlan.advertisements() as frames:
        assert vlan.answers()
        assert vlan.ask(TARGET, link=ROUTER_VLAN) == (HOST_MAC, TARGET)
    assert len(frames) == 2
    for name in (UPLINK, VLAN):
        assert status(name)["reasons"]["answered"] == 1
    assert run.end() == (0, "", "")
    done("detach", UPLINK)


@pytest.fixture
def bond(net: Network) -> Iterator[str]:
    """Create a bond with the uplink as its only member, whose MAC it has."""
    name = "bond7"
    needs("type", "bond")
    commands = f"""
        link set {UPLINK} down
        link add {name} type bond mode active-backup miimon 10
        link set {UPLINK} master {name}
        link set {name} addrgenmode none up
        address add {HOST}/64 dev {name} nodad
    """
    try:
        sh("ip", "-6", "-batch", "-", stdin=commands)
        eventually(lambda: "LOWER_UP" in network.link_state(name)["flags"])
        yield name
        assert leftovers(name) == []
    finally:
        call("ip", "link", "delete", name)


def test_bond(net: Network, bond: str) -> None:
    """Choose tc on a bond: native answers would be lost unless each member runs XDP."""
    done("attach", bond, "-n", BEHIND)
    assert (status(bond)["mode"], steps_down(bond)) == (
        "tc",
        {"native": "XDP on a bond depends on each of its members"},
    )
    assert net.answers()
    done("detach", bond)


def test_bond_from_userspace(net: Network, bond: str) -> None:
    run = net.run("-i", bond, "--mode", "userspace", "-n", BEHIND, "-n", HOST)
    assert net.answers()
    assert net.ask(HOST) == (HOST_MAC, HOST)  # answered by the kernel
    assert status(bond)["reasons"]["denied"] == 1
    assert run.end() == (0, "", "")
