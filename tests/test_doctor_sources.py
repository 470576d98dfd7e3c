"""Doctor on the gateway, and on the sources that it answers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lab.capture import packet_socket
from ndxdp.doctor import source
from ndxdp.netlink.addresses import FOREVER, OwnAddress
from ndxdp.rules.address import parse_address
from tests.fixtures.doctor import (
    advertise,
    bad,
    conf,
    default_route,
    findings,
    follow,
    found_one,
    ip,
    lose,
    mends,
    notes,
    sysctl,
)
from tests.fixtures.network import (
    GATEWAY,
    HOST,
    REPOSITORY,
    ROUTER,
    ROUTER_LINK,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    UPLINK,
    Network,
    eventually,
    sh,
)

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
