"""Doctor on reception, on ndxdp's program, and on other responders."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.capture import packet_socket
from lab.programs import build_xdp_pass
from ndxdp.doctor import listeners
from ndxdp.doctor.finding import Level
from ndxdp.ndp.frame import target_of
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_address
from tests.fixtures.doctor import bad, conf, findings, follow, found_one, ip, mends, notes, sysctl
from tests.fixtures.network import (
    BEHIND,
    BPFFS,
    GATEWAY,
    HOST,
    HOST_MAC,
    PINS,
    ROUTER,
    ROUTER_LINK,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    done,
    eventually,
    ndxdp,
    remove_instance,
    sh,
)
from tests.fixtures.tap import tap

# ---- reception, program --------------------------------------------------------------------------


def test_allmulti_switched_off(answering: Network) -> None:
    sh("ip", "link", "set", UPLINK, "allmulticast", "off")
    mends("reception", f"{UPLINK} is not in allmulti")


@contextmanager
def bridge() -> Iterator[str]:
    ip("link add br7 address 02:00:00:00:00:77 type bridge")
    try:
        ip("link set br7 up")
        ip(f"-6 address add {HOST}7/64 dev br7 nodad")
        ip("-6 route add default via 2001:db8::1 dev br7 metric 9")
        yield "br7"
    finally:
        ip("link delete br7")


def test_a_bridge_that_snoops(healthy: Network) -> None:
    with bridge() as name:
        done("attach", name, "--mode", "tc", "-n", BEHIND)
        try:
            assert bad(interface=name) == []
            ip(f"link set {name} type bridge mcast_router 1")
            mends("reception", f"the bridge {name} snoops MLD", interface=name)
        finally:
            ndxdp("detach", name)


def test_paused(answering: Network) -> None:
    done("pause", UPLINK)
    mends("program", f"answering on {UPLINK} is paused")


def test_the_program_was_detached(answering: Network) -> None:
    (link,) = PINS.glob(f"v*/{UPLINK}/link")
    link.unlink()
    mends("program", f"ndxdp has rules for {UPLINK}, but answers nothing there")
    assert answering.answers(TARGET)


def test_damaged_pins(answering: Network) -> None:
    (rules,) = PINS.glob(f"v*/{UPLINK}/addresses")
    rules.unlink()
    mends("program", f"the pins of {UPLINK} are incomplete")
    assert not list(PINS.glob(f"v*/{UPLINK}"))


def test_no_bpf_file_system(healthy: Network) -> None:
    sh("umount", str(BPFFS))
    try:
        mends("program", f"ndxdp can answer on {UPLINK} in userspace mode only")
        assert BPFFS.stat().st_mode & 0o777 == 0o700
    finally:
        if not os.path.ismount(BPFFS):
            sh("mount", "-t", "bpf", "bpf", str(BPFFS))
        BPFFS.chmod(0o1777)  # as it was


def test_the_mode_that_auto_would_choose(healthy: Network) -> None:
    assert any("`auto` takes tc: what XDP sends from a veth" in note for note in notes())
    with tap("tap7"):
        ip("link set tap7 up")
        assert "ndxdp does not answer on tap7; `auto` tries native first, then tc" in notes("tap7")


def test_a_foreign_xdp_program(healthy: Network) -> None:
    program = str(build_xdp_pass())
    sh("ip", "link", "set", "dev", UPLINK, "xdpgeneric", "obj", program, "sec", "xdp")
    assert any(
        note.endswith(f"uses XDP on {UPLINK}: `auto` takes tc beside it") for note in notes()
    )
    assert bad() == []
    sh("ip", "link", "set", "dev", UPLINK, "xdpgeneric", "off")


# ---- other responders ----------------------------------------------------------------------------


@pytest.fixture
def ndppd(healthy: Network, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    configuration = tmp_path / "ndppd.conf"
    configuration.write_text(f"proxy {UPLINK} {{ rule {BEHIND} {{ static }} }}\n")
    process = subprocess.Popen(["ndppd", "-c", str(configuration)], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: any("ndppd" in note for note in notes()))
        yield process
    finally:
        process.kill()
        process.wait()


def test_another_responder(ndppd: subprocess.Popen[bytes]) -> None:
    assert f"ndppd (pid {ndppd.pid}) answers solicitations" in notes()
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND, "--except", TARGET)
    try:
        found = found_one("listeners", f"ndppd (pid {ndppd.pid}) answers solicitations, too")
        follow(found["cure"])
        ndppd.wait(timeout=10)
        # ndppd restores the interface's old allmulti, even if another process needs it.
        mends("reception", f"{UPLINK} is not in allmulti")
    finally:
        remove_instance()


def test_a_network_manager_that_listens_is_harmless() -> None:
    manager = listeners.Listener(712, "NetworkManager", "NetworkManager.service", raw=True)
    other = listeners.Listener(713, "something", "", raw=True)
    facts = listeners.Facts(UPLINK, (manager, other), 0, (), False, None)
    first, second = listeners.judge(facts)
    assert first.level is second.level is Level.NOTE
    assert first.what == (
        "NetworkManager (pid 712) receives ICMPv6, for router advertisements; this is harmless:"
        " the program answers no solicitations"
    )
    assert "58 is the protocol number" in first.why
    assert (second.what, second.why) == ("something (pid 713) receives ICMPv6", "")


def test_a_socket_for_icmpv6_is_found(healthy: Network) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6):
        (found,) = [each for each in findings() if each["check"] == "listeners"]
        assert f"(pid {os.getpid()}) receives ICMPv6" in found["what"]
        assert "raw6 at [::]:58" in found["why"]


def is_answered(net: Network, target: str, *, unicast: bool) -> bool:
    """Solicit once; a solicitation for the host's own address marks the end of the wait."""
    router, mac = parse_address(GATEWAY), bytes.fromhex(ROUTER_MAC.replace(":", ""))
    host = bytes.fromhex(HOST_MAC.replace(":", ""))
    wanted = parse_address(target)
    frame = solicit(
        mac,
        wanted,
        source=router,
        destination=wanted if unicast else None,
        eth_destination=host if unicast else None,
        sllao=mac,
    )
    with net.advertisements() as frames, packet_socket(ROUTER, ROUTER_LINK) as packets:
        packets.send(frame)
        assert net.answers(HOST)
    targets = [target_of(frame) for frame in frames]
    assert parse_address(HOST) in targets
    return wanted in targets


def test_proxy_ndp_works_and_drops(healthy: Network) -> None:
    conf("proxy_ndp", 1)
    sysctl(f"net.ipv6.neigh.{UPLINK}.proxy_delay=0")
    ip(f"-6 neighbour add proxy {TARGET} dev {UPLINK}")
    ip("link add behind0 type veth peer name far0")
    try:
        ip("link set behind0 up")
        ip(f"-6 route add {BEHIND} dev behind0")
        assert is_answered(healthy, TARGET, unicast=False)
        assert not is_answered(healthy, TARGET, unicast=True)
        mends("listeners", f"proxy_ndp for {TARGET} does not answer unicast solicitations")
        assert is_answered(healthy, TARGET, unicast=True)
    finally:
        ip("link delete behind0")
        conf("proxy_ndp", 0, "all")


def test_proxy_ndp_against_a_rule(answering: Network) -> None:
    conf("proxy_ndp", 1, "all")
    ip(f"-6 neighbour add proxy {TARGET} dev {UPLINK}")
    try:
        assert f"ndxdp answers for {TARGET} before the kernel's proxy_ndp does" in notes()
        done("prefix", "add", TARGET, "--answer", "never")
        mends("listeners", f"the kernel's proxy_ndp answers for {TARGET}")
    finally:
        conf("proxy_ndp", 0, "all")
