"""Simulated hosts with shared addresses, many in one process: `benchmarks.fleet` starts it.

    python -m benchmarks.fleet_hosts ENDPOINTS LEASE

Each host has its own lease, its own connections to etcd and its own state, as a daemon has: the
code is the daemon's. Only the interface is simulated: it has a carrier, and rules are computed and
not written.

The first line of input names the hosts, HOST:SEGMENT each; the process answers `started`. After
each further line it prints, as JSON, when each shared address whose name begins with `sim-` was
taken, in seconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import time
from typing import Any, NamedTuple, cast

from ndxdp.daemon.fleet import FleetTask
from ndxdp.daemon.uplink import Uplink
from ndxdp.fleet.decision import Acquisition
from ndxdp.fleet.lease_clock import LeaseClock
from ndxdp.sources.etcd import Watcher
from ndxdp.sources.etcd_settings import Endpoint, Etcd

_WATCHED = "sim-"
_AT_ONCE = 2
"""Hosts of one process that begin at once: they share a processor, and leases have to be renewed
meanwhile."""


class _Fence:
    """The lease of an interface that always answers."""

    may_join = is_settled = True
    written = 0

    async def rules_written(self) -> bool:
        return True

    def renewed(self) -> None:
        pass

    def forbid(self) -> bool:
        return True


class _Spec(NamedTuple):
    segments: tuple[str, ...]


class _Interface:
    """An interface without a kernel."""

    def __init__(self, segment: str) -> None:
        self.spec, self.lease = _Spec((segment,)), _Fence()


class _Task(FleetTask):
    """A daemon's part in shared addresses, which notes when it takes the watched ones."""

    taken: dict[str, float]

    async def _acquire(self, acquisitions: dict[str, list[Acquisition]], lease: int) -> None:
        await super()._acquire(acquisitions, lease)
        now = time.monotonic()
        for some in acquisitions.values():
            for each in some:
                if each.name.startswith(_WATCHED):
                    self.taken[each.name] = now


class SimulatedHost:
    """A host."""

    def __init__(self, settings: Etcd, segment: str, taken: dict[str, float]) -> None:
        """Begin to follow etcd.

        Args:
            settings: The table [etcd].
            segment: The segment.
            taken: Gets the times when watched addresses are taken.
        """
        interface = cast(Uplink, _Interface(segment))
        self._settings = settings
        self._following = asyncio.create_task(self._follow_own())
        self._task = _Task(
            settings, [segment], LeaseClock(), lambda: [interface], self._rules, lambda: None
        )
        self._task.taken = taken

    async def begun(self) -> None:
        """Wait until the host holds something."""
        (segment,) = self._task.segments.values()
        while not segment.status("").held:
            await asyncio.sleep(0.1)

    def _rules(self) -> None:
        for segment in self._task.segments.values():
            segment.rules()

    async def _follow_own(self) -> None:
        """Follow the keys below `hosts/HOST/`, as a daemon does on another connection."""
        keys: set[bytes] = set()
        async for batch in Watcher(self._settings).watch(keys.__len__):
            keys |= {item.key for item in batch.items}


async def simulate(endpoints: tuple[Endpoint, ...], lease: int) -> None:
    """Run the hosts of the first line, and answer the other lines."""
    lines = asyncio.StreamReader(limit=1 << 20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    taken: dict[str, float] = {}
    hosts: list[Any] = []
    gate = asyncio.Semaphore(_AT_ONCE)

    async def begin(host: str, segment: str) -> None:
        async with gate:
            made = SimulatedHost(Etcd(endpoints, host, lease=lease), segment, taken)
            hosts.append(made)
            await made.begun()

    words = (await lines.readline()).decode().split()
    print("started", flush=True)
    beginning = [asyncio.create_task(begin(*word.split(":"))) for word in words]
    while await lines.readline():
        print(json.dumps(taken), flush=True)
    for task in beginning:
        task.cancel()


def main() -> int:
    """Run the hosts that the arguments name, until stdin ends; return the exit code."""
    logging.basicConfig(level=logging.ERROR)
    endpoints = []
    for url in sys.argv[1].split(","):
        host, _, port = url.removeprefix("http://").partition(":")
        endpoints.append(Endpoint(host, int(port), tls=False))
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    asyncio.run(simulate(tuple(endpoints), int(sys.argv[2])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
