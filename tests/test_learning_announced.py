"""What a share announces upstream of the hosts that it learns, against nodes that answer."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fixtures.learning_world import OTHER, UP, A, B, C, T, World, address, mac


def test_a_learned_host_is_announced_upstream(world: World) -> None:
    world.learn(A)
    world.wait(60)
    assert world.announced == [(1000.5 + number, T) for number in range(3)]
    assert world.counted == {"learned": 1}


def test_a_move_between_downstream_links_is_not_announced(world: World) -> None:
    world.learn(A)
    world.wait(10)
    del world.nodes[A, T]
    world.use(B)
    world.wait(10)
    assert world.routes[T] == B
    assert len(world.announced) == 3


def test_a_host_that_leaves_is_not_announced_any_more(world: World) -> None:
    world.learn(A)
    del world.nodes[A, T]
    world.dad(UP)
    world.wait(0.6)
    assert T not in world.routes
    world.wait(10)
    assert len(world.announced) == 1


@pytest.mark.parametrize("stays", [True, False])
def test_a_host_is_not_announced_while_a_claim_of_it_is_checked(world: World, stays: bool) -> None:
    """It would refuse the claim of the host that it has moved to."""
    world.learn(A)
    world.wait(0.8)
    if not stays:
        del world.nodes[A, T]
    world.dad(UP, source=OTHER)
    world.wait(0.6)
    assert len(world.announced) == 1
    world.wait(10)
    assert len(world.announced) == (3 if stays else 1)
    assert (T in world.routes) == stays


def test_a_belated_claim_of_the_former_host(world: World) -> None:
    """The router may have believed it, so a host that has just come is announced once more."""
    world.learn(A)
    world.wait(0.1)
    world.reply(UP, source=OTHER)
    world.wait(0.01)
    assert [round(time - 1000, 2) for time, _ in world.announced] == [0.5, 0.6 + 0.1]
    world.wait(10)
    assert len(world.announced) == 4
    world.reply(UP, source=OTHER)
    world.wait(10)
    assert len(world.announced) == 4, "a quarrel"
    assert world.routes[T] == A


def test_forged_claims_upstream_cost_no_more_than_questions(world: World) -> None:
    """The host answers each check, and stays."""
    world.learn(A)
    world.wait(10)
    before = len(world.done)
    for number in range(1000):
        world.reply(UP, source=mac(number + 99))
        world.wait(0.001)
        assert world.routes[T] == A
    world.wait()
    assert world.routes[T] == A
    # One check; after its failure, no claim counts for a second.
    assert len(world.done) - before <= 2 * 4


def test_many_hosts_are_announced_at_a_rate_and_new_ones_first() -> None:
    world = World(max_hosts=400, max_hosts_per_mac=400)
    for number in range(300):
        world.use((A, B)[number % 2], address(number + 99), mac(number + 99))
    world.wait(0.5)
    assert len(world.announced) == 32
    world.wait(1.25)
    first = {target for _, target in world.announced}
    assert len(first) == len(world.announced) == 32 + 250
    world.learn(C)
    assert world.announced[-1][0] <= world.now
    assert T in {target for _, target in world.announced}
    world.wait(60)
    counts = Counter(target for _, target in world.announced)
    assert set(counts.values()) == {3}
    times = [time for time, _ in world.announced]
    assert all(late - early > 0.99 for early, late in zip(times, times[232:], strict=False))
