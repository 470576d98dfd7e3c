"""`join`: whether the daemon joins the groups of exact addresses behind a switch that snoops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6MLQuery,
    ICMPv6MLQuery2,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from lab.capture import packet_socket
from ndxdp.daemon.queriers import Querier, Queriers
from ndxdp.ndp.frame import TYPE_NA, icmpv6_type_of, target_of
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_address
from ndxdp.sockets.mld import Query, QuerySocket, listener_interval
from tests.fixtures.network import (
    HOST,
    ROUTER,
    ROUTER_LINK,
    ROUTER_LINK_LOCAL,
    UPLINK,
    Running,
    call,
    done,
    eventually,
    ndxdp,
    python,
    sh,
    status,
)
from tests.fixtures.segment import BRIDGE, ROUTER_MAC_BYTES, SWITCH, Segment, at, segment
from tests.test_membership import ADDRESS, ADDRESS_BYTES, GROUP, snooped_groups

_GROUPS = Path("/proc/thread-self/net/igmp6")
_ADDRESSES = 1100
"""Exact addresses of a list, more than `auto` joins."""


@pytest.fixture
def snooped(privacy: None) -> Iterator[Segment]:
    """A segment whose switch filters the groups that no port has reported."""
    with segment(snooping=True) as made:
        eventually(lambda: not is_forwarded(), within=20)
        yield made


def is_forwarded() -> bool:
    """Return True if the switch forwards a solicitation for ADDRESS to this host."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as here:
        here.bind((UPLINK, 3))
        here.settimeout(0.3)
        frame = solicit_by_router()
        with contextlib.suppress(TimeoutError):
            while here.recv(2000) != frame:
                pass
            return True
    return False


def solicit_by_router() -> bytes:
    frame = solicit(ROUTER_MAC_BYTES, ADDRESS_BYTES, source=parse_address(ROUTER_LINK_LOCAL))
    with packet_socket(ROUTER, ROUTER_LINK) as wire:
        wire.send(frame)
    return frame


def is_answered() -> bool:
    """Return True if a solicitation of the router for ADDRESS is answered."""
    with packet_socket(ROUTER, ROUTER_LINK) as wire:
        wire.settimeout(0.3)
        solicit_by_router()
        with contextlib.suppress(TimeoutError):
            while True:
                frame = wire.recv(2000)
                if icmpv6_type_of(frame) == TYPE_NA and target_of(frame) == ADDRESS_BYTES:
                    return True
    return False


def bridge(**options: int) -> None:
    """Set multicast options of the switch."""
    words = [word for key, value in options.items() for word in (f"mcast_{key}", str(value))]
    at(SWITCH, "ip", "link", "set", BRIDGE, "type", "bridge", *words)


def query_each_second() -> None:
    """Make the switch a querier of MLDv2 with a Multicast Listener Interval of 2 * 1 s + 1 s."""
    bridge(querier=0, mld_version=2, query_interval=100, startup_query_interval=100)
    bridge(querier=1)


@contextlib.contextmanager
def running(*words: str) -> Iterator[Running]:
    run = Running(words)
    try:
        yield run
        run.end_cleanly()
    finally:
        run.close()
        ndxdp("-q", "detach", UPLINK)


def multicast(interface: str = UPLINK) -> dict[str, Any]:
    found: dict[str, Any] = status(interface)["multicast"]
    return found


def joined() -> bool:
    return f"{UPLINK} " in "".join(
        line for line in _GROUPS.read_text().splitlines(True) if "0001ff000099" in line
    )


# ---- a switch that snoops ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("join", "mode"),
    [("auto", "tc"), ("auto", "generic"), ("auto", "userspace"), ("always", "tc"), ("never", "tc")],
)
def test_behind_a_snooping_switch(snooped: Segment, join: str, mode: str) -> None:
    """Answer with `auto` and `always` at once; without the group, the switch sends nothing."""
    with running("-i", UPLINK, "--mode", mode, "--join", join, "-n", ADDRESS):
        if join == "never":
            query_each_second()
            eventually(lambda: multicast() == shown("never", 0, querier=True))
            eventually(lambda: not is_answered(), within=20)
            assert GROUP not in snooped_groups()
            findings = ndxdp("doctor", UPLINK).out
            assert "receives ICMPv6" not in findings, "the daemon itself hears queries"
            assert f'an MLD querier is on the link of {UPLINK}, and join is "never"' in findings
        else:
            eventually(lambda: GROUP in snooped_groups())
            assert is_answered()
            assert multicast() == shown(join, 1)


def shown(
    join: str, joined: int, left_out: int = 0, querier: bool | None = None
) -> dict[str, object]:
    return {"join": join, "joined": joined, "left_out": left_out, "querier": querier}


def test_auto_leaves_without_a_querier_and_joins_again(snooped: Segment) -> None:
    with running("-i", UPLINK, "--mode", "tc", "-n", ADDRESS):
        eventually(joined)
        query_each_second()
        eventually(lambda: multicast() == shown("auto", 1, querier=True))
        assert "multicast groups joined 1 (join auto), MLD querier present" in done("status")
        bridge(querier=0)
        eventually(lambda: not joined(), within=20)
        eventually(lambda: multicast() == shown("auto", 0, querier=False))
        # Without a querier, the switch forwards everything.
        eventually(is_answered)
        bridge(querier=1)
        eventually(joined)
        eventually(lambda: multicast() == shown("auto", 1, querier=True))
        # Once the queried ports have had their time to report, the switch filters again.
        eventually(lambda: GROUP in snooped_groups())
        assert is_answered()


def test_what_auto_knows_outlives_a_renewal(snooped: Segment, tmp_path: Path) -> None:
    """Leave the groups when a reload says never, and know the querier afterwards."""
    file = tmp_path / "ndxdp.toml"

    def write(join: str) -> None:
        file.write_text(
            f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\njoin = "{join}"\n'
            f'[[interface.prefix]]\nprefix = "{ADDRESS}"\n'
        )

    write("auto")
    query_each_second()
    with running("-c", str(file)):
        eventually(lambda: multicast() == shown("auto", 1, querier=True))
        for join, count in (("never", 0), ("always", 1), ("auto", 1)):
            write(join)
            done("reload", "-c", str(file))
            eventually(lambda join=join, count=count: multicast()["joined"] == count)  # type: ignore[misc]
            assert multicast() == shown(join, count, querier=True)
            assert joined() == bool(count)


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("join", ["auto", "always"])
def test_more_addresses_than_auto_joins(wired: Segment, tmp_path: Path, join: str) -> None:
    """Join 1024 groups and warn of the others, unless the configuration says always."""
    path = tmp_path / "addresses"
    path.write_text("".join(f"2001:db8::c:0:1:{number:x}\n" for number in range(_ADDRESSES)))
    run = Running(("-i", UPLINK, "--mode", "tc", "--join", join, "--file", str(path)))
    try:
        if join == "always":
            eventually(lambda: multicast() == shown("always", _ADDRESSES))
            assert run.end_cleanly() == ""
            return
        eventually(lambda: multicast() == shown("auto", 1024, _ADDRESSES - 1024))
        assert "groups joined 1024, left out 76 (join auto)" in done("status")
        done("prefix", "add", "2001:db8::c:0:2:1")
        eventually(lambda: multicast() == shown("auto", 1024, _ADDRESSES - 1023))
        warnings = run.end_cleanly().splitlines()
        assert len(warnings) == 1
        assert (
            "76 of 1100 solicited-node groups are not joined, as the limit is 1024" in warnings[0]
        )
        assert 'set join = "always"' in warnings[0]
    finally:
        run.close()
        ndxdp("-q", "detach", UPLINK)


def test_the_groups_of_a_port_are_joined_on_its_bridge(wired: Segment) -> None:
    """Join where the kernel receives queries, so that it repeats its reports."""
    sh("ip", "link", "add", "br7", "type", "bridge", "stp_state", "0")
    sh("ip", "link", "set", UPLINK, "master", "br7")
    sh("ip", "link", "set", "br7", "up")
    groups = {"br7", UPLINK}

    def holders() -> set[str]:
        lines = [line.split() for line in _GROUPS.read_text().splitlines()]
        return {each[1] for each in lines if each[2].endswith("0001ff000099")} & groups

    try:
        with running("-i", UPLINK, "--mode", "tc", "-n", ADDRESS):
            eventually(lambda: holders() == {"br7"})
            sh("ip", "link", "set", UPLINK, "nomaster")
            eventually(lambda: holders() == {UPLINK})
        assert holders() == set()
    finally:
        sh("ip", "link", "delete", "br7")


_NO_QUERIES = """
table inet no_queries {
    chain input {
        type filter hook input priority 0;
        icmpv6 type mld-listener-query drop
    }
}
"""


def test_a_bridge_of_the_host_that_knows_a_querier(wired: Segment) -> None:
    """Join for a bridge's own querier, also where a firewall hides all queries from the host."""

    def above(**options: int) -> None:
        words = [word for key, value in options.items() for word in (f"mcast_{key}", str(value))]
        sh("ip", "link", "set", "br7", "type", "bridge", *words)

    sh("ip", "link", "add", "br7", "type", "bridge", "stp_state", "0")
    sh("ip", "link", "set", UPLINK, "master", "br7")
    sh("ip", "link", "set", "br7", "up")
    above(snooping=0)
    try:
        with running("-i", UPLINK, "--mode", "tc", "-n", ADDRESS):
            eventually(lambda: multicast() == shown("auto", 1))
            with packet_socket(ROUTER, ROUTER_LINK) as wire:
                wire.send(frame(ICMPv6MLQuery2(mrd=1000, QRV=1, QQIC=1)))
            eventually(lambda: multicast() == shown("auto", 0, querier=False), within=20)
            sh("nft", "-f", "-", stdin=_NO_QUERIES)
            above(snooping=1)
            above(querier=1)
            eventually(lambda: multicast() == shown("auto", 1, querier=True))
    finally:
        call("nft", "delete", "table", "inet", "no_queries")
        sh("ip", "link", "delete", "br7")


# ---- queries -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "interval"),
    [
        (ICMPv6MLQuery(mrd=10_000), 2 * 125 + 10),
        (ICMPv6MLQuery(mrd=1000), 2 * 125 + 1),
        (ICMPv6MLQuery(mrd=1000, mladdr="ff02::1:ff00:1"), 2 * 125 + 10),
        (ICMPv6MLQuery2(mrd=10_000, QRV=2, QQIC=125), 2 * 125 + 10),
        (ICMPv6MLQuery2(mrd=1000, QRV=7, QQIC=1), 7 + 1),
        (ICMPv6MLQuery2(mrd=0x8000, QRV=1, QQIC=127), 127 + 32.768),
        (ICMPv6MLQuery2(mrd=0xFFFF, QRV=1, QQIC=0x80), 128 + 8387.584),
        (ICMPv6MLQuery2(mrd=0, QRV=1, QQIC=0xFF), 31744),
        (ICMPv6MLQuery2(mrd=1000, QRV=0, QQIC=0), 2 * 125 + 1),
        (ICMPv6MLQuery2(mrd=1000, QRV=3, QQIC=20, mladdr="ff02::1:ff00:1"), 3 * 20 + 10),
    ],
)
def test_the_listener_interval(query: Packet, interval: float) -> None:
    assert listener_interval(bytes(query)) == pytest.approx(interval)


def frame(query: Packet, source: str = "fe80::77", hops: int = 1) -> bytes:
    header = Ether(src=ROUTER_MAC_BYTES.hex(":"), dst="33:33:00:00:00:01")
    return bytes(
        header
        / IPv6(src=source, dst="ff02::1", hlim=hops)
        / IPv6ExtHdrHopByHop(options=[RouterAlert()])
        / query
    )


def test_only_valid_queries_are_heard(wired: Segment) -> None:
    """Hear a query from the link, and none that a router may have forwarded."""
    queries = QuerySocket()
    try:
        with packet_socket(ROUTER, ROUTER_LINK) as wire:
            general = ICMPv6MLQuery(mrd=1000)
            wire.send(frame(general, source="2001:db8::77"))
            wire.send(frame(general, hops=2))
            wire.send(frame(general, source="::"))
            broken = bytearray(frame(general))
            broken[-1] ^= 1  # the checksum is wrong
            wire.send(broken)
            wire.send(frame(ICMPv6MLQuery2(mrd=2000, QRV=2, QQIC=8)))
        found = eventually(lambda: queries.receive()[0])
        assert found == [Query(wired.ifindex(), 2 * 8 + 2)]
    finally:
        queries.close()


def test_a_flood_of_queries_is_read_in_batches(wired: Segment) -> None:
    queries = QuerySocket()
    try:
        with packet_socket(ROUTER, ROUTER_LINK) as wire:
            for _ in range(200):
                wire.send(frame(ICMPv6MLQuery()))
        assert wired.ping(HOST) == 1  # the queries have arrived before
        found, has_more = queries.receive()
        assert (len(found), has_more) == (64, True)
    finally:
        queries.close()


def test_how_long_a_querier_is_present(wired: Segment) -> None:
    """Wait for the longest interval of all queries; begin again after an interruption."""
    ifindex = wired.ifindex()

    async def follow() -> None:
        queriers, woken = Queriers(), asyncio.Event()
        end = queriers.watch(ifindex, woken.set)

        async def next_state() -> Querier:
            await asyncio.wait_for(woken.wait(), 10)
            woken.clear()
            return queriers.state(ifindex)

        assert queriers.state(ifindex) is Querier.UNKNOWN
        queriers.note(ifindex, 0.01)
        assert await next_state() is Querier.HEARD
        assert await next_state() is Querier.SILENT
        queriers.forget(ifindex)
        assert await next_state() is Querier.UNKNOWN
        queriers.note(ifindex, 1000)
        assert await next_state() is Querier.HEARD
        queriers.note(ifindex, 0.01)
        queriers.forget(ifindex)
        await asyncio.sleep(0.1)
        assert not woken.is_set()
        assert queriers.state(ifindex) is Querier.HEARD
        # A renewal ends a watch and begins another.
        end()
        end()
        again = queriers.watch(ifindex, woken.set)
        assert queriers.state(ifindex) is Querier.HEARD
        again()
        queriers.close()

    asyncio.run(follow())


def test_without_the_right_to_hear_queries(wired: Segment) -> None:
    """Treat a link as if there were a querier, where no query can be received."""
    code = f"""if True:
        import asyncio, os
        from ndxdp.daemon.queriers import Querier, Queriers
        os.setgid(65534), os.setuid(65534)
        async def main():
            queriers = Queriers()
            end = queriers.watch({wired.ifindex()}, lambda: None)
            print(queriers.state({wired.ifindex()}))
            end()
            queriers.close()
        asyncio.run(main())
    """
    assert python(code).out == "Querier.UNKNOWN\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--join", "maybe"), "'maybe' is not one of 'auto', 'never', 'always'"),
        (("--join",), "needs a value"),
    ],
)
def test_a_wrong_policy(words: tuple[str, ...], message: str) -> None:
    refused = ndxdp("run", "-i", UPLINK, "-n", ADDRESS, *words)
    assert refused.code == 2
    assert message in refused.err
