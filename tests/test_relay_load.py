"""Relaying router advertisements: solicitations of both sides, and floods."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from ndxdp.ndp.router_message import RouterAdvertisement, parse_router_advertisement
from ndxdp.sharing.relay import Relay, RelayLink
from tests.fixtures.relayed import P, ignored, lifetimes, options_of, other_ra
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
    PREFIX,
    SECOND,
    UP,
    UPSTREAM,
    frames,
    linked,
    pio,
    portal,
    ra,
    rdnss,
    route,
    rs,
    run,
    unknown,
)

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
