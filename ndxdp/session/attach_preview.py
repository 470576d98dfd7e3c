"""Previews of an attach, made without a change.

The kernel verifies the program with maps that have no name and are closed at once. Errors are those
of the attach itself, except for those of the driver: whether it runs XDP is known only afterwards.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import replace

from ndxdp.errors import Damaged, ModeUnavailable
from ndxdp.hooks import attachment
from ndxdp.kernel import abi, loader
from ndxdp.kernel.abi import Mode
from ndxdp.netlink import links, onlink
from ndxdp.netlink.links import Link
from ndxdp.netlink.uplink_addresses import uplink_addresses
from ndxdp.rules.ruleset import Rules
from ndxdp.session import modes
from ndxdp.session.kernel_backend import conflict
from ndxdp.session.link_check import refuse_broad
from ndxdp.session.modes import ModeRefusal, NoMode
from ndxdp.session.plan import AttachPlan, CarriedState, attached_otherwise, carry_over
from ndxdp.session.preview import Preview, refuse_without_room, state
from ndxdp.session.rename import adoptable
from ndxdp.session.request import AttachRequest
from ndxdp.session.userspace_backend import no_socket, refuse_without_process
from ndxdp.sockets import packet
from ndxdp.store.directories import Tree, Trees
from ndxdp.store.instance import Instance, KernelInstance, open_instance, refuse_other_version
from ndxdp.store.maps import Maps
from ndxdp.store.ownership import refuse_elsewhere, refuse_if_locked
from ndxdp.store.records import Settings


def attaching(trees: Trees, request: AttachRequest, *, shared: bool = False) -> Preview:
    """Return what an attach would change.

    Args:
        trees: The directories of pins and files.
        request: The request.
        shared: A running process may answer on the interface: it is to change.

    Raises:
        NdxdpError: The attach would fail.
    """
    if request.options.mode is Mode.USERSPACE:
        return _in_userspace(trees, request, [], shared=shared)
    try:
        return _in_kernel(trees, request, shared=shared)
    except ModeUnavailable as error:
        if not request.fallback:
            raise
        return _in_userspace(trees, request, modes.refusals_of(error), shared=shared)


def _in_kernel(trees: Trees, request: AttachRequest, *, shared: bool) -> Preview:
    """Return what KernelBackend.attach() would change."""
    tree = trees.pins
    link = links.answering_link(request.interface, down=request.down)
    name = link.name
    tree.check()
    if not request.force:
        refuse_broad(name, request.rules, lambda: onlink.read((link.ifindex, link.master)))
    refuse_other_version(tree, name)
    notes = _locked(trees, name, shared=shared)
    renamed = adoptable(tree, link)
    notes += [f"the pins of {each}, its former name, become those of {name}" for each in renamed]
    with contextlib.ExitStack() as opened:
        present = _opened(opened, tree, [*renamed, name], notes)
        assert present is None or isinstance(present, KernelInstance)
        settings = _answering(present)
        is_ours = shared and tree.is_locked(name)
        if present and not is_ours and (error := conflict(present, request, link)):
            raise error
        possible, refusals = _modes(request, link, settings)
        if settings and not request.switch:
            refusals = modes.decode(settings.refusals)  # they stay noted
        former = _opened(opened, trees.files, [name], []) if present is None else None
        plan = AttachPlan(
            request,
            link,
            uplink_addresses(link),
            possible[0],
            tree.path(name),
            modes.encode(refusals),
            _carried(trees.files, request, name),
        )
        is_attached = settings is not None
        return _preview(
            plan, present, possible, refusals, notes, former=former, attached=is_attached
        )


def _in_userspace(
    trees: Trees, request: AttachRequest, refusals: list[ModeRefusal], *, shared: bool
) -> Preview:
    """Return what UserspaceBackend.attach() would change."""
    refuse_without_process(request)
    link = links.answering_link(request.interface, down=request.down)
    name = link.name
    try:
        packet.refuse_without_right()
    except ModeUnavailable as error:
        raise no_socket(name, refusals, error) from error
    refuse_other_version(trees.files, name)
    notes = _locked(trees, name, shared=shared)
    with contextlib.ExitStack() as opened:
        program = _program(opened, trees, name)
        if program is not None and not shared:
            raise attached_otherwise(name, program.maps.settings().mode)
        present = _opened(opened, trees.files, [name], notes)
        plan = AttachPlan(
            request,
            link,
            uplink_addresses(link),
            Mode.USERSPACE,
            trees.files.path(name),
            modes.encode(refusals),
            _carried(trees.pins, request, name),
        )
        return _preview(
            plan,
            present,
            [Mode.USERSPACE],
            refusals,
            notes,
            former=program if present is None else None,
            attached=_answering(present) is not None,
        )


def _carried(tree: Tree, request: AttachRequest, name: str) -> CarriedState:
    """Return the state that moves from the other backend, without rules that the request has."""
    try:
        tree.check()
        if not tree.path(name).is_dir():
            return CarriedState()
    except (ModeUnavailable, PermissionError):
        return CarriedState()
    found = carry_over(tree, name)
    return replace(found, rules=found.rules.where(lambda rule: rule.origin != request.origin))


def _preview(
    plan: AttachPlan,
    present: Instance | None,
    possible: list[Mode],
    refusals: list[ModeRefusal],
    notes: list[str],
    *,
    former: Instance | None,
    attached: bool,
) -> Preview:
    """Return what a plan changes.

    Args:
        plan: The plan.
        present: The state in the plan's tree, which is renewed; None without one.
        possible: The modes to try.
        refusals: The better modes that are refused.
        notes: Sentences on what else happens.
        former: The state of the other backend, which ends.
        attached: The present state answers.
    """
    request, link = plan.request, plan.link
    shown = present or former
    answers_by = _answering(shown)
    present_rules = present.maps.rules() if present else Rules()
    actual = former.maps.rules() if former else present_rules
    desired = plan.rules(present_rules, attached=attached)
    settings = plan.settings(present.maps.settings() if present else None)
    room = request.options.max_addresses or (
        present.maps.max_entries("addresses") if present else abi.MAX_ADDRESSES
    )
    refuse_without_room(desired, present_rules, room)
    size = shown.maps.max_entries("addresses") if shown else None
    in_kernel = plan.mode is not Mode.USERSPACE
    was, now = state(answers_by, size, link), state(settings, room, link)
    now["allmulti"] = link.allmulti or (request.keep and in_kernel)
    if link.mcast_router == 1:
        now["mcast_router"] = 2
    if answers_by is None or answers_by.mode is not plan.mode:
        needed = attachment.needs_clsact(plan.mode, link.ifindex, links=request.options.links)
        now["clsact"] = was["clsact"] or needed
    if not (request.keep and in_kernel):
        notes.append("answering ends with the process, which receives all multicast until then")
    elif answers_by is not None:
        notes.append("the program is renewed")
    return Preview(
        link.name,
        was,
        now,
        actual,
        desired,
        tuple(possible),
        tuple(refusals),
        tuple(notes),
    )


def _answering(instance: Instance | None) -> Settings | None:
    """Return the settings by which an instance answers; None if it does not."""
    settings = instance.maps.settings() if instance else None
    return settings if instance and settings and instance.is_attached(settings) else None


def _modes(
    request: AttachRequest, link: Link, attached: Settings | None
) -> tuple[list[Mode], list[ModeRefusal]]:
    """Return the modes to try in their order, and the better ones that are refused.

    Args:
        request: The request.
        link: The interface.
        attached: The settings of the attached program.

    Raises:
        ModeUnavailable: No mode is possible.
    """
    named = request.options.mode
    candidates = modes.candidates(named, attached.mode if attached else None, request.switch)
    possible: list[Mode] = []
    refusals: list[ModeRefusal] = []
    for mode in candidates:
        stays = attached is not None and attached.mode is mode
        try:
            if not stays:
                modes.check(link, mode, named=named is not None)
                # A program of ours at XDP goes before another one comes.
                if mode is not Mode.TC and (attached is None or attached.mode is Mode.TC):
                    attachment.refuse_foreign(link.name, link.ifindex)
            _verify(request, mode)
        except ModeUnavailable as error:
            if len(candidates) == 1:
                raise
            refusals.append(modes.refusal(mode, error))
            hint = error.hint
            continue
        possible.append(mode)
        if stays or mode is not Mode.NATIVE:
            break
    if not possible:
        raise NoMode(link.name, refusals, hint)
    return possible, refusals


def _verify(request: AttachRequest, mode: Mode) -> None:
    """Load the program for a mode with maps of its own, and drop both; raise what that raises."""
    with contextlib.ExitStack() as opened:
        maps = Maps.create(1)
        opened.callback(maps.close)
        options = request.options
        opened.callback(os.close, loader.load(options.loader, mode, maps.fds, options.image))


# ---- what is there -------------------------------------------------------------------------------


def _locked(trees: Trees, name: str, *, shared: bool) -> list[str]:
    """Return a sentence if a process has locked the interface; raise NdxdpError unless `shared`."""
    for tree in trees:
        if tree.is_locked(name):
            if not shared:
                refuse_if_locked(tree, name)
            return ["a running process answers here; `ndxdp reload` makes it follow a changed file"]
    return []


def _opened(
    opened: contextlib.ExitStack, tree: Tree, names: Iterable[str], notes: list[str]
) -> Instance | None:
    """Return the first state that a tree has of some names; note one that is damaged."""
    for name in names:
        if not tree.path(name).is_dir():
            continue
        try:
            found = opened.enter_context(open_instance(tree, name))
            refuse_elsewhere(tree, found)
            return found
        except Damaged as error:
            notes.append(f"{error.message}: they are replaced")
    return None


def _program(opened: contextlib.ExitStack, trees: Trees, name: str) -> Instance | None:
    """Return the pins of a program that is attached; None if there is none, or no right to it."""
    try:
        trees.pins.check()
    except ModeUnavailable:
        return None
    found = _opened(opened, trees.pins, [name], [])
    return found if found and found.is_attached(found.maps.settings()) else None
