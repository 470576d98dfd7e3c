"""The frames of announcements on a real link, and a provider that delivers nothing before."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether

from ndxdp.ndp.frame import (
    flags_of,
    lladdr_of,
)
from ndxdp.ndp.profile import Profile
from ndxdp.upstream.announce import Kind
from tests.fixtures.announcing import (
    ADDRESS,
    ADDRESS_BYTES,
    NOBODY_BYTES,
    Seen,
    announce_config,
    announcing,
    behind,
    named,
    settled,
)
from tests.fixtures.network import (
    BEHIND,
    GATEWAY,
    HOST_MAC,
    ROUTER_LINK_LOCAL,
    call,
)
from tests.fixtures.segment import (
    GATEWAY_BYTES,
    ROUTER_LINK_LOCAL_BYTES,
    SWITCH,
    Segment,
    at,
)

# ---- frames --------------------------------------------------------------------------------------


def test_the_frames_for_an_address(wired: Segment) -> None:
    async def main() -> None:
        with wired.at_switch() as wire:
            seen = Seen(wire)
            gateways = (GATEWAY_BYTES, ROUTER_LINK_LOCAL_BYTES)
            async with announcing(wired, gateways=gateways) as announcer:
                announcer.announce([ADDRESS_BYTES])
                await settled(announcer)
                assert announcer.sent == {Kind.PROBE: 1, Kind.SOLICIT: 2, Kind.ADVERTISE: 1}
                assert not any(announcer.failed.values())
            probe, first, second, advertisement = (Ether(frame) for frame in seen.frames())
        assert (probe[IPv6].src, probe[ICMPv6ND_NS].tgt) == ("::", ADDRESS)
        for solicitation, gateway in ((first, GATEWAY), (second, ROUTER_LINK_LOCAL)):
            assert solicitation.src == HOST_MAC
            assert solicitation[IPv6].src == ADDRESS
            assert solicitation[IPv6].dst == "ff02::1:ff00:1"
            assert solicitation.dst == "33:33:ff:00:00:01"
            assert solicitation[ICMPv6ND_NS].tgt == gateway
            assert solicitation[ICMPv6NDOptSrcLLAddr].lladdr == HOST_MAC
        fields = advertisement[ICMPv6ND_NA]
        assert (fields.R, fields.S, fields.O, fields.tgt) == (1, 0, 1, ADDRESS)
        assert advertisement[IPv6].dst == "ff02::1"
        assert advertisement[ICMPv6NDOptDstLLAddr].lladdr == HOST_MAC

    asyncio.run(main())


@pytest.mark.parametrize("kind", list(Kind))
def test_each_kind_alone(wired: Segment, kind: Kind) -> None:
    what = announce_config(
        probe=kind is Kind.PROBE,
        solicit_gateway=kind is Kind.SOLICIT,
        advertise=kind is Kind.ADVERTISE,
    )

    async def main() -> None:
        with wired.at_switch() as wire:
            async with announcing(wired, what) as announcer:
                announcer.announce([ADDRESS_BYTES])
                await settled(announcer)
            assert Seen(wire).about() == [(kind, ADDRESS_BYTES)]

    asyncio.run(main())


def test_profile_sets_flag_and_lladdr(wired: Segment) -> None:
    async def main() -> None:
        with wired.at_switch() as wire:
            what = announce_config(solicit_gateway=False)
            async with announcing(wired, what) as announcer:
                announcer.announce([ADDRESS_BYTES], Profile(router=False, lladdr=NOBODY_BYTES))
                await settled(announcer)
            (frame,) = Seen(wire).frames()
            assert flags_of(frame) == 0x20
            assert lladdr_of(frame) == NOBODY_BYTES

    asyncio.run(main())


def test_tshark_finds_no_fault(wired: Segment, tmp_path: Path) -> None:
    async def main() -> list[bytes]:
        with wired.at_switch() as wire:
            async with announcing(wired) as announcer:
                announcer.announce(behind(number) for number in range(20))
                await settled(announcer)
            return Seen(wire).frames()

    frames = asyncio.run(main())
    assert len(frames) == 60
    capture = tmp_path / "announcements.pcap"
    with capture.open("wb") as file:
        file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for frame in frames:
            file.write(struct.pack("=IIII", 0, 0, len(frame), len(frame)) + frame)
    checks = ("-o", "ipv6.use_geoip:FALSE", "-Y", "_ws.malformed || _ws.expert.severity >= 4194304")
    assert call("tshark", "-n", "-r", str(capture), *checks).out == ""
    fields = ("-T", "fields", "-e", "icmpv6.checksum.status", "-e", "icmpv6.type")
    lines = call("tshark", "-n", "-r", str(capture), *fields).out.split("\n")[:-1]
    assert sorted(set(lines)) == ["1\t135", "1\t136"]
    assert len({lladdr_of(frame) for frame in frames if named(frame)[0] is Kind.PROBE}) == 20


# ---- the provider --------------------------------------------------------------------------------


# Delivers to an address only after it has solicited the gateway.
PROVIDER = f"""
table bridge provider {{
    set heard {{ type ipv6_addr; flags dynamic; size 65535; }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "to-host" icmpv6 type nd-neighbor-solicit ip6 saddr {BEHIND} \
            add @heard {{ ip6 saddr }}
        iifname "to-router" ip6 daddr {BEHIND} ip6 daddr != @heard drop
    }}
}}
"""


def test_provider_that_delivers_only_after_a_solicitation(wired: Segment) -> None:
    at(SWITCH, "nft", "-f", "-", stdin=PROVIDER)
    wired.behind(ADDRESS)
    wired.static_neighbour(ADDRESS)

    async def main() -> None:
        quiet = announce_config(solicit_gateway=False)
        async with announcing(wired, quiet) as announcer:
            announcer.announce([ADDRESS_BYTES])
            await settled(announcer)
            assert await asyncio.to_thread(wired.ping, ADDRESS) == 0
        async with announcing(wired, announce_config()) as announcer:
            announcer.announce([ADDRESS_BYTES])
            await settled(announcer)
            assert await asyncio.to_thread(wired.ping, ADDRESS, count=3) == 3

    asyncio.run(main())


def test_a_solicitation_teaches_the_router(wired: Segment) -> None:
    """Teach the router by the SLLAO of a solicitation alone, without any answer."""
    wired.behind(ADDRESS)

    async def main() -> None:
        assert await asyncio.to_thread(wired.ping, ADDRESS) == 0
        async with announcing(wired, announce_config(advertise=False)) as announcer:
            announcer.announce([ADDRESS_BYTES])
            await settled(announcer)
            assert await asyncio.to_thread(wired.ping, ADDRESS) == 1

    asyncio.run(main())
