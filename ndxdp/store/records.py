"""What the maps hold, in Python's terms: settings, groups, rules, counts, verdicts."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ndxdp.errors import Damaged
from ndxdp.kernel import abi
from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.ndp.limiter import Limits, Rate
from ndxdp.ndp.profile import Answer, NaSource, Profile
from ndxdp.ndp.reason import Reason
from ndxdp.rules.rule import Rule, RuleClass, cut

log = logging.getLogger(__name__)

_STEPS_MAX = 255
_ORIGIN_AT = abi.RULE_CLASS.offsets()["origin"][0]
_NOTHING_TO_RESTORE = abi.Restore(0)


@dataclass(frozen=True, slots=True)
class Settings:
    """struct ndp_settings. Times in ns of CLOCK_MONOTONIC; netns is an inode number."""

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
    steps: str = ""
    """`mode: why not`, a line for each better mode that could not be had."""

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
        """Answers at once to one soliciting MAC; 0 without a limit."""
        return self.rate_credit // self.rate_interval + 1 if self.rate_interval else 0

    @property
    def daemon_dead(self) -> bool:
        """Dynamic rules are no longer answered: no heartbeat for too long."""
        if not self.heartbeat_timeout:
            return False
        return time.monotonic_ns() - self.heartbeat > self.heartbeat_timeout

    def pack(self) -> bytes:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return abi.SETTINGS.pack(**fields | {"steps": cut(self.steps, _STEPS_MAX).encode()})

    @classmethod
    def unpack(cls, data: bytes) -> Settings:
        fields = abi.SETTINGS.unpack(data)
        del fields["reserved"], fields["reserved1"]
        fields["mode"] = abi.Mode(fields["mode"] or abi.Mode.USERSPACE)  # 0: a file just made
        fields["restore"] = abi.Restore(fields["restore"])
        steps = _text(fields["steps"])
        flags = {name: bool(fields[name]) for name in ("paused", "solicits", "bcc")}
        return cls(**fields | flags | {"steps": steps})


_NA_SOURCE_CODES: dict[NaSource | bytes, abi.NaSourceCode] = {
    NaSource.TARGET: abi.NaSourceCode.TARGET,
    NaSource.LINK_LOCAL: abi.NaSourceCode.LINK_LOCAL,
}


def pack_rule_class(group: RuleClass) -> bytes:
    """Return an abi.RULE_CLASS for a slot."""
    profile = group.profile
    flags = abi.ClassFlag(0)
    for flag, value in (
        (abi.ClassFlag.ROUTER, profile.router),
        (abi.ClassFlag.OVERRIDE, profile.override),
        (abi.ClassFlag.DEFEND, profile.defend),
        (abi.ClassFlag.LLADDR, profile.lladdr is not None),
        (abi.ClassFlag.DYNAMIC, group.dynamic),
        (abi.ClassFlag.DEV, bool(group.dev)),
    ):
        flags |= flag if value else 0
    is_address = isinstance(profile.source, bytes)
    return abi.RULE_CLASS.pack(
        na_source=_NA_SOURCE_CODES.get(profile.source, abi.NaSourceCode.ADDRESS),
        flags=flags,
        lladdr=profile.lladdr or b"",
        address=profile.source if is_address else b"",
        origin=group.origin.encode(),
        label=group.label.encode(),
        dev=" ".join(group.dev).encode(),
    )


def unpack_rule_class(data: bytes) -> RuleClass | None:
    """Read an abi.RULE_CLASS; None for a free slot."""
    if not data[_ORIGIN_AT]:
        return None
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
        tuple(_text(fields["dev"]).split()),
    )


class RuleCount(NamedTuple):
    """How many rules there are: in all, of each source, and of each group that has any, by slot."""

    addresses: int
    prefixes: int
    by_origin: dict[str, int]
    by_slot: dict[int, int]


class Solicitors(NamedTuple):
    """Soliciting MACs that the limiter remembers, and those of them that are over their rate."""

    remembered: int
    limited: int


class ClassCount(NamedTuple):
    """Solicitations that reached a rule of a group, and how many of them were answered.

    last_answer: when, ns of CLOCK_MONOTONIC to within a second; None if there was none. rules: how
    many the group has now. One whose rules are gone keeps its counters until its slot is needed.
    """

    source: str
    label: str
    solicited: int
    answered: int
    last_answer: int | None
    rules: int


class Resolved(NamedTuple):
    """What became of the solicitations for neighbours that were not known.

    asked: neighbours that the kernel was asked to find; failed: those that it did not find.
    answered: advertisements sent. refused: requests that found no place among those that wait.
    """

    asked: int = 0
    answered: int = 0
    failed: int = 0
    refused: int = 0


class Traced(NamedTuple):
    """Solicitations while somebody traced, and events that found no room."""

    seen: int
    lost: int


class Explained(NamedTuple):
    """The verdict on a dry run, and the rule that matched, if one did."""

    reason: Reason
    prefix_len: int | None
    rule: Rule | None


def explained_of(verdict: bytes, groups: Mapping[int, RuleClass]) -> Explained:
    """What an abi.EXPLAINED says; Damaged if it names a group that is not there."""
    fields = abi.EXPLAINED.unpack(verdict)
    reason = Reason(fields["reason"])
    if not fields["matched"]:
        return Explained(reason, None, None)
    return Explained(reason, fields["prefix_len"], rule_of(fields, groups))


def rule_of(fields: Mapping[str, Any], groups: Mapping[int, RuleClass]) -> Rule:
    group = groups.get(fields["rule_class"])
    if group is None or fields["answer"] not in set(Answer):
        raise damaged(f"a rule says {fields}")
    return Rule(
        Answer(fields["answer"]),
        group.profile,
        group.origin,
        group.label,
        group.dynamic,
        bool(fields["flags"] & abi.RuleFlag.OWNED),
        group.dev,
    )


def damaged(what: str) -> Damaged:
    log.debug("%s", what)
    return Damaged(
        "the maps hold what ndxdp did not write", "detach the interface, attach it again"
    )


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")
