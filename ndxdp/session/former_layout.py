"""Pins and files of the layouts before this one, which attaching takes over.

ABI version 8 has another kind of `addresses`: a map with a table in place of a hash. The program of
an earlier version keeps its own hash, with the same addresses, shares all other maps, and answers
until the new program replaces it, as in every renewal. `hints` has a quarter of the bits. A rule in
`prefixes` is not zero, which concerns only one for ::/0. A hash of abi.HASHES that has entries is
put into an array, and both programs share it. An empty one is left to the former program, so that
its memory is freed with that.

ABI version 7 has the maps of version 6, and one more, `lease`. `explained` is of another kind, and
`reasons` has one more element, so that some counters move. A program of version 6 keeps its own
maps of these names, too. In userspace mode, all former layouts have a file for each table of rules
(former_tables.py), and so had an early version 8.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import closing, suppress
from pathlib import Path

from ndxdp.errors import Damaged, NdxdpError
from ndxdp.files import access, locks
from ndxdp.kernel import abi, bpf_maps, libbpf
from ndxdp.kernel.abi import MapSpec
from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.ndp.reason import Reason
from ndxdp.session.former_tables import has_tables, join_tables
from ndxdp.session.signals import uninterrupted
from ndxdp.store import pins
from ndxdp.store.address_map import AddressMap
from ndxdp.store.directories import FileTree, PinTree, Tree
from ndxdp.store.late_hash import LateHash
from ndxdp.store.map_files import ArrayFile, Map

FORMER = tuple(f"v{version}" for version in abi.FORMER_VERSIONS)
"""The directories of the former layouts."""

_NEW = (Reason.LAPSED,)
"""The reasons that version 6 lacks."""

_REASONS = abi.MAPS["reasons"]
_FORMER_REASONS = _REASONS._replace(max_entries=_REASONS.max_entries - len(_NEW))
_HINTS = abi.MAPS["hints"]
_HINTS_PER_BIT = 4
"""The bits of the former `hints` that are one bit now; their numbers follow each other."""

_FORMER_HINTS = _HINTS._replace(max_entries=_HINTS.max_entries * _HINTS_PER_BIT)
_FORMER_ADDRESSES = MapSpec("addresses", abi.HASH, 16, abi.RULE.size, 0, abi.NO_PREALLOC)


def has_former(tree: Tree, interface: str) -> bool:
    """Return True if the tree has an interface in a former layout, and in no other one."""
    return _former(tree, interface) is not None


def _former(tree: Tree, interface: str) -> Path | None:
    """Return the directory of an interface in a former layout; None if it has none or several."""
    path = tree.path(interface)
    if path.is_dir():
        return path if isinstance(tree, FileTree) and has_tables(path) else None
    found = [each for name in FORMER if (each := tree.root / name / path.name).is_dir()]
    return found[0] if len(found) == 1 else None


def take_over(tree: Tree, interface: str) -> None:
    """Turn what a former layout has of an interface into this one; do nothing without.

    If this process is killed, the next call goes on. Solicitations that the former program judges
    from now on until it is replaced are missing in the counters by reason. The caller has the
    tree's lock.

    Raises:
        NdxdpError: A process of the former version answers on the interface.
    """
    former, path = _former(tree, interface), tree.path(interface)
    if former is None:
        return
    access.refuse_untrusted(former)
    if locks.is_taken(former):
        holder = locks.holder(former)
        raise NdxdpError(
            f"{interface} is locked by a running `ndxdp run`",
            f"stop that process first{f': {holder}' if holder.pid else ''}",
        )
    with uninterrupted():
        if isinstance(tree, PinTree):
            _convert_pins(former)
        else:
            _convert_files(former)
            with suppress(Damaged):  # whoever opens the files reports it
                join_tables(former)
        if former == path:
            return
        former.rename(path)
    if not os.listdir(former.parent):
        former.parent.rmdir()


def _convert_pins(path: Path) -> None:
    _convert_hints(path)
    _convert_addresses(path)
    _convert_prefixes(path)
    _convert_hashes(path)
    for name in ("lease", "explained"):
        if not _is_pinned(path / name, abi.MAPS[name]):
            with closing(KernelMap.create(abi.MAPS[name])) as made:
                pins.repin(made.fd, path / name)
    if _is_pinned(path / "reasons", _FORMER_REASONS):
        with (
            closing(KernelMap.open(path / "reasons", _FORMER_REASONS)) as before,
            closing(KernelMap.create(_REASONS)) as made,
        ):
            _copy_reasons(before, made)
            pins.repin(made.fd, path / "reasons")


def _convert_addresses(path: Path) -> None:
    """Copy the addresses into a table; the map is pinned last, so that a kill changes nothing."""
    found = _pinned(path / "addresses")
    if found is None or found._replace(max_entries=0) != _FORMER_ADDRESSES:
        return
    with (
        closing(KernelMap.open(path / "addresses", found)) as before,
        closing(AddressMap.create(before.max_entries)) as made,
    ):
        for keys, values in before.pieces():
            made.update(keys, values)
        made.repin(path)


def _convert_hints(path: Path) -> None:
    """Set a bit of `hints` where the former map has any of the bits that it stands for."""
    if not _is_pinned(path / "hints", _FORMER_HINTS):
        return
    words = [0] * _HINTS.max_entries
    with closing(KernelMap.open(path / "hints", _FORMER_HINTS)) as before:
        for key, value in before.items():
            former = int.from_bytes(value, sys.byteorder)
            first = int.from_bytes(key, sys.byteorder) * 64
            for at in range(0, 64, _HINTS_PER_BIT):
                if former >> at & (1 << _HINTS_PER_BIT) - 1:
                    bit = (first + at) // _HINTS_PER_BIT
                    words[bit // 64] |= 1 << bit % 64
    with closing(KernelMap.create(_HINTS)) as made:
        made.update(
            b"".join(at.to_bytes(4, sys.byteorder) for at in range(len(words))),
            b"".join(word.to_bytes(8, sys.byteorder) for word in words),
        )
        pins.repin(made.fd, path / "hints")


def _convert_prefixes(path: Path) -> None:
    """Mark a rule for ::/0 that is zero; every other rule has the length of its prefix."""
    try:
        prefixes = KernelMap.open(path / "prefixes", abi.MAPS["prefixes"])
    except libbpf.BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return
    with closing(prefixes):
        key = abi.PREFIX.pack(length=0)
        if prefixes.lookup(key) == bytes(abi.RULE.size):
            prefixes.update(key, abi.RULE.pack(flags=abi.RuleFlag.PRESENT))


def _convert_hashes(path: Path) -> None:
    """Put each hash into its array, which replaces the hash's pin; drop a hash without entries."""
    for name, spec in abi.HASHES.items():
        if not _is_pinned(path / name, spec):
            continue
        with (
            closing(LateHash.create(name)) as made,
            closing(KernelMap.open(path / name, spec)) as before,
        ):
            is_empty = next(before.items(), None) is None
            if not is_empty:
                made.adopt(before.duplicate())
            if name in abi.MAPS:
                made.repin(path)
            elif is_empty:
                (path / name).unlink()


def _convert_files(path: Path) -> None:
    if not (path / "lease").exists():
        ArrayFile.create(path / "lease", abi.FILES["lease"])
    try:
        before = ArrayFile(path / "reasons", _FORMER_REASONS)
    except (Damaged, OSError):  # it is converted already, or another program made it
        return
    fresh = path / f"reasons{pins.STAGED}"
    fresh.unlink(missing_ok=True)
    ArrayFile.create(fresh, _REASONS)
    with closing(before), closing(ArrayFile(fresh, _REASONS)) as made:
        _copy_reasons(before, made)
    fresh.rename(path / "reasons")


def _is_pinned(path: Path, spec: MapSpec) -> bool:
    """Return True if a path is a pin of a map of this kind and size."""
    return _pinned(path) == spec


def _pinned(path: Path) -> MapSpec | None:
    """Return the kernel's description of the map that is pinned at a path; None without a pin."""
    try:
        fd = libbpf.get_pinned(str(path), readonly=True)
    except libbpf.BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
    try:
        return bpf_maps.spec_of(fd)
    finally:
        os.close(fd)


def _copy_reasons(before: Map, made: Map) -> None:
    """Copy the counters of version 6, whose reasons have other numbers in this layout."""
    for key, value in before.items():
        number = int.from_bytes(key, sys.byteorder)
        for new in _NEW:
            number += number >= new
        made.update(number.to_bytes(4, sys.byteorder), value)
