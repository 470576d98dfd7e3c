"""Answering on an interface from userspace: files where attaching has pins, and no program."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

from ndxdp.errors import Damaged, ModeUnavailable, NdxdpError
from ndxdp.kernel.abi import Mode, Restore
from ndxdp.netlink import links
from ndxdp.netlink.addresses import owned_addresses
from ndxdp.rules.difference import difference, merge_owned, resolve_conflicts
from ndxdp.rules.rule import RUN_ORIGIN
from ndxdp.rules.ruleset import Rules
from ndxdp.session import modes
from ndxdp.session.detach import release
from ndxdp.session.modes import Step
from ndxdp.session.recovery import recover
from ndxdp.session.rename import adopt
from ndxdp.session.request import (
    Legacy,
    Options,
    Plan,
    attached_otherwise,
    inherited,
    settings_of,
    too_small,
    uninterrupted,
)
from ndxdp.store.directories import FileTree, PinTree, Tree, Trees
from ndxdp.store.instance import UserspaceInstance, open_instance, open_pinned, other_version
from ndxdp.store.maps import Maps
from ndxdp.store.ownership import refuse_if_locked

log = logging.getLogger(__name__)


def serve_interface(
    trees: Trees,
    interface: str,
    options: Options,
    rules: Rules,
    *,
    owned_source: str,
    steps: list[Step],
    holding: contextlib.ExitStack,
    down: bool = False,
    claimed: Tree | None = None,
) -> UserspaceInstance:
    """What attach_interface() does, for a path that this process itself is: files, no program.

    steps: the modes that were tried before. claimed: where the caller holds the interface already.
    If those are pins, their program goes on, and it is the caller's to release() them.
    """
    link = links.answering_link(interface, down=down)
    interface = link.name  # where an alternative one was given
    tree = trees.files
    others = tree.other_versions(interface)
    if others:
        raise other_version(tree, interface, others[0])
    with _pins_locked(trees.pins), tree.lock(), contextlib.ExitStack() as undo:
        if claimed is not tree:
            refuse_if_locked(tree, interface)
        if claimed is not trees.pins:
            with contextlib.suppress(ModeUnavailable):
                trees.pins.check()
                adopt(trees.pins, link)
        has_pins = _has_pins(trees.pins, interface)
        if has_pins and claimed is not trees.pins:
            _recover_pins(trees.pins, interface)
        legacy = inherited(trees.pins, interface) if has_pins else Legacy()
        maps = _files(tree, interface, undo)
        before, actual = maps.settings(), maps.rules()
        stale = (owned_source, RUN_ORIGIN)
        kept = actual.where(lambda rule: rule.origin not in stale)
        added, kept = resolve_conflicts(legacy.rules | rules, kept, owned_source)
        desired = merge_owned(added, kept, owned_addresses(link))
        if options.max_addresses is not None:
            if options.max_addresses < len(actual.addresses):
                raise too_small(options.max_addresses, len(actual), "too small")
            maps.resize_addresses(options.max_addresses)
        told = modes.pack(steps)
        plan = Plan(link, Mode.USERSPACE, options, False, tree.path(interface), told, legacy)
        settings = settings_of(plan, before)
        with uninterrupted():
            maps.apply(difference(desired, actual), actual)
            maps.set_settings(settings)
            if link.mcast_router == 1:
                # Written down first, as attaching does.
                restore = settings.restore | Restore.MCAST_ROUTER
                maps.set_settings(replace(settings, restore=restore))
                try:
                    links.set_mcast_router(link.ifindex, 2)
                    undo.callback(links.set_mcast_router, link.ifindex, 1)
                except NdxdpError as error:
                    maps.set_settings(settings)
                    log.warning("MLD snooping may keep solicitations from %s: %s", interface, error)
            if claimed is not tree:
                holding.enter_context(tree.locked(interface))
            undo.pop_all()
            if has_pins:
                _leave_to_us(trees.pins, interface, goes_on=claimed is trees.pins)
    log.info("answering on %s in userspace mode", interface)
    return UserspaceInstance(interface, maps, locked=True)


def _files(tree: FileTree, interface: str, undo: contextlib.ExitStack) -> Maps:
    """The maps that there are; new ones where there are none, or a kill left just some."""
    try:
        left = open_instance(tree, interface)
        undo.callback(left.close)
        return left.maps
    except Damaged:
        tree.remove(interface)
    except NdxdpError:
        if tree.path(interface).is_dir():
            raise
    path = tree.make(interface)
    undo.callback(tree.remove, interface)
    maps = Maps.create_files(path)
    undo.callback(maps.close)
    return maps


@contextlib.contextmanager
def _pins_locked(tree: PinTree) -> Iterator[None]:
    """Nobody attaches meanwhile; where this process cannot have BPF, that cannot be had either."""
    with contextlib.ExitStack() as locked:
        with contextlib.suppress(ModeUnavailable):
            tree.check()
            locked.enter_context(tree.lock())
        yield


def _has_pins(tree: PinTree, interface: str) -> bool:
    """Return True if something is pinned for the interface that only root can have pinned."""
    if not tree.path(interface).is_dir():
        return False
    try:
        tree.check()
    except ModeUnavailable as error:
        log.debug("not looked at: %s", error)
        return False
    return True


def _recover_pins(tree: PinTree, interface: str) -> None:
    """Complete what a killed process was changing; NdxdpError if two would answer then."""
    refuse_if_locked(tree, interface)
    try:
        with recover(tree, interface) as left:
            settings = left.maps.settings()
            if left.is_attached(settings):
                raise attached_otherwise(interface, settings.mode)
    except Damaged:
        tree.remove(interface)


def _leave_to_us(tree: PinTree, interface: str, *, goes_on: bool) -> None:
    """Remove pins that were taken over. goes_on: it is the caller who does, later.

    What was taken over is not put back with them.
    """
    if not tree.path(interface).is_dir():
        return
    with open_pinned(tree, interface) as before:
        settings = before.maps.settings()
        before.maps.set_settings(
            replace(settings, restore=settings.restore & ~Restore.MCAST_ROUTER)
        )
        if not goes_on:
            release(tree, before)
