"""Hosts of a share that move to another link without a claim are found there."""

from __future__ import annotations

import pytest

from ndxdp.ndp.message import Solicitation
from ndxdp.sharing.actions import Ask, Verify
from tests.fixtures.learning_world import (
    HOST,
    LINK_LOCAL,
    OTHER,
    THIRD,
    UP,
    A,
    B,
    C,
    T,
    World,
    address,
)
from tests.fixtures.learning_world import mac as mac_of


def adopt(world: World, target: bytes, mac: bytes) -> None:
    """Let a host live on A."""
    world.routes[target] = A
    world.do(world.learner.adopt(world.now, target, A, mac))


@pytest.fixture
def world() -> World:
    """Return a share on which HOST has two addresses on A, and has just moved to B."""
    world = World()
    for target in (T, address(0x11)):
        adopt(world, target, HOST)
        world.nodes[B, target] = HOST
    return world


def router_solicited(world: World, mac: bytes = HOST, link: int = B) -> list[object]:
    """Let a node solicit its router from its link-local address."""
    ns = Solicitation(LINK_LOCAL, b"\xfe\x80" + bytes(13) + b"\x99", mac, mac)
    return list(world.do(world.learner.solicited(world.now, link, ns)))


def test_all_addresses_of_a_mac_follow_it(world: World) -> None:
    asked = router_solicited(world)
    assert asked == [Ask(B, T, HOST), Ask(B, address(0x11), HOST)]
    world.wait()
    assert world.routes == {T: B, address(0x11): B}
    assert world.learner.counters["moved"] == 2


def test_any_message_will_do(world: World) -> None:
    assert world.do(world.learner.sighted(world.now, B, HOST))
    world.wait()
    assert world.routes[T] == B


def test_a_forged_mac_moves_nothing(world: World) -> None:
    world.nodes = {(A, T): HOST, (A, address(0x11)): HOST}
    assert router_solicited(world)
    assert not router_solicited(world)  # not again within a second
    world.wait()
    assert router_solicited(world)
    world.wait()
    assert world.routes == {T: A, address(0x11): A}


def test_nothing_is_asked_without_a_reason(world: World) -> None:
    assert not router_solicited(world, OTHER)
    assert not router_solicited(world, HOST, A)
    assert not world.do(world.learner.sighted(world.now, 99, HOST))


def test_a_host_with_many_addresses_is_asked_for_a_few() -> None:
    world = World(max_hosts_per_mac=64)
    for number in range(40):
        adopt(world, address(0x100 + number), HOST)
    assert len(router_solicited(world)) == 16


def test_a_flood_of_macs_is_bounded() -> None:
    world = World(max_hosts=1024, max_hosts_per_mac=1)
    macs = [bytes((2, 7, 0, 0)) + number.to_bytes(2, "big") for number in range(1000)]
    for number, mac in enumerate(macs):
        adopt(world, address(0x1000 + number), mac)
    asked = sum(len(world.do(world.learner.sighted(world.now, B, mac))) for mac in macs)
    assert 0 < asked <= 200


def test_a_host_that_the_kernel_lost_is_found(world: World) -> None:
    upstream = Ask(UP, T, is_lookup=True)
    assert world.do(world.learner.lost(world.now, T)) == [Ask(B, T), Ask(C, T), upstream]
    assert not world.do(world.learner.lost(world.now, T))
    world.wait()
    assert world.routes[T] == B


def test_a_host_that_nobody_finds_stays_until_it_expires(world: World) -> None:
    world.nodes.clear()
    world.do(world.learner.lost(world.now, T))
    world.wait(5)
    assert world.routes[T] == A


def test_an_address_that_the_kernel_finds_nowhere_is_asked_for_downstream(world: World) -> None:
    """A router that knows this host's MAC from before a reboot sends packets without asking."""
    unknown = address(0x77)
    world.nodes[B, unknown] = OTHER
    assert world.do(world.learner.lost(world.now, unknown)) == [
        Ask(link, unknown) for link in (A, B, C)
    ]
    assert not world.do(world.learner.lost(world.now, unknown))  # not again within a second
    world.wait()
    assert world.routes[unknown] == B


def test_what_is_no_hosts_address_is_not_asked_for(world: World) -> None:
    outside = b"\x20\x01\x0d\xb8\x00\x99" + bytes(10)
    for target in (outside, LINK_LOCAL, b"\xff\x02" + bytes(14)):
        assert not world.do(world.learner.lost(world.now, target))


def test_a_host_whose_port_has_left_its_bridge() -> None:
    """The kernel looks for it at once, and it is looked for on all other links."""
    world = World()
    world.learn(A)
    world.learn(B, address(99), OTHER)
    world.wait(10)
    before = len(world.done)
    world.do(world.learner.departed(world.now, A, HOST))
    assert [action for _, action in world.done[before:]] == [
        Verify(T),
        Ask(B, T),
        Ask(C, T),
        Ask(UP, T, is_lookup=True),
    ]
    assert world.do(world.learner.departed(world.now, A, HOST)) == [], "within a second"
    world.wait()
    assert world.do(world.learner.departed(world.now, A, OTHER)) == [], "it is behind B"
    assert world.do(world.learner.departed(world.now, A, THIRD)) == [], "unknown"
    world.wait(10)
    assert world.routes[T] == A, "it stays until it expires, or until another node has it"
    assert world.counted == {"learned": 2}


def test_departures_are_limited() -> None:
    world = World(max_hosts=1000, max_hosts_per_mac=1000)
    for number in range(300):
        adopt(world, address(number + 99), mac_of(number + 99))
    verified = [
        action
        for number in range(300)
        for action in world.do(world.learner.departed(world.now, A, mac_of(number + 99)))
        if isinstance(action, Verify)
    ]
    assert len(verified) == 200


def test_a_host_whose_port_has_left_is_not_announced_any_more() -> None:
    world = World()
    world.learn(A)
    world.do(world.learner.departed(world.now, A, HOST))
    world.wait(10)
    assert len(world.announced) == 1
