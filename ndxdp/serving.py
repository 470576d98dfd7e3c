"""Answering on an interface from userspace: files where attaching has pins, and no program."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ndxdp import ladder
from ndxdp.errors import Damaged, ModeUnavailable, NdxdpError
from ndxdp.instance import Served, open_instance, open_pinned, other_version
from ndxdp.kernel.abi import Left, Mode
from ndxdp.kernel.maps import Maps
from ndxdp.kernel.pins import FileTree, PinTree, Trees
from ndxdp.ladder import Step
from ndxdp.plan import (
    Options,
    Plan,
    attached_otherwise,
    inherited,
    settings_of,
    too_small,
    uninterrupted,
)
from ndxdp.policy import RUN_SOURCE, Prefix, Rule, Rules, difference, hold, merged
from ndxdp.wire import netlink

log = logging.getLogger(__name__)


def serve_interface(
    trees: Trees,
    interface: str,
    options: Options,
    rules: Mapping[Prefix, Rule],
    *,
    owned_source: str,
    steps: list[Step],
    holding: contextlib.ExitStack,
) -> Served:
    """What attach_interface() does, for a path that this process itself is: files, no program.

    steps: the modes that were tried before.
    """
    link = netlink.answering_link(interface)
    tree = trees.files
    others = tree.other_versions(interface)
    if others:
        raise other_version(tree, interface, others[0])
    with _pins_locked(trees.pins), tree.lock(), contextlib.ExitStack() as undo:
        tree.refuse_if_held(interface)
        added = _left_by_program(trees.pins, interface) | dict(rules)
        maps = _files(tree, interface, undo)
        before, actual = maps.settings(), maps.rules()
        stale = (owned_source, RUN_SOURCE)
        kept = {prefix: rule for prefix, rule in actual.items() if rule.source not in stale}
        desired = merged(added, kept)
        holes = hold(netlink.owned_addresses(link), desired)
        for prefix in holes.remove:
            del desired[prefix]
        desired |= holes.write
        if options.max_addresses is not None:
            if options.max_addresses < sum(prefix.length == 128 for prefix in actual):
                raise too_small(options.max_addresses, len(actual), "too small")
            maps.resize_addresses(options.max_addresses)
        told = ladder.pack(steps)
        plan = Plan(link, Mode.USERSPACE, options, False, tree.path(interface), told)
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
            holding.enter_context(tree.held(interface))
            undo.pop_all()
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


def _left_by_program(tree: PinTree, interface: str) -> Rules:
    """Rules that are pinned; NdxdpError if they are at work, and two would answer."""
    if not tree.path(interface).is_dir():
        return {}
    tree.refuse_if_held(interface)
    try:
        with open_pinned(tree, interface) as left:
            settings = left.maps.settings()
            if left.is_attached(settings) or not left.is_dead(settings):
                raise attached_otherwise(interface, settings.mode)
    except Damaged:
        return {}
    return inherited(tree, interface)
