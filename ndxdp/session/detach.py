"""Taking off what is attached: for good, or to leave rules and counters for a later attachment."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace

from ndxdp.errors import Damaged, ModeUnavailable
from ndxdp.hooks import attachment
from ndxdp.kernel import bpf_hooks
from ndxdp.kernel.abi import Restore
from ndxdp.netlink import links
from ndxdp.netlink.netns import netns
from ndxdp.session.recovery import drop_qdisc, recover
from ndxdp.session.request import uninterrupted
from ndxdp.store import lifetimes, pins
from ndxdp.store.directories import PinTree, Tree, Trees
from ndxdp.store.instance import Instance, KernelInstance, open_instance
from ndxdp.store.ownership import refuse_elsewhere, refuse_if_locked
from ndxdp.store.records import Settings
from ndxdp.upstream import deprecate

log = logging.getLogger(__name__)


def detach_interface(trees: Trees, interface: str) -> None:
    """Take the program off, remove pins or files, put allmulti back as it was found.

    Restore the lifetimes of addresses that an ended daemon changed, too. That may be all there is
    to undo.
    """
    directory = trees.files.root
    if trees.have(interface) or not lifetimes.exists(directory, interface):
        _detach(trees, interface)
    deprecate.restore(directory, interface)


def _detach(trees: Trees, interface: str) -> None:
    tree = trees.of(interface)
    _detach_in(tree, interface)
    # A process that was killed between pins and files left something in both.
    if tree is trees.files:
        with contextlib.suppress(PermissionError, ModeUnavailable):  # who may not look pinned none
            if trees.pins.path(interface).is_dir():
                _detach_in(trees.pins, interface)


def _detach_in(tree: Tree, interface: str) -> None:
    with tree.lock():
        if tree.path(interface).is_dir():
            refuse_if_locked(tree, interface)
        try:
            instance: Instance
            if isinstance(tree, PinTree):
                instance = recover(tree, interface)
            else:
                instance = open_instance(tree, interface)
        except Damaged:
            tree.remove(interface)
            return
        with instance:
            with contextlib.suppress(Damaged):  # settings that make no sense name no namespace
                refuse_elsewhere(tree, instance)
            release(tree, instance)
        log.info("detached from %s", interface)


def release(tree: Tree, instance: Instance) -> None:
    """Undo what attach_interface() or serve_interface() did, as far as it is still there."""
    with uninterrupted():
        with contextlib.suppress(Damaged):
            _put_back(instance, instance.maps.settings())
        tree.remove(instance.interface)


def let_go(tree: Tree, instance: Instance) -> None:
    """The same, but rules, counters and settings stay where they are."""
    with uninterrupted(), contextlib.suppress(Damaged):
        settings = instance.maps.settings()
        if isinstance(instance, KernelInstance):
            (tree.path(instance.interface) / pins.LINK).unlink(missing_ok=True)
        _put_back(instance, settings)
        instance.maps.set_settings(replace(settings, restore=Restore(0)))


def unhang(instance: KernelInstance, settings: Settings) -> None:
    """Detach the program, whoever has its link open, and remove a qdisc that was made for it."""
    if instance.link_fd is None:
        attachment.detach(settings.ifindex, instance.prog_fd)
    elif bpf_hooks.link_info(instance.link_fd).ifindex:
        bpf_hooks.link_detach(instance.link_fd)
    if settings.restore & Restore.CLSACT:
        drop_qdisc(settings.ifindex)


def _put_back(instance: Instance, settings: Settings) -> None:
    if settings.netns != netns():
        return
    if isinstance(instance, KernelInstance):
        unhang(instance, settings)
    if settings.restore & Restore.ALLMULTI:
        links.set_allmulti(settings.ifindex, False)
    if settings.restore & Restore.MCAST_ROUTER:
        links.set_mcast_router(settings.ifindex, 1)
