"""The order, the rate and the repetitions of announcements."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator

import pytest

from ndxdp.ndp.frame import (
    eth_source_of,
    lladdr_of,
    target_of,
)
from ndxdp.pace import Pace
from ndxdp.rules.address import parse_address
from ndxdp.upstream import schedule
from ndxdp.upstream.announce import Announcer, Kind
from tests.fixtures.announcing import (
    ADDRESS,
    ADDRESS_BYTES,
    NEIGHBOUR,
    NOBODY_BYTES,
    STALE,
    Seen,
    announce_config,
    announcing,
    behind,
    named,
    settled,
    until,
)
from tests.fixtures.network import (
    HOST_MAC,
    ROUTER,
    ROUTER_LINK,
    UPLINK,
    python,
    sh,
)
from tests.fixtures.segment import (
    GATEWAY_BYTES,
    HOST_MAC_BYTES,
    SWITCH,
    Segment,
    at,
    ip,
)

# ---- order and timing ----------------------------------------------------------------------------


def test_changes_are_followed(wired: Segment) -> None:
    one, two = behind(1), behind(2)
    what = announce_config(solicit_gateway=True, advertise=False, rate=1000)

    async def main() -> None:
        with wired.at_switch() as wire:
            seen = Seen(wire)
            async with announcing(wired, what, ()) as announcer:
                announcer.announce([one, two])
                await settled(announcer)
                assert seen.frames() == [], "no gateway, no solicitation"

                announcer.set_gateways([GATEWAY_BYTES])
                await settled(announcer)
                assert sorted(seen.about()) == [(Kind.SOLICIT, one), (Kind.SOLICIT, two)]

                announcer.set_gateways([GATEWAY_BYTES])
                announcer.set_mac(HOST_MAC_BYTES)
                announcer.set_gateways([])
                await settled(announcer)
                assert seen.frames() == [], "nothing has arrived"

                announcer.set_gateways([GATEWAY_BYTES])
                await settled(announcer)
                assert len(seen.frames()) == 2

                announcer.set_mac(NOBODY_BYTES)
                await settled(announcer)
                frames = seen.frames()
                assert {(eth_source_of(frame), lladdr_of(frame)) for frame in frames} == {
                    (NOBODY_BYTES, NOBODY_BYTES)
                }
                assert len(frames) == 2

                announcer.forget([one])
                announcer.announce_all()
                await settled(announcer)
                assert seen.about() == [(Kind.SOLICIT, two)]

    asyncio.run(main())


def test_interval(wired: Segment) -> None:
    what = announce_config(solicit_gateway=False, interval=0.2)

    async def main() -> None:
        async with announcing(wired, what) as announcer:
            announcer.announce([ADDRESS_BYTES])
            await asyncio.sleep(1.1)
            # One each 0.2 s, and the repetition after a second.
            assert 6 <= announcer.sent[Kind.ADVERTISE] <= 7

    asyncio.run(main())


def test_rate_is_kept_and_nothing_is_queued_twice(wired: Segment) -> None:
    addresses = [behind(number) for number in range(300)]
    what = announce_config(rate=400, solicit_gateway=False)

    async def main() -> None:
        with wired.at_switch() as wire:
            seen = Seen(wire)
            async with announcing(wired, what) as announcer:
                began = time.monotonic()
                for _ in range(3):
                    announcer.announce(addresses)
                assert announcer.waiting == 300
                await until(lambda: not announcer.waiting)
                took = time.monotonic() - began
                await asyncio.sleep(0.05)
            assert 0.65 <= took <= 1.0, took  # 300 / 400, less a burst of 20
            assert seen.about() == [(Kind.ADVERTISE, address) for address in addresses]

    asyncio.run(main())


def test_other_tasks_run_between_frames(wired: Segment) -> None:
    """Announce at a rate above that of any CPU: other tasks still have their turn."""
    what = announce_config(rate=1_000_000)

    async def main() -> None:
        async with announcing(wired, what) as announcer:
            announcer.announce(behind(number) for number in range(3000))
            sent = [0]
            while announcer.waiting:
                await asyncio.sleep(0)
                sent.append(sum(announcer.sent.values()) + sum(announcer.failed.values()))
            at_once = [after - before for before, after in itertools.pairwise(sent)]
            assert max(at_once) <= 32
            assert sent[-1] >= 6000

    asyncio.run(main())


def test_new_addresses_go_first(wired: Segment) -> None:
    what = announce_config(rate=100, solicit_gateway=False)

    async def main() -> None:
        with wired.at_switch() as wire:
            seen = Seen(wire)
            async with announcing(wired, what) as announcer:
                announcer.announce(behind(number) for number in range(30))
                await settled(announcer)
                seen.frames()
                announcer.announce_all()
                await asyncio.sleep(0.1)
                announcer.announce([ADDRESS_BYTES])
                await settled(announcer)
            announced = [address for _, address in seen.about()]
            assert len(announced) == 31
            assert announced.index(ADDRESS_BYTES) < 25

    asyncio.run(main())


def test_bound(wired: Segment) -> None:
    what = announce_config(solicit_gateway=False, rate=10000)

    async def main() -> None:
        async with announcing(wired, what, max_addresses=100) as announcer:
            announcer.announce(behind(number) for number in range(130))
            assert (announcer.known, announcer.waiting, announcer.dropped) == (100, 100, 30)
            await settled(announcer)
            assert announcer.sent[Kind.ADVERTISE] == 100
            announcer.forget([behind(1), behind(7)])
            announcer.announce([behind(129)])
            await settled(announcer)
            assert announcer.sent[Kind.ADVERTISE] == 101

    asyncio.run(main())


def test_cancelled_it_resumes_later(wired: Segment) -> None:
    addresses = [behind(number) for number in range(40)]

    async def main() -> None:
        with wired.at_switch() as wire:
            announcer = Announcer(
                wired.ifindex(), HOST_MAC_BYTES, announce_config(rate=100), [GATEWAY_BYTES]
            )
            announcer.announce(addresses)
            for _ in range(8):
                running = asyncio.create_task(announcer.run())
                await asyncio.sleep(0.04)
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running
            assert announcer.waiting
            running = asyncio.create_task(announcer.run())
            await settled(announcer)
            running.cancel()
            announcer.close()
            announced = Seen(wire).about()
            assert set(announced) == {
                (kind, address) for kind in (Kind.SOLICIT, Kind.ADVERTISE) for address in addresses
            }

    asyncio.run(main())


def test_link_down_is_counted_and_survived(wired: Segment) -> None:
    async def main() -> None:
        async with announcing(wired) as announcer:
            sh("ip", "link", "set", UPLINK, "down")
            announcer.announce([ADDRESS_BYTES])
            await settled(announcer)
            assert announcer.failed == dict.fromkeys(Kind, 1)
            sh("ip", "link", "set", UPLINK, "up")
            announcer.announce_all()
            await settled(announcer)
            assert announcer.sent == dict.fromkeys(Kind, 1)

    asyncio.run(main())


# ---- repetitions ---------------------------------------------------------------------------------


# The switch drops the Neighbor Discovery frames of the host.
LOSS = """
table bridge loss {
    chain forward {
        type filter hook forward priority filter; policy accept;
        iifname "to-host" icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } drop
    }
}
"""


@contextlib.contextmanager
def losing() -> Iterator[None]:
    at(SWITCH, "nft", "-f", "-", stdin=LOSS)
    try:
        yield
    finally:
        at(SWITCH, "nft", "delete", "table", "bridge", "loss")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between repetitions to a tenth."""
    monkeypatch.setattr(schedule, "PAUSES", tuple(pause / 10 for pause in schedule.PAUSES))


async def finished(announcer: Announcer, within: float = 30) -> None:
    await until(lambda: not announcer.waiting and not announcer.repeating, within)
    await asyncio.sleep(0.05)


def test_repeated_a_second_apart_until_the_gateway_answers(wired: Segment) -> None:
    async def main() -> None:
        with wired.at_switch() as wire:
            seen = Seen(wire)
            async with announcing(wired) as announcer:
                announcer.announce([ADDRESS_BYTES])
                began = time.monotonic()
                await finished(announcer)
                assert time.monotonic() - began >= 2
                assert announcer.sent == {Kind.PROBE: 1, Kind.SOLICIT: 1, Kind.ADVERTISE: 3}
            announced = [kind for kind, _ in seen.about()]
            assert announced == [Kind.PROBE, Kind.SOLICIT, *[Kind.ADVERTISE] * 3]

    asyncio.run(main())


def test_gateway_that_never_answers(wired: Segment, quick: None) -> None:
    """Solicit a silent gateway eight times, and a gateway that answers only once."""

    async def main() -> None:
        with wired.at_switch() as wire:
            seen = Seen(wire)
            nobody = parse_address("2001:db8::dd")
            async with announcing(wired, gateways=(nobody, GATEWAY_BYTES)) as announcer:
                announcer.announce([ADDRESS_BYTES])
                await finished(announcer)
            solicited = [
                target_of(frame) for frame in seen.frames() if named(frame)[0] is Kind.SOLICIT
            ]
            assert solicited == [nobody, GATEWAY_BYTES, *[nobody] * 7]

    asyncio.run(main())


def test_gateway_that_answers_late(wired: Segment, quick: None) -> None:
    """Solicit until the gateway answers, even if the switch drops the first frames."""

    async def main() -> None:
        async with announcing(wired, announce_config(rate=1000, advertise=False)) as announcer:
            with losing():
                announcer.announce([ADDRESS_BYTES])
                await until(lambda: announcer.sent[Kind.SOLICIT] == 5)
                assert announcer.repeating == 1
            await finished(announcer)
            assert announcer.sent[Kind.SOLICIT] == 6

    asyncio.run(main())


@pytest.mark.parametrize("kind", [Kind.SOLICIT, Kind.ADVERTISE])
def test_router_learns_though_frames_are_lost(wired: Segment, kind: Kind) -> None:
    """Repeat announcements, so that the router learns the address though the first are lost."""
    wired.behind(ADDRESS)
    if kind is Kind.ADVERTISE:  # which changes entries, but creates none
        stale = f"neighbour replace {ADDRESS} lladdr {STALE} dev {ROUTER_LINK} nud reachable"
        ip(ROUTER, stale)
    what = announce_config(
        solicit_gateway=kind is Kind.SOLICIT, advertise=kind is Kind.ADVERTISE, rate=1000
    )

    async def main() -> None:
        async with announcing(wired, what) as announcer:
            with losing():
                announcer.announce([ADDRESS_BYTES])
                lost = asyncio.ensure_future(asyncio.sleep(1.5))
                assert await asyncio.to_thread(wired.ping, ADDRESS) == 0
                await lost
            await until(lambda: HOST_MAC in at(ROUTER, *NEIGHBOUR).out)
            assert await asyncio.to_thread(wired.ping, ADDRESS) == 1

    asyncio.run(main())


def test_new_addresses_go_before_repetitions(wired: Segment, quick: None) -> None:
    what = announce_config(rate=100, solicit_gateway=False)

    async def main() -> None:
        with wired.at_switch() as wire:
            seen = Seen(wire)
            async with announcing(wired, what) as announcer:
                announcer.announce(behind(number) for number in range(30))
                await until(lambda: announcer.sent[Kind.ADVERTISE] >= 35)
                announcer.announce([ADDRESS_BYTES])
                await finished(announcer)
            announced = [address for _, address in seen.about()]
            assert len(announced) == 93
            assert announced.index(ADDRESS_BYTES) < 45
            assert announced[:30] == [behind(number) for number in range(30)]

    asyncio.run(main())


def test_rounds_announce_once(wired: Segment, quick: None) -> None:
    """Announce once per round, also to a gateway that has answered before."""
    what = announce_config(advertise=False, rate=1000, interval=1)

    async def main() -> None:
        async with announcing(wired, what, (GATEWAY_BYTES, b"\xfe\x80" + bytes(14))) as announcer:
            announcer.announce([ADDRESS_BYTES])
            await until(lambda: announcer.sent[Kind.SOLICIT] >= 2)
            await until(lambda: announcer.sent[Kind.SOLICIT] >= 9 + 2 * 2, 15)

    asyncio.run(main())


def test_paused_it_sends_nothing_and_resumed_everything(wired: Segment, quick: None) -> None:
    async def main() -> None:
        async with announcing(
            wired, announce_config(rate=1000, solicit_gateway=False)
        ) as announcer:
            announcer.announce([behind(1)])
            await until(lambda: announcer.sent[Kind.ADVERTISE] == 1)
            announcer.set_suspended(True)
            announcer.announce([behind(2)])
            announcer.announce_all()
            await asyncio.sleep(0.5)
            assert announcer.sent[Kind.ADVERTISE] == 1
            announcer.forget([behind(1)])
            announcer.set_suspended(False)
            await finished(announcer)
            assert announcer.sent[Kind.ADVERTISE] == 4

    asyncio.run(main())


def test_removed_addresses_are_not_repeated(wired: Segment, quick: None) -> None:
    async def main() -> None:
        async with announcing(
            wired, announce_config(rate=1000, solicit_gateway=False)
        ) as announcer:
            announcer.announce([behind(1), behind(2)])
            await settled(announcer)
            assert announcer.repeating == 2
            announcer.forget([behind(1)])
            assert announcer.repeating == 1
            await finished(announcer)
            assert announcer.sent[Kind.ADVERTISE] in (4, 5), "one may have been repeated before"

    asyncio.run(main())


def test_without_a_socket_for_answers_it_repeats_three_times(
    wired: Segment, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:

    async def main() -> None:
        async with announcing(wired, announce_config(rate=1000, advertise=False)) as announcer:
            monkeypatch.setattr(announcer._answers, "listen", lambda: None)
            announcer.announce([ADDRESS_BYTES])
            await finished(announcer)
            assert announcer.sent[Kind.SOLICIT] == 3

    asyncio.run(main())


def test_pace() -> None:
    now = 0.0
    pace = Pace(10, 3, lambda: now)
    sent = []
    while now < 2:
        while not pace.delay():
            pace.charge()
            sent.append(round(now, 6))
        now += pace.delay()
    assert sent[:5] == [0, 0, 0, 0.1, 0.2]
    assert len(sent) == 22
    now += 100
    assert pace.delay() == 0
    for _ in range(3):
        pace.charge()
    assert pace.delay() == pytest.approx(0.1)


def test_without_privileges() -> None:
    code = """if True:
        import os
        from ndxdp.errors import NdxdpError
        from ndxdp.config.model import Announce
        from ndxdp.upstream.announce import Announcer
        os.setgid(65534), os.setuid(65534)
        try:
            Announcer(1, bytes(6), Announce())
        except NdxdpError as error:
            print(error.message)
    """
    result = python(code)
    assert result.out == "this process may not open a packet socket, which announces addresses\n"
