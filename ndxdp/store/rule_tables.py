"""The rules of one interface as its maps have them: addresses, prefixes and rule classes."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from ndxdp import progress
from ndxdp.errors import NdxdpError, from_os
from ndxdp.kernel import abi
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.capacity import Capacity
from ndxdp.rules.difference import Difference, difference
from ndxdp.rules.interface_name import matches_dev
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule, RuleClass
from ndxdp.rules.ruleset import Rules
from ndxdp.rules.table import Entry, Table, entry_of
from ndxdp.store.map_files import ArrayFile, TableFile
from ndxdp.store.map_set import MapSet
from ndxdp.store.records import (
    RuleCount,
    damaged,
    pack_rule_class,
    rule_of,
    unpack_rule_class,
)
from ndxdp.store.sorted_runs import Runs

_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_ADDRESS, _RULE = struct.Struct("16s"), struct.Struct(f"{abi.RULE.size}s")
_PREFIX = struct.Struct("=I16s")  # as abi.PREFIX
_SORTED = struct.Struct(f"16sB{abi.RULE.size}s")
"""Address, length and rule of a prefix: bytes that have the order of the prefixes."""
_U64_MAX = (1 << 64) - 1
MOST_HINTS = 1 << 16
"""Up to so many addresses, only their own bits in `hints` are set. More would set most of the
bits, so all are set."""


class RuleTables(MapSet):
    """Open maps, whose rules are read and written as Rules."""

    def rules(self) -> Rules:
        """Return all rules, without blocking writers."""
        packed: dict[bytes, bytearray] = {}  # addresses by the bytes of their rule
        for keys, values in self._maps["addresses"].pieces():
            first = values[: abi.RULE.size]
            if first and values == first * (len(keys) // _ADDRESS.size):
                packed.setdefault(first, bytearray()).extend(keys)
                continue
            entries = zip(_ADDRESS.iter_unpack(keys), _RULE.iter_unpack(values), strict=True)
            for (key,), (value,) in entries:
                packed.setdefault(value, bytearray()).extend(key)
        prefixes = dict(self._maps["prefixes"].items())
        # Read after the entries: a class is written before the first rule that refers to it.
        classes = self.rule_classes()
        known = {
            value: rule_of(abi.RULE.unpack(value), classes)
            for value in {*packed, *prefixes.values()}
        }
        return Rules(
            {known[value]: AddressSet(packed.pop(value)) for value in list(packed)},
            {prefix_of(key): known[value] for key, value in prefixes.items()},
        )

    def rules_at(self, prefixes: Collection[Prefix]) -> Rules:
        """Return the rules of some prefixes, each of which is looked up."""
        found: dict[Prefix, bytes] = {}
        for prefix in prefixes:
            if prefix.length == 128:
                value = self._maps["addresses"].lookup(prefix.address)
            else:
                value = self._maps["prefixes"].lookup(_keys_of([prefix]))
                # In the kernel a trie returns the longest prefix that contains the key.
                if value and abi.RULE.unpack(value)["prefix_len"] != prefix.length:
                    value = None
            if value:
                found[prefix] = value
        classes = self.rule_classes() if found else {}  # after the entries, as in rules()
        rules = {value: rule_of(abi.RULE.unpack(value), classes) for value in found.values()}
        return Rules.of({prefix: rules[value] for prefix, value in found.items()})

    def in_order(self, wanted: Callable[[Rule], bool]) -> Iterator[tuple[Prefix, Rule]]:
        """Yield rules in the order of their prefixes, in little memory; see sorted_runs.py.

        All rules are read before the first one is yielded.

        Args:
            wanted: Called with each distinct rule; its prefixes are yielded if it returns True.
        """
        values: set[bytes] = set()
        with Runs(_SORTED.size) as runs:
            with progress.step("rules read"):
                for name, sortable in (("addresses", _addresses), ("prefixes", _prefixes)):
                    for keys, packed in self._maps[name].pieces():
                        runs.add(sortable(keys, packed))
                        values.update(value for (value,) in _RULE.iter_unpack(packed))
                        progress.advance(len(packed) // _RULE.size)
            classes = self.rule_classes()  # after the entries, as in rules()
            known = {value: rule_of(abi.RULE.unpack(value), classes) for value in values}
            chosen = {value: rule for value, rule in known.items() if wanted(rule)}
            for address, length, value in map(_SORTED.unpack, runs.merged()):
                if value in chosen:
                    yield Prefix(address, length), chosen[value]

    def wider(self, wanted: Callable[[int, bytes], bool]) -> Rules:
        """Return the rules of the prefixes shorter than /128 for which `wanted` is true.

        The other rules, of which there may be 100 000, get no Python object.

        Args:
            wanted: Called with a prefix's length and address (16 bytes).
        """
        found = []
        for keys, values in self._maps["prefixes"].pieces():
            entries = zip(_PREFIX.iter_unpack(keys), _RULE.iter_unpack(values), strict=True)
            for (length, address), (value,) in entries:
                if wanted(length, address):
                    found.append((Prefix(address, length), value))
        classes = self.rule_classes() if found else {}  # after the entries, as in rules()
        return Rules(
            wider={prefix: rule_of(abi.RULE.unpack(value), classes) for prefix, value in found}
        )

    def table(self, *, expired: bool) -> Table:
        """Return the rules for lookups in userspace mode, each with the slot of its rule class.

        No Prefix object is made for each address: that takes 4 times as long, and the process
        answers no solicitation while it reads the rules.

        Args:
            expired: True if dynamic rules are no longer valid.
        """
        # Both files are read before the rule classes; see rules().
        addresses, prefixes = self._maps["addresses"].items(), self._maps["prefixes"].items()
        classes = self.rule_classes()
        known: dict[bytes, Entry] = {}

        def entry(value: bytes) -> Entry:
            fields = abi.RULE.unpack(value)
            known[value] = entry_of(
                rule_of(fields, classes),
                fields["rule_class"],
                expired=expired,
                exact=fields["prefix_len"] == 128,
            )
            return known[value]

        exact = {key: known.get(value) or entry(value) for key, value in addresses}
        wider = ((prefix_of(key), known.get(value) or entry(value)) for key, value in prefixes)
        return Table(exact, wider)

    def apply_at(self, change: Difference, present: Rules) -> None:
        """Write and remove rules as apply() does, without reading the other rules.

        Args:
            change: The rules to write and to remove.
            present: The result of rules_at() for all prefixes of the change, called under the same
                lock.

        Raises:
            NdxdpError: The maps have no room for the rules.
        """
        slots = self._assign_classes(change.write)
        if slots is None or self._write_or_undo(change.write, slots, present):
            # The maps are full. With all rules, apply() can report what has no room, or remove
            # rules first.
            self.apply(change, self.rules())
        else:
            self._remove(change.remove)

    def apply(self, change: Difference, actual: Rules) -> None:
        """Write and remove rules: all of them or, on NdxdpError, none.

        Args:
            change: The rules to write and to remove.
            actual: The result of rules(), called under the same lock.

        Raises:
            NdxdpError: The maps have no room for the rules.
        """
        tables = ("addresses", "prefixes", "groups")
        capacity = Capacity(*(self._maps[name].max_entries for name in tables))
        lack = capacity.shortage(change.write, actual)
        if lack and change.remove:
            self._apply_in_turn(change, actual, capacity)
            return
        if lack:
            raise lack.error()
        slots = self._assign_classes(change.write, actual)
        assert slots is not None, "there is room"
        error = self._write_or_undo(change.write, slots, actual)
        if error:
            if not self.in_kernel:
                cause = from_os(error)
                raise NdxdpError(f"{cause.message}; no rule was changed", cause.hint) from error
            raise NdxdpError(
                f"cannot write the rules: {error.strerror}; no rule was changed",
                "if memory is short, dmesg shows it",
            ) from error
        self._remove(change.remove)

    def _apply_in_turn(self, change: Difference, actual: Rules, capacity: Capacity) -> None:
        """Remove rules first, then write the rules for which there was no room before."""
        remaining = actual.without(change.remove)
        lack = capacity.shortage(change.write, remaining)
        if lack:
            raise lack.error()
        self._remove(change.remove)
        try:
            self.apply(Difference(change.write, Rules()), remaining)
        except NdxdpError:
            self.apply(Difference(actual.without(remaining), Rules()), remaining)
            raise

    def rule_class(self, slot: int) -> RuleClass | None:
        """Return the rule class in a slot; None if the slot is free."""
        return unpack_rule_class(self._element("groups", slot))

    def rule_classes(self) -> dict[int, RuleClass]:
        """Return the rule classes by slot."""
        found = {}
        for key, value in self._maps["groups"].items():
            rule_class = unpack_rule_class(value)
            if rule_class:
                found[_U32.unpack(key)[0]] = rule_class
        return found

    def rule_count(self) -> RuleCount:
        """Return how many rules rules() would return.

        Counting makes no object for each rule: it takes 15 ms for 100 000 rules.
        """
        totals, by_slot = [], Counter[int]()
        for name in ("addresses", "prefixes"):
            before = by_slot.total()
            for words in self._maps[name].leading("H"):
                by_slot.update(words.tolist())
            totals.append(by_slot.total() - before)
        classes, by_origin = self.rule_classes(), Counter[str]()
        for slot, count in by_slot.items():
            if slot not in classes:
                raise damaged(f"a rule refers to rule class {slot}, which does not exist")
            by_origin[classes[slot].origin] += count
        return RuleCount(
            totals[0], totals[1], dict(sorted(by_origin.items())), dict(by_slot), classes
        )

    def _assign_classes(
        self, writing: Rules, kept: Rules | None = None
    ) -> dict[RuleClass, int] | None:
        """Return the slots of all rule classes; write the new classes that rules to write have.

        Args:
            writing: The rules to write.
            kept: The rules that are there already, if all are known. The slot of a class that no
                rule has is reused.

        Returns:
            None if there is no room without reusing slots, and `kept` is None.
        """
        classes = self.rule_classes()
        slots = {rule_class: slot for slot, rule_class in classes.items()}
        wanted = dict.fromkeys(map(RuleClass.of, writing.distinct_rules))
        missing = [rule_class for rule_class in wanted if rule_class not in slots]
        if not missing:
            return slots
        limit = self._maps["groups"].max_entries
        free = [slot for slot in range(limit) if slot not in classes]
        if len(free) < len(missing):
            if kept is None:
                return None
            used = {*map(RuleClass.of, kept.distinct_rules), *wanted}
            free += [slot for slot, rule_class in classes.items() if rule_class not in used]
        zeros = bytes(self._maps["group_counters"].value_size)
        for slot, rule_class in zip(free, missing, strict=False):
            if slot in classes:
                del slots[classes[slot]]
            self._maps["group_counters"].update(_U32.pack(slot), zeros)
            self._maps["groups"].update(_U32.pack(slot), pack_rule_class(rule_class))
            slots[rule_class] = slot
        return slots

    def _write_or_undo(
        self, writing: Rules, slots: Mapping[RuleClass, int], before: Rules
    ) -> OSError | None:
        """Write rules. If that fails, restore the rules that were there before.

        Args:
            writing: The rules to write.
            slots: The result of _assign_classes().
            before: The rules before, at least those of the prefixes to write.

        Returns:
            The error; None after a success.
        """
        self.sync_dev_ifindexes()
        try:
            self._write(writing, slots)
        except OSError as error:
            self._remove(writing.without(before))
            self._write(before.restricted_to(writing), slots)
            return error
        return None

    def _write(self, rules: Rules, slots: Mapping[RuleClass, int]) -> None:
        def value(rule: Rule, length: int) -> bytes:
            return abi.RULE.pack(
                rule_class=slots[RuleClass.of(rule)],
                answer=rule.answer,
                flags=abi.RuleFlag.OWNED if rule.owned else 0,
                prefix_len=length,
            )

        self._set_hints(rules.addresses)
        # All rules at once: each update replaces the whole file in userspace mode.
        addresses = b"".join(some.packed for some in rules.exact.values())
        values = b"".join(value(rule, 128) * len(some) for rule, some in rules.exact.items())
        known: dict[tuple[int, int], bytes] = {}  # a list of 100 000 prefixes shares one rule
        for prefix, rule in rules.wider.items():
            kind = (id(rule), prefix.length)
            known[kind] = known.get(kind) or value(rule, prefix.length)
        prefixes = _keys_of(rules.wider)
        wider = b"".join(known[id(rule), prefix.length] for prefix, rule in rules.wider.items())
        with progress.step("rules written", len(rules)):
            self._maps["addresses"].update(addresses, values)
            self._maps["prefixes"].update(prefixes, wider)

    def _set_hints(self, addresses: AddressSet) -> None:
        """Set the bits of addresses in `hints`; without its bit, the program ignores an address.

        The bits are set before the addresses are written, so that the program misses no address.
        """
        if not self.in_kernel or not addresses:
            return
        if len(addresses) > MOST_HINTS:
            words = dict.fromkeys(range(abi.HINTS), _U64_MAX)
        else:
            words = {}
            for address in addresses:
                at = abi.hint(address)
                words[at // 64] = words.get(at // 64, 0) | 1 << at % 64
            for index in words:
                words[index] |= _U64.unpack(self._maps["hints"].lookup(_U32.pack(index)) or b"")[0]
        self._maps["hints"].update(
            b"".join(map(_U32.pack, words)), b"".join(map(_U64.pack, words.values()))
        )

    def _remove(self, rules: Rules) -> None:
        with progress.step("rules removed", len(rules)):
            self._maps["addresses"].delete(rules.addresses.packed)
            self._maps["prefixes"].delete(_keys_of(rules.wider))

    def restore_files(self, rules: Rules) -> None:
        """Write the files again that were removed.

        Args:
            rules: All rules. A table's file is not kept open, so its entries are lost with it.
        """
        tables = [each for each in self._maps.values() if isinstance(each, TableFile)]
        for name in self.missing(self.directory):
            found = self._maps[name]
            if isinstance(found, ArrayFile):
                found.restore()
            else:
                spec = abi.FILES[name]._replace(max_entries=found.max_entries)
                TableFile.create(self.directory / name, spec)
        # The thread that answers has read these rules, and must not read half-written tables.
        for table in tables:
            table.quiet = True
        try:
            actual = self.rules()
            self.apply(difference(rules, actual), actual)
        finally:
            for table in tables:
                table.quiet = False

    def sync_dev_ifindexes(self, names: Iterable[tuple[int, str]] | None = None) -> None:
        """Update the ifindexes of the output interfaces that rule classes name.

        Args:
            names: The index and the name of each interface; None to ask the kernel.
        """
        if not self.in_kernel:
            return  # userspace mode compares names
        devs = {slot: each.dev for slot, each in self.rule_classes().items() if each.dev}
        if devs and names is None:
            names = socket.if_nameindex()
        wanted = {
            abi.DEV.pack(rule_class=slot, ifindex=ifindex)
            for ifindex, name in names or ()
            for slot, dev in devs.items()
            if matches_dev(name, dev)
        }
        self._set_keys("vias", wanted)


def _addresses(keys: bytes, values: bytes) -> Iterator[bytes]:
    """Yield entries of the map `addresses` as _SORTED."""
    entries = zip(_ADDRESS.iter_unpack(keys), _RULE.iter_unpack(values), strict=True)
    return (_SORTED.pack(address, 128, rule) for (address,), (rule,) in entries)


def _prefixes(keys: bytes, values: bytes) -> Iterator[bytes]:
    """Yield entries of the map `prefixes` as _SORTED."""
    entries = zip(_PREFIX.iter_unpack(keys), _RULE.iter_unpack(values), strict=True)
    return (_SORTED.pack(address, length, rule) for (length, address), (rule,) in entries)


def _keys_of(prefixes: Iterable[Prefix]) -> bytes:
    return b"".join(abi.PREFIX.pack(length=each.length, address=each.address) for each in prefixes)


def prefix_of(key: bytes) -> Prefix:
    """Return the prefix of an abi.PREFIX."""
    fields = abi.PREFIX.unpack(key)
    return Prefix(fields["address"], fields["length"])
