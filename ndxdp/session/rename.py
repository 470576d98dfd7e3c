"""Pins that a rename has separated from their device.

A program is attached to a device, not to a name. Pins, rules and configuration belong to a
name. After a rename, either the pins move to the device's present name, or the program is detached
from the device, and the pins wait for a device of their name.
"""

from __future__ import annotations

import contextlib
import errno

from ndxdp.errors import ModeUnavailable, NdxdpError
from ndxdp.hooks import attachment
from ndxdp.kernel.libbpf import BpfError
from ndxdp.netlink import links
from ndxdp.netlink.links import Link
from ndxdp.session.recovery import recover
from ndxdp.session.restore import suspend_instance
from ndxdp.store import pins
from ndxdp.store.directories import PinTree
from ndxdp.store.instance import open_pinned


def adopt(tree: PinTree, link: Link) -> None:
    """Move the pins that this device has under a former name to its present one.

    The caller has the tree's lock.

    Raises:
        NdxdpError: A process has locked those pins, or the present name has pins of its own.
    """
    for name in adoptable(tree, link):
        tree.rename(name, link.name)


def adoptable(tree: PinTree, link: Link) -> list[str]:
    """Return the names whose pins adopt() moves to a device's present name.

    Raises:
        NdxdpError: A process has locked those pins, or the present name has pins of its own.
    """
    found = _former_names(tree, link)
    for name in found:
        if tree.is_locked(name) or tree.path(link.name).is_dir():
            raise _under_its_former_name(link.name, name)
    return found


def reconcile_renames(tree: PinTree, interface: str) -> None:
    """Suspend attachments for or on an interface whose pins have another name than the device.

    These are the pins of `interface` whose program is on a device of another name now, and, unless
    adopt() can move them, the pins of another name whose program is on the device that is called
    `interface` now.

    Raises:
        NdxdpError: Another process has locked the pins of the other name.
        ModeUnavailable: Nothing can be pinned.
    """
    tree.check()
    if not tree.base.is_dir():
        return
    with tree.lock.exclusive():
        if tree.path(interface).is_dir() and not tree.is_locked(interface):
            with contextlib.suppress(NdxdpError), recover(tree, interface) as own:
                if own.device() not in (None, interface):
                    suspend_instance(tree, own)
        link = links.find_link(interface)
        for name in _former_names(tree, link) if link else ():
            if tree.is_locked(name):
                raise _under_its_former_name(interface, name)
            if tree.path(interface).is_dir():
                with recover(tree, name) as other:
                    suspend_instance(tree, other)


def _former_names(tree: PinTree, link: Link) -> list[str]:
    """Return other names whose pins are attached to this device.

    Each program of ndxdp that is attached has a pin. So the pins of other names, which may be
    hundreds, are opened only if the device has a program that its own pins do not explain.
    """
    programs = _programs_on(link)
    if programs:
        programs -= pins.program_ids(tree.path(link.name))
    if programs is not None and not programs:
        return []
    found = []
    for name in tree.interfaces():
        if name == link.name:
            continue
        with contextlib.suppress(NdxdpError):
            if programs and not programs & pins.program_ids(tree.path(name)):
                continue
            with open_pinned(tree, name) as other:
                if other.device() == link.name:
                    found.append(name)
    return found


def _programs_on(link: Link) -> set[int] | None:
    """Return the ids of the programs on a device; None if the kernel does not show them all."""
    try:
        return attachment.program_ids(link.ifindex)
    except ModeUnavailable:  # there is no libbpf
        return None
    except BpfError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            raise
        return None


def _under_its_former_name(interface: str, name: str) -> NdxdpError:
    return NdxdpError(
        f"ndxdp is attached to {interface} under its former name, {name}",
        f"ndxdp detach {name} first",
    )
