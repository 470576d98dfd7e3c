"""Rules that are paused: those of a class, or of a prefix. Pure.

What is paused is part of the rule set itself, so that it survives whatever the rules survive: the
restart and the upgrade of a daemon, a reload, another mode. Each paused name is the label of a rule
at a multicast address, which no solicitation may ask for (RFC 4861 section 7.1.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ndxdp.errors import UsageError
from ndxdp.ndp.address import is_multicast
from ndxdp.ndp.profile import Answer
from ndxdp.rules.address_set import EMPTY, AddressSet
from ndxdp.rules.prefix import Prefix, parse_prefix
from ndxdp.rules.rule import HOST_ORIGIN, LABEL_MAX, PAUSE_ORIGIN, Rule, cut
from ndxdp.rules.ruleset import Rules

_MARKERS = bytes.fromhex("ff0e00006e647864")
"""The first half of the addresses that mark names: ff0e::/16, and `ndxd`."""


# FNV-1a, without a library: hashlib would load libcrypto into the daemon.
_FNV_OFFSET, _FNV_PRIME, _64_BITS = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


def is_marker(prefix: Prefix) -> bool:
    """Return True for the prefix of a rule that only marks a name."""
    return is_multicast(prefix.address)


def names_of(rules: Rules) -> frozenset[str]:
    """Return the names that are paused: labels of rule classes, and prefixes."""
    return frozenset(rule.label for rule in rules.distinct_rules if rule.origin == PAUSE_ORIGIN)


def is_prefix(name: str) -> bool:
    """Return True for a name that pauses a prefix."""
    return _prefix_of(name) is not None


def name_of(text: str) -> str:
    """Return the name of a rule class as the maps store it."""
    return cut(text, LABEL_MAX)


def without_pauses(rules: Rules) -> Rules:
    """Return the rules as they would be if nothing were paused."""
    if not any(rule.paused or rule.origin == PAUSE_ORIGIN for rule in rules.distinct_rules):
        return rules
    exact: dict[Rule, AddressSet] = {}
    for rule, some in rules.exact.items():
        if rule.origin != PAUSE_ORIGIN:
            plain = replace(rule, paused=False)
            exact[plain] = exact.get(plain, EMPTY) | some
    wider = {
        prefix: replace(rule, paused=False) if rule.paused else rule
        for prefix, rule in rules.wider.items()
        if rule.origin != PAUSE_ORIGIN
    }
    return Rules(exact, wider)


def with_pauses(rules: Rules, names: Iterable[str]) -> Rules:
    """Return the rules with these names paused, and no others.

    A name pauses the rules with this label. If it is a prefix, it also pauses the rules inside the
    prefix, and whatever a wider rule would answer for there.

    Args:
        rules: The rules.
        names: Labels and prefixes.
    """
    rules, chosen = without_pauses(rules), frozenset(names)
    if not chosen:
        return rules
    prefixes = {name: prefix for name in chosen if (prefix := _prefix_of(name)) is not None}
    exact: dict[Rule, AddressSet] = {}

    def add(rule: Rule, some: AddressSet) -> None:
        if some:
            exact[rule] = exact.get(rule, EMPTY) | some

    for rule, some in rules.exact.items():
        paused = _paused_of(rule, some, chosen, prefixes.values())
        add(rule, some - paused)
        add(replace(rule, paused=True), paused)
    wider = {
        prefix: replace(rule, paused=True)
        if _is_paused(prefix, rule, chosen, prefixes.values())
        else rule
        for prefix, rule in rules.wider.items()
    }
    taken = rules.at(prefixes.values())
    for name, prefix in prefixes.items():
        hole = Rule(Answer.NEVER, origin=PAUSE_ORIGIN, label=name, paused=True)
        if prefix in taken:
            continue
        if prefix.length == 128:
            add(hole, AddressSet.of([prefix.address]))
        else:
            wider[prefix] = hole
    for name in chosen:
        add(Rule(Answer.NEVER, origin=PAUSE_ORIGIN, label=name), AddressSet.of([_marker(name)]))
    return Rules(exact, wider)


def _paused_of(
    rule: Rule, some: AddressSet, names: frozenset[str], prefixes: Iterable[Prefix]
) -> AddressSet:
    """Return which addresses of a rule are paused."""
    if rule.origin == HOST_ORIGIN:
        return EMPTY
    if rule.label in names:
        return some
    inside = (AddressSet.of(some.inside(each.address, each.length)) for each in prefixes)
    return AddressSet.union(inside)


def _is_paused(
    prefix: Prefix, rule: Rule, names: frozenset[str], prefixes: Iterable[Prefix]
) -> bool:
    """Return True if the rule of a prefix is paused."""
    if rule.label in names:
        return True
    return any(each.covers(prefix) for each in prefixes)


def _prefix_of(name: str) -> Prefix | None:
    """Return the prefix that a name is; None for a label that is none."""
    try:
        return parse_prefix(name)
    except UsageError:
        return None


def _marker(name: str) -> bytes:
    number = _FNV_OFFSET
    for byte in name.encode():
        number = (number ^ byte) * _FNV_PRIME & _64_BITS
    return _MARKERS + number.to_bytes(8, "big")
