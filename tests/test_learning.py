"""Learning hosts on a share: claims, lookups, limits and expiry, against nodes that answer."""

from __future__ import annotations

import itertools

import pytest

from ndxdp.runtime.share_report import COUNTERS, REFUSALS
from ndxdp.sharing.actions import Advertise, Ask, Bind
from tests.fixtures.learning_world import (
    GATEWAY,
    HOST,
    LINK_LOCAL,
    OTHER,
    OUTSIDE,
    OWN,
    PREFIX,
    ROUTER,
    THIRD,
    UP,
    A,
    B,
    C,
    T,
    World,
    address,
    ip,
)


def test_the_counters_are_those_of_the_report(world: World) -> None:
    assert set(world.learner.counters) == set(COUNTERS) - {"relayed", "solicited"}
    assert set(world.learner.refused) == set(REFUSALS)


# ---- claims of free addresses --------------------------------------------------------------------


@pytest.mark.parametrize("claim", [World.dad, World.use, World.reply])
def test_a_free_address_is_learned_after_two_rounds(world: World, claim: object) -> None:
    assert callable(claim)
    claim(world, A)
    assert world.wait(0.499)[-1] == Ask(C, T)
    assert not world.routes
    assert world.wait(0.001) == [Bind(T, A)]
    rounds = itertools.product((0, 0.25), (UP, B, C), (None,))
    assert world.asked() == list(rounds)
    assert world.counted == {"learned": 1}
    host = world.learner.hosts[T]
    assert (host.ifindex, host.mac, host.since, host.seen) == (A, HOST, 1000.5, 1000.5)


def test_a_repeated_claim_does_not_prolong_the_search(world: World) -> None:
    world.dad(A)
    for _ in range(4):
        world.wait(0.1)
        assert world.dad(A) == []
    assert Bind(T, A) in world.wait(0.1)


def test_a_share_with_one_link_learns(world: World) -> None:
    world.do(world.learner.set_links(world.now, None, frozenset((A,))))
    assert world.dad(A) == []
    assert world.wait() == [Bind(T, A)]


def test_a_claim_on_the_upstream_link_binds_nothing(world: World) -> None:
    world.dad(UP)
    assert [each[1] for each in world.asked()] == [A, B, C]
    world.wait()
    world.use(UP)
    world.reply(UP)
    world.wait()
    assert len(world.asked()) == 6
    assert not world.routes
    assert world.counted == {}


# ---- claims that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("home", [UP, A, B])
def test_duplicate_address_detection_across_links(home: int) -> None:
    """Detect a duplicate in every combination of sides, before and after the owner is learned."""
    for rival, is_learned in itertools.product({UP, A, B} - {home}, (False, True)):
        world = World()
        world.nodes[home, T] = HOST
        if is_learned:
            world.use(home)
            world.wait()
        before = world.now
        world.dad(rival, source=OTHER)
        world.wait()
        assert world.advertised == [(rival, T)]
        answered = next(time for time, each in world.done if isinstance(each, Advertise))
        assert answered - before < 0.01
        assert world.routes == ({} if home == UP else {T: home})
        assert world.counted == {"defended": 1} | ({} if home == UP else {"learned": 1})


@pytest.mark.parametrize("home", [UP, A])
@pytest.mark.parametrize("is_learned", [False, True])
def test_an_address_cannot_be_taken_while_its_owner_answers(home: int, is_learned: bool) -> None:
    world = World()
    world.nodes[home, T] = HOST
    if is_learned:
        world.use(home)
        world.wait()
    for claim in (world.use, world.reply):
        claim(B, T, OTHER)
        world.wait()
        assert world.routes.get(T) != B
    assert world.learner.refused["elsewhere"] == 2
    assert not world.advertised


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (OWN, {"own_address": 1}),
        (ROUTER, {"router": 1}),
        (PREFIX.address, {"router": 1}),
        (OUTSIDE, {"outside": 1}),
        (LINK_LOCAL, {}),
        (ip("ff02::1"), {}),
        (ip("::1"), {}),
    ],
)
def test_addresses_that_are_never_learned(
    world: World, target: bytes, reason: dict[str, int]
) -> None:
    world.use(A, target)
    assert world.wait() == []
    assert world.counted == reason
    world.reply(A, target)
    assert world.wait() == []
    assert not world.routes
    assert world.counted == dict.fromkeys(reason, 2)


def test_the_router_defends_its_address(world: World) -> None:
    world.nodes[UP, ROUTER] = GATEWAY
    world.dad(A, ROUTER)
    world.wait()
    assert world.advertised == [(A, ROUTER)]
    assert world.counted == {"defended": 1}


def test_the_address_of_a_silent_router_is_not_learned(world: World) -> None:
    world.dad(A, ROUTER)
    world.wait()
    assert world.counted == {"router": 1}


def test_foreign_addresses_on_the_upstream_link_are_not_counted(world: World) -> None:
    world.use(UP, OUTSIDE)
    world.dad(UP, OUTSIDE)
    assert world.wait() == []
    assert world.counted == {}


@pytest.mark.parametrize("source", [bytes(6), b"\x33\x33\0\0\0\1"])
def test_a_claim_by_no_unicast_mac_is_ignored(world: World, source: bytes) -> None:
    assert world.use(A, source=source) + world.dad(A, source=source) + world.wait() == []


def test_messages_of_other_links_are_ignored(world: World) -> None:
    assert world.use(9) + world.dad(9) + world.reply(9) + world.look_up(9) == []


def test_the_upstream_link_needs_no_room() -> None:
    world = World(max_hosts=1)
    world.learn(A, address(99), OTHER)
    for target in (ROUTER, T):
        world.dad(UP, target)
        world.wait()
    assert world.counted == {"learned": 1}
    assert world.look_up(UP) == []  # it lives there


def test_a_claim_that_has_failed_is_not_checked_again_at_once(world: World) -> None:
    world.learn(A)
    assert world.use(B, source=OTHER)
    world.wait(0.01)
    assert world.use(B, source=OTHER) == []
    assert world.reply(UP, source=OTHER) == []
    assert world.learner.refused["elsewhere"] == 3
    world.wait(1)
    assert world.use(B, source=OTHER)


@pytest.mark.parametrize(("first", "second"), [(A, B), (B, A), (UP, A), (A, UP)])
def test_a_node_in_its_probe_need_not_answer(first: int, second: int) -> None:
    """A node ignores questions until its DAD has ended: its link is silent, but not free."""
    for wait in (0.3, 0.55, 0.9):
        world = World()
        world.dad(first)
        world.wait(wait)
        before = dict(world.routes)
        world.dad(second, source=OTHER)
        world.wait(1 - wait)
        world.nodes[first, T] = HOST
        world.wait()
        assert world.advertised == [(second, T)]
        assert set(before.items()) <= set(world.routes.items())
        assert world.routes == ({T: first} if first != UP else {})


def test_a_node_that_moves_during_its_probe(world: World) -> None:
    """The node probes again on the other link, with the same MAC: that is no rival."""
    world.dad(A)
    world.wait(0.6)
    world.dad(B)
    assert world.wait(0.6)[-1] == Bind(T, B, A)


def test_a_probe_that_has_failed_may_be_repeated(world: World) -> None:
    world.learn(A)
    world.dad(B, source=OTHER)
    world.wait(0.01)
    world.nodes.clear()
    world.dad(B, source=OTHER)
    assert world.wait(0.5)[-1] == Bind(T, B, A)


def test_only_a_probe_that_still_waits_is_answered(world: World) -> None:
    world.dad(A)
    world.now += 0.4
    world.dad(A)
    world.now += 0.9  # the daemon had no time
    world.reply(UP, source=OTHER)
    assert world.advertised == [(A, T)]
    world.dad(A, address(99))
    world.now += 1.1
    world.reply(UP, address(99), OTHER)
    assert world.advertised == [(A, T)]
    assert world.counted == {"defended": 1, "elsewhere": 1}


@pytest.mark.parametrize("home", [UP, B])
def test_a_probe_is_answered_although_the_owner_is_slow(world: World, home: int) -> None:
    """Answer DAD that has not finished, though the address is bound: a proxy may take 0.8 s."""
    world.dad(A)
    world.wait(0.8)
    assert world.routes == {T: A}
    world.nodes[home, T] = OTHER
    world.reply(home, source=OTHER)
    world.reply(home, source=OTHER)
    assert world.advertised == [(A, T)]
    world.wait()
    assert world.routes == ({} if home == UP else {T: B})
    assert world.counted == {"learned": 1, "defended": 1, "moved": 1}


def test_the_owner_that_probes_again_need_not_answer(world: World) -> None:
    """No other node takes the address, neither by use nor by an answer."""
    world.learn(A)
    world.nodes.clear()
    world.dad(A)
    for _ in range(9):
        world.use(B, source=OTHER)
        world.reply(UP, source=THIRD)
        world.wait(0.1)
    world.nodes[A, T] = HOST
    world.wait(0.2)
    world.use(B, source=OTHER)
    world.wait()
    assert world.routes == {T: A}
    assert world.advertised == []
    world.nodes.clear()
    world.dad(A)
    world.wait(0.1)
    world.dad(B, source=OTHER)
    assert world.advertised == [(B, T)]
    world.wait()
    assert world.routes == {T: A}


def test_a_probe_that_has_ended_is_no_obstacle(world: World) -> None:
    world.dad(A)
    world.wait(0.6)
    world.dad(A, source=OTHER)  # both are on one link, and hear each other
    world.wait()
    world.dad(B, source=THIRD)
    assert world.wait()[-1] == Bind(T, B, A)
    assert world.advertised == []


def test_a_probe_is_answered_once() -> None:
    """Answer it also for an owner that may not have one more address."""
    world = World(max_hosts_per_mac=1)
    world.learn(B, address(99), OTHER)
    world.dad(A)
    world.wait(0.8)
    world.reply(B, source=OTHER)
    world.reply(B, source=OTHER)
    assert world.advertised == [(A, T)]
    assert world.learner.refused["mac_limit"] == 2


def test_a_slow_owner_ends_a_move(world: World) -> None:
    world.learn(A)
    world.nodes.clear()
    world.dad(B, source=THIRD)
    world.wait(0.8)
    assert world.routes == {T: B}
    world.reply(UP, source=OTHER)
    assert world.advertised == [(B, T)]


def test_a_later_probe_does_not_end_the_first_one(world: World) -> None:
    world.dad(A)
    world.wait(0.8)
    world.dad(B, source=OTHER)
    world.wait(0.2)
    world.nodes[A, T] = HOST  # its DAD has finished
    world.wait()
    assert world.advertised == [(B, T)]
    assert world.routes == {T: A}


def test_a_finished_probe_is_not_answered(world: World) -> None:
    world.dad(A)
    world.wait(1.1)
    world.reply(UP, source=OTHER)
    world.dad(B, address(99))
    world.wait(0.8)
    world.use(C, address(99))  # it has moved
    world.wait(0.1)
    assert world.advertised == []


def test_an_answer_from_the_upstream_link_ends_the_search(world: World) -> None:
    world.nodes[UP, T] = OTHER
    world.use(A)
    world.wait()
    assert len(world.asked()) == 3
