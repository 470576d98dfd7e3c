"""A rule: when and how to answer for a prefix, and the origin of that decision. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from ndxdp.errors import UsageError
from ndxdp.ndp.profile import DEFAULT_PROFILE, Answer, NaSource, Profile
from ndxdp.rules.address import parse_unicast

HOST_ORIGIN = "host"
"""Origin of the rules for addresses that the host or its gateway owns."""

MANUAL_ORIGIN = "manual"
"""Origin of the rules of `ndxdp attach -n` and `ndxdp prefix add`."""

RUN_ORIGIN = "run"
"""Origin of the rules of `ndxdp run -n`."""

CONFIG_ORIGIN = "config"
"""Origin of the rules in the configuration file."""

DOCKER_ORIGIN = "docker"
"""Origin of the rules for containers."""

SHARE_ORIGIN = "share"
"""Origin of the rules of a share: a prefix on both sides of this host."""

ETCD_ORIGIN = "etcd"
"""Origin of the rules that etcd has for this host."""

SHARED_ORIGIN = "shared"
"""Origin of the rules for addresses that exactly one of several hosts answers for."""

PAUSE_ORIGIN = "pause"
"""Origin of the rules that note what `ndxdp pause` has paused (rules/pausing.py)."""

RESERVED_ORIGINS = frozenset(
    {
        HOST_ORIGIN,
        RUN_ORIGIN,
        CONFIG_ORIGIN,
        DOCKER_ORIGIN,
        SHARE_ORIGIN,
        ETCD_ORIGIN,
        SHARED_ORIGIN,
        PAUSE_ORIGIN,
    }
)
"""Origins whose rules no `ndxdp prefix` command writes."""

ORIGIN_MAX, LABEL_MAX = 15, 47
"""Bytes of UTF-8 that the maps store of a rule's origin and of its label."""

UNCOUNTED = "(not counted)"
"""The label of all rules that are not counted by themselves. They share rule classes."""

OWN_LABEL, GATEWAY_LABEL = OWNED_LABELS = ("own", "gateway")
"""Labels of the rules for addresses that the host owns, and for those that its gateways own."""


def parse_origin(text: str, *, writes: bool = False) -> str:
    """Validate the name of an origin, as in --origin.

    Every interface name that wg-quick(8) accepts is a valid origin.

    Args:
        text: The name.
        writes: True if the command writes rules of this origin, which must not be reserved.

    Raises:
        UsageError: The name is not valid, or is reserved.
    """
    if not re.fullmatch(r"[\w=+.][\w=+.-]*", text, re.ASCII) or len(text) > ORIGIN_MAX:
        raise UsageError(
            f"'{text}' is no origin",
            f"use a word of up to {ORIGIN_MAX} letters, digits, and any of _ = + . -",
        )
    if writes and text in RESERVED_ORIGINS:
        raise UsageError(
            f"rules of origin '{text}' are not written by `ndxdp prefix`",
            f"use any name but {', '.join(sorted(RESERVED_ORIGINS))}",
        )
    return text


def parse_source(text: str) -> NaSource | bytes:
    """Parse the source of advertisements: `target`, `link-local`, or a unicast address.

    Raises:
        UsageError: The text is neither.
    """
    known = {source.value: source for source in NaSource}
    return known[text] if text in known else parse_unicast(text)


@dataclass(frozen=True, slots=True)
class Rule:
    """When and how to answer for one prefix.

    Attributes:
        answer: When to answer.
        profile: What the advertisements contain.
        origin: Who wrote the rule. Only `run` takes over the rules of another origin, if they
            are the same.
        label: The name that the rule is counted under: the configured prefix, or the list.
        dynamic: True if the rule expires when the heartbeat of its daemon stops.
        owned: True if the host or its gateway owns the address; the rule is then not applied.
        dev: Patterns of the interfaces that a route may leave by, where the answer depends on
            routes; () for any interface.
        paused: True if the rule is paused by its class or prefix; it is then not applied.
        leased: True if the rule ends when the host's lease lapses, whatever the daemon does.
    """

    answer: Answer = Answer.ALWAYS
    profile: Profile = DEFAULT_PROFILE
    origin: str = MANUAL_ORIGIN
    label: str = ""
    dynamic: bool = False
    owned: bool = False
    dev: tuple[str, ...] = ()
    paused: bool = False
    leased: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", cut(self.origin, ORIGIN_MAX))
        object.__setattr__(self, "label", cut(self.label, LABEL_MAX))

    @property
    def effect(self) -> tuple[object, ...]:
        """How the rule answers, as a key; origin, label, `owned` and `paused` do not count."""
        return self.answer, self.profile, self.dynamic, self.dev, self.leased

    @property
    def is_applied(self) -> bool:
        """True unless the rule is owned or paused, so that nothing is answered by it."""
        return not (self.owned or self.paused)

    def is_equivalent_to(self, other: Rule) -> bool:
        """Return True if both rules answer alike; origin, label and `owned` may differ."""
        return self.effect == other.effect


def cut(text: str, size: int) -> str:
    """Return the first characters of a text that fit into `size` bytes of UTF-8."""
    return text.encode(errors="replace")[:size].decode(errors="ignore")


def owned_rule(label: str) -> Rule:
    """Return the rule for an address that the host or its gateway owns; label: the owner."""
    return Rule(Answer.NEVER, origin=HOST_ORIGIN, label=label, owned=True)


class RuleClass(NamedTuple):
    """The class of a rule: rules of one class share a profile and are counted together."""

    origin: str
    label: str
    profile: Profile
    dynamic: bool = False
    dev: tuple[str, ...] = ()
    leased: bool = False

    @classmethod
    def of(cls, rule: Rule) -> RuleClass:
        """Return the class of a rule."""
        return cls(rule.origin, rule.label, rule.profile, rule.dynamic, rule.dev, rule.leased)
