"""The open maps of one interface by name: created, opened, pinned, duplicated and restored."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from ndxdp.errors import ModeUnavailable
from ndxdp.kernel import abi, bpf_maps, libbpf
from ndxdp.kernel.abi import MapSpec
from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.kernel.parked import Parked
from ndxdp.rules.interface_name import FEWER_DEVS
from ndxdp.store import address_map, pins
from ndxdp.store.address_map import AddressMap
from ndxdp.store.late_hash import LateHash
from ndxdp.store.map_files import ArrayFile, Map, TableFile
from ndxdp.store.parked_map import ParkedMap
from ndxdp.store.rule_file import FILE_NAME, RuleFile
from ndxdp.store.rule_format import TABLES
from ndxdp.store.slot_map import SlotMap

log = logging.getLogger(__name__)

_U32 = struct.Struct("=I")
_ARRAYS = (abi.ARRAY, abi.PERCPU_ARRAY)
_IN_KERNEL = tuple(dict.fromkeys((*abi.MAPS, *abi.HASHES)))
_FREQUENT = ("settings", "requests")
"""The maps in the kernel that a daemon reads often, or waits for."""

_FREQUENT_FILES = ("settings", "reasons", "group_counters", "userspace")
"""The files that a process which answers reads or writes with each batch of frames."""

_HINTS = {
    "vias": FEWER_DEVS,
    "locals": "count the local routes: ip -6 route show table local | wc -l",
    "on_link": "narrower `always` rules keep ndxdp from defending the other neighbours' addresses",
    "gateways": "list them: ip -6 route show default",
}
"""By map, what makes room in it."""


class MapSet:
    """Open maps of one interface, all in the kernel or all in files.

    Attributes:
        in_kernel: The maps are in the kernel, where a program reads them.
    """

    def __init__(
        self,
        maps: Mapping[str, Map],
        directory: Path | None = None,
        rule_file: RuleFile | None = None,
    ) -> None:
        self._maps = dict(maps)
        self._directory, self._rule_file = directory, rule_file
        self.in_kernel = directory is None
        self._parked: Parked | None = None

    @classmethod
    def create(cls, max_addresses: int = abi.MAX_ADDRESSES) -> Self:
        """Create empty maps in the kernel; no pin refers to them yet.

        Raises:
            ModeUnavailable: The kernel refuses to create one of the maps.
        """
        try:
            with _all_or_none() as maps:
                for name in _IN_KERNEL:
                    if name == "addresses":
                        maps[name] = AddressMap.create(max_addresses)
                    elif name in abi.HASHES:
                        maps[name] = LateHash.create(name)
                    else:
                        maps[name] = KernelMap.create(abi.MAPS[name])
        except libbpf.BpfError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL):
                raise
            raise _not_created(error, name) from error
        return cls(maps)

    @classmethod
    def open(cls, directory: Path, *, readonly: bool = False) -> Self:
        """Open the pinned maps of an interface.

        Args:
            directory: Where the pins are.
            readonly: Open the maps for reading, for which read permission for the pins suffices.

        Raises:
            NdxdpError: A map is not one of this ABI version.
        """
        with _all_or_none() as maps:
            for name in _IN_KERNEL:
                if name == "addresses":
                    maps[name] = AddressMap.open(directory, readonly=readonly)
                elif name in abi.HASHES:
                    maps[name] = LateHash.open(directory, name, readonly=readonly)
                else:
                    path, spec = directory / name, abi.MAPS[name]
                    maps[name] = KernelMap.open(path, spec, readonly=readonly)
        return cls(maps)

    @classmethod
    def create_files(cls, directory: Path, max_addresses: int = abi.MAX_ADDRESSES) -> Self:
        """Create empty maps in files, and open them."""
        specs = [
            spec._replace(max_entries=max_addresses) if spec.name == "addresses" else spec
            for spec in abi.FILES.values()
        ]
        for spec in specs:
            if spec.type in _ARRAYS:
                ArrayFile.create(directory / spec.name, spec)
        RuleFile.create(directory / FILE_NAME, {each.name: each.max_entries for each in specs})
        return cls.open_files(directory)

    @classmethod
    def open_files(cls, directory: Path) -> Self:
        """Open the maps in an interface's files."""
        with _all_or_none() as maps:
            rules = RuleFile(directory / FILE_NAME)
            for spec in abi.FILES.values():
                maps[spec.name] = (
                    ArrayFile(directory / spec.name, spec, abi.GROWING.get(spec.name, 0))
                    if spec.type in _ARRAYS
                    else TableFile(rules, spec)
                )
        return cls(maps, directory, rules)

    def close(self) -> None:
        """Close all maps."""
        for each in self._maps.values():
            each.close()
        self._maps, self._rule_file = {}, None
        if self._parked is not None:
            self._parked.close()
            self._parked = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def fds(self) -> dict[str, int]:
        """Descriptors of the maps of the program, by name, except for parked ones."""
        return {name: each.fd for name, each in self._open_maps().items() if name in abi.MAPS}

    def _open_maps(self) -> dict[str, KernelMap | ArrayFile]:
        """Return the maps in the kernel, or the arrays in files, except parked ones.

        Maps in the kernel have the names of their pins.
        """
        maps: dict[str, Map] = {}
        for name, each in self._maps.items():
            if isinstance(each, LateHash):
                maps |= each.open_maps()
            else:
                maps[name] = each.outer if isinstance(each, AddressMap) else each
        return {
            name: each for name, each in maps.items() if isinstance(each, KernelMap | ArrayFile)
        }

    def _hashes(self) -> dict[str, LateHash]:
        """Return the hashes that may not exist yet by the names of their pins."""
        found = (each for each in self._maps.values() if isinstance(each, LateHash))
        return {each.pin_name: each for each in found}

    def park(self) -> None:
        """Park the descriptors of maps and files, except for those in frequent use.

        A call then opens the maps that it needs. If the kernel refuses, they stay open. So do the
        table of addresses and the file of the rules, which others may replace.
        """
        assert self._parked is None, "called once"
        frequent = _FREQUENT if self.in_kernel else _FREQUENT_FILES
        rare = {name: each for name, each in self._open_maps().items() if name not in frequent}
        try:
            self._parked = Parked({name: each.fd for name, each in rare.items()})
        except OSError as error:
            log.debug("the maps stay open: %s", error)
            return
        for late in self._hashes().values():
            late.park(self._parked)
        for name, each in rare.items():
            if each.spec.name in abi.HASHES:
                continue
            parked = ParkedMap(self._parked, each)
            if name == "addresses":  # of the kernel, as that of files is in the file of the rules
                self._addresses().outer = parked
            else:
                self._maps[name] = parked

    def _kept_open(self, name: str) -> Map:
        """Return a map, and keep its descriptor open from now on if it was parked."""
        found = self._maps[name]
        if isinstance(found, ParkedMap):
            with found.opened() as opened:
                found = self._maps[name] = opened.using(os.dup(opened.fd))
        return found

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Keep parked maps open during the block, for several calls."""
        if self._parked is None:
            yield
            return
        with self._parked.opened():
            yield

    def file(self, name: str) -> ArrayFile:
        """Return a map that is an array in a file, which stays open from now on."""
        found = self._kept_open(name)
        assert isinstance(found, ArrayFile), "called in userspace mode only"
        return found

    @property
    def rule_file(self) -> RuleFile:
        """The file of the rules."""
        assert self._rule_file is not None, "called in userspace mode only"
        return self._rule_file

    @property
    def directory(self) -> Path:
        """The directory of maps in files."""
        assert self._directory is not None, "called in userspace mode only"
        return self._directory

    def duplicate(self) -> Self:
        """Return the same maps in the kernel, with descriptors of their own."""
        with _all_or_none() as maps:
            for name, each in self._maps.items():
                assert isinstance(each, KernelMap | AddressMap | LateHash), "called for open maps"
                maps[name] = each.duplicate()
        return type(self)(maps)

    def pin(self, directory: Path) -> None:
        """Pin all maps in a directory, each under its name."""
        for name, fd in self.fds.items():
            pins.pin(fd, directory / name)
        self._addresses().pin(directory)
        for each in self._hashes().values():
            each.pin(directory)

    def _addresses(self) -> AddressMap:
        """Return the map of addresses in the kernel."""
        found = self._maps["addresses"]
        assert isinstance(found, AddressMap), "called in the kernel's modes only"
        return found

    def _kernel_map(self, name: str) -> KernelMap | ParkedMap | AddressMap:
        """Return a map in the kernel, which can be counted without an object for each entry."""
        found = self._maps[name]
        assert isinstance(found, KernelMap | ParkedMap | AddressMap), "called in the kernel's modes"
        return found

    def missing(self, directory: Path) -> list[str]:
        """Return the names of maps whose pins or files were removed."""
        try:
            present = set(os.listdir(directory))
        except FileNotFoundError:
            present = set()
        hashes = self._hashes()
        names = dict.fromkeys(
            FILE_NAME if isinstance(each, TableFile) else name
            for name, each in self._maps.items()
            if name not in hashes
        )
        names |= dict.fromkeys(name for name, each in hashes.items() if each.is_known(present))
        if self.in_kernel:
            names[address_map.PIN] = None
        return [name for name in names if name not in present]

    def restore_pins(self, directory: Path) -> None:
        """Pin the maps again whose pins were removed."""
        missing = self.missing(directory)
        fds = {name: each.fd for name, each in self._open_maps().items()}
        with contextlib.ExitStack() as opened:
            if self._parked:
                fds |= opened.enter_context(self._parked.opened())
            for name in missing:
                if name == address_map.PIN:
                    self._addresses().pin(directory)
                else:
                    pins.pin(fds[name], directory / name)

    def max_entries(self, name: str) -> int:
        """Return how many entries a map can have; of `groups`, with the map that continues it."""
        most = self._maps[name].max_entries
        if self.in_kernel and name in abi.MORE_SLOTS:
            most += self._maps[abi.MORE_SLOTS[name]].max_entries
        return most

    def entries(self, name: str) -> int | None:
        """Return how many entries a map has, without an object for each; None without the map."""
        if name not in self._maps:
            return None
        if self._rule_file is not None and name in TABLES:
            return self._rule_file.view().counts[TABLES.index(name)]
        found = self._maps[name]
        return sum(len(values) for _, values in found.pieces()) // found.value_size

    def resize_addresses(self, max_addresses: int) -> None:
        """Set how many addresses there can be.

        Raises:
            OSError: The kernel's map has more of them (E2BIG).
        """
        found = self._maps["addresses"]
        assert isinstance(found, AddressMap | TableFile), "one of the two in each mode"
        found.resize(max_addresses)

    def fit_addresses(self) -> None:
        """Give back memory of the kernel that the addresses do not need."""
        self._addresses().fit()

    def tables(self, *names: str) -> list[Map]:
        """Return maps to read from, in userspace mode as they are at the time of this call."""
        found = [self._maps[name] for name in names]
        if self._rule_file is None:
            return found
        view = self._rule_file.view()
        return [each.at(view) if isinstance(each, TableFile) else each for each in found]

    def slots(self, name: str) -> SlotMap:
        """Return the rule classes (`groups`) by slot, or their counters (`group_counters`)."""
        more = self._maps[abi.MORE_SLOTS[name]] if self.in_kernel else None
        return SlotMap(self._maps[name], more, abi.FIRST_RULE_CLASSES)

    def _element(self, name: str, slot: int = 0) -> bytes:
        """Return an element of an array."""
        data = self._maps[name].lookup(_U32.pack(slot))
        assert data is not None, "an array always has its elements"
        return data

    def _set_keys(self, name: str, wanted: set[bytes]) -> None:
        """Make a map's keys these; log a warning if the map has no room for all of them."""
        present = {key for key, _ in self._maps[name].items()}
        if present == wanted:
            return
        self._maps[name].delete(b"".join(present - wanted))
        new = wanted - present
        size = self._maps[name].value_size
        try:
            self._maps[name].update(b"".join(new), bytes(size) * len(new))
        except OSError as error:
            log.warning(
                "cannot write all of %d entries to the map '%s', which holds %d: %s",
                len(wanted),
                name,
                self._maps[name].max_entries,
                error.strerror,
            )
            log.warning("  hint: %s", _HINTS[name])


@contextlib.contextmanager
def _all_or_none() -> Iterator[dict[str, Map]]:
    """Yield a dictionary for maps; close the maps in it if the block fails."""
    maps: dict[str, Map] = {}
    try:
        yield maps
    except BaseException:
        for each in maps.values():
            each.close()
        raise


def _not_created(error: libbpf.BpfError, name: str) -> ModeUnavailable:
    if error.errno == errno.EINVAL:
        return ModeUnavailable(
            f"the kernel does not know the type of the BPF map '{name}'",
            "Linux 5.10 knows all types; --mode userspace needs none",
        )
    if error.errno == errno.EPERM and _can_create_small_map():
        return ModeUnavailable(
            f"the kernel lets this process lock too little memory for BPF maps ({error.strerror})",
            "maps count before Linux 5.11: ulimit -l unlimited, or add CAP_SYS_RESOURCE",
        )
    return ModeUnavailable(
        f"the kernel does not let this process make a BPF map ({error.strerror})",
        "run this as root, or with CAP_BPF and CAP_NET_ADMIN",
    )


def _can_create_small_map() -> bool:
    try:
        os.close(bpf_maps.create(MapSpec("small", abi.ARRAY, 4, 4, 1, 0)))
    except libbpf.BpfError:
        return False
    return True
