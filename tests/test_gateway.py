"""Gateway care, against an upstream that ignores solicitations from the host's own addresses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import Ether

from lab.capture import packet_socket
from ndxdp.errors import NdxdpError
from ndxdp.ndp.frame import TYPE_NS, icmpv6_type_of, source_of
from ndxdp.ndp.message import Fault
from ndxdp.netlink.fib import NudState
from ndxdp.netlink.neighbour_monitor import NeighbourWatch
from ndxdp.netlink.neighbours import confirm_neighbour, neighbour
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.upstream.gateway_keepalive import WAIT, GatewayKeepalive, Source
from tests.fixtures.network import (
    GATEWAY,
    HOST,
    HOST_MAC,
    ROUTER,
    ROUTER_LINK,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    UPLINK,
    eventually,
    python,
    sh,
)
from tests.fixtures.segment import (
    GATEWAY_BYTES,
    HOST_MAC_BYTES,
    ROUTER_MAC_BYTES,
    SWITCH,
    Segment,
    at,
    segment,
)
from tests.test_neighbour import na, tllao

SOURCE = "2001:db8::c:0:0:99"
SOURCE_BYTES = parse_address(SOURCE)
BEHIND_SOURCE = Source(SOURCE_BYTES, HOST_MAC_BYTES)
OWN_SOURCE = Source(parse_address(HOST), HOST_MAC_BYTES)
NEW_MAC = "02:00:00:00:00:aa"
BASE = 500
"""Milliseconds of base reachable time: an unconfirmed entry fails within 2.5 s."""

# The upstream drops solicitations from the host's own addresses.
DEAF = """
table bridge upstream {
    counter ignored { }
    chain forward {
        type filter hook forward priority filter; policy accept;
        iifname "to-host" icmpv6 type nd-neighbor-solicit ip6 saddr { fe80::2, 2001:db8::2 } \
            counter name ignored drop
    }
}
"""


@pytest.fixture
def deaf(privacy: None) -> Iterator[Segment]:
    """Yield an upstream that answers a container's solicitations only."""
    with segment(reachable_ms=BASE) as made:
        at(SWITCH, "nft", "-f", "-", stdin=DEAF)
        yield made


@contextlib.asynccontextmanager
async def caring(
    made: Segment,
    *,
    interval: float | None = None,
    sources: Sequence[Source] = (BEHIND_SOURCE,),
    may_send: Callable[[bytes], bool] = lambda address: True,
) -> AsyncIterator[GatewayKeepalive]:
    care = GatewayKeepalive(
        made.ifindex(), GATEWAY_BYTES, sources, interval=interval, may_send=may_send
    )
    running = asyncio.create_task(care.run())
    try:
        yield care
        assert not running.done(), running
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        care.close()


async def until(probe: Callable[[], object], within: float = 5) -> float:
    """Wait until `probe` is true; return the seconds that it took."""
    began = time.monotonic()
    while not probe():
        assert time.monotonic() - began < within, f"not within {within} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def traffic(seconds: float) -> tuple[int, int]:
    """Return the number of datagrams sent beyond the gateway, one each 20 ms, and of those arrived.

    UDP, because ping confirms the neighbour with each answer (MSG_CONFIRM), so that the kernel
    would not solicit.
    """
    count, arrived = round(seconds / 0.02), 0
    with (
        packet_socket(ROUTER, ROUTER_LINK) as wire,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
    ):
        for number in range(count):
            with contextlib.suppress(OSError):
                sender.sendto(b"%04d" % number, ("2001:db8:ffff::1", 9))
            time.sleep(0.02)
        wire.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = wire.recvfrom(2000)
                incoming = address[2] != socket.PACKET_OUTGOING
                arrived += incoming and frame[20] == socket.IPPROTO_UDP
    return count, arrived


def test_without_care_the_gateway_is_lost(deaf: Segment) -> None:
    confirm_neighbour(deaf.ifindex(), GATEWAY_BYTES, ROUTER_MAC_BYTES, router=True)
    sent, arrived = traffic(6)
    assert 0 < arrived < sent
    assert deaf.entry()[0] in ("FAILED", "INCOMPLETE")


def test_with_care_nothing_is_lost(deaf: Segment) -> None:
    async def main() -> None:
        async with caring(deaf) as care:
            await until(lambda: deaf.entry() == ("REACHABLE", ROUTER_MAC))
            assert care.interval() == pytest.approx(0.2)
            sent, arrived = await asyncio.to_thread(traffic, 6)
            assert (sent, arrived) == (300, 300)
            status = care.status()
            assert status.state is NudState.REACHABLE
            assert status.mac == ROUTER_MAC_BYTES
            assert status.seen is not None
            assert status.seen < 1
            assert status.solicitations == status.answers >= 20
            assert (status.mac_changes, status.ignored) == (0, {})
            assert "router" in sh("ip", "-6", "neighbour", "show", GATEWAY, "dev", UPLINK)

    asyncio.run(main())
    assert "PERMANENT" not in sh("ip", "-6", "neighbour", "show")


def test_events_alone_keep_it(deaf: Segment) -> None:
    """Solicit on the kernel's PROBE event, without the help of an interval."""

    async def main() -> None:
        async with caring(deaf, interval=600) as care:
            await until(lambda: deaf.entry() == ("REACHABLE", ROUTER_MAC))
            sent, arrived = await asyncio.to_thread(traffic, 6)
            assert (sent, arrived) == (300, 300)
            # A cycle: half a second or so REACHABLE, a second of DELAY, then PROBE.
            assert 3 <= care.status().solicitations <= 12

    asyncio.run(main())


def test_link_local_gateway(deaf: Segment) -> None:
    """Care for a link-local gateway, the usual kind, from a source of another scope."""

    async def main() -> None:
        gateway = parse_address(ROUTER_LINK_LOCAL)
        care = GatewayKeepalive(deaf.ifindex(), gateway, [BEHIND_SOURCE])
        running = asyncio.create_task(care.run())
        await until(lambda: deaf.entry(ROUTER_LINK_LOCAL) == ("REACHABLE", ROUTER_MAC))
        running.cancel()
        care.close()

    asyncio.run(main())


def test_a_source_whose_lease_has_lapsed(deaf: Segment, caplog: pytest.LogCaptureFixture) -> None:
    """Solicit from no leased address while the lease has lapsed, and at once after that."""
    lapsed = True

    async def main() -> None:
        nonlocal lapsed
        async with caring(deaf, interval=0.1, may_send=lambda address: not lapsed) as care:
            await asyncio.sleep(0.5)
            assert (care.status().solicitations, care.status().silent) == (0, False)
            lapsed = False
            await until(lambda: deaf.entry() == ("REACHABLE", ROUTER_MAC))
            lapsed = True
            sent = care.status().solicitations
            await asyncio.sleep(0.5)
            assert care.status().solicitations <= sent + 1
        assert "does not answer" not in caplog.text

    asyncio.run(main())


def test_removed_entry_comes_back(deaf: Segment) -> None:
    async def main() -> None:
        async with caring(deaf, interval=600):
            await until(lambda: deaf.entry() == ("REACHABLE", ROUTER_MAC))
            sh("ip", "-6", "neighbour", "delete", GATEWAY, "dev", UPLINK)
            await until(lambda: deaf.entry() == ("REACHABLE", ROUTER_MAC))

    asyncio.run(main())


def test_gateway_changes_its_mac(deaf: Segment) -> None:
    async def main() -> None:
        async with caring(deaf, interval=1) as care:
            await until(lambda: deaf.entry() == ("REACHABLE", ROUTER_MAC))
            # The gateway's own unsolicited advertisement, which the kernel itself heeds, is not
            # sent.
            at(ROUTER, "ip", "link", "set", ROUTER_LINK, "address", NEW_MAC)
            answers = care.status().answers
            await until(lambda: deaf.entry()[1] == NEW_MAC)
            assert care.status().answers <= answers + 1
            assert await asyncio.to_thread(traffic, 0.5) == (25, 25)
            assert care.status().mac_changes == 1
            assert care.status().mac == parse_mac(NEW_MAC)

    asyncio.run(main())


def test_own_mac_changes(deaf: Segment) -> None:
    async def main() -> None:
        async with caring(deaf, interval=600) as care:
            await until(lambda: deaf.entry()[0] == "REACHABLE")
            asked = care.status().answers
            sh("ip", "link", "set", UPLINK, "address", "02:00:00:00:00:bb")
            care.set_sources([Source(SOURCE_BYTES, parse_mac("02:00:00:00:00:bb"))])
            await until(lambda: care.status().answers > asked)
            assert deaf.entry() == ("REACHABLE", ROUTER_MAC)

    asyncio.run(main())


def test_link_goes_down_and_up(deaf: Segment, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with caring(deaf, interval=0.3) as care:
            await until(lambda: deaf.entry()[0] == "REACHABLE")
            sh("ip", "link", "set", UPLINK, "down")
            await asyncio.sleep(1)
            sh("ip", "link", "set", UPLINK, "up")
            care.wake()
            await until(lambda: deaf.entry()[0] == "REACHABLE")

    asyncio.run(main())
    found = [record.message for record in caplog.records if "Network is down" in record.message]
    assert len(found) == 1, "once, not with each try"


def test_a_permanent_entry_is_left_alone(deaf: Segment) -> None:
    set_to = f"neighbour replace {GATEWAY} lladdr 02:00:00:00:00:55 dev {UPLINK} nud permanent"
    sh("ip", "-6", *set_to.split())

    async def main() -> None:
        async with caring(deaf) as care:
            await asyncio.sleep(0.7)
            assert care.status().solicitations == 0
            assert care.status().state is NudState.PERMANENT
            assert deaf.entry() == ("PERMANENT", "02:00:00:00:00:55")

    asyncio.run(main())


# ---- several sources, and none ------------------------------------------------------------------


def test_the_next_source_if_one_is_ignored(deaf: Segment, caplog: pytest.LogCaptureFixture) -> None:
    """Try the next source if one is ignored, and keep it while it works."""
    changes = []

    async def main() -> None:
        async with caring(deaf, interval=0.3, sources=[OWN_SOURCE, BEHIND_SOURCE]) as care:
            care._changed = lambda: changes.append(care.source)
            assert care.source == OWN_SOURCE.address
            await until(lambda: care.status().answers >= 3, 8)
            assert care.source == SOURCE_BYTES
            assert care.status().solicitations == care.status().answers + 3, (
                "three to the first, once"
            )
            care.set_sources([OWN_SOURCE])
            assert care.source == OWN_SOURCE.address
            at(SWITCH, "nft", "flush", "ruleset")
            await until(lambda: not care.status().silent and deaf.entry()[0] == "REACHABLE")
            care.set_sources([OWN_SOURCE, BEHIND_SOURCE])
            assert care.source == OWN_SOURCE.address
            assert changes == [SOURCE_BYTES, OWN_SOURCE.address]

    asyncio.run(main())
    found = [record.message for record in caplog.records if "but not" in record.message]
    words = f"the gateway {GATEWAY} answers solicitations from {SOURCE}, but not from {HOST}"
    assert found == [words]


def test_nothing_is_sent_without_a_source(deaf: Segment) -> None:
    """Send nothing without a source, even in the middle of a round."""

    async def main() -> None:
        with silent_router() as wire:
            async with caring(deaf, interval=0.2) as care:
                await solicitation(wire)
                care.set_sources([])
                asked = care.status().solicitations
                await asyncio.sleep(WAIT + 0.7)
                assert (care.status().solicitations, care.source) == (asked, None)
                care.set_sources([BEHIND_SOURCE])
                await solicitation(wire)

    asyncio.run(main())


# ---- forged answers ------------------------------------------------------------------------------

ROGUE_MAC = "02:00:00:00:00:66"

FORGED = {
    "unsolicited": na(tllao(ROGUE_MAC), S=0),
    "hop limit": na(tllao(ROGUE_MAC), ip6={"hlim": 254}),
    "other target": na(tllao(ROGUE_MAC), tgt="2001:db8::7"),
    "other destination": na(tllao(ROGUE_MAC), ip6={"dst": "2001:db8::c:0:0:98"}),
    "all nodes": na(tllao(ROGUE_MAC), S=0, ip6={"dst": "ff02::1"}, ether={"dst": HOST_MAC}),
    "other host": na(tllao(ROGUE_MAC), ether={"dst": "02:00:00:00:00:77"}),
    "our own MAC": na(tllao(HOST_MAC)),
    "no TLLAO": na(ether={"src": ROGUE_MAC}),
}
FORGED["checksum"] = FORGED["our own MAC"][:80] + parse_mac(ROGUE_MAC)

COUNTED = {
    "unsolicited": Fault.NOT_SOLICITED,
    "hop limit": Fault.BAD_HOP_LIMIT,
    "our own MAC": Fault.BAD_LLADDR,
    "other host": Fault.OTHER_HOST,
    "no TLLAO": Fault.NO_LLADDR,
    "checksum": Fault.BAD_CHECKSUM,
}
"""The faults that are counted, because the socket's filter passes such frames."""


@contextlib.contextmanager
def silent_router() -> Iterator[socket.socket]:
    """Silence the router; yield a socket in its place."""
    at(ROUTER, "sysctl", "-qw", f"net.ipv6.conf.{ROUTER_LINK}.disable_ipv6=1")
    with packet_socket(ROUTER, ROUTER_LINK) as wire:
        wire.setblocking(False)
        yield wire


async def solicitation(wire: socket.socket) -> bytes:
    """Receive the next solicitation from SOURCE for the gateway."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(5):
        while True:
            frame = await loop.sock_recv(wire, 2000)
            if icmpv6_type_of(frame) == TYPE_NS and source_of(frame) == SOURCE_BYTES:
                return frame


@pytest.mark.parametrize("name", sorted(FORGED))
def test_forged_answers_are_ignored(deaf: Segment, name: str) -> None:
    async def main() -> None:
        with silent_router() as wire:
            async with caring(deaf, interval=600) as care:
                await solicitation(wire)
                wire.send(FORGED[name])
                await asyncio.sleep(0.2)
                assert care.status().answers == 0
                assert deaf.entry()[1] == ""
                expected = {COUNTED[name]: 1} if name in COUNTED else {}
                assert care.status().ignored == expected
                # Listening continues: the true answer is received within the same wait.
                wire.send(na(tllao()))
                await until(lambda: deaf.entry() == ("REACHABLE", ROUTER_MAC))

    asyncio.run(main())


def test_unsolicited_answers_are_ignored(deaf: Segment) -> None:
    """Ignore a perfect answer unless it arrives while care waits for one."""

    async def main() -> None:
        with silent_router() as wire:
            wire.send(na(tllao(ROGUE_MAC)))  # before
            async with caring(deaf, interval=600) as care:
                for _ in range(3):
                    await solicitation(wire)
                await asyncio.sleep(1.2)  # the last wait is over
                assert care.status().solicitations == 3
                for _ in range(100):
                    wire.send(na(tllao(ROGUE_MAC)))
                await asyncio.sleep(0.2)
                assert care.status().answers == 0
                assert deaf.entry()[1] == ""
                care.wake()
                await solicitation(wire)
                await asyncio.sleep(0.2)
                assert care.status().answers == 0, "it was kept from before"

    asyncio.run(main())


def test_a_proxy_does_not_take_over(deaf: Segment) -> None:
    """Accept an answer with O=0 and another MAC only if the known MAC is silent."""
    proxy = na(tllao(ROGUE_MAC), O=0)

    async def main() -> None:
        with silent_router() as wire:
            async with caring(deaf, interval=600) as care:
                await solicitation(wire)
                wire.send(na(tllao()))
                await until(lambda: deaf.entry() == ("REACHABLE", ROUTER_MAC))

                care.wake()
                await solicitation(wire)
                wire.send(proxy)
                wire.send(na(tllao(), O=0))
                await until(lambda: care.status().answers == 2)
                assert deaf.entry() == ("REACHABLE", ROUTER_MAC)

                care.wake()
                await solicitation(wire)
                wire.send(proxy)
                await until(lambda: deaf.entry()[1] == ROGUE_MAC)

    asyncio.run(main())


def test_the_solicitation(deaf: Segment) -> None:
    async def main() -> None:
        with silent_router() as wire:
            async with caring(deaf, interval=600):
                seen = Ether(await solicitation(wire))
        assert (seen.src, seen.dst) == (HOST_MAC, "33:33:ff:00:00:01")
        assert (seen[IPv6].src, seen[IPv6].dst, seen[IPv6].hlim) == (SOURCE, "ff02::1:ff00:1", 255)
        assert seen[ICMPv6ND_NS].tgt == GATEWAY
        assert seen[ICMPv6NDOptSrcLLAddr].lladdr == HOST_MAC

    asyncio.run(main())


# ---- units ---------------------------------------------------------------------------------------


def test_watch_sees_its_neighbour_only(deaf: Segment) -> None:
    watch = NeighbourWatch(deaf.ifindex(), parse_address("2001:db8::77"))

    def news() -> NudState | None:
        time.sleep(0.05)
        return watch.drain()

    def neigh(words: str) -> None:
        sh("ip", "-6", "neighbour", *words.split())

    with contextlib.closing(watch):
        neigh(f"replace 2001:db8::78 lladdr {NEW_MAC} dev {UPLINK} nud reachable")
        neigh(f"replace 2001:db8::77 lladdr {NEW_MAC} dev behind0 nud reachable")
        assert news() is None
        neigh(f"replace 2001:db8::77 lladdr {NEW_MAC} dev {UPLINK} nud stale")
        assert news() is NudState.STALE
        neigh(f"replace 2001:db8::77 lladdr {NEW_MAC} dev {UPLINK} nud reachable")
        assert news() is NudState.REACHABLE
        neigh(f"delete 2001:db8::77 dev {UPLINK}")
        assert news() is not None
        eventually(lambda: news() in (None, NudState.NONE))


def test_table_is_read_and_written(deaf: Segment) -> None:
    ifindex, somebody = deaf.ifindex(), parse_address("2001:db8::77")
    assert neighbour(ifindex, somebody) == (NudState.NONE, None)
    assert neighbour(9999, somebody) == (NudState.NONE, None)
    confirm_neighbour(ifindex, somebody, parse_mac(NEW_MAC), router=False)
    assert neighbour(ifindex, somebody) == (NudState.REACHABLE, parse_mac(NEW_MAC))
    with pytest.raises(NdxdpError, match="cannot write the neighbour table"):
        confirm_neighbour(9999, somebody, parse_mac(NEW_MAC), router=False)


def test_interval_follows_the_kernel(deaf: Segment) -> None:
    care = GatewayKeepalive(deaf.ifindex(), GATEWAY_BYTES, [BEHIND_SOURCE])
    with contextlib.closing(care):
        for base, interval in ((30000, 12.0), (100, 0.1), (3600000, 60.0)):
            sh("sysctl", "-qw", f"net.ipv6.neigh.{UPLINK}.base_reachable_time_ms={base}")
            assert care.interval() == pytest.approx(interval)


def test_without_privileges() -> None:
    code = """if True:
        import os
        from ndxdp.errors import NdxdpError
        from ndxdp.upstream.gateway_keepalive import GatewayKeepalive
        os.setgid(65534), os.setuid(65534)
        try:
            GatewayKeepalive(1, bytes(16), [])
        except NdxdpError as error:
            print(error.message)
    """
    result = python(code)
    assert result.out == "this process may not open a packet socket, which solicits the gateway\n"
