"""Sets of rules: as they are written, as the maps hold them, and what differs. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from ndxdp.errors import NdxdpError, UsageError
from ndxdp.ndp.responder import DEFAULT_PROFILE, Answer
from ndxdp.rules.address_set import NONE, Addresses
from ndxdp.rules.rule import (
    CONFIG_ORIGIN,
    HOST_ORIGIN,
    RESERVED_ORIGINS,
    Prefix,
    Rule,
    RuleClass,
    hole,
    parse_target,
)

_FEW = 64
"""Addresses of one rule that may have an object each."""


class Rules(Mapping[Prefix, Rule]):
    """Which prefix has which rule. Immutable; equal to any mapping that says the same.

    Few rules differ and many addresses share one, so it is kept the other way round. exact: by
    rule, the addresses that have it; no address has two. wider: all prefixes below 128 bits.
    """

    def __init__(
        self,
        exact: Mapping[Rule, Addresses] | None = None,
        wider: Mapping[Prefix, Rule] | None = None,
    ) -> None:
        self.exact = {rule: some for rule, some in (exact or {}).items() if some}
        self.wider = dict(wider or {})

    @classmethod
    def of(cls, rules: Mapping[Prefix, Rule]) -> Rules:
        if isinstance(rules, Rules):
            return rules
        exact: dict[Rule, list[bytes]] = {}
        wider: dict[Prefix, Rule] = {}
        for prefix, rule in rules.items():
            if prefix.length == 128:
                exact.setdefault(rule, []).append(prefix.address)
            else:
                wider[prefix] = rule
        return cls({rule: Addresses.of(some) for rule, some in exact.items()}, wider)

    @classmethod
    def union(cls, several: Iterable[Rules]) -> Rules:
        """Return all rules of several sets that have no prefix in common."""
        exact: dict[Rule, list[Addresses]] = {}
        wider: dict[Prefix, Rule] = {}
        for rules in several:
            for rule, some in rules.exact.items():
                exact.setdefault(rule, []).append(some)
            wider |= rules.wider
        return cls(
            {
                rule: some[0] if len(some) == 1 else Addresses(b"".join(one.packed for one in some))
                for rule, some in exact.items()
            },
            wider,
        )

    @cached_property
    def addresses(self) -> Addresses:
        """All that have a rule of their own."""
        *few, most = sorted(self.exact.values(), key=len) or [NONE]
        return most | Addresses(b"".join(some.packed for some in few))

    @property
    def kinds(self) -> Iterable[Rule]:
        """Each rule that there is, once."""
        return dict.fromkeys((*self.exact, *self.wider.values()))

    def __getitem__(self, prefix: Prefix) -> Rule:
        if prefix.length == 128:
            for rule, some in self.exact.items():
                if prefix.address in some:
                    return rule
        return self.wider[prefix]

    def most_specific(self, address: bytes) -> Rule | None:
        """Return the rule of the longest prefix that an address (16 bytes) is in."""
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
        """What items() has, one after the other, where that would make an object of each."""
        for rule, some in self.exact.items():
            for address in some:
                yield Prefix(address, 128), rule
        yield from self.wider.items()

    def items(self) -> ItemsView[Prefix, Rule]:
        return dict(self.pairs()).items()

    def values(self) -> ValuesView[Rule]:
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
        """Both; what `other` says where both have a prefix."""
        more = Rules.of(other)
        kept = self.without(more)
        exact = kept.exact
        for rule, some in more.exact.items():
            exact[rule] = exact.get(rule, NONE) | some
        return Rules(exact, kept.wider | more.wider)

    def only(self, wanted: Callable[[Rule], bool]) -> Rules:
        """Those whose rule is wanted."""
        return Rules(
            {rule: some for rule, some in self.exact.items() if wanted(rule)},
            {prefix: rule for prefix, rule in self.wider.items() if wanted(rule)},
        )

    def without(self, other: Rules) -> Rules:
        """Those of prefixes that `other` has no rule for."""
        return Rules(
            {rule: some - other.addresses for rule, some in self.exact.items()},
            {prefix: rule for prefix, rule in self.wider.items() if prefix not in other.wider},
        )

    def among(self, other: Rules) -> Rules:
        """Those of prefixes that `other` has a rule for, too."""
        return self.without(self.without(other))

    def unlike(self, other: Rules) -> Rules:
        """Those that `other` does not have, or has otherwise."""
        return Rules(
            {rule: some - other.exact.get(rule, NONE) for rule, some in self.exact.items()},
            {
                prefix: rule
                for prefix, rule in self.wider.items()
                if other.wider.get(prefix) != rule
            },
        )

    def repeated(self, other: Rules) -> Rules:
        """Return the rules that `other` has in the same words, whoever wrote them."""
        exact: dict[Rule, Addresses] = {}
        for rule, some in self.exact.items():
            for there, theirs in other.exact.items():
                if there.same_words(rule):
                    exact[rule] = exact.get(rule, NONE) | (some & theirs)
        wider = {
            prefix: rule
            for prefix, rule in self.wider.items()
            if prefix in other.wider and other.wider[prefix].same_words(rule)
        }
        return Rules(exact, wider)

    def both(self, other: Rules) -> Iterator[tuple[Prefix, Rule, Rule]]:
        """Prefixes that both have, with what this and what the other says."""
        # Rules of a few addresses each are looked up one by one, those of lists as sets.
        few = {rule: some for rule, some in other.exact.items() if len(some) <= _FEW}
        lists = [(rule, some) for rule, some in other.exact.items() if rule not in few]
        there = {address: rule for rule, some in few.items() for address in some}
        alone = Addresses.of(there)
        for rule, some in self.exact.items():
            for address in some & alone:
                yield Prefix(address, 128), rule, there[address]
            for their_rule, theirs in lists:
                for address in some & theirs:
                    yield Prefix(address, 128), rule, their_rule
        for prefix, rule in self.wider.items():
            if prefix in other.wider:
                yield prefix, rule, other.wider[prefix]


# ---- as they are written ------------------------------------------------------------------------

_ALWAYS = Rule()


def compile_rules(
    answered: Iterable[str],
    excepted: Iterable[str] = (),
    *,
    rule: Rule = _ALWAYS,
) -> Rules:
    """The rules of a command line: `-n` prefixes as `rule` says, `--except` prefixes never.

    Each is labelled with itself unless `rule` has a label. UsageError for a prefix given twice.
    """
    rules: dict[Prefix, Rule] = {}
    never = replace(rule, answer=Answer.NEVER, profile=DEFAULT_PROFILE, dev=())
    for texts, template in ((answered, rule), (excepted, never)):
        for text in texts:
            prefix = parse_target(text)
            if prefix in rules:
                raise UsageError(
                    f"{prefix} is given twice"
                    + ("" if rules[prefix].answer is template.answer else ", to answer and not to"),
                    "name every prefix once",
                )
            rules[prefix] = template if template.label else replace(template, label=str(prefix))
    return Rules.of(rules)


def rules_of_lines(lines: Iterable[str], name: str, rule: Rule) -> Rules:
    """The rules of a list: one prefix or address a line, # starts a comment.

    All share one rule, labelled with the list's name, and are counted together. UsageError
    names the list and the line.
    """
    rule = replace(rule, label=name)
    wider: dict[Prefix, Rule] = {}
    packed, lines_of = bytearray(), array("Q")
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            prefix = parse_target(text)
        except UsageError as error:
            raise UsageError(f"{name}:{number}: {error.message}", error.hint) from None
        if prefix.length == 128:
            packed += prefix.address
            lines_of.append(number)
        elif prefix in wider:
            raise _twice(prefix, name, number)
        else:
            wider[prefix] = rule
    addresses = Addresses(packed)
    if len(addresses) < len(lines_of):
        seen: set[bytes] = set()
        for at, number in enumerate(lines_of):
            address = bytes(packed[at * 16 : (at + 1) * 16])
            if address in seen:
                raise _twice(Prefix(address, 128), name, number)
            seen.add(address)
    return Rules({rule: addresses}, wider)


def _twice(prefix: Prefix, name: str, line: int) -> UsageError:
    return UsageError(f"{name}:{line}: {prefix} is given twice", "name every prefix once")


# ---- how many there may be --------------------------------------------------------------------

MAX_ADDRESSES, MAX_PREFIXES, MAX_RULE_CLASSES = 131072, 1048576, 1024
"""Sizes of the maps, unless another number of addresses is asked for."""


class Lack(NamedTuple):
    """Rules that do not fit in: how many there are, how many more there would be, of how many."""

    what: str
    have: int
    more: int
    limit: int

    def error(self, *, in_file: bool = False) -> NdxdpError:
        """Return the error; in_file: its hint names keys of the configuration, not options."""
        rules = f"{self.have} {self.what} and {self.more} new ones"
        if not self.have:
            rules = f"{self.more} {self.what}"
        hints = {
            "addresses": f"write max_addresses = {self.more}, or use prefixes"
            if in_file
            else "attach with a larger --max-addresses, or use prefixes",
            "prefixes": "use wider prefixes",
            "rule groups": "give many prefixes in one file: they are counted as one group",
        }
        return NdxdpError(f"{rules} are more than the limit of {self.limit}", hints[self.what])


class Room(NamedTuple):
    """How many rules the maps of an interface take: exact addresses, all others, and groups."""

    addresses: int = MAX_ADDRESSES
    prefixes: int = MAX_PREFIXES
    groups: int = MAX_RULE_CLASSES

    def lack(self, writing: Rules, actual: Rules) -> Lack | None:
        """Return what there is too little room for; None if rules fit in beside the actual ones.

        A rule that is written over takes no more room, and a group that exists already none.
        """
        new = writing.without(actual)
        groups = set(map(RuleClass.of, actual.kinds))
        all_groups = groups.union(map(RuleClass.of, writing.kinds))
        counts = (
            Lack("addresses", len(actual.addresses), len(new.addresses), self.addresses),
            Lack("prefixes", len(actual.wider), len(new.wider), self.prefixes),
            Lack("rule groups", len(groups), len(all_groups) - len(groups), self.groups),
        )
        return next((each for each in counts if each.more and sum(each[1:3]) > each.limit), None)


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
    return Difference(desired.unlike(actual), actual.without(desired))


def merged(
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
    for prefix, rule, there in rules.both(actual):
        if there.origin == HOST_ORIGIN:
            changed[prefix] = replace(rule, owned=True)
        elif there.same_words(rule):
            continue
        elif there.origin != rule.origin:
            raise _conflict(prefix, there, _elsewhere(there.origin))
        elif replacing:
            changed[prefix] = replace(rule, owned=there.owned)
        else:
            raise _conflict(prefix, there, "`ndxdp prefix replace` changes it")
    return rules | actual | changed


def _conflict(prefix: Prefix, there: Rule, hint: str) -> NdxdpError:
    return NdxdpError(
        f"{prefix} has a rule already: {there.answer.name.lower()}, by '{there.origin}'", hint
    )


def _elsewhere(source: str) -> str:
    """Return the hint on how to change a rule that another source has written."""
    if source in RESERVED_ORIGINS:
        return "ndxdp prefix list shows it; remove it there where it comes from"
    return f"if it is yours to change: ndxdp prefix replace --origin {source}"


def settled(rules: Rules, others: Rules, source: str) -> tuple[Rules, Rules]:
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
    others = others.without(rules.repeated(others))
    if source == CONFIG_ORIGIN:
        rules = rules.without(others.only(lambda rule: rule.origin != HOST_ORIGIN))
    return rules, others


def hold(owned: Mapping[Prefix, str], actual: Mapping[Prefix, Rule]) -> Difference:
    """What keeps the holes in step with the addresses that the host and the gateway own.

    owned: exact addresses and why each is owned. A rule that somebody else wrote for such an
    address stays and is marked held, so that it comes back when the address goes; where there
    is none a hole is made.
    """
    actual = Rules.of(actual)
    concerned = dict(actual.only(lambda rule: rule.owned or rule.origin == HOST_ORIGIN).pairs())
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
        desired.setdefault(prefix, hole(why))
    return difference(desired, concerned)


def with_holes(
    rules: Mapping[Prefix, Rule], kept: Mapping[Prefix, Rule], owned: Mapping[Prefix, str]
) -> Rules:
    """merged(), with the holes for what is owned in step (see hold())."""
    desired = merged(rules, kept)
    return hold(owned, desired).applied_to(desired)
