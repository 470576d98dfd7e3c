"""A set of rules that is small in memory. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, ItemsView, Iterable, Iterator, Mapping, ValuesView
from functools import cached_property

from ndxdp.rules.address_set import EMPTY, AddressSet
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule

_FEW = 4  # different rules

_PART = 65536
"""Addresses that paired_with() has as Python objects at a time."""


class Rules(Mapping[Prefix, Rule]):
    """An immutable mapping from prefixes to rules; equal to any mapping with the same items.

    Many addresses share few different rules, so single addresses are stored by rule.

    Attributes:
        exact: The addresses that have a rule of their own, by rule. No address has two rules.
        wider: The rules of all prefixes shorter than 128 bits.
    """

    def __init__(
        self,
        exact: Mapping[Rule, AddressSet] | None = None,
        wider: Mapping[Prefix, Rule] | None = None,
    ) -> None:
        self.exact = {rule: some for rule, some in (exact or {}).items() if some}
        self.wider = dict(wider or {})

    @classmethod
    def of(cls, rules: Mapping[Prefix, Rule]) -> Rules:
        """Make a rule set of any mapping; return a rule set as it is."""
        if isinstance(rules, Rules):
            return rules
        exact: dict[Rule, list[bytes]] = {}
        wider: dict[Prefix, Rule] = {}
        for prefix, rule in rules.items():
            if prefix.length == 128:
                exact.setdefault(rule, []).append(prefix.address)
            else:
                wider[prefix] = rule
        return cls({rule: AddressSet.of(some) for rule, some in exact.items()}, wider)

    @classmethod
    def union(cls, several: Iterable[Rules]) -> Rules:
        """Return the union of several rule sets that have no prefix in common."""
        exact: dict[Rule, list[AddressSet]] = {}
        wider: dict[Prefix, Rule] = {}
        for rules in several:
            for rule, some in rules.exact.items():
                exact.setdefault(rule, []).append(some)
            wider |= rules.wider
        return cls({rule: AddressSet.union(some) for rule, some in exact.items()}, wider)

    @cached_property
    def addresses(self) -> AddressSet:
        """All addresses that have a rule of their own."""
        return AddressSet.union(self.exact.values())

    @property
    def distinct_rules(self) -> Iterable[Rule]:
        """The different rules, each once."""
        return dict.fromkeys((*self.exact, *self._objects.values()))

    @cached_property
    def _objects(self) -> dict[int, Rule]:
        """Return the rules of prefixes by id(): those of a list share one object.

        To hash or to judge each prefix's rule would take most of the time of a large set.
        """
        return {id(rule): rule for rule in self.wider.values()}

    def __getitem__(self, prefix: Prefix) -> Rule:
        if prefix.length == 128:
            for rule, some in self.exact.items():
                if prefix.address in some:
                    return rule
        return self.wider[prefix]

    def most_specific(self, address: bytes) -> Rule | None:
        """Return the rule of the longest prefix that contains an address (16 bytes)."""
        for length in range(128, -1, -1):
            rule = self.get(Prefix.around(address, length))
            if rule is not None:
                return rule
        return None

    def __len__(self) -> int:
        return sum(map(len, self.exact.values())) + len(self.wider)

    def __iter__(self) -> Iterator[Prefix]:
        return (prefix for prefix, _ in self.pairs())

    def pairs(self) -> Iterator[tuple[Prefix, Rule]]:
        """Yield the items without building a dict of them all."""
        for rule, some in self.exact.items():
            for address in some:
                yield Prefix(address, 128), rule
        yield from self.wider.items()

    def items(self) -> ItemsView[Prefix, Rule]:
        """Return the items of a dict of all rules; pairs() needs less memory."""
        return dict(self.pairs()).items()

    def values(self) -> ValuesView[Rule]:
        """Return the rule of each prefix; distinct_rules has each rule once."""
        return dict(self.pairs()).values()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        there = Rules.of(other)
        return self.exact == there.exact and self.wider == there.wider

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Rules.of({dict(self.pairs())})"

    def __or__(self, other: Mapping[Prefix, Rule]) -> Rules:
        """Return the union of both sets; where both have a prefix, `other` wins."""
        more = Rules.of(other)
        if not self or not more:
            return more or self
        kept = self.without(more)
        exact = dict(kept.exact)
        for rule, some in more.exact.items():
            exact[rule] = exact.get(rule, EMPTY) | some
        return Rules(exact, kept.wider | more.wider)

    def changed_at(self, prefixes: Collection[Prefix], there: Rules) -> Rules:
        """Return the set with the rules of some prefixes replaced.

        No work is done for each other rule, and what has not changed is not copied.

        Args:
            prefixes: The prefixes.
            there: The rules that they have now; a prefix without one loses its rule.
        """
        wider = {prefix for prefix in prefixes if prefix.length < 128}
        gone = AddressSet.of(prefix.address for prefix in prefixes if prefix.length == 128)
        exact = {rule: some - gone for rule, some in self.exact.items()}
        for rule, some in there.exact.items():
            exact[rule] = exact.get(rule, EMPTY) | some
        changed = Rules(exact)
        changed.wider = self.wider
        if wider:
            changed.wider = self.wider | there.wider
            for prefix in wider - there.wider.keys():
                changed.wider.pop(prefix, None)
        return changed

    def to_keep(self) -> Rules:
        """Return the same set without cached results, which take memory if the set is kept."""
        same = Rules()
        same.exact, same.wider = self.exact, self.wider
        return same

    def where(self, wanted: Callable[[Rule], bool]) -> Rules:
        """Return the items whose rule satisfies a predicate."""
        wider = {key for key, rule in self._objects.items() if wanted(rule)}
        return Rules(
            {rule: some for rule, some in self.exact.items() if wanted(rule)},
            {prefix: rule for prefix, rule in self.wider.items() if id(rule) in wider}
            if wider
            else {},
        )

    def without(self, other: Rules) -> Rules:
        """Return the items whose prefix is absent from `other`."""
        if not self or not other:
            return self
        return Rules(
            {rule: other._removed_from(some) for rule, some in self.exact.items()},
            {prefix: rule for prefix, rule in self.wider.items() if prefix not in other.wider},
        )

    def restricted_to(self, other: Rules) -> Rules:
        """Return the items whose prefix is in `other` as well."""
        return self._in(other.addresses, other.wider)

    def at(self, prefixes: Iterable[Prefix]) -> Rules:
        """Return the items of some prefixes."""
        wider = set(prefixes)
        exact = {prefix for prefix in wider if prefix.length == 128}
        return self._in(AddressSet.of(prefix.address for prefix in exact), wider - exact)

    def _in(self, addresses: AddressSet, wider: Collection[Prefix]) -> Rules:
        few, many = (self.wider, wider) if len(self.wider) < len(wider) else (wider, self.wider)
        return Rules(
            {rule: some & addresses for rule, some in self.exact.items()},
            {prefix: self.wider[prefix] for prefix in few if prefix in many},
        )

    def different_from(self, other: Rules) -> Rules:
        """Return the items that `other` lacks or has with another rule."""
        return Rules(
            {rule: some - other.exact.get(rule, EMPTY) for rule, some in self.exact.items()},
            {
                prefix: rule
                for prefix, rule in self.wider.items()
                if other.wider.get(prefix) != rule
            },
        )

    def equivalent_in(self, other: Rules) -> Rules:
        """Return the items for which `other` has an equivalent rule of any origin."""
        theirs: dict[tuple[object, ...], list[AddressSet]] = {}
        for rule, some in other.exact.items():
            theirs.setdefault(rule.effect, []).append(some)
        there = {effect: AddressSet.union(sets) for effect, sets in theirs.items()}
        exact = {rule: some & there.get(rule.effect, EMPTY) for rule, some in self.exact.items()}
        wider = {
            prefix: rule
            for prefix, rule in self.wider.items()
            if prefix in other.wider and other.wider[prefix].is_equivalent_to(rule)
        }
        return Rules(exact, wider)

    def paired_with(self, other: Rules) -> Iterator[tuple[Prefix, Rule, Rule]]:
        """Yield each prefix that both sets have, with the rule in this set and in `other`."""
        if not self or not other:
            return
        for part in (self.addresses & other.addresses).parts(_PART):
            there = dict(other._each_in(part))
            for address, rule in self._each_in(part):
                yield Prefix(address, 128), rule, there[address]
        for prefix, rule in self.wider.items():
            if prefix in other.wider:
                yield prefix, rule, other.wider[prefix]

    def _removed_from(self, addresses: AddressSet) -> AddressSet:
        """Return those of some addresses that have no rule of their own."""
        if "addresses" in self.__dict__ or len(self.exact) > _FEW:
            return addresses - self.addresses
        for some in self.exact.values():  # sets that overlap take long to join
            addresses -= some
        return addresses

    def _each_in(self, addresses: AddressSet) -> Iterator[tuple[bytes, Rule]]:
        """Yield those of some addresses that have a rule of their own, and the rule."""
        for rule, some in self.exact.items():
            for address in some & addresses:
                yield address, rule
