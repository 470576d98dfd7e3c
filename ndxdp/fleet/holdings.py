"""The addresses of one segment that this host holds, and the rules that follow. Pure.

A host holds an address if the key of the holder names it, is under its present lease, and has the
address's prefix; and if it is not about to give it up.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from ndxdp.fleet.flights import Flight, Flights
from ndxdp.fleet.shared_address import SharedAddress
from ndxdp.fleet.view import Entry, View
from ndxdp.ndp.profile import Answer
from ndxdp.rules.changing_rules import ChangingRules, RuleOfKey
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import SHARED_ORIGIN, Rule
from ndxdp.rules.ruleset import Rules


class Holdings:
    """The addresses that this host holds in one segment.

    Attributes:
        view: The keys of the segment.
        lease: The id of this host's lease; None without one.
        held: The names that this host holds.
        unheld: The names in force that no host holds.
        releasing: The names that this host gives up, and whose key is still there, with the lease
            that it is under.
        flights: The transactions whose result the keys do not show yet.
        taken: How often this host has acquired an address.
        given_up: How often it has released one, or lost it with its lease.
    """

    def __init__(self, segment: str, host: str) -> None:
        """Hold nothing.

        Args:
            segment: The segment.
            host: The name of this host.
        """
        self.view = View()
        self.lease: int | None = None
        self.held: dict[str, None] = {}
        self.unheld: dict[str, None] = {}
        self.releasing: dict[str, int] = {}
        self.flights = Flights()
        self.taken = self.given_up = 0
        self._host = host
        self._rules = ChangingRules(self._rule_of)
        self._never = Rule(Answer.NEVER, origin=SHARED_ORIGIN, label=segment)
        self._leased = lru_cache(1024)(lambda rule: replace(rule, leased=True))

    def rules(self) -> tuple[Rules, frozenset[Prefix]]:
        """Return the rules for the addresses of the segment, and the forced prefixes.

        What this host holds has leased rules. All others have `never` rules, so that no broader
        rule of this host answers for them.
        """
        self.catch_up()
        self._rules.commit()
        return self._rules.rules, self._rules.forced

    def catch_up(self) -> tuple[list[str], dict[str, Flight]]:
        """Bring what is held in step with the view.

        Returns:
            The names whose keys have changed; and those of them that this host has acquired, with
            the transaction.
        """
        view = self.view
        touched, view.touched = view.touched, set()
        for prefix in touched:
            self._rules.touch(prefix)
        changed, view.changed = view.changed, {}
        acquired = {}
        for name in changed:
            is_new, entry = self._refresh(name), view.entries.get(name)
            is_ours = entry is not None and self.is_ours(entry)
            flight = self.flights.changed(name, is_ours=is_ours)
            if is_new and flight is not None:
                acquired[name] = flight
        self.taken += len(acquired)
        return list(changed), acquired

    def give_up(self, name: str) -> None:
        """Take an address out of the rules, until the key of its holder is deleted."""
        if self.lease is not None:
            self.releasing[name] = self.lease
        self.view.changed[name] = None

    def lose_all(self) -> None:
        """Hold nothing any more: the lease is lost.

        The lease may turn out to be alive. So a release that may still be carried out is kept.
        """
        self.lease = None
        self.view.changed |= dict.fromkeys((*self.held, *self.unheld))

    def is_ours(self, entry: Entry) -> bool:
        """Return True if the key of the holder is this host's, under its present lease."""
        found = entry.holding
        return found is not None and found.lease == self.lease and found.holder.host == self._host

    def _refresh(self, name: str) -> bool:
        """Bring one name in step; return True if this host holds it from now on."""
        entry = self.view.entries.get(name)
        address = entry.in_force if entry else None
        is_ours = entry is not None and self.is_ours(entry)
        if entry is None or not entry.holding or entry.holding.lease != self.releasing.get(name):
            self.releasing.pop(name, None)
        held = (
            is_ours
            and entry is not None
            and address is not None
            and has_prefix(entry, address)
            and name not in self.releasing
        )
        if address is not None:
            self._rules.touch(address.prefix)
        if entry is not None and address is not None and entry.holding is None:
            self.unheld[name] = None
        else:
            self.unheld.pop(name, None)
        if held == (name in self.held):
            return False
        if not held:
            del self.held[name]
            self.given_up += 1
            return False
        self.held[name] = None
        return True

    def _rule_of(self, prefix: Prefix) -> RuleOfKey | None:
        name = self.view.in_force(prefix)
        address = self.view.entries[name].address if name is not None else None
        if address is None:
            return None
        if name in self.held:
            return RuleOfKey(self._leased(address.rule), address.force)
        return RuleOfKey(self._never, False)


def has_prefix(entry: Entry, address: SharedAddress) -> bool:
    """Return True if the holder answers for the prefix that an address has now."""
    return entry.holding is not None and entry.holding.holder.prefix == str(address.prefix)
