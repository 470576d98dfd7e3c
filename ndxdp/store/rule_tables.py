"""Writing of the rules of one interface to its maps: addresses, prefixes and rule classes."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from ndxdp import progress
from ndxdp.errors import NdxdpError, from_os
from ndxdp.kernel import abi
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.capacity import Capacity
from ndxdp.rules.difference import Difference
from ndxdp.rules.interface_name import matching_dev
from ndxdp.rules.rule import Rule, RuleClass
from ndxdp.rules.ruleset import Rules
from ndxdp.store.records import (
    ENDED,
    dev_set_of,
    is_uncounted,
    pack_dev_set,
    pack_rule_class,
    pause_note,
    sum_of_counters,
)
from ndxdp.store.rule_file import FILE_NAME
from ndxdp.store.rule_reader import RuleReader, keys_of

_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_U64_MAX = (1 << 64) - 1
MOST_HINTS = 1 << 14
"""Up to so many addresses, only their own bits in `hints` are set. More would set most of the
bits, so all are set."""


class _Slots(NamedTuple):
    """The slots of the rule classes that some rules have.

    Attributes:
        by_class: The slot of each class.
        new: The slots of the classes that were written just now.
    """

    by_class: dict[RuleClass, int]
    new: list[int]


class RuleTables(RuleReader):
    """Open maps, whose rules are read and written as Rules."""

    def apply_at(self, change: Difference, present: Rules) -> None:
        """Write and remove rules as apply() does, without reading the other rules.

        Args:
            change: The rules to write and to remove.
            present: The result of rules_at() for all prefixes of the change, called under the same
                lock.

        Raises:
            NdxdpError: The maps have no room for the rules.
        """
        if self._change(change, present):
            # The maps are full. With all rules, apply() can report what has no room, or remove
            # rules first.
            self.apply(change, self.rules())

    def apply(self, change: Difference, actual: Rules) -> None:
        """Write and remove rules: all of them or, on NdxdpError, none.

        Args:
            change: The rules to write and to remove.
            actual: The result of rules(), called under the same lock.

        Raises:
            NdxdpError: The maps have no room for the rules.
        """
        capacity = Capacity(*(self._maps[name].max_entries for name in ("addresses", "prefixes")))
        lack = capacity.shortage(change.write, actual)
        if lack and change.remove:
            if self.in_kernel:
                self._apply_in_turn(change, actual, capacity)
                return
            lack = capacity.shortage(change.write, actual.without(change.remove))
        if lack:
            raise lack.error()
        error = self._change(change, actual, actual)
        if error:
            if not self.in_kernel:
                cause = from_os(error)
                raise NdxdpError(f"{cause.message}; no rule was changed", cause.hint) from error
            raise NdxdpError(
                f"cannot write the rules: {error.strerror}; no rule was changed",
                "if memory is short, dmesg shows it",
            ) from error

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

    def _assign_classes(self, writing: Rules, kept: Rules | None = None) -> _Slots:
        """Return the slots of the rule classes that rules have; write the classes that are new.

        Args:
            writing: The rules.
            kept: The rules that are there already, if all are known. The slot of a class that no
                rule has is then reused, before a slot is taken that needs more memory.

        Raises:
            OSError: There is no room, or no memory; then no class is written.
        """
        wanted = dict.fromkeys(map(RuleClass.of, writing.distinct_rules))
        present = self._packed_classes()
        slots = {data: slot for slot, data in present.items()}
        numbers = (
            {dev: n for n, dev in self.dev_sets().items()}
            if any(each.dev for each in wanted)
            else {}
        )
        found = {
            each: slots.get(pack_rule_class(each, numbers.get(each.dev, 0)))
            for each in wanted
            if not each.dev or each.dev in numbers
        }
        by_class = {each: slot for each, slot in found.items() if slot is not None}
        missing = [each for each in wanted if each not in by_class]
        if not missing:
            return _Slots(by_class, [])
        free = self._free_slots(present, len(missing), wanted, kept)
        if len(free) < len(missing):
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        new = dict(zip(missing, free, strict=False))
        self._add_dev_sets([each.dev for each in missing if each.dev], numbers, present)
        try:
            self._reset_counters(new.values(), present, free[len(missing) :])
            self.slots("groups").update(
                (slot, pack_rule_class(each, numbers.get(each.dev, 0)))
                for each, slot in new.items()
            )
        except OSError:
            self._clear_slots(new.values())
            raise
        return _Slots(by_class | new, list(new.values()))

    def _clear_slots(self, slots: Collection[int]) -> None:
        self.slots("groups").clear(slots)
        self.slots("group_counters").clear(slots)

    def _free_slots(
        self,
        present: Mapping[int, bytes],
        count: int,
        wanted: Collection[RuleClass],
        kept: Rules | None,
    ) -> list[int]:
        """Return slots for new classes: more than `count` of them if there are so many.

        The slots come in the order in which they are to be used.

        Args:
            present: The classes by slot.
            count: The number of slots to find.
            wanted: Classes that stay in their slots, although no rule has them so far.
            kept: As for _assign_classes().
        """
        free = sorted(set(range(abi.FIRST_RULE_CLASSES)).difference(present))
        if len(free) < count and kept is not None:
            used = {*map(RuleClass.of, kept.distinct_rules), *wanted}
            classes = self._unpacked(dict(present))
            free += sorted(slot for slot, rule_class in classes.items() if rule_class not in used)
        with_sums = {slot for slot, data in present.items() if data == ENDED}
        ended = [slot for slot in free if slot in with_sums]
        if len(free) <= count + len(ended):
            more = range(abi.FIRST_RULE_CLASSES, abi.MAX_RULE_CLASSES)
            free += [slot for slot in more if slot not in present]
        return [slot for slot in free if slot not in with_sums] + ended

    def _reset_counters(
        self, slots: Collection[int], present: Mapping[int, bytes], spare: Collection[int]
    ) -> None:
        """Fill the counters of slots with zeros; keep the sum of those beyond the first.

        Args:
            slots: The slots of new classes.
            present: The classes by slot; some of those in `slots` have no rules.
            spare: Further slots that are free. Where a class beyond the first ones has counted,
                the counters are added to those of the class ENDED, which may need a slot.
        """
        counters = self.slots("group_counters")
        zeros = bytes(counters.value_size)
        values = dict.fromkeys(slots, zeros)
        ending = [n for n in slots if n in present and n >= abi.FIRST_RULE_CLASSES]
        counted = [counters.lookup(n) or zeros for n in ending if not is_uncounted(present[n])]
        if any(map(any, counted)):
            kept = next((n for n, data in present.items() if data == ENDED), None)
            if kept in values:  # there is no other slot
                kept = None
            elif kept is None:
                kept = next((n for n in spare if n >= abi.FIRST_RULE_CLASSES), None)
            if kept is not None:
                if not is_uncounted(present.get(kept, b"")):
                    counted.append(counters.lookup(kept) or zeros)
                # First: if memory is short, nothing is lost.
                values = {kept: sum_of_counters(counted)} | values
                if present.get(kept) != ENDED:
                    self.slots("groups").update([(kept, ENDED)])
        counters.update(values.items())

    def _add_dev_sets(
        self,
        devs: Iterable[tuple[str, ...]],
        numbers: dict[tuple[str, ...], int],
        present: Mapping[int, bytes],
    ) -> None:
        """Write the sets of output interfaces that are new, and remove those that no class has.

        Args:
            devs: The sets that are needed.
            numbers: The numbers of the sets that are there; those of the new ones are added.
            present: The classes by slot.
        """
        needed = dict.fromkeys(devs)
        new = [dev for dev in needed if dev not in numbers]
        if not new:
            return
        used = set(map(dev_set_of, present.values()))
        unused = {dev: n for dev, n in numbers.items() if n not in used and dev not in needed}
        self._maps["dev_sets"].delete(b"".join(map(_U32.pack, unused.values())))
        for dev in unused:
            del numbers[dev]
        taken = set(numbers.values())
        free = (n for n in range(1, abi.MAX_DEV_SETS + 1) if n not in taken)
        numbers.update(zip(new, free, strict=False))
        self._maps["dev_sets"].update(
            b"".join(_U32.pack(numbers[dev]) for dev in new), b"".join(map(pack_dev_set, new))
        )

    def _change(
        self, change: Difference, before: Rules, kept: Rules | None = None
    ) -> OSError | None:
        """Write rules and their classes, and remove rules. If that fails, undo it.

        Args:
            change: The rules to write and to remove.
            before: The rules before, at least those of the prefixes to write.
            kept: As for _assign_classes().

        Returns:
            The error; None after a success.
        """
        writing = change.write
        try:
            assigned = self._assign_classes(writing, kept)
        except OSError as error:
            return error
        if not self.in_kernel:
            return self._change_file(change, assigned)
        self.sync_dev_ifindexes()
        try:
            self._write(writing, assigned.by_class)
        except OSError as error:
            self._remove(writing.without(before))
            replaced = before.restricted_to(writing)
            self._write(replaced, self._assign_classes(replaced).by_class)
            self._clear_slots(assigned.new)
            return error
        self._remove(change.remove)
        return None

    def _change_file(self, change: Difference, assigned: _Slots) -> OSError | None:
        """Do what _change() does, in userspace mode: a reader sees the whole change or none."""
        step, many = ("written", change.write) if change.write else ("removed", change.remove)
        with progress.step(f"rules {step}", len(many)):
            written, removed = _packed(change.write, assigned.by_class), change.remove
            changes: dict[str, dict[bytes, bytes | None]] = {
                "addresses": dict.fromkeys(removed.addresses),
                "prefixes": {keys_of([prefix]): None for prefix in removed.wider},
            }
            for name, (keys, values) in written.items():
                # A million addresses share the bytes of few rules.
                same: dict[bytes, bytes] = {}
                rules = (same.setdefault(rule, rule) for rule in _pieces(values, abi.RULE.size))
                pieces = _pieces(keys, abi.FILES[name].key_size)
                changes[name].update(zip(pieces, rules, strict=True))
            try:
                self.rule_file.write(changes)
            except OSError as error:
                self._clear_slots(assigned.new)
                return error
        return None

    def _write(self, rules: Rules, slots: Mapping[RuleClass, int]) -> None:
        self._set_hints(rules.addresses)
        with progress.step("rules written", len(rules)):
            for name, (keys, values) in _packed(rules, slots).items():
                self._maps[name].update(keys, values)

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
            self._maps["prefixes"].delete(keys_of(rules.wider))

    def restore_files(self) -> None:
        """Write the files again that were removed; this process has all of them open."""
        for name in self.missing(self.directory):
            if name == FILE_NAME:
                self.rule_file.restore()
            else:
                self.file(name).restore()

    def sync_dev_ifindexes(self, names: Iterable[tuple[int, str]] | None = None) -> None:
        """Update the ifindexes of the output interfaces that rule classes name.

        Args:
            names: The index and the name of each interface; None to ask the kernel.
        """
        if not self.in_kernel:
            return  # userspace mode compares names
        dev_sets = self.dev_sets()
        if dev_sets and names is None:
            names = socket.if_nameindex()
        ifindexes = {name: ifindex for ifindex, name in names or ()}
        wanted = {
            abi.DEV.pack(dev_set=number, ifindex=ifindexes[name])
            for number, dev in dev_sets.items()
            for name in matching_dev(ifindexes, dev)
        }
        self._set_keys("vias", wanted)


def _packed(rules: Rules, slots: Mapping[RuleClass, int]) -> dict[str, tuple[bytes, bytes]]:
    """Return rules as keys and values of the maps `addresses` and `prefixes`.

    Args:
        rules: The rules.
        slots: The slots of their classes.
    """

    def value(rule: Rule, length: int) -> bytes:
        return abi.RULE.pack(
            rule_class=slots[RuleClass.of(rule)],
            answer=rule.answer,
            flags=abi.RuleFlag.PRESENT | (0 if rule.is_applied else abi.RuleFlag.OWNED),
            prefix_len=length,
            reserved=pause_note(rule),
        )

    addresses = b"".join(some.packed for some in rules.exact.values())
    values = b"".join(value(rule, 128) * len(some) for rule, some in rules.exact.items())
    known: dict[tuple[int, int], bytes] = {}  # a list of 100 000 prefixes shares one rule
    for prefix, rule in rules.wider.items():
        kind = (id(rule), prefix.length)
        known[kind] = known.get(kind) or value(rule, prefix.length)
    wider = b"".join(known[id(rule), prefix.length] for prefix, rule in rules.wider.items())
    return {"addresses": (addresses, values), "prefixes": (keys_of(rules.wider), wider)}


def _pieces(packed: bytes, size: int) -> Iterator[bytes]:
    return (piece for (piece,) in struct.iter_unpack(f"{size}s", packed))
