"""The end of an attachment: detached for good, or suspended with its rules and counters.

The functions expect the caller to have the tree's lock.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from ndxdp.errors import Damaged
from ndxdp.hooks import attachment
from ndxdp.kernel import bpf_hooks
from ndxdp.kernel.abi import Restore
from ndxdp.netlink import links
from ndxdp.netlink.netns import netns
from ndxdp.session.recovery import drop_qdisc
from ndxdp.session.signals import uninterrupted
from ndxdp.store import pins
from ndxdp.store.directories import Tree
from ndxdp.store.instance import Instance, KernelInstance
from ndxdp.store.records import Settings


def detach_instance(tree: Tree, instance: Instance) -> None:
    """Undo what attaching did, as far as it is still in place, and remove pins or files."""
    with uninterrupted():
        with contextlib.suppress(Damaged):
            _restore_interface(instance, instance.maps.settings())
        tree.remove(instance.interface)


def suspend_instance(tree: Tree, instance: Instance) -> None:
    """Undo what attaching did, and keep rules, counters and settings for the next attachment."""
    with uninterrupted(), contextlib.suppress(Damaged):
        settings = instance.maps.settings()
        if isinstance(instance, KernelInstance):
            (tree.path(instance.interface) / pins.LINK).unlink(missing_ok=True)
        _restore_interface(instance, settings)
        instance.maps.set_settings(replace(settings, restore=Restore(0)))


def detach_program(instance: KernelInstance, settings: Settings) -> None:
    """Detach the program, even if another process has its link open, and remove its qdisc."""
    if instance.link_fd is None:
        attachment.detach(settings.ifindex, instance.prog_fd)
    elif bpf_hooks.link_info(instance.link_fd).ifindex:
        bpf_hooks.link_detach(instance.link_fd)
    if settings.restore & Restore.CLSACT:
        drop_qdisc(settings.ifindex)


def _restore_interface(instance: Instance, settings: Settings) -> None:
    """Detach the program if there is one, and restore allmulti and mcast_router."""
    if settings.netns != netns():
        return
    if isinstance(instance, KernelInstance):
        detach_program(instance, settings)
    if settings.restore & Restore.ALLMULTI:
        links.set_allmulti(settings.ifindex, False)
    if settings.restore & Restore.MCAST_ROUTER:
        links.set_mcast_router(settings.ifindex, 1)
