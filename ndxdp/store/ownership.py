"""Ownership of an interface's state: by a network namespace, and by a process.

Two namespaces that share a BPF file system or a run directory may have interfaces of one name. An
ifindex means another interface in each of them, so that state can be changed only in its own.
"""

from __future__ import annotations

from pathlib import Path

from ndxdp.errors import NdxdpError
from ndxdp.netlink.netns import netns
from ndxdp.store.directories import Tree
from ndxdp.store.instance import Instance, KernelInstance, Place, open_instance


def elsewhere(path: Path) -> NdxdpError:
    """Return the error for pins or files of an interface of another network namespace."""
    return NdxdpError(
        f"{path} belongs to an interface of another network namespace",
        f"give this one a BPF file system or run directory of its own (--bpffs, --run-directory);"
        f" if that namespace has ended: rm -r {path}",
    )


def is_elsewhere(tree: Tree, instance: Instance) -> bool:
    """Return True if the state belongs to another network namespace that may still exist."""
    settings = instance.maps.settings()
    if settings.netns in (0, netns()):
        return False
    if not isinstance(instance, KernelInstance):  # files do not show whether the namespace exists
        return True
    is_locked = tree.is_locked(instance.interface)
    return instance.place(settings, is_locked=is_locked) is Place.ELSEWHERE


def refuse_elsewhere(tree: Tree, instance: Instance) -> None:
    """Raise NdxdpError if the state belongs to another network namespace."""
    if is_elsewhere(tree, instance):
        raise elsewhere(tree.path(instance.interface))


def refuse_if_locked(tree: Tree, interface: str) -> None:
    """Raise NdxdpError if a running process has locked the interface, in whichever namespace."""
    if not tree.is_locked(interface):
        return
    try:
        with open_instance(tree, interface, readonly=True) as instance:
            is_foreign = is_elsewhere(tree, instance)
    except NdxdpError:  # it is just being made, or cannot be read
        is_foreign = False
    if is_foreign:
        raise elsewhere(tree.path(interface))
    tree.refuse_if_locked(interface)
