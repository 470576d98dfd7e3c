"""Capacity of the maps of an interface. Pure."""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.errors import NdxdpError
from ndxdp.kernel.abi import MAX_ADDRESSES as MAX_ADDRESSES
from ndxdp.kernel.abi import MAX_PREFIXES as MAX_PREFIXES
from ndxdp.kernel.abi import MAX_RULE_CLASSES as MAX_RULE_CLASSES
from ndxdp.rules.rule import RuleClass
from ndxdp.rules.ruleset import Rules


class Shortage(NamedTuple):
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
            "rule classes": "give many prefixes in one file: they are counted as one class",
        }
        return NdxdpError(f"{rules} are more than the limit of {self.limit}", hints[self.what])


class Capacity(NamedTuple):
    """How many rules the maps of an interface take: exact addresses, all others, and groups."""

    addresses: int = MAX_ADDRESSES
    prefixes: int = MAX_PREFIXES
    groups: int = MAX_RULE_CLASSES

    def lack(self, writing: Rules, actual: Rules) -> Shortage | None:
        """Return what there is too little room for; None if rules fit in beside the actual ones.

        A rule that is written over takes no more room, and a group that exists already none.
        """
        new = writing.without(actual)
        groups = set(map(RuleClass.of, actual.distinct_rules))
        all_groups = groups.union(map(RuleClass.of, writing.distinct_rules))
        counts = (
            Shortage("addresses", len(actual.addresses), len(new.addresses), self.addresses),
            Shortage("prefixes", len(actual.wider), len(new.wider), self.prefixes),
            Shortage("rule classes", len(groups), len(all_groups) - len(groups), self.groups),
        )
        return next((each for each in counts if each.more and sum(each[1:3]) > each.limit), None)
