"""Pins and files of the layout before this one, which attaching takes over.

ABI version 7 has the maps of version 6, and one more, `lease`. `explained` is of another kind, and
`reasons` has one more element, so that some counters move. The program of version 6 does not
notice: it keeps its own maps of these names, shares all others, and answers until the new program
replaces it, as in every renewal.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from ndxdp.errors import Damaged, NdxdpError
from ndxdp.files import access, locks
from ndxdp.kernel import abi, bpf_maps, libbpf
from ndxdp.kernel.abi import MapSpec
from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.ndp.reason import Reason
from ndxdp.session.signals import uninterrupted
from ndxdp.store import pins
from ndxdp.store.directories import PinTree, Tree
from ndxdp.store.map_files import ArrayFile

FORMER = f"v{abi.FORMER_VERSION}"
"""The directory of the former layout."""

_NEW = (Reason.LAPSED,)
"""The reasons that the former layout lacks."""

_REASONS = abi.MAPS["reasons"]
_FORMER_REASONS = _REASONS._replace(max_entries=_REASONS.max_entries - len(_NEW))


def has_former(tree: Tree, interface: str) -> bool:
    """Return True if the tree has an interface in the former layout, and not in this one."""
    path = tree.path(interface)
    return not path.is_dir() and (tree.root / FORMER / path.name).is_dir()


def take_over(tree: Tree, interface: str) -> None:
    """Turn what the former layout has of an interface into this one; do nothing without.

    If this process is killed, the next call goes on. Solicitations that the former program judges
    from now on until it is replaced are missing in the counters by reason. The caller has the
    tree's lock.

    Raises:
        NdxdpError: A process of the former version answers on the interface.
    """
    path = tree.path(interface)
    former = tree.root / FORMER / path.name
    if not has_former(tree, interface):
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
        former.rename(path)
    if not os.listdir(former.parent):
        former.parent.rmdir()


def _convert_pins(path: Path) -> None:
    for name in ("lease", "explained"):
        if not _is_pinned(path / name, abi.MAPS[name]):
            made = KernelMap.create(abi.MAPS[name])
            try:
                pins.repin(made.fd, path / name)
            finally:
                made.close()
    if _is_pinned(path / "reasons", _FORMER_REASONS):
        before = KernelMap.open(path / "reasons", _FORMER_REASONS)
        try:
            made = KernelMap.create(_REASONS)
            try:
                for key, value in before.items():
                    made.update(_renumbered(key), value)
                pins.repin(made.fd, path / "reasons")
            finally:
                made.close()
        finally:
            before.close()


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
    made = ArrayFile(fresh, _REASONS)
    for key, value in before.items():
        made.update(_renumbered(key), value)
    made.close()
    before.close()
    fresh.rename(path / "reasons")


def _is_pinned(path: Path, spec: MapSpec) -> bool:
    """Return True if a path is a pin of a map of this kind and size."""
    try:
        fd = libbpf.get_pinned(str(path), readonly=True)
    except libbpf.BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    try:
        return bpf_maps.spec_of(fd) == spec
    finally:
        os.close(fd)


def _renumbered(key: bytes) -> bytes:
    """Return the key of a reason in this layout."""
    number = int.from_bytes(key, sys.byteorder)
    for new in _NEW:
        number += number >= new
    return number.to_bytes(4, sys.byteorder)
