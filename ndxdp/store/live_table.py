"""The rules of one interface for lookups in userspace mode, in step with the file that has them."""

from __future__ import annotations

from collections.abc import Mapping

from ndxdp.kernel import abi
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import RuleClass
from ndxdp.rules.table import Entry, Table, entry_of
from ndxdp.store.maps import Maps
from ndxdp.store.records import rule_of
from ndxdp.store.rule_format import OF_RULES, Changes, slot_of
from ndxdp.store.rule_reader import prefix_of


class LiveTable:
    """Rules for lookups, each with the slot of its rule class.

    Attributes:
        table: The rules as of the last refresh() that did not fail.
    """

    def __init__(self, maps: Maps) -> None:
        """Know no rules until refresh(). maps: The interface's maps in files."""
        self.table = Table()
        self._maps, self._changes = maps, maps.rule_file.follow()
        self._known: dict[bytes, Entry] = {}  # by their abi.RULE
        self._expired = False
        self._is_complete = False

    def refresh(self, *, expired: bool) -> bool:
        """Read what has changed of the rules.

        Args:
            expired: True if dynamic rules are no longer valid.

        Returns:
            True if a Match that `table` has returned before may be another rule's now.

        Raises:
            OSError, NdxdpError: The files were removed or are damaged; the next call reads them.
        """
        changes = self._changes.take()
        if changes is None or expired != self._expired or not self._is_complete:
            self._is_complete, self._expired = False, expired
            self._read()
            self._is_complete = True
            return True
        return bool(changes) and self._change(changes)

    def _read(self) -> None:
        """Read all rules.

        No Prefix object is made for each address: that takes 4 times as long, and the process
        answers no solicitation while it reads the rules.
        """
        addresses, prefixes = (each.items() for each in self._maps.tables(*OF_RULES))
        # Read after the entries: a class is written before the first rule that refers to it.
        classes = self._maps.rule_classes()
        known: dict[bytes, Entry] = {}

        def entry(value: bytes) -> Entry:
            known[value] = self._entry(value, classes)
            return known[value]

        exact = {key: known.get(value) or entry(value) for key, value in addresses}
        wider = ((prefix_of(key), known.get(value) or entry(value)) for key, value in prefixes)
        self.table = Table(exact, wider)
        self._known = known

    def _change(self, changes: Changes) -> bool:
        """Change some rules; return as refresh()."""
        self._is_complete = False
        addresses, prefixes = (changes.get(name, {}) for name in OF_RULES)
        values = {value for some in (addresses, prefixes) for value in some.values() if value}
        classes = self._maps.rule_classes_at({slot_of(value) for value in values})
        is_replaced = False
        for value in values:
            entry = self._entry(value, classes)
            before = self._known.get(value)
            if before != entry:
                # Another class has the slot of one that no rule has had since.
                is_replaced = is_replaced or before is not None
                self._known[value] = entry
        for address, rule in addresses.items():
            self.table.put(Prefix(address, 128), self._known[rule] if rule else None)
        for key, rule in prefixes.items():
            self.table.put(prefix_of(key), self._known[rule] if rule else None)
        self._is_complete = True
        return is_replaced

    def _entry(self, value: bytes, classes: Mapping[int, RuleClass]) -> Entry:
        fields = abi.RULE.unpack(value)
        return entry_of(
            rule_of(fields, classes),
            fields["rule_class"],
            expired=self._expired,
            exact=fields["prefix_len"] == 128,
        )
