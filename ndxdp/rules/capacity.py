"""How many rules the maps of an interface hold. Pure."""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.errors import NoRoom
from ndxdp.kernel.abi import MAX_ADDRESSES, MAX_PREFIXES, MAX_RULE_CLASSES
from ndxdp.rules.rule import RuleClass
from ndxdp.rules.ruleset import Rules

ADDRESSES_MAX = 1 << 24
"""The largest table of exact addresses."""


def room_for(addresses: int) -> int:
    """Return a size for the table of exact addresses, with room to grow.

    Returns:
        The next power of two; 0 if no table is large enough.
    """
    if addresses > ADDRESSES_MAX:
        return 0
    return min(1 << addresses.bit_length(), ADDRESSES_MAX)


class Shortage(NamedTuple):
    """Rules that do not fit into the maps.

    Attributes:
        what: The kind: addresses, prefixes or rule classes.
        have: The number in the maps.
        more: The number of new ones.
        limit: The number that the maps hold.
    """

    what: str
    have: int
    more: int
    limit: int

    def error(self, *, in_file: bool = False) -> NoRoom:
        """Return the error; in_file: the hint names keys of the configuration, not options."""
        rules = f"{self.have} {self.what} and {self.more} new ones"
        if not self.have:
            rules = f"{self.more} {self.what}"
        hints = {
            "addresses": "",
            "prefixes": "use wider prefixes",
            "rule classes": "write count = false, or give many prefixes in one file: they are"
            " counted as one class"
            if in_file
            else "give many prefixes in one file: they are counted as one class",
        }
        hint, room = hints[self.what], 0
        if self.what == "addresses":
            room = room_for(self.have + self.more)
            hint = f"write max_addresses = {room}, or use prefixes"
            if not in_file:
                hint = f"--max-addresses {room} makes room; or use prefixes"
            if not room:
                hint = f"use prefixes: no table has room for more than {ADDRESSES_MAX} addresses"
        return NoRoom(f"{rules} are more than the limit of {self.limit}", hint, room)


class Capacity(NamedTuple):
    """How many single addresses, other prefixes and rule classes the maps hold."""

    addresses: int = MAX_ADDRESSES
    prefixes: int = MAX_PREFIXES
    rule_classes: int = MAX_RULE_CLASSES

    def shortage(self, writing: Rules, actual: Rules) -> Shortage | None:
        """Return the first kind of rules that does not fit; None if all rules fit.

        A rule that replaces another one takes no room, and neither does a class that exists.

        Args:
            writing: The rules to write.
            actual: The rules in the maps.
        """
        new = writing.without(actual)
        classes = set(map(RuleClass.of, actual.distinct_rules))
        all_classes = classes.union(map(RuleClass.of, writing.distinct_rules))
        counts = (
            Shortage("addresses", len(actual.addresses), len(new.addresses), self.addresses),
            Shortage("prefixes", len(actual.wider), len(new.wider), self.prefixes),
            Shortage(
                "rule classes", len(classes), len(all_classes) - len(classes), self.rule_classes
            ),
        )
        return next((each for each in counts if each.more and sum(each[1:3]) > each.limit), None)
