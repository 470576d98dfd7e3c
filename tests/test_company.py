"""Answering in the company of other kernels: clients, guests, routers and redundancy protocols.

    [netns router] eth0 ==== up0 [this namespace] down0 ==== eth0 [netns guest]

These kernels are the judges: an address passes Duplicate Address Detection or not, a neighbour
stays reachable or not, a ping arrives or not.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures.network import (
    HOST_MAC,
    ROUTER,
    ROUTER_LINK,
    UPLINK,
    Network,
    call,
    done,
    eventually,
    ndxdp,
    sh,
    status,
)
from tests.test_routed import DOWN, answering, behind, sysctl

__all__ = ["behind"]

MODES = ("native", "generic", "tc", "userspace")
SAME = "2001:db8:0:5a::"
"""A /64 that is on both sides of the host."""

VRRP_MAC = "00:00:5e:00:02:01"


def addresses(namespace: str, device: str) -> dict[str, dict[str, Any]]:
    """Return the addresses of a device in a namespace, each as `ip` prints it."""
    shown = sh(*f"nsenter --net=/run/netns/{namespace} ip -6 -j address show dev {device}".split())
    return {each["local"]: each for link in json.loads(shown) for each in link["addr_info"]}


@contextlib.contextmanager
def taken(namespace: str, device: str, address: str) -> Iterator[None]:
    """Put an address on a device, and wait until its Duplicate Address Detection is over."""
    inside = ("nsenter", f"--net=/run/netns/{namespace}")
    sh(*inside, *f"ip -6 address add {address}/64 dev {device}".split())
    try:
        eventually(lambda: is_decided(addresses(namespace, device)[address]), within=8)
        yield
    finally:
        call(*inside, *f"ip -6 address delete {address}/64 dev {device}".split())


def is_decided(address: dict[str, Any]) -> bool:
    return "tentative" not in address or "dadfailed" in address


def passes_dad(namespace: str, device: str, address: str) -> bool:
    """Return True if an address of a device passes Duplicate Address Detection."""
    with taken(namespace, device, address):
        return "dadfailed" not in addresses(namespace, device)[address]


@pytest.fixture
def both_sides(behind: None, net: Network) -> Iterator[Network]:
    """Put one /64 on the uplink and behind the host, as with providers that delegate no prefix."""
    for name in (UPLINK, DOWN):
        sysctl(name).write_text("1")
    sh("ip", "-6", "address", "add", f"{SAME}2/64", "dev", UPLINK, "nodad")
    net.at_router("ip", "-6", "address", "add", f"{SAME}1/64", "dev", ROUTER_LINK, "nodad")
    try:
        yield net
    finally:
        sh("ip", "-6", "address", "delete", f"{SAME}2/64", "dev", UPLINK)
        net.at_router("ip", "-6", "address", "delete", f"{SAME}1/64", "dev", ROUTER_LINK)
        call("ip", "-6", "neighbour", "flush", "dev", UPLINK, "nud", "all")


@pytest.mark.parametrize("mode", ["tc", "generic", "userspace"])
@pytest.mark.parametrize("answer", ["routed", "neighbour"])
def test_clients_take_addresses_where_both_sides_have_one_prefix(
    both_sides: Network, mode: str, answer: str
) -> None:
    """Let clients take addresses on the inner link, though the prefix is routed by the uplink."""
    running = both_sides.run("-i", DOWN, "--mode", mode, "--answer", answer, "-n", f"{SAME}/64")
    try:
        assert passes_dad("guest", "eth0", f"{SAME}77")
        # The router's address is known on the other side, so it is in use.
        sh("ip", "-6", "neighbour", "replace", f"{SAME}1", "dev", UPLINK, "lladdr", HOST_MAC)
        assert not passes_dad("guest", "eth0", f"{SAME}1")
    finally:
        assert running.end().code == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("forced", [f"{SAME}/64", "::/0"])
def test_the_router_takes_its_own_address(both_sides: Network, mode: str, forced: str) -> None:
    """Let the router take an address, though a forced rule answers for the whole prefix."""
    with answering(both_sides, mode, "--force", "-n", forced):
        assert both_sides.at_router("ping", "-6", "-c", "1", f"{SAME}2").code == 0
        assert passes_dad(ROUTER, ROUTER_LINK, f"{SAME}abc")
        assert both_sides.answers(f"{SAME}def"), "it answers for the prefix all the same"


@pytest.mark.parametrize("mode", MODES)
def test_an_address_behind_is_defended(behind: None, net: Network, mode: str) -> None:
    """Defend a container's address against a node that wants to take it."""
    sysctl(UPLINK).write_text("1")
    with answering(net, mode, "-n", "2001:db8:0:c::/64"):
        assert not passes_dad(ROUTER, ROUTER_LINK, "2001:db8:0:c::99")


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_vrrp(net: Network, mode: str) -> None:
    """Let the macvlan of a virtual router answer the peer's NUD probes to its MAC."""
    virtual = "2001:db8::b:0:0:1"
    sh(*f"ip link add vrrp0 link {UPLINK} address {VRRP_MAC} type macvlan mode bridge".split())
    try:
        sh("ip", "link", "set", "vrrp0", "addrgenmode", "none", "up")
        with answering(net, mode):
            done("prefix", "add", virtual, "--lladdr", VRRP_MAC)
            assert net.ask(virtual) == (VRRP_MAC, virtual)
            entry = ("ip", "-6", "neighbour", "replace", virtual, "lladdr", VRRP_MAC)
            device = ("dev", ROUTER_LINK)
            assert net.at_router(*entry, *device, "nud", "probe").code == 0
            eventually(lambda: "REACHABLE" in shown(net, virtual))
            assert status()["reasons"]["other_host"] == 0
    finally:
        sh("ip", "link", "delete", "vrrp0")


def shown(net: Network, address: str) -> str:
    return net.at_router(*f"ip -6 neighbour show {address} dev {ROUTER_LINK}".split()).out


@pytest.mark.parametrize("mode", MODES)
def test_anyip(net: Network, mode: str) -> None:
    """Answer for a whole prefix that the host itself owns, without forwarding."""
    prefix, target = "2001:db8::a:0:0:0/80", "2001:db8::a:0:0:123"
    sysctl("all").write_text("0")
    sh("ip", "-6", "route", "add", "local", prefix, "dev", "lo")
    try:
        with answering(net, mode, "--answer", "local", "-n", prefix):
            pinged = net.at_router("ping", "-6", "-c", "1", "-W", "2", target)
            assert pinged.code == 0, pinged
            assert net.silent("2001:db8::b:0:0:123")
    finally:
        sh("ip", "-6", "route", "delete", "local", prefix, "dev", "lo")


def test_doctor_reports_an_outdated_copy_of_the_routes(net: Network) -> None:
    prefix = "2001:db8::a:0:0:0/80"
    with answering(net, "tc", "--answer", "local", "-n", prefix):
        sh("ip", "-6", "route", "add", "local", prefix, "dev", "lo")
        try:
            report = json.loads(ndxdp("doctor", UPLINK, "--json").out)
            (one,) = report["interfaces"]
            (old,) = [each for each in one["findings"] if "outdated copy" in each["what"]]
            done(*old["cure"].split()[1:], "-q")
            assert net.answers("2001:db8::a:0:0:123")
            assert "outdated copy" not in ndxdp("doctor", UPLINK).out
        finally:
            sh("ip", "-6", "route", "delete", "local", prefix, "dev", "lo")
