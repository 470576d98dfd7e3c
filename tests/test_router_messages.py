"""Router messages: parsing, validation by RFC 4861 section 6.1, options and their age."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptAdvInterval,
    ICMPv6NDOptEFA,
    ICMPv6NDOptHAInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from ndxdp.ndp.frame import checksum_correct
from ndxdp.ndp.router_message import (
    Parameters,
    RouterAdvertisement,
    RouterFault,
    RouterSolicitation,
    advertise_router,
    parse_router_advertisement,
    parse_router_solicitation,
    solicit_routers,
)
from ndxdp.ndp.router_option import (
    PrefixInformation,
    aged,
    is_well_formed,
    lifetime_of,
    mtu_of,
    option_key,
    prefix_information,
    prefix_option,
    split_options,
)
from ndxdp.observe import pcap
from ndxdp.rules.address import parse_address, parse_mac
from tests.fixtures.network import sh
from tests.fixtures.router_messages import (
    CLIENT,
    CLIENT_MAC,
    DOWN,
    DOWNSTREAM,
    EVERYTHING,
    INFINITY,
    ROUTER,
    ROUTER_MAC,
    UP,
    UPSTREAM,
    dnssl,
    frames,
    linked,
    mtu,
    pio,
    portal,
    pref64,
    ra,
    rdnss,
    route,
    rs,
    run,
    unknown,
)

GOOD = ra(*EVERYTHING)
SLLAO = ICMPv6NDOptSrcLLAddr(lladdr=CLIENT_MAC)


def raw(data: bytes) -> Packet:
    return Raw(load=data)


def cut(frame: bytes, count: int) -> bytes:
    """Return a frame whose message ends earlier, and says so, with a correct checksum."""
    packet = Ether(frame)
    body = bytes(packet[IPv6].payload)[:-count]
    ip = IPv6(src=packet[IPv6].src, dst=packet[IPv6].dst, hlim=255, nh=58)
    layer = ICMPv6ND_RA if body[0] == 134 else ICMPv6ND_RS
    return bytes(Ether(src=packet.src, dst=packet.dst) / ip / layer(body[:2] + b"\0\0" + body[4:]))


BAD_ADVERTISEMENTS = [
    ("a solicitation", rs(), RouterFault.OTHER_TYPE),
    ("a short frame", GOOD[:57], RouterFault.OTHER_TYPE),
    ("nothing", b"", RouterFault.OTHER_TYPE),
    (
        "behind an extension header",
        bytes(
            Ether(src=ROUTER_MAC)
            / IPv6(src=ROUTER, dst="ff02::1", hlim=255)
            / IPv6ExtHdrHopByHop()
            / ICMPv6ND_RA()
        ),
        RouterFault.OTHER_TYPE,
    ),
    ("hop limit 254", ra(ip6={"hlim": 254}), RouterFault.HOP_LIMIT),
    ("hop limit 64", ra(ip6={"hlim": 64}), RouterFault.HOP_LIMIT),
    ("hop limit 0", ra(ip6={"hlim": 0}), RouterFault.HOP_LIMIT),
    ("a global source", ra(source="2001:db8::1"), RouterFault.SOURCE),
    ("from ::", ra(source="::"), RouterFault.SOURCE),
    ("a multicast source", ra(source="ff02::1"), RouterFault.SOURCE),
    ("code 1", ra(code=1), RouterFault.INVALID),
    ("a wrong checksum", ra(cksum=1), RouterFault.INVALID),
    ("cut off", GOOD[:-1], RouterFault.INVALID),
    ("without options' bytes", GOOD[:70], RouterFault.INVALID),
    ("15 bytes", ra()[:18] + b"\0\x0f" + ra()[20:], RouterFault.INVALID),
    ("option length 0", ra(raw(b"\xc8\0" + bytes(6))), RouterFault.INVALID),
    ("option beyond the end", ra(raw(b"\xc8\2" + bytes(6))), RouterFault.INVALID),
    ("one byte of an option", ra(raw(b"\xc8")), RouterFault.INVALID),
    ("two bytes of an option", ra(raw(b"\xc8\1")), RouterFault.INVALID),
    ("a truncated prefix", ra(raw(bytes(pio())[:24])), RouterFault.INVALID),
]


@pytest.mark.parametrize(
    ("frame", "fault"),
    [(frame, fault) for _, frame, fault in BAD_ADVERTISEMENTS],
    ids=[name for name, _, _ in BAD_ADVERTISEMENTS],
)
def test_bad_advertisements(frame: bytes, fault: RouterFault) -> None:
    assert parse_router_advertisement(frame) is fault


BAD_SOLICITATIONS = [
    ("an advertisement", GOOD, RouterFault.OTHER_TYPE),
    ("hop limit 254", rs(ip6={"hlim": 254}), RouterFault.HOP_LIMIT),
    ("code 1", rs(code=1), RouterFault.INVALID),
    ("a wrong checksum", rs(cksum=1), RouterFault.INVALID),
    ("7 bytes", rs()[:18] + b"\0\7" + rs()[20:], RouterFault.INVALID),
    ("an SLLAO from ::", rs(SLLAO, source="::"), RouterFault.INVALID),
    ("an SLLAO of 16 bytes", rs(raw(b"\1\2" + bytes(14))), RouterFault.INVALID),
    ("option length 0", rs(raw(bytes(8))), RouterFault.INVALID),
    ("a multicast source", rs(source="ff02::1"), RouterFault.INVALID),
    ("a multicast MAC", rs(mac="33:33:00:00:00:01"), RouterFault.INVALID),
]


@pytest.mark.parametrize(
    ("frame", "fault"),
    [(frame, fault) for _, frame, fault in BAD_SOLICITATIONS],
    ids=[name for name, _, _ in BAD_SOLICITATIONS],
)
def test_bad_solicitations(frame: bytes, fault: RouterFault) -> None:
    assert parse_router_solicitation(frame) is fault


@pytest.mark.parametrize(
    ("frame", "source", "peer"),
    [
        (rs(), CLIENT, CLIENT_MAC),
        (rs(source="2001:db8::c"), "2001:db8::c", CLIENT_MAC),
        (rs(source="::"), "::", CLIENT_MAC),
        (rs(unknown(), source="::"), "::", CLIENT_MAC),
        (rs(SLLAO, mac=ROUTER_MAC), CLIENT, CLIENT_MAC),
        (rs(ICMPv6NDOptSrcLLAddr(lladdr="33:33:00:00:00:01")), CLIENT, CLIENT_MAC),
        (rs(ICMPv6NDOptSrcLLAddr(lladdr="00:00:00:00:00:00")), CLIENT, CLIENT_MAC),
        (rs() + bytes(4), CLIENT, CLIENT_MAC),
    ],
)
def test_solicitations(frame: bytes, source: str, peer: str) -> None:
    assert parse_router_solicitation(frame) == RouterSolicitation(
        parse_address(source), parse_mac(peer)
    )


def test_an_advertisement() -> None:
    frame = ra(*EVERYTHING, M=1, O=1, H=1, prf=1, reachabletime=30000, retranstimer=1000)
    heard = parse_router_advertisement(frame + b"padding")
    assert isinstance(heard, RouterAdvertisement)
    assert heard.source == parse_address(ROUTER)
    assert heard.parameters == Parameters(64, 0xE8, 1800, 30000, 1000)
    lladdr = ICMPv6NDOptSrcLLAddr(lladdr=ROUTER_MAC)
    assert heard.options == tuple(map(bytes, (lladdr, *EVERYTHING)))


def test_what_is_built_is_what_scapy_reads() -> None:
    options = bytes(pio()) + bytes(mtu(1400))
    frame = advertise_router(
        DOWNSTREAM.mac, DOWNSTREAM.link_local, Parameters(64, 0x84, 1800, 1, 2), options
    )
    seen = Ether(frame)
    assert (seen.dst, seen[IPv6].dst, seen[IPv6].src) == ("33:33:00:00:00:01", "ff02::1", "fe80::3")
    fields = seen[ICMPv6ND_RA]
    assert (fields.chlim, fields.M, fields.P, fields.routerlifetime) == (64, 1, 1, 1800)
    assert (fields.reachabletime, fields.retranstimer) == (1, 2)
    assert bytes(fields.payload) == options
    assert checksum_correct(frame)


@pytest.mark.parametrize("source", ["::", "fe80::2"])
def test_a_solicitation_of_this_host(source: str) -> None:
    frame = solicit_routers(UPSTREAM.mac, parse_address(source))
    seen = Ether(frame)
    assert (seen.dst, seen[IPv6].dst, seen[IPv6].src) == ("33:33:00:00:00:02", "ff02::2", source)
    assert (ICMPv6NDOptSrcLLAddr in seen) == (source != "::")
    heard = parse_router_solicitation(frame)
    assert heard == RouterSolicitation(parse_address(source), UPSTREAM.mac)


# ---- options -------------------------------------------------------------------------------------

LIFETIMES = [
    (pio(valid=100, preferred=50), 100),
    (pio(valid=INFINITY), INFINITY),
    (route(lifetime=90), 90),
    (rdnss(lifetime=60), 60),
    (dnssl(lifetime=70), 70),
    (pref64(lifetime=80), 80),
    (mtu(1400), None),
    (portal(), None),
    (unknown(), None),
]


@pytest.mark.parametrize(("option", "lifetime"), LIFETIMES)
def test_lifetimes(option: Packet, lifetime: int | None) -> None:
    data = bytes(option)
    assert is_well_formed(data)
    assert lifetime_of(data) == lifetime
    assert aged(data, 0) == data
    older = aged(data, 16)
    assert older is not None
    assert option_key(older) == option_key(data)
    assert len(older) == len(data)
    if lifetime in (None, INFINITY):
        assert lifetime_of(older) == lifetime
    else:
        assert lifetime is not None
        assert lifetime_of(older) == lifetime - 16
        assert aged(data, lifetime) is None


def test_age_of_a_prefix() -> None:
    def at(age: float) -> PrefixInformation:
        option = aged(bytes(pio(valid=100, preferred=50)), age)
        assert option is not None
        return prefix_information(option)

    assert (at(1).valid, at(1).preferred) == (99, 49)
    assert (at(0.2).valid, at(0.2).preferred) == (99, 49)  # never longer than it was
    assert (at(60).valid, at(60).preferred) == (40, 0)
    forever = aged(bytes(pio(valid=INFINITY, preferred=10)), 1e9)
    assert forever is not None
    assert prefix_information(forever)[3:] == (INFINITY, 0)
    withdrawn = bytes(pio(valid=0, preferred=0))
    assert aged(withdrawn, 5) == withdrawn


def test_keys_tell_options_apart() -> None:
    same = [
        (pio(valid=1, on_link=0), pio(valid=9, preferred=3)),
        (pio(), pio("2001:db8:0:1::5")),
        (route(lifetime=1), route(lifetime=2)),
        (rdnss(lifetime=1), rdnss(lifetime=2)),
        (dnssl(lifetime=1), dnssl(lifetime=2)),
        (pref64(lifetime=8), pref64(lifetime=16)),
        (mtu(1400), mtu(1500)),
    ]
    for one, other in same:
        assert option_key(bytes(one)) == option_key(bytes(other))
    apart = [
        *(pio(), pio(length=65), pio("2001:db8:0:2::"), route(), route(length=47), portal()),
        *(route("2001:db8:fe::"), rdnss(), rdnss("::1"), dnssl(), dnssl("example.com."), pref64()),
        *(mtu(1400), unknown(), unknown(1), unknown(size=14)),
    ]
    assert len({option_key(bytes(option)) for option in apart}) == len(apart)


def test_a_prefix_option_is_built_as_it_was() -> None:
    option = bytes(pio(length=65, valid=7, preferred=3, autonomous=0))
    assert prefix_option(prefix_information(option)) == option
    assert mtu_of(bytes(mtu(1400))) == 1400


MALFORMED = [
    b"\1\2" + bytes(14),
    b"\3\3" + bytes(22),
    b"\3\4\x81" + bytes(29),
    b"\5\2" + bytes(14),
    b"\x18\1\1" + bytes(5),
    b"\x18\2\x41" + bytes(13),
    b"\x18\4\x40" + bytes(29),
    b"\x19\1" + bytes(6),
    b"\x19\2" + bytes(14),
    b"\x19\4" + bytes(30),
    b"\x1f\1" + bytes(6),
    b"\x26\1" + bytes(6),
    b"\x26\3" + bytes(22),
]


@pytest.mark.parametrize("option", MALFORMED)
def test_malformed_options_are_left_out(option: bytes) -> None:
    assert split_options(option) == (option,)
    assert not is_well_formed(option)
    relay = linked()
    (relayed,) = frames(relay.heard(1, UP, ra(pio(), raw(option), unknown())))
    heard = parse_router_advertisement(relayed)
    assert isinstance(heard, RouterAdvertisement)
    assert heard.options[1:] == (bytes(pio()), bytes(unknown()))
    assert {name: count for name, count in relay.ignored.items() if count} == {"invalid": 1}


@pytest.mark.parametrize("plen", range(129))
def test_route_lengths(plen: int) -> None:
    option = bytes(route("2001:db8:ff::", plen))
    assert is_well_formed(option)
    assert len(option_key(option)) == 18


def test_fuzz() -> None:
    """Parse what random changes make of good frames: nothing raises, and all that passes is sound.

    What the parser accepts is relayed; the result parses again.
    """
    chance = random.Random(4861)
    seeds = [GOOD, ra(), rs(), rs(SLLAO), ra(route(length=0), unknown(size=1206))]
    accepted = 0
    relay = linked()
    for number in range(20_000):
        frame = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(4)):
            frame[chance.randrange(len(frame))] = chance.randrange(256)
        if not chance.randrange(4):
            del frame[chance.randrange(len(frame)) :]
        if chance.randrange(8) and len(frame) > 60:
            frame = bytearray(corrected(bytes(frame)))
        parse_router_solicitation(bytes(frame))
        heard = parse_router_advertisement(bytes(frame))
        if isinstance(heard, RouterAdvertisement):
            accepted += 1
            assert b"".join(heard.options) in bytes(frame)
        sends = relay.heard(number * 4.0, chance.choice((UP, DOWN)), bytes(frame))
        sends += relay.tick(number * 4.0)
        for sent in frames(sends):
            assert isinstance(parse_router_advertisement(sent), RouterAdvertisement)
            assert len(sent) <= 1514
    assert accepted > 1000
    assert relay.relayed > 300


def corrected(frame: bytes) -> bytes:
    """Return a frame with a correct checksum over all of its bytes."""
    body = frame[:56] + b"\0\0" + frame[58:]
    addresses, message = body[22:54], body[54:]
    data = addresses + len(message).to_bytes(4, "big") + b"\0\0\0\x3a" + message
    data += bytes(len(data) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return body[:56] + (total ^ 0xFFFF).to_bytes(2, "big") + body[58:]


# ---- tshark --------------------------------------------------------------------------------------


def complaints(tmp_path: Path, seen: list[bytes]) -> list[str]:
    """Return what tshark says about each frame: type, checksum's state, and complaints."""
    file = tmp_path / "relayed.pcap"
    records = (pcap.record(number, frame, len(frame)) for number, frame in enumerate(seen))
    file.write_bytes(pcap.header() + b"".join(records))
    names = ("icmpv6.type", "icmpv6.checksum.status", "_ws.malformed", "_ws.expert.severity")
    fields = [word for name in names for word in ("-e", name)]
    return sh("tshark", "-r", str(file), "-T", "fields", *fields).splitlines()


def test_tshark_decodes_every_kind_of_frame(tmp_path: Path) -> None:
    relay = linked()
    # ndxdp does not know the last three; tshark complains about each that it does not know itself.
    known = (*EVERYTHING[:-1], ICMPv6NDOptAdvInterval(), ICMPv6NDOptHAInfo(), ICMPv6NDOptEFA())
    sent = frames(relay.heard(1, UP, ra(*known)))
    sent += frames(relay.heard(5, UP, ra(*(portal(str(n) * 254) for n in range(5)))))
    assert len(sent) == 2
    relay.heard(6, DOWN, rs())
    relay.heard(6, DOWN, rs(source="::"))
    sent += [send.frame for _, send in run(relay, 6, 10)]
    assert len(sent) == 2 + 2 * 2  # two answers, each of two frames
    for number in range(3):  # a prefix is absent
        sent += frames(relay.heard(20 + number * 10, UP, ra(pio("fd00:2::"))))
    assert any(bytes(pio(preferred=0, valid=7200)) in frame for frame in sent)
    sent += frames(relay.heard(60, UP, ra(pio(valid=0, preferred=0), routerlifetime=0)))
    relay.heard(70, UP, ra())
    relay.set_links(80, None, {DOWN: DOWNSTREAM._replace(mtu=1280)})
    ended = frames(relay.tick(80))
    sent += ended
    assert len(ended) == 1
    relay.set_links(90, UPSTREAM, {DOWN: DOWNSTREAM._replace(mtu=1280)})
    sent += frames(relay.tick(90), UP)
    sent += frames(relay.heard(91, UP, ra()))
    seen = complaints(tmp_path, sent)
    assert seen == [f"{frame[54]}\t1\t\t" for frame in sent]
    assert {frame[54] for frame in sent} == {133, 134}
    damaged = sent[0][:-9] + b"\xff" + sent[0][-8:]
    assert complaints(tmp_path, [damaged]) != ["134\t1\t\t"]
