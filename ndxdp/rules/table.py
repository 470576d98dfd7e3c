"""Rules by longest prefix. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ndxdp.ndp.decision import Match
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule


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
