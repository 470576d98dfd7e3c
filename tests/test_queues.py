"""The queues of userspace mode in an event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from ndxdp.ndp.frame import source_of, target_of
from ndxdp.ndp.message import solicit
from ndxdp.ndp.reason import Reason
from ndxdp.sockets.fanout import SOCKETS
from ndxdp.store.directories import Trees
from tests.packets import CASES, HOST
from tests.test_userspace import Bench, opened


def test_all_queues_are_watched_once_there_are_several(trees: Trees) -> None:
    """Answer from each of the queues that a flood has made, in an event loop."""
    case = next(case for case in CASES if case.reason is Reason.ANSWERED)
    macs = [HOST.mac[:5] + bytes([n]) for n in range(128, 192)]

    async def answer(bench: Bench) -> None:
        reasons, packets = bench.instance.maps.reasons, bench.packets
        before = reasons()[Reason.ANSWERED]
        with ThreadPoolExecutor(1) as executor, bench.path.serving(executor):
            bench.path._spread()
            async with asyncio.timeout(20):
                while len(packets._sockets) < SOCKETS:
                    await asyncio.sleep(0.01)
                # One after the other: a frame in any queue has all queues read.
                for number, mac in enumerate(macs):
                    asked = solicit(mac, target_of(case.frame), source=source_of(case.frame))
                    bench.ends.send(asked)
                    while reasons()[Reason.ANSWERED] - before <= number:
                        await asyncio.sleep(0.001)

    with opened(trees) as bench:
        bench.set_up(case)
        asyncio.run(answer(bench))
