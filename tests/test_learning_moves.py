"""Learning hosts on a share: claims of one address by several nodes, and hosts that move."""

from __future__ import annotations

import pytest

from ndxdp.sharing.actions import Advertise, Ask, Bind, Unbind
from tests.fixtures.learning_world import (
    HOST,
    LINKS,
    OTHER,
    THIRD,
    UP,
    A,
    B,
    C,
    T,
    World,
    address,
    mac,
)

# ---- claims of one address by several nodes ------------------------------------------------------


def test_several_nodes_of_one_link(world: World) -> None:
    """Keep the probe that came first; bind to the MAC that uses the address."""
    world.dad(A)
    world.dad(A, source=OTHER)
    world.dad(B, address(99))
    world.use(B, address(99), OTHER)
    world.reply(UP, source=THIRD)
    (answer,) = [each for _, each in world.done if isinstance(each, Advertise)]
    assert answer.solicitation.eth_source == HOST
    world.wait()
    assert world.learner.hosts[address(99)].mac == OTHER


def test_the_second_of_two_probes_fails_at_once(world: World) -> None:
    world.dad(A)
    world.wait(0.1)
    world.dad(B, source=OTHER)
    assert world.advertised == [(B, T)]
    world.wait()
    assert world.routes == {T: A}
    assert world.counted == {"learned": 1, "defended": 1}


def test_two_probes_fail_if_a_third_node_has_the_address(world: World) -> None:
    world.dad(A)
    world.dad(B, source=OTHER)
    world.reply(UP, source=THIRD)
    world.wait()
    assert sorted(world.advertised) == [(A, T), (B, T)]
    assert not world.routes


@pytest.mark.parametrize("links", [(A, UP), (UP, A), (A, B)])
def test_a_reflected_probe_does_not_fail(world: World, links: tuple[int, int]) -> None:
    """Links that are one network show each frame on both; a tentative node answers nothing."""
    for _ in range(3):
        for link in links:
            world.dad(link)
        world.wait()
        for link in reversed(links):
            world.dad(link)
        world.wait()
    assert not world.advertised


def test_the_owner_may_probe_again(world: World) -> None:
    """Let the owner of an address win against a probe that came first by another link."""
    world.learn(A)
    del world.nodes[A, T]
    world.dad(B, source=OTHER)
    world.dad(A)
    world.wait()
    assert world.advertised == [(B, T)]
    assert world.routes == {T: A}


def test_a_second_node_on_the_link_of_an_address_is_left_to_the_owner(world: World) -> None:
    world.learn(A)
    assert world.dad(A, source=OTHER) == []
    assert world.learner.hosts[T].mac == HOST


def test_nodes_that_use_one_address_on_two_links(world: World) -> None:
    """Bind neither while both answer, because it is unknown who came first."""
    world.nodes |= {(A, T): HOST, (B, T): OTHER}
    for _ in range(3):
        world.use(A)
        world.wait()
        world.use(B, source=OTHER)
        world.wait()
    assert not world.routes
    del world.nodes[B, T]
    world.learn(A)


def test_the_owner_is_learned_by_its_answer_to_a_rival(world: World) -> None:
    world.nodes[B, T] = OTHER
    world.use(A)
    world.wait()
    assert world.routes == {T: B}
    assert world.counted == {"learned": 1, "elsewhere": 1}


@pytest.mark.parametrize("claim", [World.dad, World.use, World.look_up])
@pytest.mark.parametrize("links", [(A, B), (A, B, C), (UP, A, B), LINKS])
def test_nodes_with_one_address_do_not_keep_each_other_busy(
    world: World, claim: object, links: tuple[int, ...]
) -> None:
    """End after a few questions, although each question is answered by several nodes."""
    world.nodes |= {(link, T): mac(link) for link in links}
    assert callable(claim)
    for link in LINKS:
        claim(world, link, T, mac(9))
        world.wait(0.01)
    world.wait(10)
    assert len(world.asked()) < 50
    before = len(world.asked())
    for _ in range(10):
        world.use(A)
        world.wait(0.1)
    assert len(world.asked()) - before <= 12


# ---- moves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [HOST, OTHER])
@pytest.mark.parametrize("claim", [World.dad, World.use])
def test_a_host_moves_when_its_old_link_is_silent(
    world: World, source: bytes, claim: object
) -> None:
    world.learn(A)
    del world.nodes[A, T]
    assert callable(claim)
    asked = claim(world, B, T, source)
    assert asked == [Ask(A, T, HOST), Ask(UP, T), Ask(A, T), Ask(C, T)]
    assert world.wait(0.5)[-1] == Bind(T, B, A)
    host = world.learner.hosts[T]
    assert (host.ifindex, host.mac, host.since) == (B, source, 1000.5)
    assert world.counted == {"learned": 1, "moved": 1}


def test_a_host_moves_to_the_upstream_link(world: World) -> None:
    world.learn(A)
    del world.nodes[A, T]
    world.reply(UP)
    assert world.wait()[-1] == Unbind(T, A)
    assert world.counted == {"learned": 1, "moved": 1}


def test_a_host_of_the_upstream_link_ends_a_rival_and_a_binding(world: World) -> None:
    """Release an address that another link than the claiming one has by now."""
    world.learn(A)
    del world.nodes[A, T]
    world.nodes[UP, T] = OTHER
    world.dad(B, source=THIRD)
    assert world.wait()[-1] == Unbind(T, A)
    assert world.advertised == [(B, T)]
    assert world.counted == {"learned": 1, "defended": 1, "moved": 1}


def test_an_address_that_moves_every_second_is_held(world: World) -> None:
    world.learn(A)
    world.nodes.clear()
    for number in range(60):
        world.use((B, A)[number % 2])
        world.wait()
    counted = world.counted
    assert counted["moved"] == 12
    assert counted["unstable"] > 20


def test_an_address_that_changes_sides_is_held(world: World) -> None:
    for _ in range(30):
        world.use(A)
        world.wait()
        world.use(UP)
        world.wait()
    counted = world.counted
    assert counted["unstable"] > 20
    assert counted["moved"] + counted["learned"] < 16


def test_a_held_address_is_still_defended(world: World) -> None:
    world.learn(A)
    world.nodes.clear()
    for number in range(6):
        world.use((B, A)[number % 2])
        world.wait()
    link = world.routes[T]
    world.nodes[link, T] = HOST
    world.dad(C, source=OTHER)
    world.wait()
    assert world.advertised == [(C, T)]
    world.nodes.clear()
    world.dad(C, source=OTHER)
    world.wait()
    assert world.routes == {T: link}
    assert world.counted["unstable"] == 1


def test_another_mac_on_the_same_link_is_no_move(world: World) -> None:
    world.learn(A)
    assert world.use(A, source=OTHER) == []
    assert world.learner.hosts[T].mac == OTHER
    assert world.counted == {"learned": 1}
