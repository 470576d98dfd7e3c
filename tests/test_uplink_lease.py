"""The fence of one interface: when the end of the lease is written into its maps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from ndxdp.boot_clock import boot_ns
from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.daemon.uplink_lease import UplinkLease
from ndxdp.daemon.uplink_state import Health, UplinkState
from ndxdp.fleet.lease_clock import LeaseClock
from ndxdp.rules.rule import SHARED_ORIGIN
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.session.request import AttachOptions
from ndxdp.store.maps import Maps

LATER = 10**15  # nanoseconds


class Fence:
    """The maps of an interface: what was written as the end of the lease."""

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.is_broken = False

    def write_lease(self, until: int) -> None:
        if self.is_broken:
            raise OSError(5, "Input/output error")
        self.ends.append(until)


class World:
    """An uplink's lease with what it depends on."""

    def __init__(self) -> None:
        spec = InterfaceSpec("up0", AttachOptions(), Rules())
        health = Health("up0", DaemonStatus(), lambda: None)
        self.state = UplinkState(spec, health, asyncio.Event(), asyncio.Event(), lambda links: None)
        self.clock, self.fence, self.changes = LeaseClock(), Fence(), 0
        self.began = asyncio.Event()
        self.lease = UplinkLease(self.state, self.clock, self.began, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def begin(self) -> Fence:
        """Answer with new maps; return them."""
        self.fence = Fence()
        self.lease.begin(cast(Maps, self.fence))
        return self.fence

    def renew(self, until: int) -> None:
        self.clock.until = until
        self.lease.renewed()

    def round(self, *, fails: bool = False) -> None:
        """Do a round of the uplink, which writes the rules."""
        if fails:
            self.state.health.rules.failed("no room", "no room")
        else:
            self.state.pending.rules = False
        self.lease.round_ended()

    def know(self) -> None:
        """Make the rules of shared addresses known."""
        self.state.wanted.set(SHARED_ORIGIN, Rules())


def run(test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        await test(World())

    asyncio.run(main())


def test_no_end_is_written_before_the_shared_rules_are_in_the_maps() -> None:
    """Keep rules that an earlier daemon has left from answering under the lease of this one."""

    async def test(world: World) -> None:
        fence = world.begin()
        world.renew(LATER)
        world.round()
        assert fence.ends == []
        world.know()
        world.renew(LATER + 1)
        assert fence.ends == []
        world.round()
        assert fence.ends == [LATER + 1]
        world.renew(LATER + 2)
        assert fence.ends == [LATER + 1, LATER + 2]

    run(test)


def test_a_lost_lease_closes_the_fence_at_once() -> None:
    async def test(world: World) -> None:
        fence = world.begin()
        world.know()
        world.renew(LATER)
        world.round()
        assert world.lease.forbid()
        assert fence.ends == [LATER, 0]
        world.renew(LATER + 1)  # of the next lease
        world.round(fails=True)
        assert fence.ends == [LATER, 0]
        world.round()
        assert fence.ends == [LATER, 0, LATER + 1]

    run(test)


def test_a_change_during_a_round_keeps_the_fence_closed() -> None:
    async def test(world: World) -> None:
        fence = world.begin()
        world.know()
        world.renew(LATER)
        world.state.pending.rules = True  # set while the former ones were written
        world.lease.round_ended()
        assert fence.ends == []

    run(test)


def test_other_maps_begin_closed() -> None:
    async def test(world: World) -> None:
        world.begin()
        world.know()
        world.renew(LATER)
        world.round()
        fence = world.begin()
        world.renew(LATER + 1)
        assert fence.ends == []
        world.round()
        assert fence.ends == [LATER + 1]

    run(test)


def test_the_end_of_answering_closes_the_fence() -> None:
    async def test(world: World) -> None:
        fence = world.begin()
        world.know()
        world.renew(LATER)
        world.round()
        world.lease.end()
        assert fence.ends == [LATER, 0]
        world.renew(LATER + 1)
        assert fence.ends == [LATER, 0]
        assert world.lease.forbid()
        assert not await world.lease.rules_written()

    run(test)


def test_a_fence_that_cannot_be_written_ends_with_what_it_has() -> None:
    async def test(world: World) -> None:
        fence = world.begin()
        world.know()
        world.renew(boot_ns() + 10**8)
        world.round()
        fence.is_broken = True
        assert not world.lease.forbid()
        assert world.lease.written == fence.ends[-1]
        world.lease.end()
        assert not world.lease.forbid()
        await asyncio.sleep(0.11)
        assert world.lease.forbid()

    run(test)


def test_what_was_not_announced_is_announced_when_the_fence_opens() -> None:
    async def test(world: World) -> None:
        def opened() -> bool:
            pending = world.state.pending
            was, pending.leased = pending.leased, False
            return was

        world.begin()
        world.know()
        world.round()
        assert not opened()  # there is no lease yet
        world.renew(boot_ns() + 10**8)
        assert opened()
        world.renew(boot_ns() + 10**8)
        assert not opened()
        await asyncio.sleep(0.11)
        world.renew(LATER)  # after it has lapsed, as when the process was stopped
        assert opened()
        world.begin()  # other maps
        world.round()
        assert opened()
        world.lease.forbid()
        world.renew(LATER + 1)
        assert not opened()
        world.round()
        assert opened()

    run(test)


@pytest.mark.parametrize("ending", ["written", "failed", "ended"])
def test_rules_are_waited_for(ending: str) -> None:
    async def test(world: World) -> None:
        world.begin()
        world.round()
        waiting = asyncio.ensure_future(world.lease.rules_written())
        await asyncio.sleep(0)
        assert world.state.pending.rules
        assert not waiting.done()
        if ending == "ended":
            world.lease.end()
        else:
            world.round(fails=ending == "failed")
        assert await waiting is (ending == "written")

    run(test)


def test_a_host_joins_only_with_what_it_can_answer_on() -> None:
    async def test(world: World) -> None:
        world.begin()
        world.round()
        assert not world.lease.may_join
        world.state.reachable = True
        world.round()
        assert world.lease.may_join
        world.state.write_rules()
        world.round(fails=True)
        assert not world.lease.may_join
        world.state.health.rules.succeeded()
        world.round()
        assert world.lease.may_join
        world.state.reachable = False
        world.round()
        assert not world.lease.may_join
        world.state.reachable = True
        world.round()
        world.lease.end()
        assert not world.lease.may_join
        assert world.changes == 7

    run(test)


def test_what_an_earlier_daemon_left_is_unknown_before_the_maps_are_open() -> None:
    """Do not take an interface for silent that an earlier daemon's program may answer on."""

    async def test(world: World) -> None:
        assert world.lease.is_undecided
        assert not world.lease.forbid()
        assert not await world.lease.rules_written()
        fence = world.begin()
        world.began.set()
        assert world.lease.is_undecided
        assert world.lease.forbid()
        assert fence.ends == [0]
        world.round()
        assert not world.lease.is_undecided

    run(test)


def test_an_interface_that_cannot_be_answered_on_is_decided() -> None:
    async def test(world: World) -> None:
        world.began.set()
        assert not world.lease.is_undecided
        assert not world.lease.may_join

    run(test)


def test_an_uplink_that_ends_does_not_answer_again() -> None:
    """Do not open the fence after a round that was under way when the uplink was stopped."""

    async def test(world: World) -> None:
        fence = world.begin()
        world.know()
        world.renew(LATER)
        world.round()
        assert fence.ends == [LATER]
        world.state.stop.set()
        assert world.lease.forbid()
        world.round()
        assert fence.ends == [LATER, 0]

    run(test)
