"""A lookup table of rules by longest prefix, for the userspace path and tests. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ndxdp.ndp.decision import Match
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule


class Entry(NamedTuple):
    """A rule in a Table, and the Match that decide() receives for it."""

    rule: Rule
    match: Match


class Table:
    """A set of rules in which a target is looked up; the rule of the longest prefix wins."""

    def __init__(
        self, exact: dict[bytes, Entry] | None = None, wider: Iterable[tuple[Prefix, Entry]] = ()
    ) -> None:
        """Make a table.

        Args:
            exact: The entries of single addresses by address (16 bytes). The dict is not copied.
            wider: The entries of all other prefixes.
        """
        self._exact = exact or {}
        # One item for each length, the longest first: the number of host bits, and the entries by
        # the prefix's network bits as a number.
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
        """Make a table of rules.

        Args:
            rules: The rules by prefix.
            rule_class: Returns the number of a rule's class.
            expired: True if dynamic rules have expired.
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

    def put(self, prefix: Prefix, entry: Entry | None) -> None:
        """Set the entry of a prefix; None for no entry. No work is done for the other entries."""
        if prefix.length == 128:
            if entry is None:
                self._exact.pop(prefix.address, None)
            else:
                self._exact[prefix.address] = entry
            return
        bits = 128 - prefix.length
        lengths = dict(self._lengths)
        entries = lengths.setdefault(bits, {})
        number = int.from_bytes(prefix.address, "big") >> bits
        if entry is None:
            entries.pop(number, None)
        else:
            entries[number] = entry
        self._lengths = sorted((bits, some) for bits, some in lengths.items() if some)

    def lookup(self, target: bytes) -> tuple[Prefix, Rule] | None:
        """Return the most specific prefix of a target (16 bytes) and its rule; None without one."""
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
        """Return the most specific rule of a target (16 bytes) for decide(); None without one."""
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
    """Make an entry of a Table.

    Args:
        rule: The rule.
        rule_class: The number of the rule's class.
        expired: True if dynamic rules have expired.
        exact: True for the rule of one address, False for the rule of a wider prefix.
    """
    has_expired = expired and rule.dynamic
    return Entry(
        rule,
        Match(
            rule.answer,
            rule.profile,
            not rule.is_applied,
            has_expired,
            rule_class,
            rule.dev,
            exact,
            rule.leased,
        ),
    )
