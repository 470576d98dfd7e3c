"""Differences and merges of rule sets. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from ndxdp.errors import NdxdpError
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import CONFIG_ORIGIN, HOST_ORIGIN, RESERVED_ORIGINS, Rule, owned_rule
from ndxdp.rules.ruleset import Rules

# ---- desired and actual -------------------------------------------------------------------------


class Difference(NamedTuple):
    """What makes `actual` into `desired`: rules to write (new or changed), and to remove."""

    write: Rules
    remove: Rules

    def __bool__(self) -> bool:
        return bool(self.write or self.remove)

    def applied_to(self, actual: Rules) -> Rules:
        return actual.without(self.remove) | self.write


def difference(desired: Mapping[Prefix, Rule], actual: Mapping[Prefix, Rule]) -> Difference:
    """The least that has to be touched; an unchanged rule is not."""
    desired, actual = Rules.of(desired), Rules.of(actual)
    return Difference(desired.different_from(actual), actual.without(desired))


def merge(
    rules: Mapping[Prefix, Rule], actual: Mapping[Prefix, Rule], *, replacing: bool = False
) -> Rules:
    """Return `actual` with `rules` added.

    A rule that is there with the same words stays as it is, whoever wrote it. A rule for an
    address that the host owns is held from the start.

    Args:
        rules: The rules to add.
        actual: The rules that are there.
        replacing: True if a rule of the same source with other words is to be changed.

    Raises:
        NdxdpError: A prefix has a rule with other words, which is not to be changed.
    """
    rules, actual = Rules.of(rules), Rules.of(actual)
    changed: dict[Prefix, Rule] = {}
    for prefix, rule, there in rules.paired_with(actual):
        if there.origin == HOST_ORIGIN:
            changed[prefix] = replace(rule, owned=True)
        elif there.is_equivalent_to(rule):
            continue
        elif there.origin != rule.origin:
            raise _conflict(prefix, there, _hint_for(there.origin))
        elif replacing:
            changed[prefix] = replace(rule, owned=there.owned)
        else:
            raise _conflict(prefix, there, "`ndxdp prefix replace` changes it")
    return rules | actual | changed


def _conflict(prefix: Prefix, there: Rule, hint: str) -> NdxdpError:
    return NdxdpError(
        f"{prefix} has a rule already: {there.answer.name.lower()}, by '{there.origin}'", hint
    )


def _hint_for(source: str) -> str:
    """Return the hint on how to change a rule that another source has written."""
    if source in RESERVED_ORIGINS:
        return "ndxdp prefix list shows it; remove it there where it comes from"
    return f"if it is yours to change: ndxdp prefix replace --origin {source}"


def resolve_conflicts(rules: Rules, others: Rules, source: str) -> tuple[Rules, Rules]:
    """Settle which rules of a daemon and which of others there are to be.

    A rule in the same words is taken over by the daemon, whoever wrote it. Where both say different
    things of a prefix the configuration yields, and a command line is refused later (merged()).

    Args:
        rules: The daemon's rules.
        others: The rules that others have written.
        source: The source of the daemon's rules.

    Returns:
        The daemon's rules and those of others, less what is taken over and what yields.
    """
    others = others.without(rules.equivalent_in(others))
    if source == CONFIG_ORIGIN:
        rules = rules.without(others.where(lambda rule: rule.origin != HOST_ORIGIN))
    return rules, others


def mark_owned(owned: Mapping[Prefix, str], actual: Mapping[Prefix, Rule]) -> Difference:
    """What keeps the holes in step with the addresses that the host and the gateway own.

    owned: exact addresses and why each is owned. A rule that somebody else wrote for such an
    address stays and is marked held, so that it comes back when the address goes; where there
    is none a hole is made.
    """
    actual = Rules.of(actual)
    concerned = dict(actual.where(lambda rule: rule.owned or rule.origin == HOST_ORIGIN).pairs())
    for prefix in owned:
        rule = actual.get(prefix)
        if rule is not None:
            concerned[prefix] = rule
    desired = {
        prefix: replace(rule, owned=prefix in owned)
        for prefix, rule in concerned.items()
        if rule.origin != HOST_ORIGIN
    }
    for prefix, why in owned.items():
        desired.setdefault(prefix, owned_rule(why))
    return difference(desired, concerned)


def merge_owned(
    rules: Mapping[Prefix, Rule], kept: Mapping[Prefix, Rule], owned: Mapping[Prefix, str]
) -> Rules:
    """merged(), with the holes for what is owned in step (see hold())."""
    desired = merge(rules, kept)
    return mark_owned(owned, desired).applied_to(desired)
