"""Relayed router advertisements: what differs, what is not relayed, and their prefixes."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from ndxdp.sharing.relay import Relay
from tests.fixtures.relayed import P, Q, ignored, layers, lifetimes, options_of, other_ra
from tests.fixtures.router_messages import (
    DOWN,
    DOWN2,
    DOWN_MAC,
    DOWNSTREAM,
    EVERYTHING,
    INFINITY,
    OTHER_PREFIX,
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
    prefix,
    ra,
    rs,
    run,
    unknown,
)

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
