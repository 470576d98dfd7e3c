"""Interfaces that change their names: a name's pins are for the device that has the name.

A program hangs on a device, whatever it is called; pins, rules and configuration are for a name.
Where a rename has parted the two, either the pins move to the device's present name, or the
program is taken off the device, and the pins wait for one of their name.
"""

from __future__ import annotations

import contextlib

from ndxdp.errors import NdxdpError
from ndxdp.netlink import links
from ndxdp.netlink.links import Link
from ndxdp.session.detach import let_go
from ndxdp.session.recovery import recover
from ndxdp.store.directories import PinTree
from ndxdp.store.instance import open_pinned


def adopt(tree: PinTree, link: Link) -> None:
    """Move what is pinned for this device under a former name to the present one.

    NdxdpError if a process holds it, or if the present name has pins of its own. The caller holds
    the lock.
    """
    for name in _former_names(tree, link):
        if tree.is_locked(name) or tree.path(link.name).is_dir():
            raise _under_its_former_name(link.name, name)
        tree.rename(name, link.name)


def settle(tree: PinTree, interface: str) -> None:
    """Let go of what answers for or on an interface under a name that is not the device's.

    That is what is pinned for `interface` and is on a device of another name now, and what is
    pinned for another name and is on the device that is called `interface` now; but if that has
    no pins of its own, adopt() can have those. NdxdpError while a process holds the latter: then
    it is up to that. ModeUnavailable where nothing can be pinned.
    """
    tree.check()
    if not tree.base.is_dir():
        return
    with tree.lock():
        if tree.path(interface).is_dir() and not tree.is_locked(interface):
            with contextlib.suppress(NdxdpError), recover(tree, interface) as own:
                if own.device() not in (None, interface):
                    let_go(tree, own)
        link = links.find_link(interface)
        for name in _former_names(tree, link) if link else ():
            if tree.is_locked(name):
                raise _under_its_former_name(interface, name)
            if tree.path(interface).is_dir():
                with recover(tree, name) as other:
                    let_go(tree, other)


def _former_names(tree: PinTree, link: Link) -> list[str]:
    """Other names whose pins are attached to this device."""
    found = []
    for name in tree.interfaces():
        with contextlib.suppress(NdxdpError), open_pinned(tree, name) as other:
            if name != link.name and other.device() == link.name:
                found.append(name)
    return found


def _under_its_former_name(interface: str, name: str) -> NdxdpError:
    return NdxdpError(
        f"ndxdp is attached to {interface} under its former name, {name}",
        f"ndxdp detach {name} first",
    )
