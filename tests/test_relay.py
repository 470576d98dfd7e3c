"""The relay of router advertisements: what is learned, relayed, answered, and when."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRouteInfo,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from ndxdp.ndp.router_message import RouterAdvertisement, parse_router_advertisement
from ndxdp.rules.address import parse_address
from ndxdp.sharing.relay import Relay, RelayLink
from ndxdp.sharing.upstream_routers import ROUTERS_MAX, KnownRouter
from tests.fixtures.router_messages import (
    CLIENT,
    CLIENT_MAC,
    DOWN,
    DOWN2,
    DOWN_MAC,
    DOWNSTREAM,
    EVERYTHING,
    INFINITY,
    OTHER_PREFIX,
    OTHER_ROUTER,
    OTHER_ROUTER_MAC,
    PREFIX,
    ROUTER,
    SECOND,
    UP,
    UPSTREAM,
    frames,
    linked,
    mtu,
    only,
    pio,
    portal,
    prefix,
    ra,
    rdnss,
    route,
    rs,
    run,
    unknown,
)

P, Q = prefix(f"{PREFIX}/64"), prefix(f"{OTHER_PREFIX}/64")


def other_ra(*options: Packet, **fields: Any) -> bytes:
    return ra(*options, source=OTHER_ROUTER, mac=OTHER_ROUTER_MAC, **fields)


def options_of(packet: Packet) -> list[bytes]:
    """Return the options of a relayed advertisement."""
    heard = parse_router_advertisement(bytes(packet))
    assert isinstance(heard, RouterAdvertisement)
    return list(heard.options)


def ignored(relay: Relay) -> dict[str, int]:
    return {name: count for name, count in relay.ignored.items() if count}


def lifetimes(packet: Packet, text: str = PREFIX) -> tuple[int, int]:
    """Return valid and preferred lifetime of a prefix in an advertisement."""
    (found,) = (each for each in layers(packet, ICMPv6NDOptPrefixInfo) if each.prefix == text)
    return found.validlifetime, found.preferredlifetime


def layers(packet: Packet, kind: type[Packet]) -> list[Packet]:
    found: list[Packet] = []
    while (layer := packet.getlayer(kind, len(found) + 1)) is not None:
        found.append(layer)
    return found


# ---- what differs --------------------------------------------------------------------------------


def test_a_relayed_advertisement_differs_where_it_has_to() -> None:
    fields: dict[str, Any] = {
        "M": 1,
        "O": 1,
        "H": 1,
        "prf": 1,
        "reachabletime": 30000,
        "retranstimer": 500,
    }
    frame = ra(*EVERYTHING, **fields)
    relay = linked()
    relayed = only(relay.heard(1, UP, frame))
    was = Ether(frame)
    assert (relayed.src, relayed.dst) == (DOWN_MAC, "33:33:00:00:00:01")
    assert (relayed[IPv6].src, relayed[IPv6].dst, relayed[IPv6].hlim) == ("fe80::3", "ff02::1", 255)
    old, new = was[ICMPv6ND_RA], relayed[ICMPv6ND_RA]
    assert (old.P, new.P) == (0, 1)
    for name in ("code", "chlim", "M", "O", "H", "prf", "routerlifetime", "reachabletime"):
        assert getattr(new, name) == getattr(old, name), name
    assert new.retranstimer == 500
    lladdr = ICMPv6NDOptSrcLLAddr(lladdr=DOWN_MAC)
    assert options_of(relayed) == [bytes(lladdr), *map(bytes, EVERYTHING)]
    # Byte for byte: both MACs, source, flags, checksum, and the MAC's option.
    changed = {
        at for at, pair in enumerate(zip(frame, bytes(relayed), strict=True)) if len({*pair}) > 1
    }
    assert changed <= {*range(12), *range(22, 38), 56, 57, 59, *range(72, 78)}
    assert relay.relayed == 1
    assert ignored(relay) == {}


def test_an_advertisement_to_this_host_alone_is_relayed_to_all() -> None:
    frame = UPSTREAM.mac + ra(pio(), ip6={"dst": "fe80::2"})[6:]
    relayed = only(linked().heard(1, UP, frame))
    assert (relayed.dst, relayed[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")


def test_it_goes_to_each_link_from_the_address_there() -> None:
    relay = linked()
    relay.set_links(0, UPSTREAM, {DOWN: DOWNSTREAM, DOWN2: SECOND})
    sends = relay.heard(1, UP, ra(pio()))
    assert [send.ifindex for send in sends] == [DOWN, DOWN2]
    assert [Ether(send.frame)[IPv6].src for send in sends] == ["fe80::3", "fe80::4"]
    assert relay.relayed == 1


def test_without_a_link_local_address_nothing_is_sent() -> None:
    relay = linked()
    relay.set_links(0, UPSTREAM, {DOWN: DOWNSTREAM._replace(link_local=bytes(16))})
    assert relay.heard(1, UP, ra(pio())) == []
    relay.heard(1, DOWN, rs())
    assert frames([send for _, send in run(relay, 1, 5)]) == []
    relay.set_links(6, UPSTREAM, {DOWN: DOWNSTREAM})
    ((_, send),) = run(relay, 6, 10)
    assert lifetimes(Ether(send.frame)) == (86394, 14394)


@pytest.mark.parametrize(
    ("upstream", "downstream", "option", "sent"),
    [
        (1500, 1500, None, None),
        (1500, 1500, 1400, 1400),
        (1500, 1500, 9000, 1500),
        (1500, 1420, 1500, 1420),
        (1500, 1420, 1280, 1280),
        (1500, 1420, None, 1420),
        (1400, 1500, None, None),  # Packet Too Big tells hosts
        (9000, 9000, 9000, 9000),
        (1500, 1500, 0, 0),  # hosts ignore it
    ],
)
def test_mtu(upstream: int, downstream: int, option: int | None, sent: int | None) -> None:
    relay = linked()
    links = UPSTREAM._replace(mtu=upstream), DOWNSTREAM._replace(mtu=downstream)
    relay.set_links(0, links[0], {DOWN: links[1]})
    options = [] if option is None else [mtu(option)]
    relayed = only(relay.heard(1, UP, ra(pio(), *options)))
    assert [each.mtu for each in layers(relayed, ICMPv6NDOptMTU)] == (
        [] if sent is None else [sent]
    )
    assert lifetimes(relayed) == (86400, 14400)


@pytest.mark.parametrize("kind", [11, 12, 13, 14])
def test_options_that_a_router_has_signed_are_left_out(kind: int) -> None:
    option = ICMPv6NDOptUnknown(type=kind, data=bytes(6))
    relay = linked()
    relayed = only(relay.heard(1, UP, ra(option, pio())))
    assert [each[0] for each in options_of(relayed)] == [1, 3]


def test_without_the_option_of_the_mac_it_is_added() -> None:
    with_option = ra(pio())
    packet = Ether(with_option)
    ip = IPv6(src=ROUTER, dst="ff02::1", hlim=255)
    frame = bytes(Ether(src=packet.src) / ip / ICMPv6ND_RA(routerlifetime=9) / pio())
    assert len(frame) == len(with_option) - 8
    relayed = only(linked().heard(1, UP, frame))
    assert options_of(relayed) == [bytes(ICMPv6NDOptSrcLLAddr(lladdr=DOWN_MAC)), bytes(pio())]


def test_what_does_not_fit_is_distributed() -> None:
    many = [unknown(number, 118) for number in range(11)]
    relay = linked()
    relay.set_links(0, UPSTREAM, {DOWN: DOWNSTREAM._replace(mtu=1280)})
    one, two = (Ether(frame) for frame in frames(relay.heard(1, UP, ra(*many))))
    assert len(one) <= 1280 + 14
    lladdr = bytes(ICMPv6NDOptSrcLLAddr(lladdr=DOWN_MAC))
    added = bytes(mtu(1280))
    assert options_of(one)[0] == options_of(two)[0] == lladdr
    assert options_of(one)[1:] + options_of(two)[1:] == [*map(bytes, many), added]
    huge = unknown(size=1398)  # fits the upstream link only
    relayed = only(relay.heard(5, UP, ra(pio(), huge)))
    assert options_of(relayed) == [lladdr, bytes(pio()), added]
    assert relay.relayed == 2


@pytest.mark.parametrize(
    ("option", "downstream", "longest"), [(1400, 1500, 1400), (9000, 9000, 1500)]
)
def test_no_frame_is_longer_than_hosts_take(option: int, downstream: int, longest: int) -> None:
    relay = linked()
    relay.set_links(0, UPSTREAM, {DOWN: DOWNSTREAM._replace(mtu=downstream)})
    many = [unknown(number, 46) for number in range(30)]
    sends = relay.heard(1, UP, ra(mtu(option), *many[:15]))
    sends += relay.heard(1.1, UP, ra(*many[15:], routerlifetime=1799))
    assert len(frames(sends)) == 2
    relay.heard(5, DOWN, rs())
    answer = [Ether(send.frame) for _, send in run(relay, 5, 6)]
    assert len(answer) == 2
    assert all(len(packet) <= longest + 14 for packet in answer)
    sent = [each for packet in answer for each in options_of(packet) if each[0] == 253]
    assert sent == [bytes(each) for each in many]


# ---- what is not relayed -------------------------------------------------------------------------

NOT_RELAYED = [
    ("hop_limit", UP, ra(pio(), ip6={"hlim": 254})),
    ("source", UP, ra(pio(), source="2001:db8::1")),
    ("invalid", UP, ra(pio(), code=1)),
    ("invalid", UP, ra(pio(), Raw(load=bytes(8)))),
    ("proxied", UP, ra(pio(), P=1)),
    ("downstream", DOWN, ra(pio())),
    ("downstream", DOWN, ra(pio(), ip6={"hlim": 254})),
    (None, UP, ra(pio(), mac="02:00:00:00:00:02")),  # of this host
    (None, UP, ra(pio(), source="fe80::2")),
    (None, UP, ra(pio(), source="fe80::3")),
    (None, DOWN, ra(pio(), mac=DOWN_MAC)),
    (None, UP, rs()),
    (None, UP, b"\2\0\0\0\0\x77" + ra(pio())[6:]),  # to another host
    (None, DOWN, b"\2\0\0\0\0\x77" + ra(pio())[6:]),
    (None, 99, ra(pio())),
    (None, UP, ra(pio())[:50]),
]


@pytest.mark.parametrize(("reason", "ifindex", "frame"), NOT_RELAYED)
def test_not_relayed(reason: str | None, ifindex: int, frame: bytes) -> None:
    relay = linked()
    assert relay.heard(1, ifindex, frame) == []
    assert ignored(relay) == ({reason: 1} if reason else {})
    assert (relay.prefixes(1), relay.routers(1), relay.relayed) == ({}, [], 0)
    # Neither is it the answer to a solicitation.
    relay.heard(2, DOWN, rs())
    assert frames([send for _, send in run(relay, 2, 30)]) == []


REFUSED = ["fe80::/64", "ff00::/8", "ff02::/64", "::/0", "2001:db8::/31", "::/64", "64:ff9b::/96"]


@pytest.mark.parametrize("text", [*REFUSED, "2001:db8::1/128"])
def test_a_prefix_that_is_not_shared(text: str) -> None:
    address, _, length = text.partition("/")
    relay = linked()
    refused = pio(address, int(length))
    relayed = only(relay.heard(1, UP, ra(refused, pio())))
    assert relay.prefixes(1) == {P: 86401.0}
    assert [each.prefix for each in layers(relayed, ICMPv6NDOptPrefixInfo)] == [PREFIX]
    assert ignored(relay) == {"prefix": 1}
    # Without the L flag it says nothing about the link (RFC 4861 section 6.3.4).
    off_link = pio(address, int(length), on_link=0, autonomous=0)
    relayed = only(relay.heard(5, UP, ra(off_link, pio())))
    assert bytes(off_link) in options_of(relayed)
    assert ignored(relay) == {"prefix": 1}


@pytest.mark.parametrize("length", [32, 48, 63, 64, 65, 96, 127])
def test_lengths_of_shared_prefixes(length: int) -> None:
    relay = linked()
    option = pio("2001:db8:0:1::", length)
    relayed = only(relay.heard(1, UP, ra(option)))
    assert [(each.length, until) for each, until in relay.prefixes(1).items()] == [(length, 86401)]
    assert bytes(option) in options_of(relayed)


# ---- prefixes ------------------------------------------------------------------------------------


def test_prefixes_end_with_their_lifetime() -> None:
    relay = linked()
    relay.heard(
        10,
        UP,
        ra(
            pio(valid=100),
            pio(OTHER_PREFIX, valid=INFINITY),
            pio("fd00::", on_link=0, autonomous=0),
        ),
    )
    assert relay.prefixes(10) == {P: 110, Q: None}
    relay.heard(20, UP, ra(pio(valid=20), pio(OTHER_PREFIX, valid=INFINITY)))  # no two-hour rule
    assert relay.prefixes(39) == {P: 40, Q: None}
    assert relay.next_tick(39) == 40
    assert relay.prefixes(40) == {Q: None}
    assert relay.prefixes(1e9) == {Q: None}


def test_a_prefix_with_lifetime_zero_is_gone_at_once() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    relayed = only(relay.heard(11, UP, ra(pio(valid=0, preferred=0))))
    assert relay.prefixes(11) == {}
    assert lifetimes(relayed) == (0, 0)


@pytest.mark.parametrize("autonomous", [0, 1])
def test_a_prefix_without_the_flag_stays_on_link(autonomous: int) -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio(valid=100)))
    relay.heard(20, UP, ra(pio(valid=7, on_link=0, autonomous=autonomous)))
    assert relay.prefixes(20) == {P: 110}


def test_a_prefix_for_addresses_only_is_shared() -> None:
    """Some networks send all traffic through the router: A, and not L."""
    relay = linked()
    relay.heard(10, UP, ra(pio(valid=100, on_link=0)))
    assert relay.prefixes(10) == {P: 110}
    relay.heard(20, UP, ra(pio(valid=0, on_link=0)))
    assert relay.prefixes(109) == {P: 110}
    assert relay.prefixes(110) == {}


def test_host_bits_do_not_count() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio("2001:db8:0:1::1", valid=100)))
    assert relay.prefixes(10) == {P: 110}


def test_the_number_of_prefixes_is_bounded() -> None:
    relay = linked()
    for number in range(200):
        relay.heard(number * 10, UP, ra(*(pio(f"fd00:{number:x}:{each:x}::") for each in range(4))))
    assert len(relay.prefixes(2000)) == 64
    assert ignored(relay) == {"limit": 200 - 16}
    assert len(relay.prefixes(1e6)) == 0
    relay.heard(1e6, UP, ra(pio()))
    assert relay.prefixes(1e6) == {P: 1e6 + 86400}


# ---- prefixes that routers no longer advertise ---------------------------------------------------


@pytest.mark.parametrize(
    ("valid", "first", "until", "on_link_until"),
    [(86400, 7200, 86410, 7230), (600, 580, 610, 610), (INFINITY, 7200, 2592030, 7230)],
)
def test_an_absent_prefix_is_withdrawn(
    valid: int, first: int, until: float, on_link_until: float
) -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio(valid=valid), pio("fd00:2::")))
    absent = ra(pio("fd00:2::", valid=INFINITY))
    once = only(relay.heard(20, UP, absent))
    assert PREFIX not in [each.prefix for each in layers(once, ICMPv6NDOptPrefixInfo)]
    assert relay.prefixes(20)[P] == (None if valid == INFINITY else 10 + valid)
    twice = only(relay.heard(30, UP, absent))
    assert lifetimes(twice) == (first, 0)
    assert relay.prefixes(30)[P] == on_link_until
    later = only(relay.heard(130, UP, absent))
    assert lifetimes(later) == (first - 100, 0)
    # A client's solicitation is answered likewise.
    relay.heard(140, DOWN, rs())
    ((when, answer),) = run(relay, 140, 141)
    assert lifetimes(Ether(answer.frame)) == (int(30 + first - when), 0)
    # It is sent as long as a host may have it; after two hours with a valid lifetime of 0.
    end = only(relay.heard(until - 1, UP, absent))
    assert lifetimes(end) == (max(0, int(30 + first - (until - 1))), 0)
    gone = only(relay.heard(until + 1, UP, absent))
    assert len(layers(gone, ICMPv6NDOptPrefixInfo)) == 1
    assert set(relay.prefixes(until + 1)) == {prefix("fd00:2::/64")}


def test_a_withdrawn_prefix_that_returns() -> None:
    relay = linked()
    for when, options in enumerate([(pio(),), (), ()]):
        relay.heard(10 + 10 * when, UP, ra(*options))
    back = only(relay.heard(40, UP, ra(pio())))
    assert lifetimes(back) == (86400, 14400)
    assert relay.prefixes(40) == {P: 86440}
    assert lifetimes(only(relay.heard(50, UP, ra(pio())))) == (86400, 14400)


def test_options_in_two_advertisements() -> None:
    """A router may distribute its options: neither half withdraws what the other has."""
    relay = linked()
    for number in range(5):
        one = only(relay.heard(10 + 20 * number, UP, ra(pio())))
        two = only(relay.heard(10.01 + 20 * number, UP, ra(pio(OTHER_PREFIX))))
        assert [len(layers(each, ICMPv6NDOptPrefixInfo)) for each in (one, two)] == [1, 1]
    assert set(relay.prefixes(100)) == {P, Q}
    relay.heard(100, DOWN, rs())
    ((_, answer),) = run(relay, 100, 101)
    packet = Ether(answer.frame)
    assert [each.prefix for each in layers(packet, ICMPv6NDOptPrefixInfo)] == [PREFIX, OTHER_PREFIX]


def test_a_prefix_of_two_routers_stays_while_one_advertises_it() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    relay.heard(11, UP, other_ra(pio()))
    for when in (20, 30, 40):
        relayed = only(relay.heard(when, UP, ra()))
        assert layers(relayed, ICMPv6NDOptPrefixInfo) == []
        relay.heard(when + 1, UP, other_ra(pio()))
    assert relay.prefixes(50) == {P: 86441}
    for when in (50, 60):
        relayed = only(relay.heard(when, UP, other_ra()))
    assert lifetimes(relayed) == (7200, 0)


def test_a_prefix_of_a_router_that_is_silent_is_withdrawn() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    relay.heard(11, UP, other_ra(pio(), routerlifetime=100))
    relay.heard(200, UP, ra())
    assert lifetimes(only(relay.heard(210, UP, ra()))) == (7200, 0)


def test_another_router_brings_a_withdrawn_prefix_back() -> None:
    relay = linked()
    for when, options in ((10, [pio()]), (20, []), (30, [])):
        relayed = only(relay.heard(when, UP, ra(*options)))
    assert lifetimes(relayed) == (7200, 0)
    assert lifetimes(only(relay.heard(40, UP, other_ra(pio())))) == (86400, 14400)
    assert layers(only(relay.heard(50, UP, ra())), ICMPv6NDOptPrefixInfo) == []


def test_the_number_of_withdrawn_prefixes_is_bounded() -> None:
    relay = linked()
    relay.heard(10, UP, ra(*(pio(f"fd00:0:0:{number:x}::") for number in range(30))))
    relay.heard(20, UP, ra())
    relayed = only(relay.heard(30, UP, ra()))
    assert len(layers(relayed, ICMPv6NDOptPrefixInfo)) == 16


def test_the_last_advertisement_of_a_router_that_ends_says_nothing_of_prefixes() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    for when in (20, 24, 28):
        relayed = only(relay.heard(when, UP, ra(routerlifetime=0)))
        assert layers(relayed, ICMPv6NDOptPrefixInfo) == []
    assert relay.prefixes(30) == {P: 86410}


def test_prefixes_of_a_former_process() -> None:
    relay = Relay(chance=lambda: 0.5)
    former = {P: 5000.0, Q: None, prefix("fe80::/64"): None, prefix("fd00::/64"): 3.0}
    relay.restore(5, former)
    assert relay.prefixes(5) == {P: 5000, Q: None}
    relay.set_links(5, UPSTREAM, {DOWN: DOWNSTREAM})
    assert relay.prefixes(6) == {P: 5000, Q: None}
    relay.heard(6, DOWN, rs())
    assert frames([send for _, send in run(relay, 6, 9)]) == []
    first = only(relay.heard(10, UP, ra(pio(OTHER_PREFIX))))
    assert [each.prefix for each in layers(first, ICMPv6NDOptPrefixInfo)] == [OTHER_PREFIX]
    relay.heard(10, DOWN, rs())
    ((_, answer),) = ((when, send) for when, send in run(relay, 10, 11) if send.ifindex == DOWN)
    assert len(layers(Ether(answer.frame), ICMPv6NDOptPrefixInfo)) == 1
    second = only(relay.heard(20, UP, ra(pio(OTHER_PREFIX))))
    assert lifetimes(second) == (4980, 0)
    assert relay.prefixes(20) == {Q: 20 + 86400, P: 5000}


# ---- several routers -----------------------------------------------------------------------------


def test_clients_keep_this_host_while_one_of_two_routers_is_there() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio(), routerlifetime=1800, prf=3))
    relay.heard(11, UP, other_ra(pio(OTHER_PREFIX), routerlifetime=900, prf=1))
    ended = only(relay.heard(21, UP, ra(pio(), routerlifetime=0)))
    assert (ended[ICMPv6ND_RA].routerlifetime, ended[ICMPv6ND_RA].prf) == (890, 1)
    assert [each.lifetime for each in relay.routers(21)] == [0, 900]
    both = only(relay.heard(31, UP, other_ra(routerlifetime=0)))
    assert both[ICMPv6ND_RA].routerlifetime == 0
    assert [send for _, send in run(relay, 31, 40) if send.ifindex == DOWN] == []


def test_a_router_that_ends_has_no_preference() -> None:
    relay = linked()
    relay.heard(10, UP, ra(prf=1))
    relay.heard(11, UP, other_ra(prf=3))
    ended = only(relay.heard(20, UP, ra(routerlifetime=0, prf=1)))
    assert (ended[ICMPv6ND_RA].routerlifetime, ended[ICMPv6ND_RA].prf) == (1791, 3)


def test_lifetime_and_preference_of_two_routers() -> None:
    relay = linked()
    low, medium, high = 3, 0, 1
    relay.heard(10, UP, ra(routerlifetime=1800, prf=medium))
    second = only(relay.heard(20, UP, other_ra(routerlifetime=600, prf=low)))
    assert (second[ICMPv6ND_RA].routerlifetime, second[ICMPv6ND_RA].prf) == (1790, medium)
    second = only(relay.heard(30, UP, other_ra(routerlifetime=9000, prf=high)))
    assert (second[ICMPv6ND_RA].routerlifetime, second[ICMPv6ND_RA].prf) == (9000, high)
    alone = only(relay.heard(10000, UP, ra(routerlifetime=60, prf=low)))  # the other one is silent
    assert (alone[ICMPv6ND_RA].routerlifetime, alone[ICMPv6ND_RA].prf) == (60, low)


def test_a_route_of_two_routers() -> None:
    relay = linked()
    relay.heard(10, UP, ra(route(lifetime=900)))
    relayed = only(relay.heard(20, UP, other_ra(route(lifetime=0))))
    (found,) = layers(relayed, ICMPv6NDOptRouteInfo)
    assert found.rtlifetime == 890
    relayed = only(relay.heard(30, UP, ra(route(lifetime=0))))
    (found,) = layers(relayed, ICMPv6NDOptRouteInfo)
    assert found.rtlifetime == 0


def test_the_number_of_routers_is_bounded() -> None:
    relay = linked()
    for number in range(200):
        relay.heard(10, UP, ra(pio(), source=f"fe80::1:{number:x}"))
    assert len(relay.routers(10)) == ROUTERS_MAX
    assert ignored(relay) == {"limit": 200 - ROUTERS_MAX}
    assert relay.heard(100, UP, ra(pio())) == []
    assert only(relay.heard(10 + 1801, UP, ra(pio())))[ICMPv6ND_RA].routerlifetime == 1800
    assert KnownRouter(parse_address(ROUTER), 1811, 1800) in relay.routers(1811)


def test_a_new_router_replaces_the_one_that_was_heard_first() -> None:
    relay = linked()
    for number in range(ROUTERS_MAX):
        relay.heard(10 + number, UP, ra(source=f"fe80::1:{number:x}", routerlifetime=5))
    relay.heard(100, UP, ra())
    first = parse_address("fe80::1:0")
    assert len(relay.routers(100)) == ROUTERS_MAX
    assert first not in [each.address for each in relay.routers(100)]
    assert relay.routers(10 + 90_000) == []


# ---- silence -------------------------------------------------------------------------------------


def test_routers_that_are_silent() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio(), M=1, routerlifetime=100, prf=1))
    sent = run(relay, 10, 200)
    solicited = [when for when, send in sent if send.ifindex == UP]
    assert solicited[:4] == [85, 89, 93, 101]  # after three quarters of the lifetime
    farewells = [(when, Ether(send.frame)) for when, send in sent if send.ifindex == DOWN]
    assert [when for when, _ in farewells] == [110, 113, 116]
    for _, packet in farewells:
        fields = packet[ICMPv6ND_RA]
        assert (fields.routerlifetime, fields.M, fields.P, fields.prf) == (0, 1, 1, 0)
        assert [option[0] for option in options_of(packet)] == [1]
    # No answer from what is stale, but another solicitation upstream; the prefix is on-link still.
    relay.heard(1000, DOWN, rs())
    assert [send.ifindex for _, send in run(relay, 1000, 1001)] == [UP]
    assert relay.prefixes(1000) == {P: 86410}
    assert relay.solicited == 0
    assert only(relay.heard(1002, UP, ra(pio())))[ICMPv6ND_RA].routerlifetime == 1800


def test_a_router_that_returns_ends_the_farewell() -> None:
    relay = linked()
    relay.heard(10, UP, ra(routerlifetime=100))
    assert frames(relay.tick(110)) != []
    relay.heard(111, UP, ra(routerlifetime=100))
    assert [send for _, send in run(relay, 111, 180) if send.ifindex == DOWN] == []


def test_an_upstream_link_that_goes_and_returns() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    relay.set_links(20, None, {DOWN: DOWNSTREAM})
    ended = run(relay, 20, 100)
    assert [(when, send.ifindex) for when, send in ended] == [(20, DOWN), (23, DOWN), (26, DOWN)]
    assert Ether(ended[0][1].frame)[ICMPv6ND_RA].routerlifetime == 0
    relay.heard(101, DOWN, rs())
    assert run(relay, 101, 200) == []
    assert relay.prefixes(200) == {P: 86410}
    relay.set_links(200, UPSTREAM, {DOWN: DOWNSTREAM})
    assert [(when, send.ifindex) for when, send in run(relay, 200, 205)] == [(200, UP), (204, UP)]
    assert only(relay.heard(206, UP, ra(pio())))[ICMPv6ND_RA].routerlifetime == 1800


def test_an_upstream_link_that_flaps() -> None:
    relay = linked()
    times = []
    for now in range(20):
        relay.set_links(now, None if now % 2 else UPSTREAM, {DOWN: DOWNSTREAM})
        times += [when for when, send in run(relay, now, now + 0.9) if send.ifindex == UP]
    assert times == [4, 8, 12, 16]


def test_another_upstream_link() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    relay.set_links(20, UPSTREAM._replace(ifindex=9), {DOWN: DOWNSTREAM})
    assert (relay.prefixes(20), relay.routers(20)) == ({}, [])
    assert {send.ifindex for _, send in run(relay, 20, 20)} == {9, DOWN}


def test_a_link_that_leaves_the_share() -> None:
    relay = linked()
    relay.set_links(0, UPSTREAM, {DOWN: DOWNSTREAM, DOWN2: SECOND})
    assert relay.withdraw(1, [DOWN]) == []  # it was never a router there
    relay.heard(10, UP, ra(pio()))
    (send,) = relay.withdraw(20, [UP, DOWN2])
    assert send.ifindex == DOWN2
    assert Ether(send.frame)[ICMPv6ND_RA].routerlifetime == 0
    assert relay.withdraw(10_000, [DOWN2]) == []  # clients know already


@pytest.mark.parametrize(
    "changed",
    [
        {"mtu": 1400},
        {"mac": b"\2\0\0\0\0\x33"},
        {"link_local": parse_address("fe80::33")},
    ],
)
def test_a_downstream_link_that_changes(changed: dict[str, Any]) -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    new = DOWNSTREAM._replace(**changed)
    relay.set_links(20, UPSTREAM, {DOWN: new})
    sent = [Ether(send.frame) for _, send in run(relay, 20, 24)]
    if "link_local" in changed:
        assert sent[0][IPv6].src == "fe80::3"
        assert sent.pop(0)[ICMPv6ND_RA].routerlifetime == 0
    (packet,) = sent
    assert packet[IPv6].src == ("fe80::33" if "link_local" in changed else "fe80::3")
    assert bytes(packet)[6:12] == packet[ICMPv6NDOptSrcLLAddr].build()[2:8] == new.mac
    assert lifetimes(packet) == (86389, 14389)
    relay.set_links(30, UPSTREAM, {DOWN: new})
    assert run(relay, 30, 40) == []


def test_a_new_downstream_link_is_told_soon() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    relay.set_links(20, UPSTREAM, {DOWN: DOWNSTREAM, DOWN2: SECOND})
    ((when, send),) = run(relay, 20, 30)
    assert (when, send.ifindex) == (20.25, DOWN2)


# ---- solicitations from downstream ---------------------------------------------------------------


def test_a_solicitor_is_answered() -> None:
    relay = linked()
    options = (pio(), pio("fd00:1::", valid=INFINITY, preferred=INFINITY), rdnss(), portal())
    relay.heard(10, UP, ra(*options, M=1))
    assert relay.heard(110, DOWN, rs()) == []
    ((when, send),) = run(relay, 110, 120)
    assert when == 110.25  # half of 0.5 s
    answer = Ether(send.frame)
    assert (answer.dst, answer[IPv6].dst, answer[IPv6].src) == (CLIENT_MAC, CLIENT, "fe80::3")
    fields = answer[ICMPv6ND_RA]
    assert (fields.routerlifetime, fields.M, fields.P, fields.chlim) == (1699, 1, 1, 64)
    assert lifetimes(answer) == (86299, 14299)
    assert lifetimes(answer, "fd00:1::") == (INFINITY, INFINITY)
    assert options_of(answer)[3:] == [bytes(rdnss(lifetime=499)), bytes(portal())]
    assert (relay.solicited, relay.relayed) == (1, 1)


def test_options_whose_lifetime_is_over_are_left_out() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio(valid=60, preferred=30), rdnss(lifetime=90), route(lifetime=92)))
    relay.heard(55, DOWN, rs())
    ((_, send),) = run(relay, 55, 56)
    assert lifetimes(Ether(send.frame)) == (14, 0)
    relay.heard(100, DOWN, rs())
    ((_, send),) = run(relay, 100, 100.4)
    assert [option[0] for option in options_of(Ether(send.frame))] == [1, 24]


def test_a_solicitor_without_an_address_is_answered_by_multicast() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    relay.heard(20, DOWN, rs(source="::"))
    relay.heard(20.1, DOWN, rs(source="::", mac="02:00:00:00:00:0d"))
    ((when, send),) = run(relay, 20.1, 30)
    assert (when, Ether(send.frame)[IPv6].dst) == (20.25, "ff02::1")
    relay.heard(21, DOWN, rs(source="::"))
    ((when, send),) = run(relay, 21, 30)
    assert when == 23.25  # 3 s after the last one
    assert (relay.solicited, ignored(relay)) == (2, {"rate": 1})


def test_the_multicast_answer_waits_after_a_relayed_advertisement() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    relay.heard(10.1, DOWN, rs(source="::"))
    ((when, _),) = run(relay, 10.1, 20)
    assert when == 13


@pytest.mark.parametrize(("chance", "delay"), [(0.0, 0.0), (0.999, 0.4995)])
def test_the_delay_of_answers(chance: float, delay: float) -> None:
    relay = linked(chance=lambda: chance)
    relay.heard(10, UP, ra(pio()))
    relay.heard(20, DOWN, rs())
    ((when, _),) = run(relay, 20, 21)
    assert when == pytest.approx(20 + delay)


def test_one_frame_for_each_router() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio(), routerlifetime=1800))
    relay.heard(11, UP, other_ra(pio(OTHER_PREFIX), routerlifetime=900))
    relay.heard(20, DOWN, rs())
    answers = [Ether(send.frame) for _, send in run(relay, 20, 21)]
    assert [each[ICMPv6NDOptPrefixInfo].prefix for each in answers] == [PREFIX, OTHER_PREFIX]
    assert [each[ICMPv6ND_RA].routerlifetime for each in answers] == [1789, 1789]
    assert relay.solicited == 1


@pytest.mark.parametrize(
    ("reason", "frame"),
    [("hop_limit", rs(ip6={"hlim": 254})), ("invalid", rs(code=1)), (None, rs(mac=DOWN_MAC))],
)
def test_a_bad_solicitation(reason: str | None, frame: bytes) -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    relay.heard(20, DOWN, frame)
    assert run(relay, 20, 30) == []
    assert ignored(relay) == ({reason: 1} if reason else {})


def test_a_flood_of_solicitations_of_one_host() -> None:
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    sent = flood(relay, lambda number: rs())
    assert 20 <= len(sent) <= 50  # in 10 s: one for each delay
    assert relay.solicited + ignored(relay)["rate"] == 10_000


def test_a_flood_of_solicitations_of_many_hosts() -> None:
    """Bound the answers; a real client among them is answered within 3.5 s, by multicast."""
    relay = linked()
    relay.heard(10, UP, ra(pio()))
    sent = flood(relay, lambda number: rs(source=f"fe80::{number:x}"))
    unicast = [when for when, packet in sent if packet[IPv6].dst != "ff02::1"]
    multicast = [when for when, packet in sent if packet[IPv6].dst == "ff02::1"]
    assert len(unicast) <= 20 + 10 * 10 + 1
    assert len(multicast) >= 3
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(multicast))
    assert all(later - earlier <= 3.5 for earlier, later in itertools.pairwise(multicast))


def flood(relay: Relay, made: Callable[[int], bytes]) -> list[tuple[float, Packet]]:
    """Send 1000 solicitations a second for 10 s, and return what was sent downstream."""
    frame_of = [made(number) for number in range(200)]
    sent: list[tuple[float, Packet]] = []
    for number in range(10_000):
        now = 20 + number / 1000
        relay.heard(now, DOWN, frame_of[number % 200])
        due = relay.next_tick(now)
        if due is not None and due <= now:
            sent += [(now, Ether(frame)) for frame in frames(relay.tick(now))]
    return sent


# ---- floods from upstream ------------------------------------------------------------------------


def test_a_flood_of_advertisements() -> None:
    relay = linked()
    sent = []
    for number in range(10_000):
        now = 10 + number / 1000
        sent += [(now, send) for send in relay.heard(now, UP, ra_flood(number))]
        due = relay.next_tick(now)
        if due is not None and due <= now:
            sent += [(now, send) for send in relay.tick(now)]
    assert 4 <= len(sent) <= 4 + 10 / 3 + 1
    assert relay.relayed == len(sent)
    assert ignored(relay)["rate"] == 10_000 - 4
    # The last word counts.
    ((when, send),) = run(relay, 20, 30)
    assert when <= sent[-1][0] + 3
    assert Ether(send.frame)[ICMPv6ND_RA].chlim == 9_999 % 199


_FLOOD = [ra(pio(), chlim=number) for number in range(199)]


def ra_flood(number: int) -> bytes:
    return _FLOOD[number % 199]


@pytest.mark.parametrize("at", [5, 100, 999, 2500, 2999, 4000])
@pytest.mark.parametrize("what", ["router", "prefix"])
def test_a_flood_hides_no_withdrawal(at: int, what: str) -> None:
    """Send one withdrawal among 1000 others a second: clients know within 3 s."""
    relay = linked()
    normal, absent = ra(pio(), pio(OTHER_PREFIX)), ra(pio())
    withdrawal = ra(pio(), pio(OTHER_PREFIX, valid=0, preferred=0))
    if what == "router":
        normal, absent, withdrawal = ra(pio()), ra(pio(), routerlifetime=0), ra(routerlifetime=0)
    seen = []
    for number in range(8000):
        now = 10 + number / 1000
        frame = normal if number < at else withdrawal if number == at else absent
        sends = relay.heard(now, UP, frame)
        due = relay.next_tick(now)
        if due is not None and due <= now:
            sends += relay.tick(now)
        seen += [(number, Ether(sent)) for sent in frames(sends)]
    if what == "router":
        told = [number for number, packet in seen if not packet[ICMPv6ND_RA].routerlifetime]
    else:
        option = bytes(pio(OTHER_PREFIX, valid=0, preferred=0))
        told = [number for number, packet in seen if option in options_of(packet)]
    assert at <= min(told) <= at + 3001


def test_memory_is_bounded() -> None:
    """Remember little of a router that always sends other options."""
    relay = linked()
    one = bytes(rdnss())
    for number in range(2000):
        servers = [one[:-4] + (20 * number + each).to_bytes(4, "big") for each in range(20)]
        big = bytes(unknown(number % 251, 6 + 8 * (number % 90)))
        frame = ra(Raw(load=b"".join(servers) + big))
        relay.heard(10 + number / 100, UP, frame)
    relay.heard(40, DOWN, rs())
    answers = [send for _, send in run(relay, 40, 40.5)]
    assert 0 < sum(len(send.frame) for send in answers) < 20_000


# ---- solicitations upstream ----------------------------------------------------------------------


def test_routers_are_solicited_at_the_start() -> None:
    relay = Relay(chance=lambda: 0.5)
    assert relay.next_tick(0) is None
    relay.set_links(0, UPSTREAM, {})
    sent = run(relay, 0, 20_000)
    packet = Ether(sent[0][1].frame)
    assert (packet[IPv6].src, packet[IPv6].dst) == ("fe80::2", "ff02::2")
    assert packet[ICMPv6NDOptSrcLLAddr].lladdr == packet.src == "02:00:00:00:00:02"
    assert ICMPv6ND_RS in packet
    times = [when for when, _ in sent]
    assert times[:6] == [0, 4, 8, 16, 32, 64]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[-2:] == [3600, 3600]


def test_the_first_advertisement_ends_soliciting() -> None:
    relay = Relay(chance=lambda: 0.5)
    relay.set_links(0, UPSTREAM, {})
    relay.tick(0)
    relay.heard(1, UP, ra(pio()))
    assert run(relay, 1, 1300) == []
    assert relay.prefixes(2) == {P: 86401}


def test_a_link_whose_router_is_no_default_router_is_still_solicited() -> None:
    relay = linked()
    relay.heard(1, UP, ra(pio(), routerlifetime=0))
    assert [when for when, _ in run(relay, 1, 20)] == [4, 8, 16]
    relay.heard(21, DOWN, rs())
    ((_, send),) = (each for each in run(relay, 21, 22) if each[1].ifindex == DOWN)
    assert Ether(send.frame)[ICMPv6ND_RA].routerlifetime == 0


def test_clients_that_solicit_do_not_multiply_solicitations() -> None:
    relay = linked()
    sent = []
    for now in range(1, 1000):
        relay.heard(now, DOWN, rs(source=f"fe80::{now:x}"))
        sent += [send for _, send in run(relay, now, now + 0.9)]
    assert {send.ifindex for send in sent} == {UP}
    assert 15 <= len(sent) <= 22  # one a minute


def test_relaying_is_off() -> None:
    relay = linked(relay=False)
    relay.set_links(0, UPSTREAM, {DOWN: DOWNSTREAM, DOWN2: SECOND})
    assert relay.heard(1, UP, ra(pio(), routerlifetime=100)) == []
    assert relay.prefixes(1) == {P: 86401}
    assert [router.lifetime for router in relay.routers(1)] == [100]
    relay.heard(2, DOWN, rs())
    relay.heard(2, DOWN, ra(pio(OTHER_PREFIX)))
    sent = run(relay, 2, 500)
    assert {send.ifindex for _, send in sent} == {UP}
    assert sent[0][0] == 76
    assert relay.withdraw(500, [DOWN]) == []
    assert (relay.relayed, relay.solicited, ignored(relay)) == (0, 0, {"downstream": 1})
    relay.set_links(501, None, {})
    assert run(relay, 501, 600) == []


def test_fuzz_of_events() -> None:
    """After any events, tick() moves on, and the sent frames are valid and bounded."""
    chance = random.Random(4389)
    relay = Relay(chance=chance.random)
    pool: list[Packet] = [
        *EVERYTHING,
        pio(valid=0, preferred=0),
        pio(OTHER_PREFIX),
        route(lifetime=0),
    ]
    links: list[RelayLink | None] = [
        UPSTREAM,
        UPSTREAM,
        UPSTREAM,
        None,
        UPSTREAM._replace(ifindex=9),
    ]
    routers = [random_advertisement(chance, pool) for _ in range(300)]
    now, sent = 0.0, 0
    for _ in range(10_000):
        now += chance.choice((0.01, 1, 5, 100))
        sends = []
        match chance.randrange(8):
            case 0 if not chance.randrange(10):
                downs = {DOWN: DOWNSTREAM._replace(mtu=chance.choice((1280, 1500))), DOWN2: SECOND}
                relay.set_links(now, chance.choice(links), downs)
            case 1 | 2:
                source = chance.choice(("::", CLIENT, "2001:db8::c"))
                sends = relay.heard(now, chance.choice((DOWN, DOWN2)), rs(source=source))
            case 3:
                relay.withdraw(now, [DOWN])
            case _:
                sends = relay.heard(now, chance.choice((UP, 9)), chance.choice(routers))
        sends += relay.tick(now)
        due = relay.next_tick(now)
        assert due is None or due > now
        for send in sends:
            sent += 1
            if send.ifindex in (DOWN, DOWN2):
                heard = parse_router_advertisement(send.frame)
                assert isinstance(heard, RouterAdvertisement)
                assert heard.parameters.flags & 4
    assert sent > 1000


def random_advertisement(chance: random.Random, pool: list[Packet]) -> bytes:
    options = chance.sample(pool, chance.randrange(len(pool)))
    lifetime = chance.choice((0, 10, 1800, 65535))
    source = f"fe80::{chance.randrange(1, 12):x}:0"
    return ra(*options, source=source, routerlifetime=lifetime, prf=chance.randrange(4))
