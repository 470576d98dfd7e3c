"""Differences between rule sets, merging, and marking of owned addresses. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from ndxdp.errors import NdxdpError
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import CONFIG_ORIGIN, HOST_ORIGIN, RESERVED_ORIGINS, Rule, owned_rule
from ndxdp.rules.ruleset import Rules


class Difference(NamedTuple):
    """The change from one rule set to another.

    Attributes:
        write: The rules that are new or different.
        remove: The rules that the other set lacks.
    """

    write: Rules
    remove: Rules

    def __bool__(self) -> bool:
        """Return True if there is anything to change."""
        return bool(self.write or self.remove)

    def applied_to(self, actual: Rules) -> Rules:
        """Return a rule set after the change."""
        return actual.without(self.remove) | self.write


def difference(desired: Mapping[Prefix, Rule], actual: Mapping[Prefix, Rule]) -> Difference:
    """Return the smallest change that turns `actual` into `desired`."""
    desired, actual = Rules.of(desired), Rules.of(actual)
    return Difference(desired.different_from(actual), actual.without(desired))


def merge(
    rules: Mapping[Prefix, Rule], actual: Mapping[Prefix, Rule], *, replacing: bool = False
) -> Rules:
    """Merge rules into a rule set.

    An equivalent rule stays as it is, whatever its origin. A new rule for an address that the host
    owns is marked as owned.

    Args:
        rules: The rules to add.
        actual: The rule set.
        replacing: True if a rule of the same origin may be replaced by a different rule.

    Raises:
        NdxdpError: A prefix has a different rule that may not be replaced.
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


def _hint_for(origin: str) -> str:
    """Return the hint on how to change a rule of another origin."""
    if origin in RESERVED_ORIGINS:
        return "ndxdp prefix list shows it; remove it where it was added"
    return f"if it is yours to change: ndxdp prefix replace --origin {origin}"


def resolve_conflicts(rules: Rules, others: Rules, origin: str) -> tuple[Rules, Rules]:
    """Resolve conflicts between the rules of a daemon and rules of other origins.

    The daemon takes over an equivalent rule of another origin. Where the rules for a prefix differ,
    the rule of the other origin stays if the daemon's rules come from the configuration; for the
    rules of a command line merge() raises an error later.

    Args:
        rules: The daemon's rules.
        others: The rules of other origins.
        origin: The origin of the daemon's rules.

    Returns:
        The daemon's rules and the rules of other origins that remain.
    """
    others = others.without(rules.equivalent_in(others))
    if origin == CONFIG_ORIGIN:
        rules = rules.without(others.where(lambda rule: rule.origin != HOST_ORIGIN))
    return rules, others


def mark_owned(owned: Mapping[Prefix, str], actual: Mapping[Prefix, Rule]) -> Difference:
    """Return the change that marks exactly the owned addresses in a rule set.

    A rule of another origin for an owned address is kept and marked as owned, so that it applies
    again when the address is removed. An owned address without a rule gets owned_rule().

    Args:
        owned: The owned addresses as /128 prefixes, with the label of the owner.
        actual: The rule set.
    """
    actual = Rules.of(actual)
    concerned = dict(actual.where(lambda rule: rule.owned or rule.origin == HOST_ORIGIN).pairs())
    concerned.update(actual.at(owned).pairs())
    desired = {
        prefix: replace(rule, owned=prefix in owned)
        for prefix, rule in concerned.items()
        if rule.origin != HOST_ORIGIN
    }
    for prefix, label in owned.items():
        desired.setdefault(prefix, owned_rule(label))
    return difference(desired, concerned)


def merge_owned(
    rules: Mapping[Prefix, Rule], kept: Mapping[Prefix, Rule], owned: Mapping[Prefix, str]
) -> Rules:
    """Merge rules into a rule set and mark the owned addresses; see merge() and mark_owned()."""
    desired = merge(rules, kept)
    return mark_owned(owned, desired).applied_to(desired)
