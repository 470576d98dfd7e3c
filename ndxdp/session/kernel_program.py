"""The program of an interface: attached and pinned, renewed in its place, or moved to another hook.

Each function leaves a state that recovery.py completes or undoes, whenever the process is killed:
the program is pinned before it is attached, and the settings record what detaching restores before
that changes.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace

from ndxdp.errors import NdxdpError
from ndxdp.hooks import attachment
from ndxdp.kernel import abi, loader
from ndxdp.kernel.abi import Mode, Restore
from ndxdp.netlink import links
from ndxdp.rules.difference import difference
from ndxdp.rules.ruleset import Rules
from ndxdp.session.kernel_tables import sync_local_routes, sync_neighbours
from ndxdp.session.plan import AttachPlan, too_small
from ndxdp.session.recovery import drop_qdisc
from ndxdp.session.restore import detach_program
from ndxdp.session.signals import uninterrupted
from ndxdp.store import pins
from ndxdp.store.directories import PinTree
from ndxdp.store.instance import KernelInstance
from ndxdp.store.maps import Maps
from ndxdp.store.records import Settings

log = logging.getLogger(__name__)


def attach_new(tree: PinTree, plan: AttachPlan) -> KernelInstance:
    """Attach a program to an interface that has no pins."""
    link, options = plan.link, plan.request.options
    nothing = Rules()
    settings, desired = plan.settings(None), plan.rules(nothing, attached=False)
    with contextlib.ExitStack() as undo:
        maps = Maps.create(options.max_addresses or abi.MAX_ADDRESSES)
        undo.callback(maps.close)
        maps.set_settings(settings)
        maps.apply(difference(desired, nothing), nothing)
        prog_fd = _load(undo, plan, maps, settings, desired)
        with uninterrupted():
            tree.make(link.name)
            undo.callback(tree.remove, link.name)
            maps.pin(plan.path)
            pins.pin(prog_fd, plan.path / pins.PROGRAM)
            link_fd = _attach_and_pin(undo, plan, prog_fd, settings, maps)
            undo.pop_all()
    log.info("attached to %s, %s mode", link.name, plan.mode.label)
    return _opened(plan, maps, prog_fd, link_fd)


def switch_mode(present: KernelInstance, plan: AttachPlan) -> KernelInstance:
    """Move the program to another hook; it answers there before it is detached here.

    An interface has one XDP program, native or generic. Between these two modes the program answers
    at tc.
    """
    before = present.maps.settings().mode
    if Mode.TC in (before, plan.mode):
        return renew(present, plan)
    with renew(present, replace(plan, mode=Mode.TC)) as between:
        try:
            return renew(between, plan)
        except NdxdpError:
            renew(between, replace(plan, mode=before)).close()
            raise


def renew(present: KernelInstance, plan: AttachPlan) -> KernelInstance:
    """Replace the present program by a new one on the same maps.

    In another mode, and if another program has attached before ours since, the new program is
    attached in a place of its own, and then the present one is detached. In between both see
    frames: the second one does not see a frame that the first one answers or drops, and counts all
    others a second time.
    """
    link, options = plan.link, plan.request.options
    before = present.maps.settings()
    attached = before.ifindex == link.ifindex and present.is_attached(before)
    has_own_place = attached and (
        before.mode is not plan.mode
        or attachment.is_overtaken(
            link.ifindex, plan.mode, present.prog_fd, present.link_fd, links=options.links
        )
    )
    size = present.maps.max_entries("addresses")
    room = size if options.max_addresses is None else options.max_addresses
    with contextlib.ExitStack() as undo:
        actual = present.maps.rules()
        desired = plan.rules(actual, attached=attached)
        maps = present.maps.duplicate()
        undo.callback(maps.close)
        settings = plan.settings(before)
        prog_fd = _load(undo, plan, maps, settings, desired)
        with uninterrupted():
            if room != size:
                _resize(maps, room, len(actual))
                undo.callback(maps.resize_addresses, size)
            maps.apply(difference(desired, actual), actual)
            undo.callback(maps.apply, difference(actual, desired), desired)
            # Pinned before it is attached: if this process is killed then, the next one finds it.
            staged = pins.stage(prog_fd, plan.path / pins.PROGRAM)
            undo.callback(staged.unlink)
            maps.set_settings(replace(settings, mode=before.mode, refusals=before.refusals))
            undo.callback(maps.set_settings, before)
            if attached and not has_own_place:
                attachment.replace(
                    link.name, link.ifindex, plan.mode, prog_fd, present.link_fd, present.prog_fd
                )
                link_fd = os.dup(present.link_fd) if present.link_fd is not None else None
                maps.set_settings(settings)
                _restore_reception(undo, plan, settings, maps)
            else:
                pin = plan.path / pins.LINK
                if not has_own_place:
                    pin.unlink(missing_ok=True)
                elif present.link_fd is not None:
                    undo.callback(pins.repin, present.link_fd, pin)
                else:
                    undo.callback(pin.unlink, missing_ok=True)
                link_fd = _attach_and_pin(undo, plan, prog_fd, settings, maps)
            undo.pop_all()
            if has_own_place:
                _detach_former(present, before, plan, maps, link_fd)
            staged.rename(plan.path / pins.PROGRAM)
        with contextlib.suppress(OSError):  # memory is short
            maps.fit_addresses()
    log.info("renewed the program on %s, %s mode", link.name, plan.mode.label)
    return _opened(plan, maps, prog_fd, link_fd)


def _load(
    undo: contextlib.ExitStack, plan: AttachPlan, maps: Maps, settings: Settings, desired: Rules
) -> int:
    """Load the program, once the maps have its copies of the kernel's tables."""
    ifindex = plan.link.l3_ifindex
    # A process that stays keeps the local routes in step, soon and only if an answer depends on
    # them. Rules that ask the kernel cannot wait for that.
    if not plan.request.lock or any(rule.answer.asks_kernel for rule in desired.distinct_rules):
        sync_local_routes(maps)
    gateways = plan.addresses.gateways[ifindex]
    sync_neighbours(maps, ifindex, gateways, solicit=bool(settings.limits))
    options = plan.request.options
    prog_fd = loader.load(options.loader, plan.mode, maps.fds, options.image)
    undo.callback(os.close, prog_fd)
    return prog_fd


def _attach_and_pin(
    undo: contextlib.ExitStack, plan: AttachPlan, prog_fd: int, settings: Settings, maps: Maps
) -> int | None:
    """Attach the program, pin its link, and switch on reception; return the link's descriptor."""
    link, keep = plan.link, plan.request.keep
    # The settings are written first, so that recovery knows what to restore after a kill.
    restore = settings.restore & ~Restore.NETLINK & ~Restore.RUN
    if not keep:
        restore |= Restore.RUN
    if keep and not link.allmulti:
        restore |= Restore.ALLMULTI
    if link.mcast_router == 1:
        restore |= Restore.MCAST_ROUTER
    planned = restore | Restore.NETLINK
    if attachment.needs_clsact(plan.mode, link.ifindex, links=plan.request.options.links):
        planned |= Restore.CLSACT
    maps.set_settings(replace(maps.settings(), restore=planned))
    link_fd, how = attachment.attach(
        link.name, link.ifindex, plan.mode, prog_fd, links=plan.request.options.links
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
        if keep:
            pins.repin(link_fd, plan.path / pins.LINK)
    if keep and not link.allmulti:
        links.set_allmulti(link.ifindex, True)
        undo.callback(links.set_allmulti, link.ifindex, False)
    if link.mcast_router == 1:
        links.set_mcast_router(link.ifindex, 2)
        undo.callback(links.set_mcast_router, link.ifindex, 1)
    maps.set_settings(replace(settings, restore=restore))
    return link_fd


def _restore_reception(
    undo: contextlib.ExitStack, plan: AttachPlan, settings: Settings, maps: Maps
) -> None:
    """Set allmulti and mcast_router again, if they have been switched off since attaching."""
    link, restore = plan.link, settings.restore
    if plan.request.keep and not link.allmulti:
        restore |= Restore.ALLMULTI
        undo.callback(links.set_allmulti, link.ifindex, False)
        links.set_allmulti(link.ifindex, True)
    if link.mcast_router == 1:
        restore |= Restore.MCAST_ROUTER
        undo.callback(links.set_mcast_router, link.ifindex, 1)
        links.set_mcast_router(link.ifindex, 2)
    if restore != settings.restore:
        maps.set_settings(replace(settings, restore=restore))


def _detach_former(
    present: KernelInstance, before: Settings, plan: AttachPlan, maps: Maps, link_fd: int | None
) -> None:
    """Detach the program that answered before.

    Args:
        present: The former program.
        before: Its settings.
        plan: The plan by which the new program was attached.
        maps: The new program's maps.
        link_fd: The new program's link; None if netlink attached it.
    """
    if link_fd is None:
        (plan.path / pins.LINK).unlink(missing_ok=True)
    detach_program(present, before)
    needs_qdisc = plan.mode is Mode.TC and link_fd is None
    if before.mode is Mode.TC and not needs_qdisc:
        settings = maps.settings()
        maps.set_settings(replace(settings, restore=settings.restore & ~Restore.CLSACT))


def _resize(maps: Maps, max_addresses: int, have: int) -> None:
    """Set how many addresses the maps can have; `have` rules are in them."""
    try:
        maps.resize_addresses(max_addresses)
    except OSError as error:
        raise too_small(max_addresses, have, str(error.strerror)) from error


def _opened(plan: AttachPlan, maps: Maps, prog_fd: int, link_fd: int | None) -> KernelInstance:
    opened = KernelInstance(plan.link.name, maps, prog_fd, link_fd)
    opened.warn_of_rivals()
    return opened
