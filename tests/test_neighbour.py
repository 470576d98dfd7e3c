"""neighbour.py: Scapy and tshark can read its frames, and it validates answers by 7.1.2."""

from __future__ import annotations

import random
from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from ndxdp.ndp.decision import validate
from ndxdp.ndp.frame import checksum_correct
from ndxdp.ndp.message import (
    Fault,
    NeighborAdvertisement,
    Solicitation,
    decode_own,
    parse_advertisement,
    probe,
    unsolicited,
)
from ndxdp.ndp.reason import Reason
from ndxdp.ndp.resolution import PendingSolicitation, Reply, reply_to
from ndxdp.rules.address import parse_address, parse_mac
from tests.packets import CASES

MAC, GATEWAY_MAC, OTHER_MAC = "02:00:00:00:00:02", "02:00:00:00:00:01", "02:00:00:00:00:77"
SOURCE, GATEWAY = "2001:db8::c:0:0:99", "2001:db8::1"
QUESTION = PendingSolicitation(parse_mac(MAC), parse_address(SOURCE), parse_address(GATEWAY))


def na(
    *options: Packet | bytes,
    ether: dict[str, Any] | None = None,
    ip6: dict[str, Any] | None = None,
    **fields: Any,
) -> bytes:
    """Return the gateway's answer, with some changes."""
    outer: dict[str, Any] = {"src": GATEWAY_MAC, "dst": MAC} | (ether or {})
    middle: dict[str, Any] = {"src": GATEWAY, "dst": SOURCE, "hlim": 255} | (ip6 or {})
    inner: dict[str, Any] = {"tgt": GATEWAY, "R": 1, "S": 1, "O": 1} | fields
    frame = Ether(**outer) / IPv6(**middle) / ICMPv6ND_NA(**inner)
    for option in options:
        frame = frame / option
    return bytes(frame)


def tllao(mac: str = GATEWAY_MAC) -> Packet:
    return ICMPv6NDOptDstLLAddr(lladdr=mac)


GOOD = na(tllao())


def nothing(target: bytes) -> None:
    """Match no rule."""


def test_probe() -> None:
    frame = probe(parse_mac(MAC), parse_address(SOURCE), b"nonce!")
    seen = Ether(frame)
    assert len(frame) == 86
    assert (seen.src, seen.dst) == (MAC, "33:33:ff:00:00:99")
    assert (seen[IPv6].src, seen[IPv6].dst, seen[IPv6].hlim) == ("::", "ff02::1:ff00:99", 255)
    assert seen[ICMPv6ND_NS].tgt == SOURCE
    assert ICMPv6NDOptSrcLLAddr not in seen
    assert frame[78:] == b"\x0e\x01nonce!"
    assert checksum_correct(frame)
    # Another host takes its answer for DAD, this host for its own.
    assert isinstance(validate(frame, parse_mac(OTHER_MAC), nothing), Solicitation)
    assert validate(frame, parse_mac(MAC), nothing) is Reason.OWN_FRAME


def test_a_nonce_has_six_bytes() -> None:
    with pytest.raises(ValueError, match="5 bytes"):
        probe(parse_mac(MAC), parse_address(SOURCE), b"nonce")


@pytest.mark.parametrize(("router", "lladdr"), [(True, None), (False, OTHER_MAC)])
def test_unsolicited(router: bool, lladdr: str | None) -> None:
    frame = unsolicited(
        parse_mac(MAC),
        parse_address(SOURCE),
        router=router,
        lladdr=parse_mac(lladdr) if lladdr else None,
    )
    seen = Ether(frame)
    assert len(frame) == 86
    assert (seen.src, seen.dst) == (MAC, "33:33:00:00:00:01")
    assert (seen[IPv6].src, seen[IPv6].dst, seen[IPv6].hlim) == (SOURCE, "ff02::1", 255)
    fields = seen[ICMPv6ND_NA]
    assert (fields.R, fields.S, fields.O, fields.tgt) == (router, 0, 1, SOURCE)
    assert seen[ICMPv6NDOptDstLLAddr].lladdr == (lladdr or MAC)
    heard = parse_advertisement(frame)
    assert isinstance(heard, NeighborAdvertisement)
    assert (heard.router, heard.solicited, heard.override) == (router, False, True)


def test_answers_to_own_solicitations_are_accepted() -> None:
    replies = [case.reply for case in CASES if case.reply is not None]
    assert replies
    for frame in replies:
        heard = parse_advertisement(frame)
        assert isinstance(heard, NeighborAdvertisement), heard
        ours = decode_own(frame)
        assert (heard.target, heard.source, heard.lladdr) == (ours.target, ours.source, ours.tllao)
        assert (heard.solicited, heard.override) == (ours.solicited, ours.override)


def wrong_checksum() -> bytes:
    return GOOD[:56] + bytes((GOOD[56] ^ 1,)) + GOOD[57:]


FAULTS = [
    ("a solicitation", bytes(Ether() / IPv6(hlim=255) / ICMPv6ND_NS(tgt=GATEWAY)), Fault.NOT_NA),
    ("a short frame", GOOD[:57], Fault.NOT_NA),
    ("hop limit 254", na(tllao(), ip6={"hlim": 254}), Fault.BAD_HOP_LIMIT),
    ("hop limit 64", na(tllao(), ip6={"hlim": 64}), Fault.BAD_HOP_LIMIT),
    ("code 1", na(tllao(), code=1), Fault.BAD_CODE),
    ("cut off", GOOD[:85], Fault.BAD_LENGTH),
    ("payload of 23 bytes", GOOD[:18] + b"\0\x17" + GOOD[20:], Fault.BAD_LENGTH),
    ("a giant", na(tllao()) + bytes(1500), Fault.BAD_LENGTH),
    ("an option of length 0", na(b"\x02\x00" + bytes(6)), Fault.BAD_OPTION),
    ("an option that overhangs", na(b"\x02\x02" + bytes(6)), Fault.BAD_OPTION),
    ("half an option", na(b"\x02"), Fault.BAD_OPTION),
    ("a TLLAO of two units", na(b"\x02\x02" + bytes(14)), Fault.BAD_OPTION),
    ("wrong checksum", wrong_checksum(), Fault.BAD_CHECKSUM),
    ("checksum 0", GOOD[:56] + b"\0\0" + GOOD[58:], Fault.BAD_CHECKSUM),
    ("multicast target", na(tllao(), tgt="ff02::1"), Fault.BAD_TARGET),
    ("target ::", na(tllao(), tgt="::"), Fault.BAD_TARGET),
    ("solicited, to a group", na(tllao(), ip6={"dst": "ff02::1"}), Fault.BAD_FLAGS),
    ("multicast source", na(tllao(), ip6={"src": "ff02::1"}), Fault.BAD_SOURCE),
    ("source ::", na(tllao(), ip6={"src": "::"}), Fault.BAD_SOURCE),
    ("to another MAC", na(tllao(), ether={"dst": OTHER_MAC}), Fault.OTHER_HOST),
    ("to another source", na(tllao(), ip6={"dst": "2001:db8::2"}), Fault.OTHER_DESTINATION),
    ("to all nodes", na(tllao(), S=0, ip6={"dst": "ff02::1"}), Fault.OTHER_DESTINATION),
    ("of another target", na(tllao(), tgt="2001:db8::7"), Fault.OTHER_TARGET),
    ("unsolicited", na(tllao(), S=0), Fault.NOT_SOLICITED),
    ("no TLLAO, from elsewhere", na(ether={"src": OTHER_MAC}), Fault.NO_LLADDR),
    ("a group's MAC", na(tllao("33:33:00:00:00:01")), Fault.BAD_LLADDR),
    ("MAC zero", na(tllao("00:00:00:00:00:00")), Fault.BAD_LLADDR),
    ("our own MAC", na(tllao(MAC)), Fault.BAD_LLADDR),
]


@pytest.mark.parametrize(
    ("frame", "fault"),
    [(frame, fault) for _, frame, fault in FAULTS],
    ids=[name for name, _, _ in FAULTS],
)
def test_faults(frame: bytes, fault: Fault) -> None:
    assert reply_to(QUESTION, frame, parse_mac(GATEWAY_MAC)) is fault, frame.hex()


def test_each_fault_is_seen() -> None:
    assert {fault for _, _, fault in FAULTS} == set(Fault)


@pytest.mark.parametrize(
    ("frame", "known", "reply"),
    [
        (GOOD, None, Reply(parse_mac(GATEWAY_MAC), True, True)),
        (GOOD, OTHER_MAC, Reply(parse_mac(GATEWAY_MAC), True, True)),
        (na(tllao(), R=0, O=0), None, Reply(parse_mac(GATEWAY_MAC), False, False)),
        (na(), GATEWAY_MAC, Reply(parse_mac(GATEWAY_MAC), True, True)),
        (na(tllao(), tllao(OTHER_MAC)), None, Reply(parse_mac(GATEWAY_MAC), True, True)),
        (na(ICMPv6NDOptUnknown(type=99, len=1, data=b"123456"), tllao()), None, None),
        (GOOD + b"padding", None, None),
        (na(tllao(), ip6={"src": "fe80::1"}), None, None),
    ],
    ids=["new", "moved", "proxy", "no-tllao", "two-tllaos", "unknown", "padding", "link-local"],
)
def test_replies(frame: bytes, known: str | None, reply: Reply | None) -> None:
    expected = reply or Reply(parse_mac(GATEWAY_MAC), True, True)
    assert reply_to(QUESTION, frame, parse_mac(known) if known else None) == expected


def test_garbage_is_survived() -> None:
    chance = random.Random(7527)
    for _ in range(20000):
        frame = bytearray(GOOD + chance.randbytes(chance.randrange(24)))
        for _ in range(chance.randrange(4)):
            frame[chance.randrange(len(frame))] = chance.randrange(256)
        cut = bytes(frame[: chance.randrange(len(frame) + 1)])
        assert isinstance(parse_advertisement(cut), NeighborAdvertisement | Fault)
