"""A lease that was lost counts again only while the daemon follows the keys of shared addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from ndxdp.boot_clock import boot_ns
from ndxdp.daemon.fleet import FleetTask
from ndxdp.fleet.lease_clock import LeaseClock
from ndxdp.sources import etcd as source
from ndxdp.sources.etcd_settings import Endpoint, Etcd
from tests.fixtures import etcd

LEASE = 7007


def run(settings: Etcd, play: Callable[[FleetTask, LeaseClock], object]) -> None:
    """Let a host without interfaces take part in a segment."""

    async def host() -> None:
        clock = LeaseClock()
        task = FleetTask(settings, ["s"], clock, lambda: [], lambda: None, lambda: None)
        try:
            done = play(task, clock)
            if asyncio.iscoroutine(done):
                await done
        finally:
            task.abandon()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*others, return_exceptions=True)

    asyncio.run(host())


def test_a_lease_counts_again_once_the_keys_are_followed() -> None:
    def play(task: FleetTask, clock: LeaseClock) -> None:
        until = boot_ns() + 10**9
        segment = task.segments["s"]
        task._lease_renewed(LEASE, until)
        assert (segment.lease, clock.until) == (LEASE, until)
        task._lease_lost()
        assert (segment.lease, clock.until) == (None, 0)
        task._lease_renewed(LEASE, until)
        assert (segment.lease, clock.until) == (None, 0)
        task.keeper.until = until
        task._watcher_changed()
        assert (segment.lease, clock.until) == (None, 0)
        task.watcher.connected = True
        task._watcher_changed()
        assert (segment.lease, clock.until) == (LEASE, until)
        task._lease_lost()
        task._watcher_changed()  # what was renewed before the loss does not count
        assert (segment.lease, clock.until) == (None, 0)
        task._lease_renewed(LEASE, until)
        assert (segment.lease, clock.until) == (LEASE, until)
        task.watcher.connected = False
        task._lease_renewed(LEASE, until + 1)  # it was not lost
        assert clock.until == until + 1

    run(Etcd((Endpoint("127.0.0.1", 1, False),), "h1"), play)


def test_a_renewed_lease_hurries_the_stream_of_keys(
    privacy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_DELAY_MIN", 600.0)
    monkeypatch.setattr(source, "_DELAY_MAX", 600.0)
    with etcd.cluster(tmp_path) as cluster:
        endpoint = cluster.members[0].url.removeprefix("http://").partition(":")

        async def play(task: FleetTask, clock: LeaseClock) -> None:
            async def until(done: Callable[[], bool]) -> None:
                async with asyncio.timeout(20):
                    while not done():
                        await asyncio.sleep(0.02)

            watcher = task.watcher
            await until(lambda: watcher.connected and bool(clock.until))
            cluster.kill()
            await until(lambda: not watcher.connected and not clock.until)
            cluster.start()
            await until(lambda: watcher.connected and bool(clock.until))

        settings = Etcd((Endpoint(endpoint[0], int(endpoint[2]), False),), "h1", lease=2)
        run(settings, play)
