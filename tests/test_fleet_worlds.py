"""Hosts that share addresses, in random worlds: never two answer, and in the end the right one."""

from __future__ import annotations

import pytest

from ndxdp.fleet.records import Holder
from tests.fixtures.fleet_world import SETTLED, TTL, World


@pytest.mark.parametrize("seed", range(24))
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


# ---- how long nobody answers ---------------------------------------------------------------------

EVERYBODY = 2.0  # seconds from the start of three daemons
EXPIRED = TTL * 1.01 + 0.5  # etcd's clock may be slow, and it looks for old leases twice a second
AT_ONCE = 0.2


def settled(seed: int, failback: bool = False) -> World:
    """Return a calm world in which each address is answered for."""
    world = World(seed, calm=True)
    world.clock.run(EVERYBODY)
    for number in range(12):
        world.share(number, failback=failback)
    world.clock.run(1.0)
    assert not world.wrong(first=False)
    assert all(host.answers for host in world.hosts)
    return world


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("failure", ["kill", "stop", "cut"])
def test_a_failure_takes_the_lease_and_a_moment(seed: int, failure: str) -> None:
    world = settled(seed)
    host = world.hosts[0]
    if failure == "kill":
        host.kill()
    elif failure == "stop":
        host.stopped = True
    else:
        host.set_cut(True)
    gap = world.gap(EXPIRED + AT_ONCE)
    assert 0.5 < gap < EXPIRED + AT_ONCE
    assert not host.answers
    assert not world.twice
    assert world.gap(10.0) < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_a_host_that_is_back_leaves_the_others_their_addresses(seed: int) -> None:
    world = settled(seed)
    world.hosts[0].kill()
    world.clock.run(EXPIRED + 1.0)
    world.hosts[0].start()
    assert world.gap(20.0) < 0.01
    assert not world.hosts[0].answers


@pytest.mark.parametrize("seed", range(5))
def test_the_first_choice_that_is_back_gets_its_addresses_with_a_short_gap(seed: int) -> None:
    world = settled(seed, failback=True)
    world.clock.run(5.0)
    before = world.hosts[0].answers
    assert before
    world.hosts[0].kill()
    world.clock.run(EXPIRED + 1.0)
    world.hosts[0].start()
    assert world.gap(10.0) < AT_ONCE
    assert world.hosts[0].answers == before
    assert not world.wrong(first=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("why", ["drain", "carrier", "move", "hosts"])
def test_an_orderly_handover_has_a_short_gap(seed: int, why: str) -> None:
    world = settled(seed)
    host = world.hosts[0]
    names = [
        key.rpartition("/")[2]
        for key, kv in world.etcd.state.keys.items()
        if key.startswith("holders/") and isinstance(kv.value, Holder) and kv.value.host == "h1"
    ]
    if why == "drain":
        world.etcd.write({"drained/h1": "1"})
    elif why == "carrier":
        host.set_carrier(False)
    elif why == "move":
        world.etcd.write({f"moves/s/{name}": "h2" for name in names})
    else:
        for name in names:
            world.share(int(name[1:]), hosts=("h2", "h3"))
    assert world.gap(3.0) < AT_ONCE
    assert not host.answers
    assert not world.twice
    moved = [each for each in world.etcd.state.keys if each.startswith("moves/")]
    assert not moved


@pytest.mark.parametrize("seed", range(5))
def test_a_restarted_daemon_keeps_its_addresses(seed: int) -> None:
    world = settled(seed)
    before = world.hosts[0].answers
    world.hosts[0].kill()
    world.clock.run(0.5)
    world.hosts[0].start()
    assert world.gap(20.0) < 0.01
    assert world.hosts[0].answers == before
