"""ndp.py against the table of packets, and beyond the table: codec, limiter, random bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import IPv6Address

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6, in6_chksum
from scapy.layers.l2 import Dot1Q, Ether

from ndxdp.ndp import decision
from ndxdp.ndp.address import ALL_NODES, ALL_NODES_MAC
from ndxdp.ndp.decision import Match, Verdict, validate
from ndxdp.ndp.frame import is_solicitation, untagged
from ndxdp.ndp.limiter import Limiter, Limits, Rate
from ndxdp.ndp.message import Solicitation, advertise, solicit
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.ndp.reason import Reason
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.rules.ruleset import Rules
from ndxdp.rules.table import Table
from tests import packets
from tests.packets import BURST, BY_TABLES, CASES, CREDIT, HOST, INTERVAL, RULES, Case, show

BY_NAME = {case.name: case for case in CASES}


def matching(rules: Rules, daemon_dead: bool = False) -> Callable[[bytes], Match | None]:
    """Return a match function that also decides `expired`, which a Table does not know."""
    table = Table.of(rules)

    def match(target: bytes) -> Match | None:
        found = table.lookup(target)
        if found is None:
            return None
        rule = found[1]
        expired = rule.dynamic and daemon_dead
        exact = found[0].length == 128
        return Match(
            rule.answer, rule.profile, rule.owned, expired, exact=exact, leased=rule.leased
        )

    return match


MACS_OF_RULES = {rule.profile.lladdr for rule in RULES.distinct_rules}
LIMITED = (Reason.RATE_LIMITED, Reason.GATEWAY_LIMITED)
ALIVE, DEAD, EMPTY = matching(RULES), matching(RULES, daemon_dead=True), matching(Rules())


def decide(case: Case, match: Callable[[bytes], Match | None] | None = None) -> Verdict:
    """Return the verdict on a case, with its settings and its history."""
    match = match or (DEAD if case.daemon_dead else ALIVE)
    limit = Rate(INTERVAL, CREDIT) if case.rate_exceeded else Rate()
    limiter = Limiter(Limits(limit, gateway=limit), lambda: 0)
    limiter.gateways = case.gateways

    def judged() -> Verdict:
        return decision.decide(
            case.frame, case.host, match, limiter.charge, lapsed=lambda: case.lapsed
        )

    for _ in range(BURST if case.rate_exceeded else 0):
        before = judged()
        assert before.reason not in LIMITED, f"{case.name}: limited within its burst"
    return judged()


def explain(case: Case, verdict: Verdict) -> str:
    lines = [
        f"{case.name}: {verdict.reason.label}, not {case.reason.label}",
        f"in:   {show(case.frame)}",
    ]
    if verdict.reply is not None:
        lines.append(f"out:  {show(verdict.reply)}")
    if case.reply is not None:
        lines.append(f"want: {show(case.reply)}")
    return "\n".join(lines)


each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


# ---- the table ----------------------------------------------------------------------------------


@each_case
def test_table(case: Case) -> None:
    verdict = decide(case)
    assert verdict[:2] == (case.reason, case.reply), explain(case, verdict)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.na is not None], ids=lambda case: case.name
)
def test_without_a_rule_it_is_untouched(case: Case) -> None:
    verdict = decide(case, EMPTY)
    theirs = bytes(case.frame[:6]) in MACS_OF_RULES
    reason = Reason.OTHER_HOST if theirs else Reason.NO_RULE
    assert verdict == (reason, None, None), explain(case, verdict)


def test_table_is_whole() -> None:
    assert len(CASES) >= 80
    assert len(BY_NAME) == len(CASES), "two cases have one name"
    elsewhere = {*BY_TABLES, Reason.RESIZE_FAILED, Reason.SEND_FAILED}
    assert {case.reason for case in CASES} == set(Reason) - elsewhere
    assert len(RULES) <= 32


def test_table_is_sound() -> None:
    for case in CASES:
        assert case.reason.is_answer == (case.na is not None), case.name
        assert case.reply is None or len(case.reply) == 86, case.name
        assert 15 <= len(case.frame) <= 1522, case.name


def test_rate_cases_have_a_source_each() -> None:
    """Give each rate case a source of its own, so that one limiter map serves all."""
    sources = [case.frame[6:12] for case in CASES if case.rate_exceeded]
    assert len(set(sources)) == len(sources)
    assert not {case.frame[6:12] for case in CASES if not case.rate_exceeded} & set(sources)


def test_show_gives_expression_and_hex() -> None:
    frame = CASES[0].frame
    text = show(frame)
    assert frame.hex() in text
    rebuilt = eval(text.splitlines()[0], vars(packets))
    assert bytes(rebuilt) == frame
    for length in range(len(frame)):
        assert frame[:length].hex() in show(frame[:length])


# ---- reasons and verdicts -----------------------------------------------------------------------


def test_reasons() -> None:
    assert Reason.BAD_HOP_LIMIT.label == "bad_hop_limit"
    assert [reason for reason in Reason if reason.is_answer] == [
        Reason.ANSWERED,
        Reason.ANSWERED_DAD,
    ]


def test_only_an_answer_is_charged() -> None:
    charged: list[tuple[bytes, bytes]] = []

    def admit(eth_source: bytes, peer: bytes) -> Reason | None:
        charged.append((eth_source, peer))
        return None

    for case in CASES:
        if case.rate_exceeded:
            continue
        charged.clear()
        match = DEAD if case.daemon_dead else ALIVE
        decision.decide(case.frame, case.host, match, admit, lapsed=lambda case=case: case.lapsed)  # type: ignore[misc]
        assert [source for source, _ in charged] == ([case.frame[6:12]] if case.na else [])
        if case.reply and case.reason is Reason.ANSWERED:
            assert charged[0][1] == case.reply[:6], case.name


def test_the_rule_of_the_target_is_asked_for() -> None:
    asked: list[bytes] = []

    def match(target: bytes) -> Match | None:
        asked.append(target)
        return Match(Answer.ALWAYS)

    for name in ("ns to another target's group", "dad"):
        decision.decide(BY_NAME[name].frame, HOST, match)
    assert asked == [parse_address(packets.A)] * 2


# ---- random input -------------------------------------------------------------------------------

VALID = [case for case in CASES if case.na is not None and not case.rate_exceeded]


def test_no_truncation_raises() -> None:
    names = (
        "ns from a link-local source, with its sllao",
        "ns without options grows",
        "nud probe to the target, without sllao",
        "dad",
        "dad with a nonce (RFC 7527)",
        "nonce before the sllao",
    )
    for case in (BY_NAME[name] for name in names):
        whole = 54 + int.from_bytes(case.frame[18:20], "big")
        for length in range(91):
            frame = case.frame[:length]
            reason = decision.decide(frame, HOST, ALIVE).reason
            if len(frame) < 58:
                assert reason is Reason.NOT_NS, show(frame)
            elif len(frame) < whole:
                assert reason is Reason.BAD_LENGTH, show(frame)
            else:
                assert reason is case.reason, show(frame)


def scapy_checksum(ip6: IPv6, message: bytes) -> int:
    """Return Scapy's checksum of the message with an empty checksum field."""
    checksum: int = in6_chksum(  # type: ignore[no-untyped-call]
        58, ip6, message[:2] + b"\0\0" + message[4:]
    )
    return checksum


def is_valid_for_scapy(frame: bytes) -> bool:
    """Validate by RFC 4861 7.1.1 with Scapy's parts of the frame, without its tag."""
    tag = Ether(frame).payload
    if isinstance(tag, Dot1Q) and tag.vlan == 0:
        frame = frame[:12] + frame[16:]
    ip6 = Ether(frame).payload
    if not isinstance(ip6, IPv6) or not isinstance(ip6.payload, ICMPv6ND_NS):
        return False
    solicitation = ip6.payload
    if (ip6.version, ip6.hlim, solicitation.code) != (6, 255, 0):
        return False
    if not 24 <= ip6.plen <= len(frame) - 54:
        return False
    message = frame[54 : 54 + ip6.plen]
    if (solicitation.cksum - scapy_checksum(ip6, message)) % 0xFFFF:
        return False
    options, kinds = message[24:], set()
    while options:
        if len(options) < 2 or options[1] == 0 or len(options) < options[1] * 8:
            return False
        kinds.add(options[0])
        options = options[options[1] * 8 :]
    source, target = IPv6Address(ip6.src), IPv6Address(solicitation.tgt)
    if target.is_multicast or target.is_unspecified or target.is_loopback or source.is_multicast:
        return False
    return not source.is_unspecified or (
        1 not in kinds and ip6.dst == packets.group(solicitation.tgt)
    )


def refresh_checksum(frame: bytearray) -> None:
    """Write Scapy's checksum over the bytes that payload_len covers, as far as they exist."""
    end = min(54 + int.from_bytes(frame[18:20], "big"), len(frame))
    if end >= 58:
        checksum = scapy_checksum(IPv6(bytes(frame[14:54])), bytes(frame[54:end]))
        frame[56:58] = checksum.to_bytes(2, "big")


def mutate(frame: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        match rng.randrange(7):
            case 0 | 1:
                frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
            case 2:
                frame[rng.randrange(len(frame))] = rng.choice((0, 1, 2, 8, 0x7F, 0x80, 0xFF))
            case 3 if len(frame) >= 20:  # payload_len by whole options and by bytes
                length = int.from_bytes(frame[18:20], "big") + rng.choice((-8, -1, 1, 8))
                frame[18:20] = (length % 65536).to_bytes(2, "big")
            case 4:
                del frame[rng.randrange(14, len(frame) + 1) :]
            case 5:
                frame += rng.randbytes(rng.randrange(1, 17))
            case 6 if len(frame) >= 80:
                at = rng.randrange(78, len(frame) - 1)
                frame[at : at + 2] = bytes((rng.choice((1, 2, 14)), rng.randrange(4)))
            case _:
                pass
        if len(frame) < 15:
            frame += bytes(15 - len(frame))


def test_random_frames() -> None:
    """Answer only solicitations that are valid for Scapy, and never raise an exception."""
    rng = random.Random(4861)
    seeds = [case.frame for case in VALID if len(case.frame) < 200]
    answered = refused = 0
    for _ in range(20_000):
        frame = bytearray(rng.choice(seeds))
        mutate(frame, rng)
        if rng.random() < 0.6 and len(frame) >= 58:
            refresh_checksum(frame)
        verdict = decision.decide(bytes(frame), HOST, lambda target: Match(Answer.ALWAYS))
        assert verdict.reason.is_answer == (verdict.reply is not None)
        if verdict.reply is None:
            refused += 1
            continue
        answered += 1
        assert is_valid_for_scapy(bytes(frame)), f"{verdict.reason.label}: {show(bytes(frame))}"
        advertisement = Ether(verdict.reply)
        assert len(verdict.reply) == 86
        assert advertisement[ICMPv6ND_NA].tgt == Ether(untagged(bytes(frame)))[ICMPv6ND_NS].tgt
        assert verdict.reply == bytes(without_checksum(verdict.reply)), show(verdict.reply)
    assert answered > 2000, refused
    assert refused > 2000, answered


def test_random_bytes() -> None:
    rng = random.Random(1)
    for length in range(200):
        for _ in range(10):
            frame = rng.randbytes(length)
            assert decision.decide(frame, HOST, ALIVE).reason is Reason.NOT_NS, show(frame)


def without_checksum(frame: bytes) -> Ether:
    """Return the frame as Scapy builds it again, with new lengths and checksum."""
    packet = Ether(frame)
    del packet[ICMPv6ND_NA].cksum
    del packet[IPv6].plen
    return packet


# ---- solicit ------------------------------------------------------------------------------------

US = parse_mac(packets.MAC)
PEER = parse_mac(packets.ROUTER_MAC)


def test_solicit_builds_the_bytes_of_scapy() -> None:
    target = parse_address(packets.A)
    assert solicit(PEER, target) == bytes(packets.dad(packets.A) / packets.ns(packets.A))
    assert solicit(PEER, target, source=parse_address(packets.ROUTER), sllao=PEER) == bytes(
        packets.to_group(packets.A) / packets.ns(packets.A) / packets.sllao()
    )
    assert solicit(
        PEER,
        target,
        source=parse_address(packets.GLOBAL),
        eth_destination=US,
        destination=target,
    ) == bytes(packets.unicast(packets.A, packets.GLOBAL) / packets.ns(packets.A))


def test_solicit_to_another_group() -> None:
    """Derive the Ethernet destination from the IPv6 destination."""
    frame = solicit(
        PEER,
        parse_address(packets.A),
        source=parse_address("fe80::1"),
        destination=ALL_NODES,
    )
    assert frame[:6] == ALL_NODES_MAC
    assert Ether(frame)[IPv6].dst == "ff02::1"


@pytest.mark.parametrize("sllao", [None, parse_mac(packets.OTHER_MAC)])
@pytest.mark.parametrize("source", ["::", "fe80::1", "2001:db8::1"])
@pytest.mark.parametrize("target", ["2001:db8::ff:fffe", "fe80::1", "2001:db8::"])
def test_solicit_round_trip(target: str, source: str, sllao: bytes | None) -> None:
    dad = source == "::"
    if dad:
        sllao = None
    frame = solicit(PEER, parse_address(target), source=parse_address(source), sllao=sllao)
    assert is_solicitation(frame)
    solicitation = validate(frame, US, EMPTY)
    assert solicitation == Solicitation(
        parse_address(source), parse_address(target), PEER, sllao or PEER
    )
    assert solicitation.dad is dad
    assert Ether(frame).haslayer(ICMPv6NDOptSrcLLAddr) == (sllao is not None)
    assert validate(frame, PEER, EMPTY) is Reason.OWN_FRAME


def test_our_own_answer_is_no_solicitation() -> None:
    for case in VALID:
        assert case.reply is not None
        assert decision.decide(case.reply, HOST, ALIVE).reason is Reason.NOT_NS


def test_advertise_defaults() -> None:
    target = parse_address(packets.A)
    solicitation = Solicitation(parse_address(packets.ROUTER), target, PEER, PEER)
    assert advertise(solicitation, HOST) == bytes(packets.na(packets.A))
    assert advertise(solicitation, HOST, Profile(override=True)) == bytes(
        packets.na(packets.A, O=1)
    )


# ---- the limiter --------------------------------------------------------------------------------


class Clock:
    def __init__(self, now: int = 1_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def per_mac(interval: int, credit: int, clock: Clock, size: int = 8192) -> Limiter:
    """Return a Limiter with limits per MAC only."""
    return Limiter(Limits(Rate(interval, credit)), clock, size)


def admits(limiter: Limiter, mac: bytes, peer: bytes | None = None) -> bool:
    return limiter.charge(mac, peer or mac) is None


def admitted(limiter: Limiter, mac: bytes, attempts: int) -> int:
    return sum(admits(limiter, mac) for _ in range(attempts))


def mac_of(number: int) -> bytes:
    return (0x02 << 40 | number).to_bytes(6, "big")


def test_limiter_burst_then_refill() -> None:
    clock = Clock()
    limiter = per_mac(100, 2 * 100, clock)
    assert [admits(limiter, PEER) for _ in range(5)] == [True, True, True, False, False]
    clock.now += 99
    assert not admits(limiter, PEER)
    clock.now += 1
    assert admits(limiter, PEER)
    assert not admits(limiter, PEER)


def test_limiter_refusals_cost_nothing() -> None:
    clock = Clock()
    limiter = per_mac(100, 0, clock)
    assert admitted(limiter, PEER, 1000) == 1
    clock.now += 100
    assert admitted(limiter, PEER, 1000) == 1


def test_limiter_saves_up_no_more_than_the_burst() -> None:
    clock = Clock()
    limiter = per_mac(100, 2 * 100, clock)
    assert admitted(limiter, PEER, 10) == 3
    clock.now += 1_000_000
    assert admitted(limiter, PEER, 10) == 3
    clock.now += 200
    assert admitted(limiter, PEER, 10) == 2


def test_limiter_keeps_the_rate_over_time() -> None:
    clock = Clock()
    limiter = per_mac(100, 4 * 100, clock)
    total = 0
    for _ in range(10_000):
        clock.now += 7
        total += admits(limiter, PEER)
    assert abs(total - (5 + 10_000 * 7 // 100)) <= 1


def test_limiter_sources_are_independent() -> None:
    limiter = per_mac(100, 2 * 100, Clock())
    assert admitted(limiter, PEER, 10) == 3
    assert admitted(limiter, US, 10) == 3
    assert admitted(limiter, PEER, 10) == 0


def test_limiter_without_an_interval_admits_all() -> None:
    limiter = per_mac(0, 0, Clock(), size=2)
    assert admitted(limiter, PEER, 1000) == 1000


def test_limiter_memory_is_bounded() -> None:
    limiter = per_mac(100, 0, Clock(), size=64)
    for number in range(10_000):
        assert admits(limiter, mac_of(number))
    assert len(limiter._spent) == 64
    assert not admits(limiter, mac_of(9_999))
    assert admits(limiter, mac_of(0)), "forgotten, and therefore admitted again"


def test_limiter_forgets_the_longest_silent() -> None:
    clock = Clock()
    limiter = per_mac(100, 100, clock, size=2)
    for number in (1, 2, 1, 3):  # 3 displaces 2: 1 has solicited since
        assert admits(limiter, mac_of(number))
    assert not admits(limiter, mac_of(1))
    assert admitted(limiter, mac_of(2), 3) == 2


def test_limiter_charges_the_receiver_of_the_answer() -> None:
    """Charge the node that receives the answers: many MACs soon exhaust a single victim's limit."""
    limiter = per_mac(100, 2 * 100, Clock())
    assert sum(admits(limiter, mac_of(number), PEER) for number in range(1000)) == 3
    assert admits(limiter, US), "another node"
    assert not admits(limiter, PEER), "the victim itself"


def test_limiter_of_all_together() -> None:
    clock = Clock()
    limiter = Limiter(Limits(total=Rate(100, 9 * 100)), clock)
    assert sum(admits(limiter, mac_of(number)) for number in range(1000)) == 10
    clock.now += 500
    assert sum(admits(limiter, mac_of(number)) for number in range(1000)) == 5


def test_limiter_of_all_together_is_not_charged_by_who_is_over_its_own() -> None:
    limiter = Limiter(Limits(Rate(100, 0), Rate(100, 9 * 100)), Clock())
    assert admitted(limiter, PEER, 1000) == 1
    assert sum(admits(limiter, mac_of(number)) for number in range(1000)) == 9


def test_limiter_gateways_have_a_share_of_their_own() -> None:
    limiter = Limiter(Limits(Rate(100, 0), Rate(100, 100), Rate(100, 4 * 100)), Clock())
    limiter.gateways = frozenset({US, PEER})
    sum(admits(limiter, mac_of(number)) for number in range(1000))
    assert admitted(limiter, US, 1000) == 5
    assert limiter.charge(US, US) is Reason.GATEWAY_LIMITED
    assert admitted(limiter, PEER, 1000) == 5, "each has one"


def test_limiter_gateways_share_is_for_no_one_else() -> None:
    """Use the gateway's limit only if a gateway both solicits and receives the answer."""
    limiter = Limiter(Limits(Rate(100, 0), gateway=Rate(100, 4 * 100)), Clock())
    limiter.gateways = frozenset({US})
    assert sum(admits(limiter, mac_of(number), US) for number in range(1000)) == 1
    assert sum(admits(limiter, US, mac_of(number)) for number in range(1000)) == 0
    assert admitted(limiter, US, 1000) == 5
