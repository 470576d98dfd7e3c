"""Random rule sets, and random frames that are nearly valid solicitations. Pure.

A frame is built field by field from a valid solicitation. Each field is wrong now and then, in the
ways that the field can be wrong. The checksum is right for the frame, unless it is the field that
is wrong. So most frames pass most checks, and all checks are reached.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ndxdp.ndp.address import ALL_NODES, LOOPBACK, UNSPECIFIED, V4_MAPPED, solicited_node_group
from ndxdp.ndp.frame import TYPE_NS
from ndxdp.ndp.message import Host
from ndxdp.ndp.profile import Answer, NaSource, Profile
from ndxdp.rules.address import parse_address
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules

_PREFIX_LENGTHS = (0, 7, 32, 48, 60, 63, 64, 65, 80, 96, 104, 112, 120, 126, 127, 128, 128, 128)
_BASES = tuple(
    parse_address(text)
    for text in ("2001:db8:0:1::", "2001:db8:0:1:c::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")
)
_LINK_LOCAL = parse_address("fe80::")
_MULTICAST = parse_address("ff02::1:2")
_FIXED_SOURCE = parse_address("2001:db8:0:3::5")
_LLADDR = bytes.fromhex("02005e10aaaa")
_ROUTER = parse_address("fe80::5eff:fe10:fe")
_ROUTER_MAC = bytes.fromhex("02005e1000fe")

_ANSWERS = (
    *(Answer.ALWAYS,) * 6,
    *(Answer.NEVER,) * 2,
    *(Answer.LOCAL, Answer.ROUTED, Answer.NEIGHBOUR),
)

_ICMPV6 = 58
_HOP_LIMITS = (0, 1, 64, 254)
_OTHER_HEADERS = (0, 6, 17, 43, 44, 50, 51, 59, 60, 135)
_EXTENSIONS = (0, 43, 44, 60)  # hop-by-hop, routing, fragment, destination options
_OTHER_TYPES = (1, 128, 129, 133, 134, 136, 137, 143, 255)
_TAG_TYPES = (b"\x81\x00", b"\x81\x00", b"\x88\xa8", b"\x91\x00", b"\x92\x00", b"\x88\xe7")
_TAGS = (0x0000, 0x0000, 0xE000, 0x1000, 0x0001, 0x0064, 0x0FFF, 0xFFFF)
_LONG = (1513, 1514, 1515, 1522, 2000, 3400)  # bytes: NDP_FRAME_MAX is 1514
_TEST_RUN_MAX = 3400  # bytes: frames of the kernel's tc test runs must fit in a page
_LAST_BITS = 0xFFFF


@dataclass(frozen=True, slots=True)
class Case:
    """A rule set, and the state of the host that it is tried on.

    expired: the daemon's heartbeat is too old for dynamic rules.
    lapsed: the host's lease has lapsed.
    """

    rules: Rules
    host: Host
    expired: bool
    lapsed: bool


def random_case(rng: random.Random, host: Host) -> Case:
    """Make up to 40 rules, many of them nested, for a host with the MAC of `host`."""
    rules: dict[Prefix, Rule] = {}
    around = [*_BASES, _LINK_LOCAL[:8] + rng.randbytes(8), rng.randbytes(16)]
    for number in range(rng.choice((1, 3, 10, 40))):
        length = rng.choice(_PREFIX_LENGTHS)
        prefix = Prefix.around(_near(rng, rng.choice(around)), length)
        rules[prefix] = _random_rule(rng, str(number % 7))
        around.append(prefix.address)
    link_local = host.link_local if rng.random() < 0.8 else UNSPECIFIED
    paused = rng.random() < 0.02
    expired, lapsed = rng.random() < 0.3, rng.random() < 0.3
    return Case(Rules.of(rules), Host(host.mac, link_local, paused), expired, lapsed)


def _random_rule(rng: random.Random, label: str) -> Rule:
    if rng.random() < 0.3:
        return Rule(label=label)
    source = rng.choice((NaSource.TARGET, NaSource.LINK_LOCAL, _FIXED_SOURCE))
    profile = Profile(
        source,
        router=rng.random() < 0.5,
        override=rng.random() < 0.5,
        defend=rng.random() < 0.7,
        lladdr=_LLADDR if rng.random() < 0.3 else None,
    )
    return Rule(
        rng.choice(_ANSWERS),
        profile,
        label=label,
        dynamic=rng.random() < 0.3,
        owned=rng.random() < 0.1,
        leased=rng.random() < 0.3,
    )


def _near(rng: random.Random, address: bytes) -> bytes:
    """Return the address, or one with a few bits changed, mostly among the last."""
    number = int.from_bytes(address, "big")
    kind = rng.random()
    if kind < 0.4:
        number ^= rng.getrandbits(16)
    elif kind < 0.7:
        number ^= rng.getrandbits(64)
    elif kind < 0.8:
        number ^= 1 << rng.randrange(128)
    return number.to_bytes(16, "big")


class Frames:
    """Random frames for one case: the same seed and the same case give the same frames."""

    def __init__(self, rng: random.Random, case: Case) -> None:
        self._rng = rng
        self._host = case.host
        self._prefixes = list(case.rules)
        self._own = case.host.link_local if any(case.host.link_local) else _ROUTER

    def frame(self) -> bytes:
        """Build one frame, of 15 bytes or more."""
        rng, chance = self._rng, self._rng.random
        target = self._target()
        source = self._source(target)
        destination = self._destination(target)
        body = bytes(4) if chance() < 0.9 else rng.randbytes(4)  # reserved: ignored
        body += target + self._options(source)
        kind = TYPE_NS if chance() < 0.97 else rng.choice(_OTHER_TYPES)
        code = 0 if chance() < 0.97 else rng.randrange(1, 256)
        length = 4 + len(body)
        checksum = self._checksum(source, destination, kind, code, body)
        message = bytes((kind, code)) + checksum.to_bytes(2, "big") + body
        hop_limit = 255 if chance() < 0.97 else rng.choice(_HOP_LIMITS)
        protocol = _ICMPV6
        if chance() < 0.02:
            message = b"\x3a\0\1\4\0\0\0\0" + message  # an extension header before ICMPv6
            length += 8
            protocol = rng.choice(_EXTENSIONS)
        elif chance() < 0.01:
            protocol = rng.choice(_OTHER_HEADERS)
        if chance() < 0.05:
            length = self._wrong_length(length)
        first = 0x60000000 if chance() < 0.95 else rng.getrandbits(32)
        headers = (
            self._eth_destination(destination)
            + self._eth_source()
            + self._tags()
            + first.to_bytes(4, "big")
            + length.to_bytes(2, "big")
            + bytes((protocol, hop_limit))
        )
        return self._damaged(headers + source + destination + message)[:_TEST_RUN_MAX]

    # ---- addresses

    def _target(self) -> bytes:
        rng = self._rng
        kind = rng.random()
        if kind < 0.85:
            return self._in_rule(rng.choice(self._prefixes))
        if kind < 0.90:
            return _near(rng, rng.choice(_BASES))
        others = (
            self._own,
            _LINK_LOCAL[:8] + rng.randbytes(8),
            _MULTICAST,
            UNSPECIFIED,
            LOOPBACK,
            V4_MAPPED + rng.randbytes(4),
            rng.randbytes(16),
        )
        return rng.choice(others)

    def _in_rule(self, prefix: Prefix) -> bytes:
        """Return an address of a prefix: any, the first, the last; or one just outside."""
        rng = self._rng
        number, bits = int.from_bytes(prefix.address, "big"), 128 - prefix.length
        kind = rng.random()
        if kind < 0.7:
            number |= rng.getrandbits(bits) if bits else 0
        elif kind < 0.8:
            number |= (1 << bits) - 1
        elif kind < 0.9:
            number += rng.choice((-1, 1 << bits))
        return (number % (1 << 128)).to_bytes(16, "big")

    def _source(self, target: bytes) -> bytes:
        rng = self._rng
        kind = rng.random()
        if kind < 0.55:
            return _ROUTER
        if kind < 0.80:
            return UNSPECIFIED
        if kind < 0.90:
            return _BASES[0][:8] + rng.randbytes(8)
        others = (
            target,
            self._own,
            _MULTICAST,
            LOOPBACK,
            V4_MAPPED + rng.randbytes(4),
            bytes(12) + rng.randbytes(4),
            rng.randbytes(16),
        )
        return rng.choice(others)

    def _destination(self, target: bytes) -> bytes:
        rng = self._rng
        kind = rng.random()
        if kind < 0.75:
            return solicited_node_group(target)
        if kind < 0.90:
            return target
        others = (
            ALL_NODES,
            solicited_node_group(_near(rng, target)),
            self._own,
            _MULTICAST,
            rng.randbytes(16),
        )
        return rng.choice(others)

    def _eth_destination(self, destination: bytes) -> bytes:
        rng = self._rng
        if rng.random() < 0.94:
            if destination[0] == 0xFF:
                return b"\x33\x33" + destination[12:]
            return self._host.mac
        others = (
            self._host.mac,
            b"\x33\x33" + destination[12:],
            b"\x33\x32" + destination[12:],
            b"\xff" * 6,
            _LLADDR,
            rng.randbytes(6),
        )
        return rng.choice(others)

    def _eth_source(self) -> bytes:
        rng = self._rng
        kind = rng.random()
        if kind < 0.9:
            return _ROUTER_MAC
        return self._host.mac if kind < 0.92 else rng.randbytes(6)

    def _tags(self) -> bytes:
        """Return up to three VLAN tags, and the Ethernet type."""
        rng = self._rng
        ethertype = b"\x86\xdd" if rng.random() < 0.99 else rng.randbytes(2)
        if rng.random() < 0.9:
            return ethertype
        tags = (
            rng.choice(_TAG_TYPES) + rng.choice(_TAGS).to_bytes(2, "big")
            for _ in range(rng.choice((1, 1, 1, 2, 3)))
        )
        return b"".join(tags) + ethertype

    # ---- the message

    def _options(self, source: bytes) -> bytes:
        """Return the options: most often what a router sends, a source link-layer address."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.75:
            if source == UNSPECIFIED:
                # An address in a DAD probe is wrong; a nonce is as in RFC 7527.
                return b"" if kind < 0.6 else b"\x0e\1" + rng.randbytes(6)
            return b"\1\1" + _ROUTER_MAC if kind < 0.6 else b""
        if kind < 0.78:
            return rng.randbytes(rng.randrange(1, 40))
        count = rng.choice((1, 2, 3, 4, 4, 30)) if kind < 0.99 else rng.randrange(150, 190)
        found = bytearray()
        for _ in range(count):
            found += self._option()
        return bytes(found)

    def _option(self) -> bytes:
        rng = self._rng
        kind = rng.random()
        if kind < 0.3:
            return b"\1\1" + rng.randbytes(6)
        if kind < 0.6:
            return b"\x0e\1" + rng.randbytes(6)
        if kind < 0.7:
            return b"\2\1" + rng.randbytes(6)
        if kind < 0.96:
            units = rng.choice((1, 1, 2, 3, 5))
            return bytes((rng.choice((3, 5, 14, 25, 253)), units)) + rng.randbytes(units * 8 - 2)
        odd = (
            bytes(8),  # of length 0
            b"\1\2" + rng.randbytes(14),  # an SLLAO that is not Ethernet's
            b"\1\0" + rng.randbytes(6),
            b"\x0e\xff" + rng.randbytes(6),  # overhanging
            rng.randbytes(rng.randrange(1, 8)),  # cut, or not on a multiple of 8
        )
        return rng.choice(odd)

    def _checksum(
        self, source: bytes, destination: bytes, kind: int, code: int, body: bytes
    ) -> int:
        rng = self._rng
        data = source + destination + body + bytes(len(body) % 2)
        total = int.from_bytes(data, "big") + len(body) + 4 + _ICMPV6 + (kind << 8) + code
        right = -total % 0xFFFF
        kind_of_fault = rng.random()
        if kind_of_fault < 0.95:
            # Zero and all ones are the same number, so that both are right.
            return right or rng.choice((0, _LAST_BITS))
        if kind_of_fault < 0.98:
            return right ^ 1 << rng.randrange(16)
        return rng.choice((0, _LAST_BITS, right ^ _LAST_BITS, rng.getrandbits(16)))

    def _wrong_length(self, length: int) -> int:
        rng = self._rng
        off = (length - 8, length - 1, length + 1, length + 2, length + 8)
        return rng.choice((*off, 0, 4, 23, 24, 25, 32, 0xFFFF, rng.getrandbits(16))) & 0xFFFF

    # ---- the frame as a whole

    def _damaged(self, frame: bytes) -> bytes:
        """Return the frame, now and then cut, padded, made long, or with bits inverted."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.80:
            return frame
        changes: Sequence[Callable[[bytes], bytes]] = (
            self._cut,
            self._padded,
            self._padded,
            self._long,
            self._flipped,
        )
        return rng.choice(changes)(frame)

    def _cut(self, frame: bytes) -> bytes:
        return frame[: self._rng.randrange(15, len(frame))]

    def _padded(self, frame: bytes) -> bytes:
        rng = self._rng
        size = rng.choice((1, 2, 4, 7, 8, 9, 46, rng.randrange(1, 300)))
        return frame + (bytes(size) if rng.random() < 0.5 else rng.randbytes(size))

    def _long(self, frame: bytes) -> bytes:
        return frame.ljust(self._rng.choice(_LONG), b"\0")

    def _flipped(self, frame: bytes) -> bytes:
        rng = self._rng
        changed = bytearray(frame)
        for _ in range(rng.choice((1, 1, 2, 5))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
