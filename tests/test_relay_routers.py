"""Relaying router advertisements: several routers, and routers that fall silent."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6NDOptRouteInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether

from ndxdp.rules.address import parse_address
from ndxdp.sharing.upstream_routers import ROUTERS_MAX, KnownRouter
from tests.fixtures.relayed import P, ignored, layers, lifetimes, options_of, other_ra
from tests.fixtures.router_messages import (
    DOWN,
    DOWN2,
    DOWNSTREAM,
    OTHER_PREFIX,
    ROUTER,
    SECOND,
    UP,
    UPSTREAM,
    frames,
    linked,
    only,
    pio,
    ra,
    route,
    rs,
    run,
)

# ---- several routers -----------------------------------------------------------------------------


def test_clients_keep_this_host_while_one_of_two_routers_is_there() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio(), routerlifetime=1800, prf=3))
    relay.heard(11, UP, other_ra(pio(OTHER_PREFIX), routerlifetime=900, prf=1))
    ended = only(relay.heard(21, UP, ra(pio(), routerlifetime=0)))
    assert (ended[ICMPv6ND_RA].routerlifetime, ended[ICMPv6ND_RA].prf) == (890, 1)
    assert [each.lifetime for each in relay.routers(21)] == [0, 900]
    both = only(relay.heard(31, UP, other_ra(routerlifetime=0)))
    assert both[ICMPv6ND_RA].routerlifetime == 0
    assert [send for _, send in run(relay, 31, 40) if send.ifindex == DOWN] == []


def test_a_router_that_ends_has_no_preference() -> None:
    relay = linked()
    relay.heard(10, UP, ra(prf=1))
    relay.heard(11, UP, other_ra(prf=3))
    ended = only(relay.heard(20, UP, ra(routerlifetime=0, prf=1)))
    assert (ended[ICMPv6ND_RA].routerlifetime, ended[ICMPv6ND_RA].prf) == (1791, 3)


def test_lifetime_and_preference_of_two_routers() -> None:
    relay = linked()
    low, medium, high = 3, 0, 1
    relay.heard(10, UP, ra(routerlifetime=1800, prf=medium))
    second = only(relay.heard(20, UP, other_ra(routerlifetime=600, prf=low)))
    assert (second[ICMPv6ND_RA].routerlifetime, second[ICMPv6ND_RA].prf) == (1790, medium)
    second = only(relay.heard(30, UP, other_ra(routerlifetime=9000, prf=high)))
    assert (second[ICMPv6ND_RA].routerlifetime, second[ICMPv6ND_RA].prf) == (9000, high)
    alone = only(relay.heard(10000, UP, ra(routerlifetime=60, prf=low)))  # the other one is silent
    assert (alone[ICMPv6ND_RA].routerlifetime, alone[ICMPv6ND_RA].prf) == (60, low)


def test_a_route_of_two_routers() -> None:
    relay = linked()
    relay.heard(10, UP, ra(route(lifetime=900)))
    relayed = only(relay.heard(20, UP, other_ra(route(lifetime=0))))
    (found,) = layers(relayed, ICMPv6NDOptRouteInfo)
    assert found.rtlifetime == 890
    relayed = only(relay.heard(30, UP, ra(route(lifetime=0))))
    (found,) = layers(relayed, ICMPv6NDOptRouteInfo)
    assert found.rtlifetime == 0


def test_the_number_of_routers_is_bounded() -> None:
    relay = linked()
    for number in range(200):
        relay.heard(10, UP, ra(pio(), source=f"fe80::1:{number:x}"))
    assert len(relay.routers(10)) == ROUTERS_MAX
    assert ignored(relay) == {"limit": 200 - ROUTERS_MAX}
    assert relay.heard(100, UP, ra(pio())) == []
    assert only(relay.heard(10 + 1801, UP, ra(pio())))[ICMPv6ND_RA].routerlifetime == 1800
    assert KnownRouter(parse_address(ROUTER), 1811, 1800) in relay.routers(1811)


def test_a_new_router_replaces_the_one_that_was_heard_first() -> None:
    relay = linked()
    for number in range(ROUTERS_MAX):
        relay.heard(10 + number, UP, ra(source=f"fe80::1:{number:x}", routerlifetime=5))
    relay.heard(100, UP, ra())
    first = parse_address("fe80::1:0")
    assert len(relay.routers(100)) == ROUTERS_MAX
    assert first not in [each.address for each in relay.routers(100)]
    assert relay.routers(10 + 90_000) == []


# ---- silence -------------------------------------------------------------------------------------


def test_routers_that_are_silent() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio(), M=1, routerlifetime=100, prf=1))
    sent = run(relay, 10, 200)
    solicited = [when for when, send in sent if send.ifindex == UP]
    assert solicited[:4] == [85, 89, 93, 101]  # after three quarters of the lifetime
    farewells = [(when, Ether(send.frame)) for when, send in sent if send.ifindex == DOWN]
    assert [when for when, _ in farewells] == [110, 113, 116]
    for _, packet in farewells:
        fields = packet[ICMPv6ND_RA]
        assert (fields.routerlifetime, fields.M, fields.P, fields.prf) == (0, 1, 1, 0)
        assert [option[0] for option in options_of(packet)] == [1]
    # No answer from what is stale, but another solicitation upstream; the prefix is on-link still.
    relay.heard(1000, DOWN, rs())
    assert [send.ifindex for _, send in run(relay, 1000, 1001)] == [UP]
    assert relay.prefixes(1000) == {P: 86410}
    assert relay.solicited == 0
    assert only(relay.heard(1002, UP, ra(pio())))[ICMPv6ND_RA].routerlifetime == 1800


def test_a_router_that_returns_ends_the_farewell() -> None:
    relay = linked()
    relay.heard(10, UP, ra(routerlifetime=100))
    assert frames(relay.tick(110)) != []
    relay.heard(111, UP, ra(routerlifetime=100))
    assert [send for _, send in run(relay, 111, 180) if send.ifindex == DOWN] == []


def test_an_upstream_link_that_goes_and_returns() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    relay.set_links(20, None, {DOWN: DOWNSTREAM})
    ended = run(relay, 20, 100)
    assert [(when, send.ifindex) for when, send in ended] == [(20, DOWN), (23, DOWN), (26, DOWN)]
    assert Ether(ended[0][1].frame)[ICMPv6ND_RA].routerlifetime == 0
    relay.heard(101, DOWN, rs())
    assert run(relay, 101, 200) == []
    assert relay.prefixes(200) == {P: 86410}
    relay.set_links(200, UPSTREAM, {DOWN: DOWNSTREAM})
    assert [(when, send.ifindex) for when, send in run(relay, 200, 205)] == [(200, UP), (204, UP)]
    assert only(relay.heard(206, UP, ra(pio())))[ICMPv6ND_RA].routerlifetime == 1800


def test_an_upstream_link_that_flaps() -> None:
    relay = linked()
    times = []
    for now in range(20):
        relay.set_links(now, None if now % 2 else UPSTREAM, {DOWN: DOWNSTREAM})
        times += [when for when, send in run(relay, now, now + 0.9) if send.ifindex == UP]
    assert times == [4, 8, 12, 16]


def test_another_upstream_link() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    relay.set_links(20, UPSTREAM._replace(ifindex=9), {DOWN: DOWNSTREAM})
    assert (relay.prefixes(20), relay.routers(20)) == ({}, [])
    assert {send.ifindex for _, send in run(relay, 20, 20)} == {9, DOWN}


def test_a_link_that_leaves_the_share() -> None:
    relay = linked()
    relay.set_links(0, UPSTREAM, {DOWN: DOWNSTREAM, DOWN2: SECOND})
    assert relay.withdraw(1, [DOWN]) == []  # it was never a router there
    relay.heard(10, UP, ra(pio()))
    (send,) = relay.withdraw(20, [UP, DOWN2])
    assert send.ifindex == DOWN2
    assert Ether(send.frame)[ICMPv6ND_RA].routerlifetime == 0
    assert relay.withdraw(10_000, [DOWN2]) == []  # clients know already


@pytest.mark.parametrize(
    "changed",
    [
        {"mtu": 1400},
        {"mac": b"\2\0\0\0\0\x33"},
        {"link_local": parse_address("fe80::33")},
    ],
)
def test_a_downstream_link_that_changes(changed: dict[str, Any]) -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    new = DOWNSTREAM._replace(**changed)
    relay.set_links(20, UPSTREAM, {DOWN: new})
    sent = [Ether(send.frame) for _, send in run(relay, 20, 24)]
    if "link_local" in changed:
        assert sent[0][IPv6].src == "fe80::3"
        assert sent.pop(0)[ICMPv6ND_RA].routerlifetime == 0
    (packet,) = sent
    assert packet[IPv6].src == ("fe80::33" if "link_local" in changed else "fe80::3")
    assert bytes(packet)[6:12] == packet[ICMPv6NDOptSrcLLAddr].build()[2:8] == new.mac
    assert lifetimes(packet) == (86389, 14389)
    relay.set_links(30, UPSTREAM, {DOWN: new})
    assert run(relay, 30, 40) == []


def test_a_new_downstream_link_is_told_soon() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    relay.set_links(20, UPSTREAM, {DOWN: DOWNSTREAM, DOWN2: SECOND})
    ((when, send),) = run(relay, 20, 30)
    assert (when, send.ifindex) == (20.25, DOWN2)
