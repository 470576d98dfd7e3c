"""The maps of one interface: rules, groups, settings and counters, in Python's terms."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ndxdp.errors import ModeUnavailable, NdxdpError, from_os
from ndxdp.kernel import abi, bpf_maps, libbpf
from ndxdp.kernel.abi import MapSpec
from ndxdp.ndp.reason import Reason
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.capacity import Capacity
from ndxdp.rules.difference import Difference, difference
from ndxdp.rules.interface_name import matches_dev
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule, RuleClass
from ndxdp.rules.ruleset import Rules
from ndxdp.rules.table import Entry, Table, entry_of
from ndxdp.store import directories, jiffies
from ndxdp.store.backends import ArrayFile, KernelMap, Map, TableFile
from ndxdp.store.records import (
    Explained,
    GroupCount,
    Resolved,
    RuleCount,
    Settings,
    Solicitors,
    Traced,
    damaged,
    explained_of,
    pack_rule_class,
    rule_of,
    unpack_rule_class,
)

log = logging.getLogger(__name__)

_settings = threading.Lock()
"""Held while settings are written, so that a heartbeat does not undo a change."""

_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_ADDRESS, _RULE = struct.Struct("16s"), struct.Struct(f"{abi.RULE.size}s")
_PREFIX = struct.Struct("=I16s")  # as abi.PREFIX
_KEY0 = _U32.pack(0)
_U64_MAX = (1 << 64) - 1
MOST_HINTS = 1 << 16
"""Addresses at once that are hinted at one by one: more would set most of the bits."""
_ARRAYS = (abi.ARRAY, abi.PERCPU_ARRAY)


class Maps:
    """Open maps of one interface, by name; close() when done."""

    def __init__(self, maps: Mapping[str, Map], directory: Path | None = None) -> None:
        self._maps = dict(maps)
        self._directory = directory

    @classmethod
    def create(cls, max_addresses: int = abi.MAX_ADDRESSES) -> Maps:
        """New, empty maps in the kernel, which nothing pins yet."""
        try:
            with _all_or_none() as maps:
                for spec in _sized(abi.MAPS, max_addresses):
                    maps[spec.name] = KernelMap.create(spec)
        except libbpf.BpfError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL):
                raise
            raise _not_made(error, spec.name) from error
        return cls(maps)

    @classmethod
    def open(cls, directory: Path, *, readonly: bool = False) -> Maps:
        """The pinned maps of an interface; NdxdpError if they are not what this ABI has.

        readonly: read permission for the pins will do.
        """
        with _all_or_none() as maps:
            for spec in abi.MAPS.values():
                maps[spec.name] = KernelMap.open(directory / spec.name, spec, readonly=readonly)
        return cls(maps)

    @classmethod
    def create_files(cls, directory: Path, max_addresses: int = abi.MAX_ADDRESSES) -> Maps:
        """New, empty maps in files."""
        for spec in _sized(abi.FILES, max_addresses):
            if spec.type in _ARRAYS:
                ArrayFile.create(directory / spec.name, spec)
            else:
                TableFile.create(directory / spec.name, spec)
        return cls.open_files(directory)

    @classmethod
    def open_files(cls, directory: Path) -> Maps:
        """The maps in an interface's files."""
        with _all_or_none() as maps:
            changes = ArrayFile(directory / "userspace", abi.FILES["userspace"])

            def changed() -> None:
                changes.add(0, 1, 0, 0, 0, 0)

            maps["userspace"] = changes
            for spec in abi.FILES.values():
                if spec.name == "userspace":
                    continue
                path = directory / spec.name
                maps[spec.name] = (
                    ArrayFile(path, spec)
                    if spec.type in _ARRAYS
                    else TableFile(path, spec, changed)
                )
        return cls(maps, directory)

    def close(self) -> None:
        for each in self._maps.values():
            each.close()
        self._maps = {}

    def __enter__(self) -> Maps:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def fds(self) -> dict[str, int]:
        """Descriptors of the maps in the kernel, by name."""
        return {name: each.fd for name, each in self._maps.items() if isinstance(each, KernelMap)}

    def file(self, name: str) -> ArrayFile:
        """A map that is an array in a file."""
        found = self._maps[name]
        assert isinstance(found, ArrayFile), "asked for on the userspace path alone"
        return found

    @property
    def directory(self) -> Path:
        """Of maps in files: where they are."""
        assert self._directory is not None, "asked for on the userspace path alone"
        return self._directory

    def duplicate(self, max_addresses: int) -> Maps:
        """The same maps in the kernel, opened once more, with room for so many addresses.

        Another size takes another map, into which the entries are copied.
        """
        with _all_or_none() as maps:
            for name, each in self._maps.items():
                assert isinstance(each, KernelMap), "files are not renewed"
                if name == "addresses" and each.max_entries != max_addresses:
                    spec = abi.MAPS[name]._replace(max_entries=max_addresses)
                    maps[name] = KernelMap.create(spec)
                    for keys, values in each.pieces():
                        maps[name].update(keys, values)
                else:
                    maps[name] = each.duplicate()
        return Maps(maps)

    def pin(self, directory: Path) -> None:
        for name, fd in self.fds.items():
            directories.pin(fd, directory / name)

    def missing(self, directory: Path) -> list[str]:
        """Return the names of maps whose pins or files somebody has removed."""
        return [name for name in self._maps if not (directory / name).exists()]

    def restore_pins(self, directory: Path) -> None:
        """Pin again what somebody has removed the pins of."""
        for name in self.missing(directory):
            directories.pin(self.fds[name], directory / name)

    def restore_files(self, rules: Rules) -> None:
        """Write again the files that somebody has removed.

        Args:
            rules: All rules, as the files of the tables were not open.
        """
        tables = [each for each in self._maps.values() if isinstance(each, TableFile)]
        for name in self.missing(self.directory):
            found = self._maps[name]
            if isinstance(found, ArrayFile):
                found.restore()
            else:
                spec = abi.FILES[name]._replace(max_entries=found.max_entries)
                TableFile.create(self.directory / name, spec)
        # Whoever answers has read these rules, and is not to read the tables half written.
        for table in tables:
            table.quiet = True
        try:
            actual = self.rules()
            self.apply(difference(rules, actual), actual)
        finally:
            for table in tables:
                table.quiet = False

    def max_entries(self, name: str) -> int:
        return self._maps[name].max_entries

    def resize_addresses(self, max_addresses: int) -> None:
        """Of maps in files: room for so many."""
        table = self._maps["addresses"]
        assert isinstance(table, TableFile), "a map in the kernel keeps its size"
        table.resize(max_addresses)

    # ---- settings

    def settings(self) -> Settings:
        try:
            return Settings.unpack(self._element("settings"))
        except ValueError as error:
            raise damaged(f"the settings say that {error}") from error

    def set_settings(self, settings: Settings) -> None:
        with _settings:
            self._maps["settings"].update(_KEY0, settings.pack())

    def beat(self, timeout: float) -> None:
        """Write a heartbeat, which another thread may do while somebody changes the settings.

        Args:
            timeout: Seconds after which dynamic rules expire; 0 for never.
        """
        with _settings:
            settings = self.settings()
            if timeout or settings.heartbeat_timeout:
                beating = replace(
                    settings, heartbeat=time.monotonic_ns(), heartbeat_timeout=round(timeout * 1e9)
                )
                self._maps["settings"].update(_KEY0, beating.pack())

    # ---- rules

    def rules(self) -> Rules:
        """Every rule in the kernel, without keeping anybody from writing meanwhile."""
        packed: dict[bytes, bytearray] = {}  # by the rule's bytes: there are as many as groups
        for keys, values in self._maps["addresses"].pieces():
            first = values[: abi.RULE.size]
            if first and values == first * (len(keys) // _ADDRESS.size):
                packed.setdefault(first, bytearray()).extend(keys)
                continue
            entries = zip(_ADDRESS.iter_unpack(keys), _RULE.iter_unpack(values), strict=True)
            for (key,), (value,) in entries:
                packed.setdefault(value, bytearray()).extend(key)
        prefixes = dict(self._maps["prefixes"].items())
        # After the entries: a group is written before the first rule that refers to it.
        groups = self.rule_classes()
        known = {
            value: rule_of(abi.RULE.unpack(value), groups)
            for value in {*packed, *prefixes.values()}
        }
        return Rules(
            {known[value]: AddressSet(packed.pop(value)) for value in list(packed)},
            {_prefix_of(key): known[value] for key, value in prefixes.items()},
        )

    def wider(self, wanted: Callable[[int, bytes], bool]) -> Rules:
        """Return the rules of the prefixes below 128 bits for which `wanted` is true.

        No object is made of the others: there may be 100 000.

        Args:
            wanted: called with a prefix's length and address (16 bytes).
        """
        found = []
        for keys, values in self._maps["prefixes"].pieces():
            entries = zip(_PREFIX.iter_unpack(keys), _RULE.iter_unpack(values), strict=True)
            for (length, address), (value,) in entries:
                if wanted(length, address):
                    found.append((Prefix(address, length), value))
        groups = self.rule_classes() if found else {}  # after the entries, as in rules()
        return Rules(
            wider={prefix: rule_of(abi.RULE.unpack(value), groups) for prefix, value in found}
        )

    def table(self, *, expired: bool) -> Table:
        """The rules of maps in files, as the userspace path takes them, counted by group's slot.

        Without a Prefix for each address: it answers nobody meanwhile, and that takes 4 times as
        long. expired: dynamic rules no longer hold.
        """
        # Both files are read now, before the groups; see rules().
        addresses, prefixes = self._maps["addresses"].items(), self._maps["prefixes"].items()
        groups = self.rule_classes()
        known: dict[bytes, Entry] = {}

        def entry(value: bytes) -> Entry:
            fields = abi.RULE.unpack(value)
            known[value] = entry_of(
                rule_of(fields, groups),
                fields["rule_class"],
                expired=expired,
                exact=fields["prefix_len"] == 128,
            )
            return known[value]

        exact = {key: known.get(value) or entry(value) for key, value in addresses}
        wider = ((_prefix_of(key), known.get(value) or entry(value)) for key, value in prefixes)
        return Table(exact, wider)

    def apply(self, change: Difference, actual: Rules) -> None:
        """Write and remove rules: all of them or, on NdxdpError, none.

        actual: what rules() said under the same lock.
        """
        room = Capacity(*map(self.max_entries, Capacity._fields))
        lack = room.lack(change.write, actual)
        if lack and change.remove:
            self._apply_in_turn(change, actual, room)
            return
        if lack:
            raise lack.error()
        group_ids = self._assign_classes(change.write, actual)
        self.match_vias()
        try:
            self._write(change.write, group_ids)
        except OSError as error:
            before = actual.restricted_to(change.write)
            self._remove(change.write.without(actual))
            self._write(before, self._assign_classes(before, actual))
            if not self.for_program:
                cause = from_os(error)
                raise NdxdpError(f"{cause.message}; no rule was changed", cause.hint) from error
            raise NdxdpError(
                f"the kernel did not take the rules ({error.strerror}); none was changed",
                "is memory short? see dmesg",
            ) from error
        self._remove(change.remove)

    def _apply_in_turn(self, change: Difference, actual: Rules, room: Capacity) -> None:
        """Remove rules, then write those that had no room beside them."""
        left = actual.without(change.remove)
        lack = room.lack(change.write, left)
        if lack:
            raise lack.error()
        self._remove(change.remove)
        try:
            self.apply(Difference(change.write, Rules()), left)
        except NdxdpError:
            self.apply(Difference(actual.without(left), Rules()), left)
            raise

    def rule_class(self, slot: int) -> RuleClass | None:
        """What the slot holds; None for a free one."""
        return unpack_rule_class(self._element("groups", slot))

    def rule_classes(self) -> dict[int, RuleClass]:
        """Slot -> group, for the slots in use."""
        found = {}
        for key, value in self._maps["groups"].items():
            group = unpack_rule_class(value)
            if group:
                found[_U32.unpack(key)[0]] = group
        return found

    def rule_count(self) -> RuleCount:
        """What rules() would have, counted without making a rule of each: 100 000 take 15 ms."""
        totals, by_slot = [], Counter[int]()
        for name in ("addresses", "prefixes"):
            before = by_slot.total()
            for words in self._maps[name].leading("H"):
                by_slot.update(words.tolist())
            totals.append(by_slot.total() - before)
        groups, by_source = self.rule_classes(), Counter[str]()
        for slot, count in by_slot.items():
            if slot not in groups:
                raise damaged(f"a rule says group {slot}")
            by_source[groups[slot].origin] += count
        return RuleCount(totals[0], totals[1], dict(sorted(by_source.items())), dict(by_slot))

    def _assign_classes(self, writing: Rules, kept: Rules) -> dict[RuleClass, int]:
        """Slots for the groups of the rules to write; those of nobody's rules are used again."""
        slots = self.rule_classes()
        ids = {group: slot for slot, group in slots.items()}
        wanted = dict.fromkeys(map(RuleClass.of, writing.distinct_rules))
        missing = [group for group in wanted if group not in ids]
        if not missing:
            return ids
        limit = self.max_entries("groups")
        free = [slot for slot in range(limit) if slot not in slots]
        if len(free) < len(missing):
            used = {*map(RuleClass.of, kept.distinct_rules), *wanted}
            free += [slot for slot, group in slots.items() if group not in used]
        nothing = bytes(self._maps["group_counters"].value_size)
        for slot, group in zip(free, missing, strict=False):
            if slot in slots:
                del ids[slots[slot]]
            self._maps["group_counters"].update(_U32.pack(slot), nothing)
            self._maps["groups"].update(_U32.pack(slot), pack_rule_class(group))
            ids[group] = slot
        return ids

    def _write(self, rules: Rules, group_ids: Mapping[RuleClass, int]) -> None:
        def value(rule: Rule, length: int) -> bytes:
            return abi.RULE.pack(
                rule_class=group_ids[RuleClass.of(rule)],
                answer=rule.answer,
                flags=abi.RuleFlag.OWNED if rule.owned else 0,
                prefix_len=length,
            )

        for rule, addresses in rules.exact.items():
            self._hint_at(addresses)
            self._maps["addresses"].update(addresses.packed, value(rule, 128) * len(addresses))
        known: dict[tuple[int, int], bytes] = {}  # a list of 100 000 prefixes shares one rule
        for prefix, rule in rules.wider.items():
            kind = (id(rule), prefix.length)
            known[kind] = known.get(kind) or value(rule, prefix.length)
        self._maps["prefixes"].update(
            _keys_of(rules.wider),
            b"".join(known[id(rule), prefix.length] for prefix, rule in rules.wider.items()),
        )

    def _hint_at(self, addresses: AddressSet) -> None:
        """Let the program look for these: before they are there, so that it misses none."""
        if not self.for_program:
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
        self._maps["addresses"].delete(rules.addresses.packed)
        self._maps["prefixes"].delete(_keys_of(rules.wider))

    # ---- what the program cannot ask the kernel

    @property
    def for_program(self) -> bool:
        """They are in the kernel, and a program reads them."""
        return "vias" in self._maps

    def match_vias(self) -> None:
        """Let the groups' `via` mean the interfaces that there are now, in this namespace."""
        if not self.for_program:
            return  # the userspace path asks for an interface's name
        interfaces = socket.if_nameindex()
        wanted = {
            abi.DEV.pack(rule_class=slot, ifindex=ifindex)
            for slot, group in self.rule_classes().items()
            if group.dev
            for ifindex, name in interfaces
            if matches_dev(name, group.dev)
        }
        self._make_set("vias", wanted)

    def set_locals(self, prefixes: Iterable[Prefix]) -> None:
        """What ends at this host, for the reason `route_local`."""
        if self.for_program:
            self._make_set(
                "locals",
                {abi.PREFIX.pack(length=each.length, address=each.address) for each in prefixes},
            )

    def locals(self) -> set[Prefix]:
        """Return what ends at this host, as the program knows it."""
        return {_prefix_of(key) for key, _ in self._maps["locals"].items()}

    def set_on_link(self, addresses: Iterable[bytes]) -> None:
        """Let the live neighbours of the host on the interface be these (16 bytes each)."""
        if self.for_program:
            self._make_set("on_link", set(addresses))

    def note_neighbour(self, address: bytes, *, alive: bool) -> None:
        """Add a neighbour (16 bytes) on the interface, or remove it."""
        if not self.for_program:
            return  # the userspace path asks the kernel
        if alive:
            self._maps["on_link"].update(address, b"\1")
        else:
            self._maps["on_link"].delete(address)

    def set_gateways(self, macs: Iterable[bytes]) -> None:
        """Let the gateways' MACs (6 bytes each) be these; those that stay keep their shares."""
        if self.for_program:
            self._make_set("gateways", {mac + bytes(2) for mac in macs})

    def _make_set(self, name: str, wanted: set[bytes]) -> None:
        """Make a map's keys these; what finds no room is left out."""
        present = {key for key, _ in self._maps[name].items()}
        if present == wanted:
            return
        self._maps[name].delete(b"".join(present - wanted))
        new = wanted - present
        size = abi.MAPS[name].value_size
        try:
            self._maps[name].update(b"".join(new), bytes(size) * len(new))
        except OSError as error:
            log.warning("not all of %d %s found room (%s)", len(wanted), name, error.strerror)

    def requests(self) -> bpf_maps.RingBuffer:
        """The program's requests for neighbours; close() it when done."""
        return bpf_maps.RingBuffer(self.fds["requests"])

    # ---- what a tracer sees

    def events(self) -> bpf_maps.RingBuffer:
        """The program's events, abi.EVENT each; close() it when done."""
        return bpf_maps.RingBuffer(self.fds["events"])

    def set_trace(self, until: int, every: int = 1) -> None:
        """Have events made until a time (ns of CLOCK_MONOTONIC), one of `every` solicitations."""
        self.set_settings(replace(self.settings(), trace_until=until, trace_every=every))

    def traced(self) -> Traced:
        """Counts of all tracers that there ever were."""
        if not self.for_program:
            fields = abi.USERSPACE.unpack(self._element("userspace"))
            return Traced(fields["seen"], fields["lost"])
        data = self._element("tracers")
        each = [
            abi.TRACER.unpack(data[at : at + abi.TRACER.size])
            for at in range(0, len(data), abi.TRACER.size)
        ]
        return Traced(sum(one["seen"] for one in each), sum(one["lost"] for one in each))

    # ---- counters

    def reasons(self) -> dict[Reason, int]:
        """Solicitations by reason, over all CPUs."""
        counts = {}
        for key, data in self._maps["reasons"].items():
            reason = Reason(_U32.unpack(key)[0])
            counts[reason] = sum(struct.unpack(f"={len(data) // 8}Q", data))
        del counts[Reason.NOT_NS]
        return counts

    def class_counts(self, counted: RuleCount | None = None) -> list[GroupCount]:
        """Return the counters of each group that has rules, or has had some.

        Args:
            counted: What rule_count() returned just now, if it was called.
        """
        by_slot = (counted or self.rule_count()).by_slot
        counts, groups = [], self.rule_classes()
        for key, data in self._maps["group_counters"].items():
            slot = _U32.unpack(key)[0]
            group = groups.get(slot)
            if group is None:
                continue
            numbers = struct.unpack(f"={len(data) // 8}Q", data)
            last = max(numbers[2::3])
            counts.append(
                GroupCount(
                    group.origin,
                    group.label,
                    sum(numbers[::3]),
                    sum(numbers[1::3]),
                    jiffies.to_monotonic(last) if last else None,
                    by_slot.get(slot, 0),
                )
            )
        return counts

    def solicitors(self, settings: Settings) -> Solicitors | None:
        """None on the userspace path, whose process keeps them to itself."""
        if not self.for_program:
            return None
        paid = [until for each in self._maps["limiter"].leading("Q") for until in each.tolist()]
        least = time.monotonic_ns() + settings.rate_credit
        most = least + settings.rate_interval  # whoever owes more owed it under another rate
        return Solicitors(len(paid), sum(least < until <= most for until in paid))

    def socket_counts(self) -> dict[str, int] | None:
        """`overflows` and `errors` of the userspace path's socket; None if it is not that."""
        if "userspace" not in self._maps:
            return None
        fields = abi.USERSPACE.unpack(self._element("userspace"))
        return {"overflows": fields["overflows"], "errors": fields["errors"]}

    def resolved(self) -> Resolved:
        return Resolved(**abi.RESOLVER.unpack(self._element("resolver")))

    def count_resolved(self, more: Resolved) -> None:
        """Of the one process that resolves."""
        there = self.resolved()
        grown = {name: getattr(there, name) + getattr(more, name) for name in more._fields}
        self._maps["resolver"].update(_KEY0, abi.RESOLVER.pack(**grown))

    def explained(self) -> Explained:
        """The verdict of the last dry run."""
        return explained_of(self._element("explained"), self.rule_classes())

    def _element(self, name: str, slot: int = 0) -> bytes:
        data = self._maps[name].lookup(_U32.pack(slot))
        assert data is not None, "an array always has its elements"
        return data


@contextlib.contextmanager
def _all_or_none() -> Iterator[dict[str, Map]]:
    """Maps as they are opened; if that fails, those that are open are closed."""
    maps: dict[str, Map] = {}
    try:
        yield maps
    except BaseException:
        for each in maps.values():
            each.close()
        raise


def _not_made(error: libbpf.BpfError, name: str) -> ModeUnavailable:
    if error.errno == errno.EINVAL:
        return ModeUnavailable(
            f"the kernel does not know the kind of BPF map that '{name}' is",
            "Linux 5.10 knows all of them; --mode userspace needs none",
        )
    if error.errno == errno.EPERM and _makes_a_small_map():
        return ModeUnavailable(
            f"the kernel lets this process lock too little memory for BPF maps ({error.strerror})",
            "before Linux 5.11 they count: ulimit -l unlimited, or with CAP_SYS_RESOURCE",
        )
    return ModeUnavailable(
        f"the kernel does not let this process make a BPF map ({error.strerror})",
        "run this as root, or with CAP_BPF and CAP_NET_ADMIN",
    )


def _makes_a_small_map() -> bool:
    try:
        os.close(bpf_maps.create(MapSpec("small", abi.ARRAY, 4, 4, 1, 0)))
    except libbpf.BpfError:
        return False
    return True


def _sized(specs: Mapping[str, MapSpec], max_addresses: int) -> Iterator[MapSpec]:
    for spec in specs.values():
        yield spec._replace(max_entries=max_addresses) if spec.name == "addresses" else spec


def _keys_of(prefixes: Iterable[Prefix]) -> bytes:
    return b"".join(abi.PREFIX.pack(length=each.length, address=each.address) for each in prefixes)


def _prefix_of(key: bytes) -> Prefix:
    fields = abi.PREFIX.unpack(key)
    return Prefix(fields["address"], fields["length"])
