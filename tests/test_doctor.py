"""Doctor finds each fault, its command repairs the fault, and then it finds nothing."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, IPv6
from scapy.layers.l2 import Ether

from lab.capture import packet_socket
from lab.programs import build_xdp_pass
from ndxdp.doctor import examination, limits, listeners, source
from ndxdp.doctor.finding import Level
from ndxdp.ndp.frame import target_of
from ndxdp.ndp.message import solicit
from ndxdp.netlink.addresses import FOREVER, OwnAddress
from ndxdp.netlink.neighbour_table import NeighbourTable
from ndxdp.rules.address import parse_address
from ndxdp.store.directories import Trees
from tests.fixtures.documented import json_of
from tests.fixtures.engine import Engine
from tests.fixtures.network import (
    BEHIND,
    BPFFS,
    GATEWAY,
    HOST,
    HOST_MAC,
    PINS,
    REPOSITORY,
    ROUTER,
    ROUTER_LINK,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    call,
    done,
    eventually,
    ndxdp,
    python,
    remove_instance,
    sh,
    snapshot,
)
from tests.fixtures.tap import tap

FROM_ROUTER = f"{ROUTER_LINK_LOCAL} dev {UPLINK} lladdr {ROUTER_MAC} STALE \n"

OFFERED = "2001:db8:5::"
"""A prefix that the router advertises."""


def findings(*args: str, interface: str = UPLINK) -> list[dict[str, str]]:
    """Return doctor's findings, and check its exit code."""
    result = ndxdp("doctor", interface, "--json", *args)
    answer = json.loads(result.out)
    (one,) = answer["interfaces"]
    assert one["interface"] == interface
    levels = {each["level"] for each in one["findings"]}
    code = 2 if "failure" in levels else 1 if "warning" in levels else 0
    assert (result.code, answer["exit_code"], result.err) == (code, code, "")
    found: list[dict[str, str]] = one["findings"]
    return found


def bad(*args: str, interface: str = UPLINK) -> list[dict[str, str]]:
    """Return the warnings and failures; others may have filled the machine's neighbour table."""
    return [
        each
        for each in findings(*args, interface=interface)
        if each["level"] in ("warning", "failure")
        and not each["what"].startswith("the IPv6 neighbour table holds")
    ]


def notes(interface: str = UPLINK) -> list[str]:
    return [each["what"] for each in findings(interface=interface) if each["level"] == "note"]


def found_one(check: str, words: str, *args: str, interface: str = UPLINK) -> dict[str, str]:
    """Return the only finding."""
    (found,) = bad(*args, interface=interface)
    assert found["check"] == check
    assert words in found["what"]
    assert found["why"]
    return found


def follow(cure: str) -> None:
    """Run a cure exactly as it is printed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
    result = call("sh", "-c", cure, env={"PATH": path})
    assert result.code == 0, (cure, result)


def mends(check: str, words: str, *args: str, interface: str = UPLINK) -> dict[str, str]:
    """Check that a fault is the only finding, and that its command leaves none."""
    found = found_one(check, words, *args, interface=interface)
    follow(found["cure"])
    assert bad(*args, interface=interface) == []
    return found


def ip(line: str) -> None:
    sh("ip", *line.split())


def sysctl(*settings: str) -> None:
    sh("sysctl", "-qw", *settings)


def conf(key: str, value: int, interface: str = UPLINK) -> None:
    sysctl(f"net.ipv6.conf.{interface}.{key}={value}")


def lose(neighbour: str) -> None:
    """Make the kernel solicit a neighbour that does not answer, until its entry has failed."""
    sysctl(f"net.ipv6.neigh.{UPLINK}.retrans_time_ms=100")
    call("ping", "-c1", "-W5", neighbour)
    assert "FAILED" in sh("ip", "-6", "neighbour", "show", neighbour, "dev", UPLINK)
    sysctl(f"net.ipv6.neigh.{UPLINK}.retrans_time_ms=1000")


@pytest.fixture
def healthy(net: Network) -> Iterator[Network]:
    """Yield a host that forwards, with a static default route."""
    conf("forwarding", 1, "all")
    assert bad() == []
    yield net
    conf("forwarding", 0, "all")


@pytest.fixture
def answering(healthy: Network) -> Iterator[Network]:
    """Yield a healthy host with ndxdp at tc."""
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    assert bad() == []
    yield healthy
    remove_instance()


def advertise(lifetime: int = 1800) -> None:
    """Send a router advertisement with a prefix."""
    frame = (
        Ether(src=ROUTER_MAC, dst="33:33:00:00:00:01")
        / IPv6(src=ROUTER_LINK_LOCAL, dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(routerlifetime=lifetime)
        / ICMPv6NDOptPrefixInfo(prefix=OFFERED, prefixlen=64, L=1, A=1)
    )
    with packet_socket(ROUTER, ROUTER_LINK) as packets:
        packets.send(bytes(frame))


def default_route() -> str:
    return sh("ip", "-6", "route", "show", "default", "dev", UPLINK)


@pytest.fixture
def advertised(net: Network) -> Network:
    """Yield a host without forwarding, whose default route comes from an advertisement."""
    sh("ip", "-6", "route", "delete", "default")
    conf("forwarding", 0, "all")
    advertise()
    eventually(lambda: "proto ra" in default_route())
    return net


# ---- a healthy host, and command lines ----------------------------------------------------------


def test_a_healthy_host(answering: Network) -> None:
    sh("ping", "-c1", "-W2", GATEWAY)
    assert f"gateway {GATEWAY}: reachable, {ROUTER_MAC}" in notes()
    assert f"ndxdp answers on {UPLINK} in tc mode" in notes()
    result = ndxdp("doctor")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0] == UPLINK
    assert result.out.splitlines()[-1] == "all is well"


def test_it_changes_nothing(answering: Network) -> None:
    def state() -> list[object]:
        return [
            snapshot(),
            sh("sysctl", "-a", "-r", r"^net\.ipv6\.conf\."),
            # The router's kernel solicits routers, and the host's kernel creates an entry.
            sh("ip", "-6", "neighbour", "show").replace(FROM_ROUTER, ""),
            sh("nft", "list", "ruleset"),
        ]

    before = state()
    assert findings()
    assert state() == before


def test_text(net: Network) -> None:
    result = ndxdp("doctor", UPLINK)
    assert (result.code, result.err) == (2, "")
    lines = [line.strip() for line in result.out.splitlines()]
    at = lines.index("failure:  this host does not forward IPv6")
    assert lines[at + 2] == "$ sysctl -w net.ipv6.conf.all.forwarding=1"
    assert lines[-1] == "there are failures"


def unseen_without_rights() -> list[str]:
    """Return the facts that doctor could not see as a user without rights."""
    # Import everything first: Python itself may be in a directory that only root can read.
    script = (
        "import json, os, sys, ndxdp.cli.main, ndxdp.doctor.examination\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.argv[1:] = ['doctor', 'up0', '--json']; ndxdp.cli.main.main()"
    )
    result = python(script)
    assert (result.code, result.err) == (0, "")
    answer = json.loads(result.out)["interfaces"][0]["findings"]
    return [each["what"] for each in answer if each["level"] == "unseen"]


def test_without_root(answering: Network) -> None:
    """Report what an unprivileged user can see, list the rest as unseen, and guess nothing."""
    hidden = unseen_without_rights()
    assert "cannot check ndxdp on up0: cannot open the pins of up0: permission denied" in hidden
    assert "cannot check the firewall's rules: only root may list them" in hidden


def test_without_root_where_systemd_mounted_bpf(healthy: Network) -> None:
    mode = BPFFS.stat().st_mode
    BPFFS.chmod(0o700)
    try:
        assert (
            f"cannot check ndxdp on up0: cannot enter {BPFFS}: permission denied"
            in unseen_without_rights()
        )
    finally:
        BPFFS.chmod(mode)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["eth9"], "there is no interface 'eth9'"),
    ],
)
def test_no_interface_to_examine(privacy: None, args: list[str], sentence: str) -> None:
    result = ndxdp("doctor", *args)
    assert result.code == 1
    assert sentence in result.err
    assert "hint: " in result.err


def test_nothing_to_begin_with(privacy: None) -> None:
    result = ndxdp("doctor")
    assert result.code == 1
    assert "no interface with a MAC address is up" in result.err


def test_no_default_route_at_all(healthy: Network) -> None:
    """Continue without a default route, and report that there is none."""
    sh("ip", "-6", "route", "delete", "default")
    result = ndxdp("doctor")
    assert (result.code, result.err) == (2, "")
    assert result.out.splitlines()[0] == UPLINK
    assert f"there is no IPv6 default route by {UPLINK}" in result.out


def test_the_interface_of_the_ipv4_default_route(healthy: Network) -> None:
    sh("ip", "-6", "route", "delete", "default")
    sh("ip", "address", "add", "192.0.2.2/24", "dev", UPLINK)
    sh("ip", "route", "add", "default", "via", "192.0.2.1")
    result = ndxdp("doctor")
    assert result.out.splitlines()[0] == UPLINK
    assert result.code == 2  # it has no IPv6 default route


def test_a_tunnel_is_examined_last(healthy: Network) -> None:
    ip("tuntap add tun7 mode tun")
    try:
        ip("link set tun7 up")
        ip("-6 route add default dev tun7 metric 1")
        looked = ndxdp("doctor", "--json").json()["interfaces"]
        assert [each["interface"] for each in looked] == [UPLINK, "tun7"]
        only = ndxdp("doctor", "tun7", "--json").json()["interfaces"]
        assert only == looked[1:]
    finally:
        ip("link delete tun7")


def test_an_interface_that_is_down(privacy: None) -> None:
    with tap("tap7"):
        conf("forwarding", 1, "all")
        found = found_one("link", "tap7 is down", interface="tap7")
        follow(found["cure"])
        assert not any(each["check"] == "link" for each in findings(interface="tap7"))
    conf("forwarding", 0, "all")


# ---- forwarding, router advertisements -----------------------------------------------------------


def test_no_forwarding(healthy: Network) -> None:
    conf("forwarding", 0, "all")
    mends("forwarding", "this host does not forward IPv6")


def test_forwarding_everywhere_but_here(healthy: Network) -> None:
    conf("forwarding", 0)
    mends("forwarding", f"forwarding is off on {UPLINK}, but on for the host")


def test_ipv6_switched_off(healthy: Network) -> None:
    conf("disable_ipv6", 1)
    found = next(each for each in bad() if each["check"] == "forwarding")
    assert found["what"] == f"IPv6 is disabled on {UPLINK}"
    follow(found["cure"])
    assert not any("switched off" in each["what"] for each in bad())


def test_turning_forwarding_on_keeps_the_default_route(advertised: Network) -> None:
    mends("forwarding", "this host does not forward IPv6")
    assert "proto ra" in default_route()


def test_forwarding_alone_would_lose_the_default_route(advertised: Network) -> None:
    """Lose the default route by forwarding alone: the reason for the two settings in the cure."""
    conf("forwarding", 1, "all")
    assert default_route() == ""
    found = found_one("forwarding", f"there is no IPv6 default route by {UPLINK}")
    assert "ignores router advertisements" in found["why"]
    follow(found["cure"])
    advertise()
    eventually(default_route)
    assert bad() == []


def test_accept_ra_of_all_is_a_trap(advertised: Network) -> None:
    conf("accept_ra", 2)
    conf("forwarding", 1, "all")
    assert bad() == []
    conf("accept_ra", 1)
    conf("accept_ra", 2, "all")
    try:
        found = mends("forwarding", f"the default route of {UPLINK} expires in 1")
    finally:
        conf("accept_ra", 1, "all")
    assert "conf.all.accept_ra=2 has no effect" in found["why"]


def test_no_default_route_of_the_advertisement(net: Network) -> None:
    sh("ip", "-6", "route", "delete", "default")
    conf("accept_ra", 2)
    conf("accept_ra_defrtr", 0)
    conf("forwarding", 1, "all")
    found = found_one("forwarding", "there is no IPv6 default route")
    follow(found["cure"])
    advertise()
    eventually(default_route)
    assert bad() == []


def test_no_address_of_the_advertisement(net: Network) -> None:
    sh("ip", "-6", "route", "delete", "default")
    sh("ip", "-6", "address", "delete", f"{HOST}/64", "dev", UPLINK)
    conf("accept_ra", 2)
    conf("accept_ra_pinfo", 0)
    conf("autoconf", 0)
    conf("forwarding", 1, "all")
    advertise()
    eventually(default_route)
    (cause, effect) = bad()
    assert cause["what"].startswith(f"{UPLINK} has no address of a router's prefix")
    assert "a link-local address, which no router forwards" in effect["what"]
    follow(cause["cure"])
    advertise()
    eventually(lambda: bad() == [])


def test_an_interface_with_dots(healthy: Network) -> None:
    ip("link add up0.5 type veth peer name far5")
    try:
        ip("link set up0.5 up")
        sysctl("net/ipv6/conf/up0.5/forwarding=0")
        found = next(
            each for each in bad(interface="up0.5") if "but on for the host" in each["what"]
        )
        follow(found["cure"])
        assert not any("but on for the host" in each["what"] for each in bad(interface="up0.5"))
    finally:
        ip("link delete up0.5")


def test_the_default_route_is_elsewhere(healthy: Network) -> None:
    ip("link add other0 type veth peer name far0")
    try:
        ip("link set other0 up")
        assert f"the IPv6 default route leads out of {UPLINK}, not other0" in notes("other0")
    finally:
        ip("link delete other0")


# ---- gateway, source -----------------------------------------------------------------------------


def test_a_gateway_that_was_unreachable(healthy: Network) -> None:
    healthy.at_router("ip", "link", "set", ROUTER_LINK, "down")
    lose(GATEWAY)
    healthy.at_router("ip", "link", "set", ROUTER_LINK, "up")
    healthy.at_router("ip", "address", "replace", f"{GATEWAY}/64", "dev", ROUTER_LINK, "nodad")
    found = mends("gateway", f"the gateway {GATEWAY} does not answer on {UPLINK}")
    assert found["cure"] == f"ping -6 -c 3 -I {UPLINK} {GATEWAY}"
    assert f"gateway {GATEWAY}: reachable, {ROUTER_MAC}" in notes()


def test_a_permanent_entry(healthy: Network) -> None:
    ip(f"-6 neighbour replace {GATEWAY} lladdr {ROUTER_MAC} dev {UPLINK} nud permanent")
    mends("gateway", f"the neighbour entry of the gateway {GATEWAY} is permanent")
    assert f"gateway {GATEWAY}: stale, {ROUTER_MAC}" in notes()


def test_several_gateways_and_one_outside(healthy: Network) -> None:
    hops = [
        f"nexthop via {GATEWAY} dev {UPLINK}",
        f"nexthop via 2001:db8:77::1 dev {UPLINK} onlink",
    ]
    ip(f"-6 route replace default {' '.join(hops)}")
    texts = notes()
    assert f"gateway {GATEWAY}: not solicited yet" in texts
    outside = "gateway 2001:db8:77::1: not solicited yet, outside of the interface's prefixes"
    assert outside in texts


def test_a_duplicate_address(healthy: Network) -> None:
    ip(f"-6 address add {GATEWAY}/64 dev {UPLINK}")
    eventually(lambda: "dadfailed" in sh("ip", "-6", "address", "show", "dev", UPLINK))
    mends("source", f"{GATEWAY} on {UPLINK} is a duplicate")


def test_a_deprecated_source(healthy: Network) -> None:
    ip(f"-6 address change {HOST}/64 dev {UPLINK} preferred_lft 0")
    assert f"towards the Internet the host sends from {HOST}, which is deprecated" in notes()
    mends("source", f"the only address of {UPLINK} is deprecated: {HOST}")


def test_all_addresses_are_deprecated(healthy: Network) -> None:
    """Report deprecated addresses: the kernel then sends from another interface's address."""
    ip(f"-6 address change {HOST}/64 dev {UPLINK} preferred_lft 0")
    ip(f"-6 address add {HOST}9/64 dev {UPLINK} nodad preferred_lft 0")
    ip("-6 address add 2001:db8:8::8/128 dev lo")
    try:
        expected = "towards the Internet the host sends from 2001:db8:8::8, an address of another"
        assert any(each.startswith(expected) for each in notes())
        found = mends("source", f"all 2 addresses of {UPLINK} are deprecated: ")
        assert HOST in found["what"]
    finally:
        ip("-6 address delete 2001:db8:8::8/128 dev lo")


def test_one_of_several_is_deprecated(healthy: Network) -> None:
    ip(f"-6 address add {HOST}9/64 dev {UPLINK} nodad preferred_lft 0")
    assert bad() == []
    ip(f"-6 route replace default via {GATEWAY} dev {UPLINK} src {HOST}9")
    found = mends(
        "source", f"towards the Internet the host sends from {HOST}9, which is deprecated"
    )
    assert "the route selects it" in found["why"]


def expire(how: str) -> None:
    """Wait until a default route has expired but is still listed."""
    eventually(lambda: "expires -" in default_route(), within=10)
    assert how in default_route()


def test_an_expired_static_default_route(healthy: Network) -> None:
    sysctl("net.ipv6.route.gc_interval=3600")  # the kernel keeps the route in its list
    ip(f"-6 route replace default via {GATEWAY} dev {UPLINK} expires 1")
    expire(GATEWAY)
    found = mends("forwarding", f"the default route via {GATEWAY} dev {UPLINK} has expired")
    assert "was not renewed" in found["why"]


def test_an_expired_default_route_of_an_advertisement(net: Network) -> None:
    """Renew an expired route by probing: the kernel also receives the solicited advertisement."""
    # Otherwise its answers say that it is no router, and the host removes the route.
    net.at_router("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    sh("ip", "-6", "route", "delete", "default")
    sysctl("net.ipv6.route.gc_interval=3600")
    conf("accept_ra", 2)
    conf("forwarding", 1, "all")
    try:
        advertise(lifetime=1)
        expire("proto ra")
        found = found_one("forwarding", f"the default route via {ROUTER_LINK_LOCAL} dev {UPLINK}")
        assert found["cure"] == f"ndxdp doctor {UPLINK} --probe"
        with packet_socket(ROUTER, ROUTER_LINK) as packets:
            packets.settimeout(10)
            asking = subprocess.Popen(
                [sys.executable, "-m", "ndxdp", *found["cure"].split()[1:]],
                cwd=REPOSITORY,
                stdout=subprocess.DEVNULL,
            )
            while packets.recv(2048)[54:55] != b"\x85":  # a router solicitation
                pass
            advertise()
            assert asking.wait(60) in (0, 1, 2)
        assert not [each for each in bad() if each["check"] == "forwarding"]
    finally:
        conf("forwarding", 0, "all")


def test_an_expired_default_route_of_a_host_that_forwards(net: Network) -> None:
    sh("ip", "-6", "route", "delete", "default")
    sysctl("net.ipv6.route.gc_interval=3600")
    conf("accept_ra", 2)
    conf("forwarding", 1, "all")
    try:
        advertise(lifetime=1)
        conf("accept_ra", 1)
        expire("proto ra")
        found = found_one("forwarding", "has expired")
        assert "ignores router advertisements (accept_ra is 1)" in found["why"]
        follow(found["cure"])
        advertise()
        eventually(lambda: "expires -" not in default_route())
        assert bad() == []
    finally:
        conf("forwarding", 0, "all")


def test_no_route_is_not_called_no_source(healthy: Network) -> None:
    ip("-6 rule add to 2000::/16 unreachable")
    try:
        found = found_one("source", "the kernel does not send towards")
        assert "no source" not in found["what"]
        follow(found["cure"])
    finally:
        ip("-6 rule delete to 2000::/16 unreachable")


def test_how_an_address_was_made(healthy: Network) -> None:
    conf("accept_ra", 2)
    sysctl(f"net.ipv6.conf.{UPLINK}.stable_secret=2001:db8::5ec")
    conf("addr_gen_mode", 2)
    advertise()
    output = eventually(
        lambda: [each for each in findings() if "is a stable privacy address" in each["what"]]
    )
    assert output[0]["level"] == "note"
    assert "expect, is 2001:db8:5::ff:fe00:2;" in output[0]["why"]
    follow(output[0]["cure"])
    advertise()
    made = f"2001:db8:5::ff:fe00:2 is made from the prefix and the MAC of {UPLINK} (EUI-64)"
    eventually(lambda: made in notes())
    assert not any("stable privacy" in each for each in notes())


def own(text: str, flags: int = 0x80, *, link_local: bool = False) -> OwnAddress:
    return OwnAddress(parse_address(text), 64, flags, FOREVER, FOREVER, link_local)


@pytest.mark.parametrize(
    ("chosen", "others", "destination", "words"),
    [
        ("2001:db8::2", [], "2000::1", ""),
        ("2001:db8::2", [own("fe80::2", link_local=True)], "2000::1", "scope"),
        ("2001:db8::2", [own("2001:db8::3", 0xA0)], "2000::1", "the others are deprecated"),
        ("2001:db8::2", [own("fd00::3")], "2000::1", "label"),
        ("2001:db8::2", [own("2001:db8::3", 0x01)], "2000::1", "temporary"),
        ("2001:db8:1::2", [own("2001:db8:2::2")], "2001:db8:1::9", "most bits in common"),
        ("2001:db8::2", [own("2001:db8::3")], "2000::1", "as good as the others"),
        ("2001:db8::2", [own("2001:db8:1::3")], "2001:db8:1::9", "the route selects it"),
        ("2001:db8::2", [own("2001:db8::3", 0x48)], "2000::1", ""),
    ],
)
def test_why_a_source(chosen: str, others: list[OwnAddress], destination: str, words: str) -> None:
    ours = own(chosen)
    output = source.reason(ours, [ours, *others], parse_address(destination))
    assert words in output
    assert bool(words) == bool(output)


def test_the_reason_is_the_kernels(healthy: Network) -> None:
    ip(f"-6 address add fd00::2/64 dev {UPLINK} nodad")
    expected = f"towards the Internet the host sends from {HOST}: of the same label (RFC 6724 2.1)"
    assert expected in notes()
    ip(f"-6 address add 2001:db8:6::2/64 dev {UPLINK} nodad")
    ip(f"-6 route replace default via {GATEWAY} dev {UPLINK} src 2001:db8:6::2")
    assert any("2001:db8:6::2" in note for note in notes() if "the Internet" in note)


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


# ---- limits, containers --------------------------------------------------------------------------


def test_limits() -> None:
    table = NeighbourTable(most=1024, entries=800, overflows=0)
    well = limits.Facts(jit=1, unprivileged=2, table=table, addresses=1000)
    assert limits.judge(well) == []

    def levels_and_cures(**changes: Any) -> list[tuple[Level, str]]:
        return [(each.level, each.cure) for each in limits.judge(replace(well, **changes))]

    assert levels_and_cures(jit=0) == [(Level.WARNING, "sysctl -w net.core.bpf_jit_enable=1")]
    assert levels_and_cures(unprivileged=0) == [(Level.NOTE, "")]
    assert levels_and_cures(table=None) == [(Level.UNSEEN, "")]
    of = "net.ipv6.neigh.default.gc_thresh"
    ((_, cure),) = levels_and_cures(table=table._replace(entries=820))
    assert cure == f"sysctl -w {of}3=4096 {of}2=2048 {of}1=1024"
    ((_, cure),) = levels_and_cures(addresses=5000)
    assert cure == f"sysctl -w {of}3=32768 {of}2=16384 {of}1=8192"


def test_more_addresses_than_the_neighbour_table_holds(healthy: Network) -> None:
    shown = sh("ip", "-s", "ntable", "show", "name", "ndisc_cache")
    (most,) = re.findall(r"thresh3 (\d+)", shown)[:1]
    many = "".join(f"2001:db8::c:0:1:{number:x}\n" for number in range(1, int(most) + 2))
    done("attach", UPLINK, "--mode", "tc")
    try:
        done("prefix", "add", "--file", "-", stdin=many.partition("\n")[2])
        assert bad() == []
        done("prefix", "add", many.partition("\n")[0])
        output = f"has room for {most} entries, and rules answer for {int(most) + 1} addresses"
        # The table belongs to the whole machine: no test changes its size.
        found = found_one("limits", output)
        assert found["cure"].startswith("sysctl -w net.ipv6.neigh.default.gc_thresh3=")
    finally:
        remove_instance()


@pytest.fixture
def container(healthy: Network, docker_engine: Engine) -> Iterator[Engine]:
    """Start a container in a network within the uplink's prefix, and one in another network."""
    docker_engine.make_network("six", BEHIND)
    docker_engine.make_network("far", "2001:db8:9::/64")
    docker_engine.run("web", "six", address=TARGET)
    docker_engine.run("db", "far")
    yield docker_engine
    docker_engine.clear()


def test_containers_without_an_answer(container: Engine, healthy: Network) -> None:
    engine = ("--docker-socket", str(container.socket))
    assert bad() == []  # without the engine
    assert healthy.silent(TARGET)
    try:
        found = mends("containers", f"for the containers of six: {TARGET}", *engine)
        assert found["cure"] == f"ndxdp attach {UPLINK} -n {TARGET}"
        assert healthy.answers(TARGET)
        done("prefix", "del", TARGET)
        found = mends("containers", f"for the containers of six: {TARGET}", *engine)
        assert found["cure"] == f"ndxdp prefix add {UPLINK} {TARGET}"
        assert healthy.answers(TARGET)
    finally:
        remove_instance()


def test_containers_beside_rules_that_cannot_be_read(container: Engine, healthy: Network) -> None:
    """Make no claim about containers if the rules cannot be read."""
    done("attach", UPLINK, "--mode", "tc", "-n", TARGET)
    try:
        (rules,) = PINS.glob(f"v*/{UPLINK}/addresses")
        rules.unlink()
        found_all = findings("--docker-socket", str(container.socket))
        (found,) = [each for each in found_all if each["check"] == "containers"]
        assert found["level"] == "unseen"
        assert found["what"].startswith("cannot check for which containers ndxdp answers: the pins")
    finally:
        remove_instance()


def test_an_engine_that_does_not_answer(healthy: Network, tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        found_all = findings("--docker-socket", str(path))
        whats = [each["what"] for each in found_all if each["level"] == "unseen"]
        assert f"cannot check the containers: {path}: the engine does not answer" in whats


# ---- its page ------------------------------------------------------------------------------------


def test_the_page_names_every_check(answering: Network) -> None:
    page = (REPOSITORY / "docs" / "doctor.md").read_text()
    listed = re.findall(r"^- \*\*(\w+)\*\*:", page, re.MULTILINE)
    sections = examination.examine(UPLINK, Trees(), "/none", probing=True, watching=0.1)
    assert listed == [check for check, _ in sections]


def test_json_is_as_documented(net: Network) -> None:
    documented = json_of("doctor")
    answer = json.loads(ndxdp("doctor", UPLINK, "--json").out)
    assert answer.keys() == documented.keys()
    (one,), (other,) = answer["interfaces"], documented["interfaces"]
    assert one.keys() == other.keys()
    mended = {**other["findings"][0], "why": other["findings"][0]["why"].replace("eth0", UPLINK)}
    assert mended in one["findings"]
