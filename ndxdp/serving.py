"""Answering on an interface from userspace: files where attaching has pins, and no program."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

from ndxdp import ladder
from ndxdp.errors import Damaged, ModeUnavailable, NdxdpError
from ndxdp.instance import Served, open_instance, open_pinned, other_version
from ndxdp.kernel.abi import Left, Mode
from ndxdp.kernel.maps import Maps
from ndxdp.kernel.pins import FileTree, PinTree, Tree, Trees
from ndxdp.ladder import Step
from ndxdp.plan import (
    Legacy,
    Options,
    Plan,
    attached_otherwise,
    inherited,
    settings_of,
    too_small,
    uninterrupted,
)
from ndxdp.policy import RUN_SOURCE
from ndxdp.renames import adopt
from ndxdp.rules import Rules, difference, settled, with_holes
from ndxdp.wire import netlink

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
) -> Served:
    """What attach_interface() does, for a path that this process itself is: files, no program.

    steps: the modes that were tried before. claimed: where the caller holds the interface already.
    If those are pins, their program goes on, and it is the caller's to release() them.
    """
    link = netlink.answering_link(interface, down=down)
    interface = link.name  # where an alternative one was given
    tree = trees.files
    others = tree.other_versions(interface)
    if others:
        raise other_version(tree, interface, others[0])
    with _pins_locked(trees.pins), tree.lock(), contextlib.ExitStack() as undo:
        if claimed is not tree:
            tree.refuse_if_held(interface)
        taking_over = claimed is trees.pins
        if taking_over:
            legacy = inherited(trees.pins, interface)
        else:
            with contextlib.suppress(ModeUnavailable):
                trees.pins.check()
                adopt(trees.pins, link)
            legacy = _left_by_program(trees.pins, interface)
        maps = _files(tree, interface, undo)
        before, actual = maps.settings(), maps.rules()
        stale = (owned_source, RUN_SOURCE)
        kept = actual.only(lambda rule: rule.source not in stale)
        added, kept = settled(legacy.rules | rules, kept, owned_source)
        desired = with_holes(added, kept, netlink.owned_addresses(link))
        if options.max_addresses is not None:
            if options.max_addresses < len(actual.addresses):
                raise too_small(options.max_addresses, len(actual), "too small")
            maps.resize_addresses(options.max_addresses)
        told = ladder.pack(steps)
        plan = Plan(link, Mode.USERSPACE, options, False, tree.path(interface), told, legacy)
        settings = settings_of(plan, before)
        if link.mcast_router == 1:
            try:
                netlink.set_mcast_router(link.ifindex, 2)
                undo.callback(netlink.set_mcast_router, link.ifindex, 1)
                settings = replace(settings, left=settings.left | Left.MCAST_ROUTER)
            except NdxdpError as error:
                log.warning("MLD snooping may keep solicitations from %s: %s", interface, error)
        with uninterrupted():
            maps.apply(difference(desired, actual), actual)
            maps.set_settings(settings)
            if claimed is not tree:
                holding.enter_context(tree.held(interface))
            undo.pop_all()
            if taking_over:
                _leave_to_us(trees.pins, interface)
            else:
                trees.pins.remove(interface)
    log.info("answering on %s in userspace mode", interface)
    return Served(interface, maps, held=True)


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


def _left_by_program(tree: PinTree, interface: str) -> Legacy:
    """What is pinned; NdxdpError if it is at work, and two would answer."""
    if not tree.path(interface).is_dir():
        return Legacy()
    tree.refuse_if_held(interface)
    try:
        with open_pinned(tree, interface) as left:
            settings = left.maps.settings()
            if left.is_attached(settings) or not left.is_dead(settings):
                raise attached_otherwise(interface, settings.mode)
    except Damaged:
        return Legacy()
    return inherited(tree, interface)


def _leave_to_us(tree: PinTree, interface: str) -> None:
    """What was taken over is not put back when the program goes."""
    with open_pinned(tree, interface) as before:
        settings = before.maps.settings()
        before.maps.set_settings(replace(settings, left=settings.left & ~Left.MCAST_ROUTER))
