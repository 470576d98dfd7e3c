"""Attaching to an interface, and renewing what is attached.

The life of what is there then:

- `attach` pins maps, program and link, and returns. The pins hold them; `detach` removes the
  pins, and with them everything is gone.
- `run` pins maps and program but holds the link itself, so that it ends with the process,
  whatever ends that. `run --keep` pins the link too.
- On the userspace path there are files instead of pins, and a process that answers.
- Whoever runs holds a lock on the interface's directory for as long.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace

from ndxdp.errors import Damaged, ModeUnavailable, NdxdpError, UsageError
from ndxdp.hooks import attachment
from ndxdp.kernel import abi, loader
from ndxdp.kernel.abi import Mode, Restore
from ndxdp.kernel.libbpf import BpfError
from ndxdp.netlink import links, onlink
from ndxdp.netlink.addresses import owned_addresses
from ndxdp.netlink.links import Link
from ndxdp.netlink.qdisc import has_clsact
from ndxdp.rules import breadth
from ndxdp.rules.difference import difference, merge_owned, resolve_conflicts
from ndxdp.rules.rule import RUN_ORIGIN
from ndxdp.rules.ruleset import Rules
from ndxdp.session import modes as ladder
from ndxdp.session.detach import unhang
from ndxdp.session.link_neighbours import note_neighbours
from ndxdp.session.modes import Step
from ndxdp.session.recovery import drop_qdisc, recover
from ndxdp.session.rename import adopt
from ndxdp.session.request import (
    Options,
    Plan,
    attached_otherwise,
    inherited,
    settings_of,
    too_small,
    uninterrupted,
)
from ndxdp.store import pins
from ndxdp.store.directories import PinTree, Tree, Trees
from ndxdp.store.instance import KernelInstance, other_version
from ndxdp.store.maps import Maps
from ndxdp.store.ownership import refuse_if_locked
from ndxdp.store.records import Settings
from ndxdp.store.rule_changes import sync_local_routes

log = logging.getLogger(__name__)

# ---- attaching ----------------------------------------------------------------------------------


def attach_interface(
    trees: Trees,
    interface: str,
    options: Options,
    rules: Rules,
    *,
    owned_source: str | None = None,
    keep: bool = True,
    holding: contextlib.ExitStack | None = None,
    down: bool = False,
    claimed: Tree | None = None,
    switch: bool = False,
    force: bool = False,
) -> KernelInstance:
    """Attach a program to an interface, or renew what is attached without losing a frame.

    rules: added to those that are there; a rule that is there already is not touched.
    owned_source: rules of this source that are not among `rules` are removed.
    keep: pin the link, so that it outlives this process, and switch allmulti on for as long;
    else the returned instance holds the link, and allmulti is the caller's.
    holding: a stack that takes a hold on the interface, before anybody else may touch it.
    down: the interface may be down. claimed: where the caller holds the interface already.
    switch: take the program to another hook, and look for the best one anew if no mode is named;
    without it an attached one stays in its mode. force: take rules that answer for other nodes of
    the link, too.

    ModeUnavailable if no program can be had there, NdxdpError for all else; then the kernel's
    state is what it was.
    """
    if options.mode is Mode.USERSPACE:
        raise UsageError(
            "in userspace mode a process answers, and attach leaves none",
            f"ndxdp run -i {interface} --mode userspace",
        )
    link = links.answering_link(interface, down=down)
    interface = link.name  # where an alternative one was given
    tree = trees.pins
    tree.check()
    if not force:
        _refuse_broad(rules, link)
    others = tree.other_versions(interface)
    if others:
        raise other_version(tree, interface, others[0])
    with tree.lock(), contextlib.ExitStack() as opened:
        if claimed is not trees.files:
            refuse_if_locked(trees.files, interface)
        if claimed is not tree and tree.path(interface).is_dir():
            refuse_if_locked(tree, interface)
        adopt(tree, link)
        present = _present(tree, link, options.mode, keep=keep, switch=switch)
        modes: tuple[Mode, ...] = ladder.AUTO if options.mode is None else (options.mode,)
        attached = None
        if present is not None:
            opened.enter_context(present)
            before = present.maps.settings()
            if present.is_attached(before):
                attached = before
                if not switch:
                    modes = (before.mode,)
        legacy = inherited(trees.files, interface)
        rules = legacy.rules | rules
        steps: list[Step] = []
        for mode in modes:
            stays = attached is not None and attached.mode is mode
            told = attached.steps if attached and not switch else ladder.pack(steps)
            plan = Plan(link, mode, options, keep, tree.path(interface), told, legacy)
            try:
                if not stays:
                    ladder.check(link, mode, named=options.mode is not None)
                if present is None:
                    instance = _attach_anew(tree, plan, rules)
                elif attached and not stays:
                    instance = _switch(present, plan, rules, owned_source)
                else:
                    instance = _renew(present, plan, rules, owned_source)
            except ModeUnavailable as error:
                if len(modes) == 1:
                    raise
                steps.append(ladder.step(mode, error))
                hint = error.hint
                continue
            if trees.files.path(interface).is_dir():
                with trees.files.lock():
                    trees.files.remove(interface)
            for failed, why in steps:
                log.info("%s: not %s: %s", interface, failed.label, why)
            if holding is not None and claimed is not tree:
                holding.enter_context(tree.locked(interface))
            return instance
        raise ladder.NoMode(interface, steps, hint)


def _refuse_broad(rules: Rules, link: Link) -> None:
    """Raise NdxdpError for a rule that covers an on-link prefix of the interface."""
    if breadth.has_candidates(rules):
        here = onlink.read((link.ifindex, link.master))
        for broad in breadth.covering(rules, here.prefixes):
            raise broad.error(link.name, onlink.behind(broad.prefix, here.ifindexes))


def _present(
    tree: PinTree, link: Link, mode: Mode | None, *, keep: bool, switch: bool
) -> KernelInstance | None:
    """What is pinned for an interface, whether or not it is attached; debris is removed."""
    if not tree.path(link.name).is_dir():
        return None
    try:
        present = recover(tree, link.name, mode)
    except Damaged:  # an attach that was killed half-way
        tree.remove(link.name)
        return None
    settings = present.maps.settings()
    attached = present.is_attached(settings)
    refusal = None
    if attached and settings.ifindex != link.ifindex:
        refusal = NdxdpError(
            f"the pins of {link.name} belong to an interface that has another name now",
            f"ndxdp detach {link.name} first",
        )
    elif attached:
        if not switch and mode not in (None, settings.mode):
            refusal = attached_otherwise(link.name, settings.mode)
        elif not keep:
            refusal = NdxdpError(
                f"ndxdp is attached to {link.name} already, and meant to stay",
                f"ndxdp detach {link.name} first, or ndxdp run --keep",
            )
    if refusal:
        present.close()
        raise refusal
    return present


def _attach_anew(tree: PinTree, plan: Plan, rules: Rules) -> KernelInstance:
    link, options = plan.link, plan.options
    with contextlib.ExitStack() as undo:
        maps = Maps.create(options.max_addresses or abi.MAX_ADDRESSES)
        undo.callback(maps.close)
        settings = settings_of(plan, None)
        maps.set_settings(settings)
        nothing = Rules()
        desired = merge_owned(rules, nothing, owned_addresses(link))
        maps.apply(difference(desired, nothing), nothing)
        sync_local_routes(maps)
        note_neighbours(maps, link.l3_ifindex, seek=bool(settings.limits))
        prog_fd = loader.load(options.loader, plan.mode, maps.fds, options.image)
        undo.callback(os.close, prog_fd)
        with uninterrupted():
            tree.make(link.name)
            undo.callback(tree.remove, link.name)
            maps.pin(plan.path)
            pins.pin(prog_fd, plan.path / pins.PROGRAM)
            link_fd = _hang(undo, plan, prog_fd, settings, maps)
            undo.pop_all()
        log.info("attached to %s, %s mode", link.name, plan.mode.label)
        attached = KernelInstance(link.name, maps, prog_fd, link_fd)
        attached.warn_of_rivals()
        return attached


def _switch(
    present: KernelInstance, plan: Plan, rules: Rules, owned_source: str | None
) -> KernelInstance:
    """Take what is attached to another hook: it answers there before it is off here.

    An interface has one XDP program, native or generic: between these two tc answers.
    """
    before = present.maps.settings().mode
    if Mode.TC in (before, plan.mode):
        return _renew(present, plan, rules, owned_source)
    with _renew(present, replace(plan, mode=Mode.TC), rules, owned_source) as between:
        try:
            return _renew(between, plan, rules, owned_source)
        except NdxdpError:
            _renew(between, replace(plan, mode=before), rules, owned_source).close()
            raise


def _renew(
    present: KernelInstance, plan: Plan, rules: Rules, owned_source: str | None
) -> KernelInstance:
    """Put a new program in the place of the present one, on the same maps.

    Where its place is no longer good, it is put beside it, and then the present one is taken off:
    in another mode, and where somebody else has attached before it since. Meanwhile both see
    frames; what the first answers or drops the second does not see, the rest counts twice.
    """
    link, options = plan.link, plan.options
    before = present.maps.settings()
    attached = before.ifindex == link.ifindex and present.is_attached(before)
    switching = attached and before.mode is not plan.mode
    beside = switching or (
        attached
        and attachment.is_overtaken(
            link.ifindex, plan.mode, present.prog_fd, present.link_fd, links=options.links
        )
    )
    size = present.maps.max_entries("addresses")
    resized = options.max_addresses not in (None, size)
    with contextlib.ExitStack() as undo:
        actual = present.maps.rules()
        stale = {owned_source} if attached else {owned_source, RUN_ORIGIN}
        kept = actual.where(lambda rule: rule.origin not in stale)
        if owned_source is not None:
            rules, kept = resolve_conflicts(rules, kept, owned_source)
        desired = merge_owned(rules, kept, owned_addresses(link))

        maps = _with_room(present.maps, options.max_addresses or size, len(actual))
        undo.callback(maps.close)
        sync_local_routes(maps)
        limited = bool(settings_of(plan, before).limits)
        note_neighbours(maps, link.l3_ifindex, seek=limited)
        prog_fd = loader.load(options.loader, plan.mode, maps.fds, options.image)
        undo.callback(os.close, prog_fd)
        with uninterrupted():
            maps.apply(difference(desired, actual), actual)
            undo.callback(maps.apply, difference(actual, desired), desired)
            # Pinned before it is attached: whatever kills this process then, the next one finds it.
            staged = pins.stage(prog_fd, plan.path / pins.PROGRAM)
            undo.callback(staged.unlink)
            settings = settings_of(plan, before)
            maps.set_settings(replace(settings, mode=before.mode, steps=before.steps))
            undo.callback(maps.set_settings, before)
            if attached and not beside:
                attachment.replace(
                    link.name, link.ifindex, plan.mode, prog_fd, present.link_fd, present.prog_fd
                )
                link_fd = os.dup(present.link_fd) if present.link_fd is not None else None
                maps.set_settings(settings)
                _restore_reception(undo, plan, settings, maps)
            else:
                if not beside:
                    (plan.path / pins.LINK).unlink(missing_ok=True)
                elif present.link_fd is not None:
                    undo.callback(pins.repin, present.link_fd, plan.path / pins.LINK)
                else:
                    undo.callback((plan.path / pins.LINK).unlink, missing_ok=True)
                link_fd = _hang(undo, plan, prog_fd, settings, maps)
            undo.pop_all()
            if resized:
                pins.repin(maps.fds["addresses"], plan.path / "addresses")
            if beside:
                _leave_hook(present, before, plan, maps, link_fd)
            staged.rename(plan.path / pins.PROGRAM)
    log.info("renewed the program on %s, %s mode", link.name, plan.mode.label)
    renewed = KernelInstance(link.name, maps, prog_fd, link_fd)
    renewed.warn_of_rivals()
    return renewed


def _leave_hook(
    present: KernelInstance, before: Settings, plan: Plan, maps: Maps, link_fd: int | None
) -> None:
    """Take off what answered before. link_fd: what answers now; None for netlink's."""
    if link_fd is None:
        (plan.path / pins.LINK).unlink(missing_ok=True)
    unhang(present, before)
    is_filter = plan.mode is Mode.TC and link_fd is None  # which needs the qdisc still
    if before.mode is Mode.TC and not is_filter:
        settings = maps.settings()
        maps.set_settings(replace(settings, restore=settings.restore & ~Restore.CLSACT))


def _hang(
    undo: contextlib.ExitStack, plan: Plan, prog_fd: int, settings: Settings, maps: Maps
) -> int | None:
    """Attach, pin the link, switch allmulti on; returns the link's descriptor."""
    link = plan.link
    # Written down first: who is killed in between leaves word of what is to be put back.
    restore = settings.restore & ~Restore.NETLINK & ~Restore.RUN
    if not plan.keep:
        restore |= Restore.RUN
    if plan.keep and not link.allmulti:
        restore |= Restore.ALLMULTI
    if link.mcast_router == 1:
        restore |= Restore.MCAST_ROUTER
    planned = restore | Restore.NETLINK
    if plan.mode is Mode.TC and not has_clsact(link.ifindex):
        planned |= Restore.CLSACT
    maps.set_settings(replace(maps.settings(), restore=planned))
    link_fd, how = attachment.attach(
        link.name, link.ifindex, plan.mode, prog_fd, links=plan.options.links
    )
    restore |= how
    if plan.mode is Mode.NATIVE and link.kind == "veth":
        log.warning(
            "%s is a veth: native XDP sends only if its peer runs an XDP program too", link.name
        )
    if link_fd is None:
        if how & Restore.CLSACT:
            undo.callback(drop_qdisc, link.ifindex)
        undo.callback(attachment.detach, link.ifindex, prog_fd)
    else:
        undo.callback(os.close, link_fd)
        if plan.keep:
            pins.repin(link_fd, plan.path / pins.LINK)
    if plan.keep and not link.allmulti:
        links.set_allmulti(link.ifindex, True)
        undo.callback(links.set_allmulti, link.ifindex, False)
    if link.mcast_router == 1:
        links.set_mcast_router(link.ifindex, 2)
        undo.callback(links.set_mcast_router, link.ifindex, 1)
    maps.set_settings(replace(settings, restore=restore))
    return link_fd


def _restore_reception(
    undo: contextlib.ExitStack, plan: Plan, settings: Settings, maps: Maps
) -> None:
    """Set allmulti and mcast_router again, if somebody has switched them off since attaching."""
    link, restore = plan.link, settings.restore
    if plan.keep and not link.allmulti:
        restore |= Restore.ALLMULTI
        undo.callback(links.set_allmulti, link.ifindex, False)
        links.set_allmulti(link.ifindex, True)
    if link.mcast_router == 1:
        restore |= Restore.MCAST_ROUTER
        undo.callback(links.set_mcast_router, link.ifindex, 1)
        links.set_mcast_router(link.ifindex, 2)
    if restore != settings.restore:
        maps.set_settings(replace(settings, restore=restore))


def _with_room(maps: Maps, max_addresses: int, have: int) -> Maps:
    """The same maps, opened once more, with room for so many addresses. have: rules there are."""
    try:
        return maps.duplicate(max_addresses)
    except BpfError as error:
        raise too_small(max_addresses, have, str(error.strerror)) from error
