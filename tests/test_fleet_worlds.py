"""Hosts that share addresses, in random worlds: never two answer, and in the end the right one."""

from __future__ import annotations

import pytest

from tests.fixtures.fleet_world import SETTLED, World


@pytest.mark.parametrize("seed", range(40))
def test_a_world(seed: int) -> None:
    world = World(seed)
    world.play(60.0)
    world.heal()
    world.clock.run(SETTLED)
    assert not world.twice, "\n".join(world.log[-30:])
    assert not world.wrong(first=False), "\n".join(world.log[-30:])
    world.clock.run(700.0)
    assert not world.twice
    assert not world.wrong(first=True), "\n".join(world.log[-30:])
