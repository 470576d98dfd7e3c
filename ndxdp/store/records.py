"""Records of the maps as Python objects: settings, rule classes, rules, counters, verdicts."""

from __future__ import annotations

import logging
import struct
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, NamedTuple

from ndxdp.errors import Damaged
from ndxdp.kernel import abi
from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.ndp.limiter import Limits, Rate
from ndxdp.ndp.profile import DEFAULT_PROFILE, Answer, NaSource, Profile
from ndxdp.ndp.reason import Reason
from ndxdp.rules.rule import UNCOUNTED, Rule, RuleClass, cut

log = logging.getLogger(__name__)

_REFUSALS_MAX = 255
_U64_MAX = (1 << 64) - 1
ORIGIN_AT, _ORIGIN_SIZE = abi.RULE_CLASS.offsets()["origin"]
"""The offset of the origin in an abi.RULE_CLASS; the first byte of it is 0 in a free slot."""
_LABEL_AT = abi.RULE_CLASS.offsets()["label"][0]
_DEV_SET_AT = abi.RULE_CLASS.offsets()["dev_set"][0]
_NOTHING_TO_RESTORE = abi.Restore(0)
_UNCOUNTED = UNCOUNTED.encode() + b"\0"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of an interface, struct ndp_settings.

    Times are in ns of CLOCK_MONOTONIC.

    Attributes:
        netns: The inode number of the network namespace.
        refusals: The better modes that are unavailable, as modes.encode() formats them.
    """

    mac: bytes
    ifindex: int
    netns: int
    mode: abi.Mode
    link_local: bytes = UNSPECIFIED
    paused: bool = False
    solicits: bool = False
    heartbeat: int = 0
    heartbeat_timeout: int = 0
    rate_interval: int = 0
    rate_credit: int = 0
    total_interval: int = 0
    total_credit: int = 0
    gateway_interval: int = 0
    gateway_credit: int = 0
    resolve_interval: int = 0
    resolve_credit: int = 0
    resolve_total_interval: int = 0
    resolve_total_credit: int = 0
    resolve_gateway_interval: int = 0
    resolve_gateway_credit: int = 0
    trace_until: int = 0
    trace_every: int = 0
    l3_ifindex: int = 0
    restore: abi.Restore = _NOTHING_TO_RESTORE
    bcc: bool = False
    refusals: str = ""

    @property
    def limits(self) -> Limits:
        """The limits on answers."""
        return Limits(
            Rate(self.rate_interval, self.rate_credit),
            Rate(self.total_interval, self.total_credit),
            Rate(self.gateway_interval, self.gateway_credit),
        )

    @property
    def burst(self) -> int:
        """How many answers one soliciting MAC can get at once; 0 without a limit."""
        return self.rate_credit // self.rate_interval + 1 if self.rate_interval else 0

    @property
    def daemon_dead(self) -> bool:
        """True if dynamic rules have expired: the last heartbeat is older than the timeout."""
        if not self.heartbeat_timeout:
            return False
        return time.monotonic_ns() - self.heartbeat > self.heartbeat_timeout

    def pack(self) -> bytes:
        """Encode the settings as a struct ndp_settings."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return abi.SETTINGS.pack(
            **fields | {"refusals": cut(self.refusals, _REFUSALS_MAX).encode()}
        )

    @classmethod
    def unpack(cls, data: bytes) -> Settings:
        """Decode a struct ndp_settings; raise ValueError for an unknown mode."""
        fields = abi.SETTINGS.unpack(data)
        del fields["reserved"], fields["reserved1"]
        fields["mode"] = abi.Mode(fields["mode"] or abi.Mode.USERSPACE)  # 0 in a file just created
        fields["restore"] = abi.Restore(fields["restore"])
        refusals = _text(fields["refusals"])
        flags = {name: bool(fields[name]) for name in ("paused", "solicits", "bcc")}
        return cls(**fields | flags | {"refusals": refusals})


_NA_SOURCE_CODES: dict[NaSource | bytes, abi.NaSourceCode] = {
    NaSource.TARGET: abi.NaSourceCode.TARGET,
    NaSource.LINK_LOCAL: abi.NaSourceCode.LINK_LOCAL,
}


def pack_rule_class(rule_class: RuleClass, dev_set: int = 0) -> bytes:
    """Encode a rule class as an abi.RULE_CLASS.

    Args:
        rule_class: The class.
        dev_set: The number of its output interfaces in the map `dev_sets`; 0 if it has none.
    """
    profile = rule_class.profile
    flags = abi.ClassFlag(0)
    for flag, value in (
        (abi.ClassFlag.ROUTER, profile.router),
        (abi.ClassFlag.OVERRIDE, profile.override),
        (abi.ClassFlag.DEFEND, profile.defend),
        (abi.ClassFlag.LLADDR, profile.lladdr is not None),
        (abi.ClassFlag.DYNAMIC, rule_class.dynamic),
        (abi.ClassFlag.DEV, bool(rule_class.dev)),
        (abi.ClassFlag.LEASED, rule_class.leased),
    ):
        flags |= flag if value else 0
    is_address = isinstance(profile.source, bytes)
    return abi.RULE_CLASS.pack(
        na_source=_NA_SOURCE_CODES.get(profile.source, abi.NaSourceCode.ADDRESS),
        flags=flags,
        lladdr=profile.lladdr or b"",
        address=profile.source if is_address else b"",
        dev_set=dev_set,
        origin=rule_class.origin.encode(),
        label=rule_class.label.encode(),
    )


def is_free(data: bytes) -> bool:
    """Return True if an abi.RULE_CLASS is that of a free slot."""
    return not data[ORIGIN_AT]


def origin_of(data: bytes) -> str:
    """Return the origin of an abi.RULE_CLASS, in a tenth of the time of unpack_rule_class()."""
    return _text(data[ORIGIN_AT : ORIGIN_AT + _ORIGIN_SIZE])


def label_of(data: bytes) -> str:
    """Return the label of an abi.RULE_CLASS, in a tenth of the time of unpack_rule_class()."""
    return _text(data[_LABEL_AT:])


def is_uncounted(data: bytes) -> bool:
    """Return True if the rules of an abi.RULE_CLASS are not counted by themselves."""
    return data.startswith(_UNCOUNTED, _LABEL_AT)


def dev_set_of(data: bytes) -> int:
    """Return the number of a rule class's output interfaces; 0 if the class has none."""
    return int.from_bytes(data[_DEV_SET_AT : _DEV_SET_AT + 4], sys.byteorder)


def unpack_rule_class(data: bytes, dev_sets: Mapping[int, tuple[str, ...]]) -> RuleClass:
    """Decode an abi.RULE_CLASS, which is not that of a free slot.

    Args:
        data: The rule class.
        dev_sets: Output interfaces by their number.

    Raises:
        Damaged: The number is unknown.
    """
    number = dev_set_of(data)
    if number and number not in dev_sets:
        raise damaged(f"a rule class refers to the output interfaces {number}, which are missing")
    fields = abi.RULE_CLASS.unpack(data)
    flags = abi.ClassFlag(fields["flags"])
    na_source: NaSource | bytes = fields["address"]
    for known, code in _NA_SOURCE_CODES.items():
        na_source = known if fields["na_source"] == code else na_source
    profile = Profile(
        na_source,
        router=bool(flags & abi.ClassFlag.ROUTER),
        override=bool(flags & abi.ClassFlag.OVERRIDE),
        defend=bool(flags & abi.ClassFlag.DEFEND),
        lladdr=fields["lladdr"] if flags & abi.ClassFlag.LLADDR else None,
    )
    return RuleClass(
        _text(fields["origin"]),
        _text(fields["label"]),
        profile,
        bool(flags & abi.ClassFlag.DYNAMIC),
        dev_sets[number] if number else (),
        bool(flags & abi.ClassFlag.LEASED),
    )


ENDED = pack_rule_class(RuleClass("(ended)", "(ended)", DEFAULT_PROFILE))
"""The class that has no rules, and to whose counters those of a class beyond the first ones are
added when its slot is used again. No origin of rules has parentheses."""


def pack_dev_set(dev: tuple[str, ...]) -> bytes:
    """Encode patterns of output interfaces as an abi.DEV_SET."""
    return abi.DEV_SET.pack(patterns=" ".join(dev).encode())


def unpack_dev_set(data: bytes) -> tuple[str, ...]:
    """Decode an abi.DEV_SET."""
    return tuple(_text(data).split())


class RuleCount(NamedTuple):
    """How many rules there are.

    Attributes:
        addresses: Rules of exact addresses.
        prefixes: Rules of wider prefixes.
        by_origin: Rules by their origin.
        by_slot: Rules by the slot of their rule class.
        classes: The rule classes by slot as abi.RULE_CLASS, those without rules included.
    """

    addresses: int
    prefixes: int
    by_origin: dict[str, int]
    by_slot: dict[int, int]
    classes: dict[int, bytes]


def sum_of_counters(values: Iterable[bytes]) -> bytes:
    """Return the sum of abi.CLASS_COUNT of several classes, for each CPU."""
    every = [memoryview(value).cast("Q") for value in values]
    added = [
        max(numbers) if n % 3 == 2 else sum(numbers) & _U64_MAX
        for n, numbers in enumerate(zip(*every, strict=True))
    ]
    return struct.pack(f"={len(added)}Q", *added)


class FurtherCount(NamedTuple):
    """The counters of all rule classes beyond abi.FIRST_RULE_CLASSES together.

    They include the classes that had rules and have none now, and so they never decrease.

    Attributes:
        classes: How many of the classes have rules now.
        solicited: Solicitations that a rule of the classes matched.
        answered: How many of them were answered.
        last_answer: As in ClassCount.
    """

    classes: int
    solicited: int
    answered: int
    last_answer: int | None


class Solicitors(NamedTuple):
    """How many soliciting MACs the limiter knows, and how many of them exceed their rate."""

    remembered: int
    limited: int


class ClassCount(NamedTuple):
    """The counters of a rule class. They stay until the slot is needed for another class.

    Attributes:
        source: The origin of the rules; the name is that of the JSON field.
        label: The label of the rules.
        solicited: Solicitations that a rule of the class matched.
        answered: How many of them were answered.
        last_answer: The time of the last answer, ns of CLOCK_MONOTONIC to within a second; None
            if there was no answer.
        rules: How many rules the class has now.
    """

    source: str
    label: str
    solicited: int
    answered: int
    last_answer: int | None
    rules: int


class Resolved(NamedTuple):
    """The counters of the resolution of unknown neighbours.

    Attributes:
        asked: Neighbours that the kernel was asked to resolve.
        answered: Advertisements sent.
        failed: Neighbours that the kernel did not find.
        refused: Requests dropped because too many were waiting.
    """

    asked: int = 0
    answered: int = 0
    failed: int = 0
    refused: int = 0


class Traced(NamedTuple):
    """How many solicitations tracers could see, and how many events had no room in the buffer."""

    seen: int
    lost: int


class Explained(NamedTuple):
    """The verdict of a dry run, and the rule that matched, if there was one."""

    reason: Reason
    prefix_len: int | None
    rule: Rule | None


def explained_of(verdict: bytes, classes: Mapping[int, RuleClass]) -> Explained:
    """Decode an abi.EXPLAINED; raise Damaged if it refers to an unknown rule class."""
    fields = abi.EXPLAINED.unpack(verdict)
    reason = Reason(fields["reason"])
    if not fields["matched"]:
        return Explained(reason, None, None)
    return Explained(reason, fields["prefix_len"], rule_of(fields, classes))


def rule_of(fields: Mapping[str, Any], classes: Mapping[int, RuleClass]) -> Rule:
    """Return the rule of an abi.RULE; raise Damaged if its class or its answer is unknown."""
    rule_class = classes.get(fields["rule_class"])
    if rule_class is None or fields["answer"] not in set(Answer):
        raise damaged(f"invalid rule: {fields}")
    note = PauseNote((fields.get("reserved") or b"\0")[0])
    owned = bool(fields["flags"] & abi.RuleFlag.OWNED)
    return Rule(
        Answer(fields["answer"]),
        rule_class.profile,
        rule_class.origin,
        rule_class.label,
        rule_class.dynamic,
        PauseNote.OWNED in note if note else owned,
        rule_class.dev,
        PauseNote.PAUSED in note,
        rule_class.leased,
    )


class PauseNote(IntFlag):
    """The first of the reserved bytes of an abi.RULE, which the program does not read.

    A rule that is paused has RuleFlag.OWNED, so that every program passes its solicitations on.
    """

    PAUSED = 1
    """The rule is paused."""
    OWNED = 2
    """Beside PAUSED: the host or a gateway owns the address, too."""


def pause_note(rule: Rule) -> bytes:
    """Return the reserved bytes of a rule's abi.RULE."""
    if not rule.paused:
        return b""
    return bytes((PauseNote.PAUSED | (PauseNote.OWNED if rule.owned else 0),))


def damaged(detail: str) -> Damaged:
    """Return the error for unknown contents of the maps; log the detail at debug level."""
    log.debug("%s", detail)
    return Damaged(
        "the maps hold what ndxdp did not write", "detach the interface, attach it again"
    )


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")
