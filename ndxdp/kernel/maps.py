"""The maps of one interface: rules, groups, settings and counters, in Python's terms."""

from __future__ import annotations

import contextlib
import errno
import logging
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ndxdp.errors import Damaged, ModeUnavailable, NdxdpError
from ndxdp.kernel import abi, libbpf, pins
from ndxdp.kernel.abi import MapSpec
from ndxdp.kernel.storage import ArrayFile, KernelMap, Map, TableFile
from ndxdp.ndp import UNSPECIFIED, Answer, NaSource, Profile, Reason
from ndxdp.policy import Difference, Prefix, Rule, Rules, cut

log = logging.getLogger(__name__)

_STEPS_MAX = 255
_U32 = struct.Struct("=I")
_KEY0 = _U32.pack(0)
_NOTHING_LEFT = abi.Left(0)
_ARRAYS = (abi.ARRAY, abi.PERCPU_ARRAY)


@dataclass(frozen=True, slots=True)
class Settings:
    """struct ndp_settings. Times in ns of CLOCK_MONOTONIC; netns is an inode number."""

    mac: bytes
    ifindex: int
    netns: int
    mode: abi.Mode
    link_local: bytes = UNSPECIFIED
    paused: bool = False
    heartbeat: int = 0
    heartbeat_timeout: int = 0
    rate_interval: int = 0
    rate_credit: int = 0
    left: abi.Left = _NOTHING_LEFT
    bcc: bool = False
    steps: str = ""
    """`mode: why not`, a line for each better mode that could not be had."""

    @property
    def burst(self) -> int:
        """Answers at once to one soliciting MAC; 0 without a limit."""
        return self.rate_credit // self.rate_interval + 1 if self.rate_interval else 0

    @property
    def daemon_dead(self) -> bool:
        """Dynamic rules are no longer answered: no heartbeat for too long."""
        if not self.heartbeat_timeout:
            return False
        return time.monotonic_ns() - self.heartbeat > self.heartbeat_timeout

    def pack(self) -> bytes:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return abi.SETTINGS.pack(**fields | {"steps": cut(self.steps, _STEPS_MAX).encode()})

    @classmethod
    def unpack(cls, data: bytes) -> Settings:
        fields = abi.SETTINGS.unpack(data)
        del fields["reserved"]
        fields["mode"] = abi.Mode(fields["mode"] or abi.Mode.USERSPACE)  # 0: a file just made
        fields["left"] = abi.Left(fields["left"])
        steps = _text(fields["steps"])
        flags = {name: bool(fields[name]) for name in ("paused", "bcc")}
        return cls(**fields | flags | {"steps": steps})


class Group(NamedTuple):
    """What rules written together share: who wrote them, their label, how they answer."""

    source: str
    label: str
    profile: Profile
    dynamic: bool = False

    def pack(self) -> bytes:
        profile = self.profile
        flags = abi.GroupFlag(0)
        for flag, value in (
            (abi.GroupFlag.ROUTER, profile.router),
            (abi.GroupFlag.OVERRIDE, profile.override),
            (abi.GroupFlag.DEFEND, profile.defend),
            (abi.GroupFlag.LLADDR, profile.lladdr is not None),
            (abi.GroupFlag.DYNAMIC, self.dynamic),
        ):
            flags |= flag if value else 0
        is_address = isinstance(profile.source, bytes)
        return abi.GROUP.pack(
            na_source=_NA_SOURCE_CODES.get(profile.source, abi.NaSourceCode.ADDRESS),
            flags=flags,
            lladdr=profile.lladdr or b"",
            address=profile.source if is_address else b"",
            source=self.source.encode(),
            label=self.label.encode(),
        )

    @classmethod
    def unpack(cls, data: bytes) -> Group | None:
        """None for a free slot."""
        fields = abi.GROUP.unpack(data)
        source = _text(fields["source"])
        if not source:
            return None
        flags = abi.GroupFlag(fields["flags"])
        na_source: NaSource | bytes = fields["address"]
        for known, code in _NA_SOURCE_CODES.items():
            na_source = known if fields["na_source"] == code else na_source
        profile = Profile(
            na_source,
            router=bool(flags & abi.GroupFlag.ROUTER),
            override=bool(flags & abi.GroupFlag.OVERRIDE),
            defend=bool(flags & abi.GroupFlag.DEFEND),
            lladdr=fields["lladdr"] if flags & abi.GroupFlag.LLADDR else None,
        )
        dynamic = bool(flags & abi.GroupFlag.DYNAMIC)
        return cls(source, _text(fields["label"]), profile, dynamic)

    @classmethod
    def of(cls, rule: Rule) -> Group:
        return cls(rule.source, rule.label, rule.profile, rule.dynamic)


_NA_SOURCE_CODES: dict[NaSource | bytes, abi.NaSourceCode] = {
    NaSource.TARGET: abi.NaSourceCode.TARGET,
    NaSource.LINK_LOCAL: abi.NaSourceCode.LINK_LOCAL,
}


class GroupCount(NamedTuple):
    """Solicitations that reached a rule of a group, and how many of them were answered."""

    source: str
    label: str
    solicited: int
    answered: int


class Explained(NamedTuple):
    """The verdict on a dry run, and the rule that matched, if one did."""

    reason: Reason
    prefix_len: int | None
    rule: Rule | None


class Maps:
    """Open maps of one interface, by name; close() when done."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._maps = dict(maps)

    @classmethod
    def create(cls, max_addresses: int = abi.MAX_ADDRESSES) -> Maps:
        """New, empty maps in the kernel, which nothing pins yet."""
        try:
            with _all_or_none() as maps:
                for spec in _sized(abi.MAPS, max_addresses):
                    maps[spec.name] = KernelMap.create(spec)
        except libbpf.BpfError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
                raise
            raise ModeUnavailable(
                f"the kernel does not let this process make a BPF map ({error.strerror})",
                "run this as root, or with CAP_BPF and CAP_NET_ADMIN",
            ) from error
        return cls(maps)

    @classmethod
    def open(cls, directory: Path) -> Maps:
        """The pinned maps of an interface; NdxdpError if they are not what this ABI has."""
        with _all_or_none() as maps:
            for spec in abi.MAPS.values():
                maps[spec.name] = KernelMap.open(directory / spec.name, spec)
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
                changes.add(0, 1, 0, 0)

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
        return cls(maps)

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
                    entries = list(each.items())
                    maps[name].update([key for key, _ in entries], [value for _, value in entries])
                else:
                    maps[name] = each.duplicate()
        return Maps(maps)

    def pin(self, directory: Path) -> None:
        for name, fd in self.fds.items():
            pins.pin(fd, directory / name)

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
            raise _damaged(f"the settings say that {error}") from error

    def set_settings(self, settings: Settings) -> None:
        self._maps["settings"].update([_KEY0], [settings.pack()])

    # ---- rules

    def rules(self) -> Rules:
        """Every rule in the kernel, without keeping anybody from writing meanwhile."""
        names = ("addresses", "prefixes")
        entries = {name: list(self._maps[name].items()) for name in names}
        # After the entries: a group is written before the first rule that refers to it.
        groups = self.groups()
        known: dict[bytes, Rule] = {}
        rules: Rules = {}
        for name, items in entries.items():
            for key, value in items:
                rule = known.get(value)
                if rule is None:
                    rule = known[value] = _rule_of(abi.RULE.unpack(value), groups)
                rules[_prefix_of(name, key)] = rule
        return rules

    def apply(self, change: Difference, actual: Mapping[Prefix, Rule]) -> None:
        """Write and remove rules: all of them or, on NdxdpError, none.

        actual: what rules() said under the same lock.
        """
        self._check_room(change, actual)
        group_ids = self._assign_groups(change.write.values(), actual.values())
        try:
            self._write(change.write, group_ids)
        except OSError as error:
            written = [prefix for prefix in change.write if prefix not in actual]
            before = {prefix: actual[prefix] for prefix in change.write if prefix in actual}
            self._remove(written)
            self._write(before, self._assign_groups(before.values(), actual.values()))
            raise NdxdpError(
                f"the kernel did not take the rules ({error.strerror}); none was changed",
                "is memory short? see dmesg",
            ) from error
        self._remove(change.remove)

    def groups(self) -> dict[int, Group]:
        """Slot -> group, for the slots in use."""
        found = {}
        for slot in range(self.max_entries("groups")):
            group = Group.unpack(self._element("groups", slot))
            if group:
                found[slot] = group
        return found

    def group_ids(self) -> dict[Group, int]:
        """The slot of each group, which it is counted under."""
        return {group: slot for slot, group in self.groups().items()}

    def _check_room(self, change: Difference, actual: Mapping[Prefix, Rule]) -> None:
        removed = set(change.remove)
        have = Counter(_map_of(prefix) for prefix in actual)
        new = Counter(_map_of(prefix) for prefix in change.write if prefix not in actual)
        # New entries come before old ones go, so that no target is left without a rule.
        for name in new:
            limit = self.max_entries(name)
            if have[name] + new[name] <= limit:
                continue
            going = sum(1 for prefix in removed if _map_of(prefix) == name)
            raise NdxdpError(
                f"{have[name]} {name} and {new[name]} new ones are more than the limit of {limit}"
                + (f" ({going} would go, but only afterwards)" if going else ""),
                "attach with a larger --max-addresses, or use prefixes"
                if name == "addresses"
                else "use wider prefixes",
            )

    def _assign_groups(self, writing: Iterable[Rule], kept: Iterable[Rule]) -> dict[Group, int]:
        """Slots for the groups of the rules to write; those of nobody's rules are used again."""
        slots = self.groups()
        ids = {group: slot for slot, group in slots.items()}
        wanted = {Group.of(rule): None for rule in _distinct(writing)}
        missing = [group for group in wanted if group not in ids]
        if not missing:
            return ids
        limit = self.max_entries("groups")
        free = [slot for slot in range(limit) if slot not in slots]
        if len(free) < len(missing):
            used = {Group.of(rule) for rule in _distinct(kept)} | set(wanted)
            free += [slot for slot, group in slots.items() if group not in used]
        if len(free) < len(missing):
            raise NdxdpError(
                f"{len(missing)} new rule groups are more than the limit of {limit} leaves"
                f" ({len(free)} free)",
                "give many prefixes in one file: they are counted as one group",
            )
        nothing = bytes(abi.GROUP_COUNT.size * libbpf.possible_cpus())
        for slot, group in zip(free, missing, strict=False):
            if slot in slots:
                del ids[slots[slot]]
            self._maps["group_counters"].update([_U32.pack(slot)], [nothing])
            self._maps["groups"].update([_U32.pack(slot)], [group.pack()])
            ids[group] = slot
        return ids

    def _write(self, rules: Mapping[Prefix, Rule], group_ids: Mapping[Group, int]) -> None:
        values: dict[tuple[int, int], bytes] = {}
        batches: dict[str, tuple[list[bytes], list[bytes]]] = {
            "addresses": ([], []),
            "prefixes": ([], []),
        }
        for prefix, rule in rules.items():
            known = (id(rule), prefix.length)
            value = values.get(known)
            if value is None:
                value = values[known] = abi.RULE.pack(
                    group=group_ids[Group.of(rule)],
                    answer=rule.answer,
                    flags=abi.RuleFlag.HELD if rule.held else 0,
                    prefix_len=prefix.length,
                )
            keys, packed = batches[_map_of(prefix)]
            keys.append(_key_of(prefix))
            packed.append(value)
        for name, (keys, packed) in batches.items():
            self._maps[name].update(keys, packed)

    def _remove(self, prefixes: Iterable[Prefix]) -> None:
        for name in ("addresses", "prefixes"):
            keys = [_key_of(prefix) for prefix in prefixes if _map_of(prefix) == name]
            self._maps[name].delete(keys)

    # ---- counters

    def reasons(self) -> dict[Reason, int]:
        """Solicitations by reason, over all CPUs."""
        counts = {}
        for reason in list(Reason)[1:]:
            data = self._element("reasons", reason)
            counts[reason] = sum(struct.unpack(f"={len(data) // 8}Q", data))
        return counts

    def group_counts(self) -> list[GroupCount]:
        counts = []
        for slot, group in self.groups().items():
            data = self._element("group_counters", slot)
            numbers = struct.unpack(f"={len(data) // 8}Q", data)
            counts.append(
                GroupCount(group.source, group.label, sum(numbers[::2]), sum(numbers[1::2]))
            )
        return counts

    def socket_counts(self) -> dict[str, int] | None:
        """`overflows` and `errors` of the userspace path's socket; None if it is not that."""
        if "userspace" not in self._maps:
            return None
        fields = abi.USERSPACE.unpack(self._element("userspace"))
        return {"overflows": fields["overflows"], "errors": fields["errors"]}

    def explained(self) -> Explained:
        """The verdict of the last dry run."""
        fields = abi.EXPLAINED.unpack(self._element("explained"))
        reason = Reason(fields["reason"])
        if not fields["matched"]:
            return Explained(reason, None, None)
        return Explained(reason, fields["prefix_len"], _rule_of(fields, self.groups()))

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


def _sized(specs: Mapping[str, MapSpec], max_addresses: int) -> Iterator[MapSpec]:
    for spec in specs.values():
        yield spec._replace(max_entries=max_addresses) if spec.name == "addresses" else spec


def _distinct(rules: Iterable[Rule]) -> Iterator[Rule]:
    """Each rule object once: a list of 100 000 addresses shares one."""
    return iter({id(rule): rule for rule in rules}.values())


def _map_of(prefix: Prefix) -> str:
    return "addresses" if prefix.length == 128 else "prefixes"


def _key_of(prefix: Prefix) -> bytes:
    if prefix.length == 128:
        return prefix.address
    return abi.PREFIX.pack(length=prefix.length, address=prefix.address)


def _prefix_of(name: str, key: bytes) -> Prefix:
    if name == "addresses":
        return Prefix(key, 128)
    fields = abi.PREFIX.unpack(key)
    return Prefix(fields["address"], fields["length"])


def _rule_of(fields: Mapping[str, Any], groups: Mapping[int, Group]) -> Rule:
    group = groups.get(fields["group"])
    if group is None or fields["answer"] not in set(Answer):
        raise _damaged(f"a rule says {fields}")
    return Rule(
        Answer(fields["answer"]),
        group.profile,
        group.source,
        group.label,
        group.dynamic,
        bool(fields["flags"] & abi.RuleFlag.HELD),
    )


def _damaged(what: str) -> Damaged:
    log.debug("%s", what)
    return Damaged(
        "the maps hold what ndxdp did not write", "detach the interface, attach it again"
    )


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")
