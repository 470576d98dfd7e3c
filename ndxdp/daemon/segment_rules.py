"""The rules that uplinks get by the segments in etcd that they are on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ndxdp.daemon.uplink import Uplink
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import LABEL_MAX, UNCOUNTED, cut
from ndxdp.rules.ruleset import Rules

Forced = tuple[Rules, frozenset[Prefix]]
"""Rules, and the prefixes of those of them that have `force`."""


class SegmentRules:
    """Gives uplinks the rules of one origin. Nothing is computed where they are as before."""

    def __init__(self, origin: str) -> None:
        """Have given nothing yet.

        Args:
            origin: The origin.
        """
        self._origin = origin
        self._unions: dict[tuple[str, ...], tuple[list[Rules], Forced]] = {}

    def give(self, uplink: Uplink, rules_of: Callable[[str], Forced | None] | None) -> None:
        """Give an uplink the rules of its segments.

        Args:
            uplink: The uplink.
            rules_of: Returns the rules of a segment, the same object while they have not changed;
                None for a segment without keys. None before all keys were read: until then, the
                uplink keeps the rules of the segments that it had before.
        """
        segments, rules = uplink.spec.segments, uplink.rules
        if not segments:
            rules.set(self._origin, Rules())
        elif rules_of is not None:
            found = [each for each in map(rules_of, segments) if each is not None]
            rules.set(self._origin, *self._union(segments, found))
        elif (before := rules.get(self._origin)) is not None:
            labels = {cut(segment, LABEL_MAX) for segment in segments} | {UNCOUNTED}
            ours = before.where(lambda rule: rule.label in labels)
            rules.set(self._origin, ours, rules.forced(self._origin))

    def forget(self) -> None:
        """Forget what was computed."""
        self._unions.clear()

    def _union(self, segments: tuple[str, ...], found: list[Forced]) -> Forced:
        parts = [rules for rules, _ in found]
        known = self._unions.get(segments)
        if known is None or [id(each) for each in known[0]] != [id(each) for each in parts]:
            known = self._unions[segments] = (parts, union(found))
        return known[1]


def union(segments: Iterable[Forced]) -> Forced:
    """Return the rules of several segments, and the forced prefixes; the first segment wins."""
    rules, forced = Rules(), frozenset[Prefix]()
    for more, forced_more in segments:
        forced = forced | frozenset(each for each in forced_more if each not in rules)
        rules = more | rules if rules else more
    return rules, forced
