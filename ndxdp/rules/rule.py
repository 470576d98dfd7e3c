"""Rules: which targets are answered for, how, and who said so. Pure."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from ndxdp.errors import UsageError
from ndxdp.ndp.responder import (
    DEFAULT_PROFILE,
    LOOPBACK,
    UNSPECIFIED,
    V4_MAPPED,
    Answer,
    Match,
    NaSource,
    Profile,
)

HOST_ORIGIN = "host"
"""Source of the holes for the host's and the gateway's own addresses."""

MANUAL_ORIGIN = "manual"
"""Source of the rules of `ndxdp attach -n` and `ndxdp prefix add`."""

RUN_ORIGIN = "run"
"""Source of the rules of `ndxdp run -n`."""

CONFIG_ORIGIN = "config"
"""Source of the rules that the configuration file holds."""

DOCKER_ORIGIN = "docker"
"""Source of the rules for containers."""

RESERVED_ORIGINS = frozenset({HOST_ORIGIN, RUN_ORIGIN, CONFIG_ORIGIN, DOCKER_ORIGIN})
"""Sources whose rules no `ndxdp prefix` command writes."""

INTERFACE_MAX, ALTNAME_MAX = 15, 127
"""Bytes of an interface's name, and of an alternative one (ip link property)."""

ORIGIN_MAX, LABEL_MAX = 15, 47
"""Bytes of UTF-8 that the maps store of a rule's origin and of its label."""

VIA_MAX = 127
"""Bytes of UTF-8 that the maps store of all output interfaces of a rule, blanks between them."""

OWN_LABEL, GATEWAY_LABEL = OWNED_LABELS = ("own", "gateway")
"""Labels of the rules for addresses that the host owns, and for those that its gateways own."""


class Prefix(NamedTuple):
    """An IPv6 prefix: 16 bytes in network order with the host bits zero, and 0 to 128 bits."""

    address: bytes
    length: int

    def __str__(self) -> str:
        text = socket.inet_ntop(socket.AF_INET6, self.address)
        return text if self.length == 128 else f"{text}/{self.length}"

    @classmethod
    def around(cls, address: bytes, length: int) -> Prefix:
        """The prefix of `length` bits that an address (16 bytes) is in."""
        return cls(mask(address, length), length)


@dataclass(frozen=True, slots=True)
class AddressPattern:
    """Addresses that begin with the first bits of `address` (16 bytes), or end in its last bits.

    length: 0 to 128 bits from the beginning, or -1 to -127: as many bits from the end.
    """

    address: bytes
    length: int

    def __str__(self) -> str:
        text = socket.inet_ntop(socket.AF_INET6, self.address)
        return text if self.length == 128 else f"{text}/{self.length}"

    def matches(self, address: bytes) -> bool:
        """Return True if the pattern has this address (16 bytes)."""
        return self._bits(address) == self._bits(self.address)

    def covers(self, other: AddressPattern) -> bool:
        """Return True if this pattern has every address that `other` has."""
        return self._mask & other._mask == self._mask and self.matches(other.address)

    def cut_to(self, length: int) -> AddressPattern | None:
        """Return the pattern of this length that covers this one; None if none does."""
        bits = AddressPattern(self.address, length)._bits(self.address)
        cut = AddressPattern(bits.to_bytes(16, "big"), length)
        return cut if cut.covers(self) else None

    @property
    def _mask(self) -> int:
        if self.length < 0:
            return (1 << -self.length) - 1
        return (1 << 128) - (1 << 128 - self.length)

    def _bits(self, address: bytes) -> int:
        return int.from_bytes(address, "big") & self._mask


def mask(address: bytes, length: int) -> bytes:
    """The address with all but the first `length` bits cleared."""
    bits = 128 - length
    return (int.from_bytes(address, "big") >> bits << bits).to_bytes(16, "big")


def parse_address(text: str) -> bytes:
    """The 16 bytes of an IPv6 address; UsageError for anything else."""
    try:
        return socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        pass
    try:
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        raise UsageError(f"'{text}' is not an IPv6 address", "write it as in 2001:db8::1") from None
    raise UsageError(
        f"'{text}' is an IPv4 address", "Neighbor Discovery is IPv6's: IPv4 has ARP (proxy_arp)"
    )


def parse_prefix(text: str) -> Prefix:
    """`2001:db8::/64`, or an address alone, which is its /128.

    UsageError for host bits, IPv4, a mask that is no number from 0 to 128, and anything else.
    """
    head, slash, tail = text.partition("/")
    if not slash:
        return Prefix(parse_address(text), 128)
    address = parse_address(head)
    if not (tail.isascii() and tail.isdecimal() and len(tail) <= 3 and int(tail) <= 128):
        raise UsageError(
            f"'{text}' has no prefix length from 0 to 128", "write it as in 2001:db8::/64"
        )
    prefix = Prefix.around(address, int(tail))
    if prefix.address != address:
        raise UsageError(
            f"'{text}' has bits set behind the first {tail}",
            f"{prefix} is the prefix, {head} the address alone",
        )
    return prefix


def check_interface(name: str) -> None:
    """Raise UsageError for a text that can name no interface (Linux' dev_valid_name()).

    Patterns are refused, too, although the kernel would let an interface have such a name.
    """
    try:
        data = name.encode()
    except UnicodeEncodeError:  # it is not UTF-8, and could be written into no file or page
        data = b""
    # To the kernel the byte A0, which `à` has in UTF-8, is a blank, and %d stands for a number.
    if (
        not 1 <= len(data) <= ALTNAME_MAX
        or name in (".", "..")
        or re.search(rb"[/:%\s\xa0\0]", data)
    ):
        raise UsageError(f"'{name}' is no interface name", "see: ip -br link")
    if re.search(r"[*?[]", name):
        raise UsageError(
            f"'{name}' is a pattern, and one interface is to be named",
            "name each interface on its own: ip -br link",
        )


def parse_origin(text: str, *, writes: bool = False) -> str:
    """Return the source that --origin names.

    The names are those that wg-quick(8) takes for an interface, which so may be an origin.

    Args:
        text: What the user wrote.
        writes: True if rules are to be written for it, which the reserved ones refuse.

    Raises:
        UsageError: It is no source's name, or one that is reserved.
    """
    if not re.fullmatch(r"[\w=+.][\w=+.-]*", text, re.ASCII) or len(text) > ORIGIN_MAX:
        raise UsageError(
            f"'{text}' is no origin",
            f"a word of up to {ORIGIN_MAX} letters, digits, and any of _ = + . -",
        )
    if writes and text in RESERVED_ORIGINS:
        raise UsageError(
            f"rules of origin '{text}' are not written by `ndxdp prefix`",
            f"any name but {', '.join(sorted(RESERVED_ORIGINS))}",
        )
    return text


def parse_mac(text: str) -> bytes:
    """The 6 bytes of `02:00:5e:10:00:01`; UsageError for anything else and for group MACs."""
    if not re.fullmatch(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}", text):
        raise UsageError(f"'{text}' is not a MAC address", "write it as in 02:00:5e:10:00:01")
    mac = bytes(int(part, 16) for part in text.split(":"))
    if mac[0] & 1 or not any(mac):
        raise UsageError(f"'{text}' is no MAC that a host can have", "it must be a unicast one")
    return mac


def parse_unicast(text: str) -> bytes:
    """The 16 bytes of an address that a host can send from; UsageError for anything else."""
    address = parse_address(text)
    if address in (UNSPECIFIED, LOOPBACK) or address[0] == 0xFF or address[:12] == V4_MAPPED:
        raise UsageError(f"'{text}' is no source that a host can have", "it must be a unicast one")
    return address


def parse_source(text: str) -> NaSource | bytes:
    """A profile's source: `target`, `link-local`, or an address; UsageError for anything else."""
    known = {source.value: source for source in NaSource}
    return known[text] if text in known else parse_unicast(text)


@dataclass(frozen=True, slots=True)
class Rule:
    """What is answered for one prefix, and on whose word.

    origin: who wrote it; origins never delete each other's rules. label: what it is counted
    under, the configured prefix or the list that it came from. dynamic: it is no longer
    answered when the daemon's heartbeat is too old. owned: the host or the gateway owns the
    address, so that it is not answered whatever the rule says. dev: of an answer that asks the
    kernel: patterns of the interfaces by which a route may leave; () for any.
    """

    answer: Answer = Answer.ALWAYS
    profile: Profile = DEFAULT_PROFILE
    origin: str = MANUAL_ORIGIN
    label: str = ""
    dynamic: bool = False
    owned: bool = False
    dev: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", cut(self.origin, ORIGIN_MAX))
        object.__setattr__(self, "label", cut(self.label, LABEL_MAX))

    def same_words(self, other: Rule) -> bool:
        """Both say the same of a target, whoever wrote them and wherever they are counted."""
        return (self.answer, self.profile, self.dynamic, self.dev) == (
            other.answer,
            other.profile,
            other.dynamic,
            other.dev,
        )


def cut(text: str, size: int) -> str:
    """At most `size` bytes of UTF-8, not cut within a character."""
    return text.encode(errors="replace")[:size].decode(errors="ignore")


def hole(label: str) -> Rule:
    """The rule of an address that the host or its gateway owns."""
    return Rule(Answer.NEVER, origin=HOST_ORIGIN, label=label, owned=True)


def parse_via(texts: Iterable[str]) -> tuple[str, ...]:
    """Patterns of interface names: `docker0`, `br-*`, `vnet[0-9]`; UsageError for others."""
    patterns = tuple(dict.fromkeys(texts))
    for pattern in patterns:
        if not pattern or not pattern.isprintable() or re.search(r"[/:\s]", pattern):
            raise UsageError(f"'{pattern}' matches no interface's name", "as in docker0, or br-*")
    if len(" ".join(patterns).encode(errors="replace")) > VIA_MAX:
        raise UsageError(
            f"the interfaces of one rule take more than {VIA_MAX} bytes",
            "use a pattern, as in br-*",
        )
    return patterns


def leaves_by(name: str, via: tuple[str, ...]) -> bool:
    """Whether an interface's name matches one of the patterns; any does where there are none."""
    return not via or any(fnmatchcase(name, pattern) for pattern in via)


def parse_target(text: str) -> Prefix:
    """A prefix that solicitations can be for; no target is multicast, :: or ::1 (RFC 4861)."""
    prefix = parse_prefix(text)
    if prefix.length >= 8 and prefix.address[0] == 0xFF:
        raise UsageError(f"{prefix} is multicast: nobody solicits it", "name unicast addresses")
    if prefix.length == 128 and prefix.address in (UNSPECIFIED, LOOPBACK):
        raise UsageError(f"nobody solicits {prefix}", "name addresses behind this host")
    return prefix


def parse_pattern(text: str) -> AddressPattern:
    """Read a pattern of own addresses: `2001:db8::1`, `2001:db8::/64`, or `::1/-64`.

    The last one is every address whose last 64 bits are those of ::1. UsageError for anything
    else.
    """
    head, _, tail = text.partition("/")
    if not tail.startswith("-"):
        return AddressPattern(*parse_target(text))
    address, digits = parse_address(head), tail[1:]
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 3):
        digits = "0"
    length = int(digits)
    if not 1 <= length <= 128:
        raise UsageError(
            f"'{text}' has no suffix length from -1 to -128",
            "write it as in ::1/-64, which is every address whose last 64 bits are those of ::1",
        )
    if length == 128:
        return AddressPattern(*parse_target(head))
    if int.from_bytes(address, "big") >> length:
        last = (int.from_bytes(address, "big") & (1 << length) - 1).to_bytes(16, "big")
        raise UsageError(
            f"'{text}' has bits set before the last {length}",
            f"{AddressPattern(last, -length)} is the suffix, {head} the address alone",
        )
    return AddressPattern(address, -length)


class RuleClass(NamedTuple):
    """What rules share that are counted together: their writer, label and way of answering."""

    origin: str
    label: str
    profile: Profile
    dynamic: bool = False
    dev: tuple[str, ...] = ()

    @classmethod
    def of(cls, rule: Rule) -> RuleClass:
        """Return the group of a rule."""
        return cls(rule.origin, rule.label, rule.profile, rule.dynamic, rule.dev)


class Entry(NamedTuple):
    """A rule as a Table holds it: whole, and as ndp.decide() takes it."""

    rule: Rule
    match: Match


class Table:
    """Rules by longest prefix, for the userspace path and the tests: the most specific wins."""

    def __init__(
        self, exact: dict[bytes, Entry] | None = None, wider: Iterable[tuple[Prefix, Entry]] = ()
    ) -> None:
        """exact: by address (16 bytes), not copied. wider: all the others."""
        self._exact = exact or {}
        # For each length, longest first: how far an address is to be shifted, and the rules by
        # what is left of it.
        lengths: dict[int, dict[int, Entry]] = {}
        for prefix, entry in wider:
            bits = 128 - prefix.length
            lengths.setdefault(bits, {})[int.from_bytes(prefix.address, "big") >> bits] = entry
        self._lengths = sorted(lengths.items())

    @classmethod
    def of(
        cls,
        rules: Mapping[Prefix, Rule],
        *,
        rule_class: Callable[[Rule], int] = lambda rule: 0,
        expired: bool = False,
    ) -> Table:
        """Return the table of these rules.

        Args:
            rules: The rules by prefix.
            rule_class: Returns the number of a rule's class.
            expired: True if dynamic rules no longer apply.
        """
        known: dict[tuple[int, bool], Entry] = {}
        exact: dict[bytes, Entry] = {}
        wider: list[tuple[Prefix, Entry]] = []
        for prefix, rule in rules.items():
            is_exact = prefix.length == 128
            entry = known.get((id(rule), is_exact))
            if entry is None:
                entry = entry_of(rule, rule_class(rule), expired=expired, exact=is_exact)
                known[id(rule), is_exact] = entry
            if is_exact:
                exact[prefix.address] = entry
            else:
                wider.append((prefix, entry))
        return cls(exact, wider)

    def lookup(self, target: bytes) -> tuple[Prefix, Rule] | None:
        """The most specific prefix of a target (16 bytes) and its rule."""
        entry = self._exact.get(target)
        if entry is not None:
            return Prefix(target, 128), entry.rule
        address = int.from_bytes(target, "big")
        for bits, rules in self._lengths:
            entry = rules.get(address >> bits)
            if entry is not None:
                return Prefix.around(target, 128 - bits), entry.rule
        return None

    def match(self, target: bytes) -> Match | None:
        """The same, as ndp.decide() takes it."""
        entry = self._exact.get(target)
        if entry is not None:
            return entry[1]
        address = int.from_bytes(target, "big")
        for bits, rules in self._lengths:
            entry = rules.get(address >> bits)
            if entry is not None:
                return entry[1]
        return None


def entry_of(rule: Rule, rule_class: int, *, expired: bool, exact: bool) -> Entry:
    """Make a Table's entry.

    Args:
        rule: The rule.
        rule_class: The number that it is counted under.
        expired: True if dynamic rules no longer hold.
        exact: True for a rule of one address, False for a prefix's.
    """
    lapsed = expired and rule.dynamic
    return Entry(
        rule, Match(rule.answer, rule.profile, rule.owned, lapsed, rule_class, rule.dev, exact)
    )
