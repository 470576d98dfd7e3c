"""Rules: which targets are answered for, how, and who said so. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from ndxdp.errors import UsageError
from ndxdp.ndp.profile import DEFAULT_PROFILE, Answer, NaSource, Profile
from ndxdp.rules.address import parse_unicast

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

ORIGIN_MAX, LABEL_MAX = 15, 47
"""Bytes of UTF-8 that the maps store of a rule's origin and of its label."""

OWN_LABEL, GATEWAY_LABEL = OWNED_LABELS = ("own", "gateway")
"""Labels of the rules for addresses that the host owns, and for those that its gateways own."""


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

    def is_equivalent_to(self, other: Rule) -> bool:
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


def owned_rule(label: str) -> Rule:
    """The rule of an address that the host or its gateway owns."""
    return Rule(Answer.NEVER, origin=HOST_ORIGIN, label=label, owned=True)


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
