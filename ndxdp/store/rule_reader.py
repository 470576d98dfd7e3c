"""Reading of the rules of one interface from its maps: all of them, some, or only their number."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator

from ndxdp import progress
from ndxdp.kernel import abi
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule, RuleClass
from ndxdp.rules.ruleset import Rules
from ndxdp.store.map_set import MapSet
from ndxdp.store.records import (
    ORIGIN_AT,
    RuleCount,
    damaged,
    dev_set_of,
    is_free,
    origin_of,
    rule_of,
    unpack_dev_set,
    unpack_rule_class,
)
from ndxdp.store.sorted_runs import Runs

_U32 = struct.Struct("=I")
_ADDRESS, _RULE = struct.Struct("16s"), struct.Struct(f"{abi.RULE.size}s")
_PREFIX = struct.Struct("=I16s")  # as abi.PREFIX
_SORTED = struct.Struct(f"16sB{abi.RULE.size}s")
"""Address, length and rule of a prefix: bytes that have the order of the prefixes."""


class RuleReader(MapSet):
    """Open maps, whose rules are read as Rules."""

    def rules(self) -> Rules:
        """Return all rules, without blocking writers."""
        packed: dict[bytes, bytearray] = {}  # addresses by the bytes of their rule
        addresses, wider = self.tables("addresses", "prefixes")
        for keys, values in addresses.pieces():
            first = values[: abi.RULE.size]
            if first and values == first * (len(keys) // _ADDRESS.size):
                packed.setdefault(first, bytearray()).extend(keys)
                continue
            entries = zip(_ADDRESS.iter_unpack(keys), _RULE.iter_unpack(values), strict=True)
            for (key,), (value,) in entries:
                packed.setdefault(value, bytearray()).extend(key)
        prefixes = dict(wider.items())
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
        addresses, wider = self.tables("addresses", "prefixes")
        for prefix in prefixes:
            if prefix.length == 128:
                value = addresses.lookup(prefix.address)
            else:
                value = wider.lookup(keys_of([prefix]))
                # In the kernel a trie returns the longest prefix that contains the key.
                if value and abi.RULE.unpack(value)["prefix_len"] != prefix.length:
                    value = None
            if value:
                found[prefix] = value
        records = {value: abi.RULE.unpack(value) for value in found.values()}
        # Read after the entries, as in rules().
        classes = self.rule_classes_at({fields["rule_class"] for fields in records.values()})
        rules = {value: rule_of(fields, classes) for value, fields in records.items()}
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
                tables = self.tables("addresses", "prefixes")
                for each, sortable in zip(tables, (_addresses, _prefixes), strict=True):
                    for keys, packed in each.pieces():
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

    def rule_classes(self) -> dict[int, RuleClass]:
        """Return the rule classes by slot."""
        return self._unpacked(self._packed_classes())

    def rule_classes_at(self, slots: Iterable[int]) -> dict[int, RuleClass]:
        """Return the rule classes in some slots, each of which is looked up."""
        packed = self.slots("groups")
        found = {slot: packed.lookup(slot) for slot in slots}
        return self._unpacked(
            {slot: data for slot, data in found.items() if data and not is_free(data)}
        )

    def _packed_classes(self) -> dict[int, bytes]:
        """Return the bytes of all rule classes by slot."""
        return dict(self.slots("groups").marked(ORIGIN_AT))

    def _unpacked(self, packed: dict[int, bytes]) -> dict[int, RuleClass]:
        # Read after the classes: the output interfaces are written before the first class that
        # refers to them.
        dev_sets = self.dev_sets() if any(map(dev_set_of, packed.values())) else {}
        return {slot: unpack_rule_class(data, dev_sets) for slot, data in packed.items()}

    def dev_sets(self) -> dict[int, tuple[str, ...]]:
        """Return the output interfaces that rule classes name, as patterns, by their number."""
        return {
            _U32.unpack(key)[0]: unpack_dev_set(value)
            for key, value in self._maps["dev_sets"].items()
        }

    def rule_count(self) -> RuleCount:
        """Return how many rules rules() would return.

        In the kernel's modes, counting makes no object for each rule: it takes 15 ms for 100 000
        rules. In userspace mode, the file of the rules has the numbers.
        """
        by_slot = Counter[int]()
        if self._rule_file is not None:
            view = self._rule_file.view()
            addresses, prefixes, _ = view.counts
            by_slot.update(view.by_slot())
        else:
            addresses, prefixes = (self._count(name, by_slot) for name in ("addresses", "prefixes"))
        classes, by_origin = self._packed_classes(), Counter[str]()
        for slot, count in by_slot.items():
            if slot not in classes:
                raise damaged(f"a rule refers to rule class {slot}, which does not exist")
            by_origin[origin_of(classes[slot])] += count
        return RuleCount(
            addresses, prefixes, dict(sorted(by_origin.items())), dict(by_slot), classes
        )

    def _count(self, name: str, by_slot: Counter[int]) -> int:
        """Add the rules in a map in the kernel to those of their slots, and return their number."""
        before = by_slot.total()
        for words in self._kernel_map(name).leading("H"):
            by_slot.update(words.tolist())
        return by_slot.total() - before


def _addresses(keys: bytes, values: bytes) -> Iterator[bytes]:
    """Yield entries of the map `addresses` as _SORTED."""
    entries = zip(_ADDRESS.iter_unpack(keys), _RULE.iter_unpack(values), strict=True)
    return (_SORTED.pack(address, 128, rule) for (address,), (rule,) in entries)


def _prefixes(keys: bytes, values: bytes) -> Iterator[bytes]:
    """Yield entries of the map `prefixes` as _SORTED; raise Damaged for an impossible length."""
    entries = zip(_PREFIX.iter_unpack(keys), _RULE.iter_unpack(values), strict=True)
    for (length, address), (rule,) in entries:
        if length > 128:
            raise damaged(f"a prefix has the length {length}")
        yield _SORTED.pack(address, length, rule)


def keys_of(prefixes: Iterable[Prefix]) -> bytes:
    """Return prefixes as concatenated abi.PREFIX."""
    return b"".join(abi.PREFIX.pack(length=each.length, address=each.address) for each in prefixes)


def prefix_of(key: bytes) -> Prefix:
    """Return the prefix of an abi.PREFIX."""
    fields = abi.PREFIX.unpack(key)
    return Prefix(fields["address"], fields["length"])
