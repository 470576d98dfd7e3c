"""A rule set that follows many small changes. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules


class RuleOfKey(NamedTuple):
    """A rule that a key makes.

    Attributes:
        rule: The rule.
        force: The rule is accepted although it answers for other nodes of the link.
    """

    rule: Rule
    force: bool


class ChangingRules:
    """The rules that keys make. A commit costs work for the prefixes that were touched only.

    Attributes:
        rules: The rules as of the last commit().
        forced: The prefixes of those of them that have `force`.
    """

    def __init__(self, rule_of: Callable[[Prefix], RuleOfKey | None]) -> None:
        """Have no rules yet.

        Args:
            rule_of: Returns the rule that a prefix has now; None if it has none.
        """
        self._rule_of = rule_of
        self._touched: set[Prefix] = set()
        self.rules = Rules()
        self.forced: frozenset[Prefix] = frozenset()

    def touch(self, prefix: Prefix) -> None:
        """Note that the rule of a prefix may have changed."""
        self._touched.add(prefix)

    def commit(self) -> bool:
        """Bring `rules` and `forced` in step; return True if they have changed."""
        touched, self._touched = self._touched, set()
        if not touched:
            return False
        found = {prefix: self._rule_of(prefix) for prefix in touched}
        there = {prefix: each for prefix, each in found.items() if each is not None}
        rules = Rules.of({prefix: each.rule for prefix, each in there.items()})
        changed = self.rules.changed_at(touched, rules)
        forced = {prefix for prefix, each in there.items() if each.force}
        is_new = forced != touched & self.forced or changed != self.rules
        if forced or self.forced:
            self.forced = (self.forced - touched) | forced
        if is_new:
            self.rules = changed
        return is_new
