"""Recovery of pins that a process left when it was killed during a change.

The kernel is asked which programs are attached, where and how. The settings are only a record of
that, which is corrected here. Each program is pinned before it is attached, as `program:new` next
to the program that it is to replace. A link without a pin ends with its process. So each program of
ours that stays attached has a pin.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ndxdp.hooks import attachment
from ndxdp.hooks.attachment import Attachment
from ndxdp.kernel import bpf_hooks, bpf_programs, libbpf
from ndxdp.kernel.abi import Mode, Restore
from ndxdp.netlink.netns import netns
from ndxdp.netlink.qdisc import has_clsact, has_filters
from ndxdp.store import pins
from ndxdp.store.directories import PinTree
from ndxdp.store.instance import KernelInstance, open_pinned
from ndxdp.store.ownership import refuse_elsewhere
from ndxdp.store.records import Settings

log = logging.getLogger(__name__)


def recover(tree: PinTree, interface: str, wanted: Mode | None = None) -> KernelInstance:
    """Open an interface's pins; complete or undo what a killed process was changing.

    Afterwards at most one program of ours is attached: the pinned one, by the pinned link if it has
    a link. The settings record its mode. The caller has the tree's lock, and no other process has
    locked the interface.

    Args:
        tree: The tree of the pins.
        interface: The interface.
        wanted: The mode whose program stays, if several are attached.

    Raises:
        NdxdpError: There are no pins, or they belong to another network namespace.
        Damaged: Some pins are missing, and nothing is attached.
    """
    path = tree.path(interface)
    if pins.staged(path / pins.LINK).exists() and not (path / pins.LINK).exists():
        pins.staged(path / pins.LINK).rename(path / pins.LINK)
    with open_pinned(tree, interface) as found:
        settings = found.maps.settings()
        if settings.netns == netns():
            _keep_one(path, found, settings, wanted)
        else:
            refuse_elsewhere(tree, found)
    return open_pinned(tree, interface)


def drop_qdisc(ifindex: int) -> None:
    """Remove an interface's clsact qdisc, unless it has filters."""
    if has_clsact(ifindex) and not has_filters(ifindex):
        bpf_hooks.clsact_destroy(ifindex)


class _Lasting(NamedTuple):
    """A program that stays attached.

    Attributes:
        at: Its hook.
        link: The path of its pinned link; None if netlink attached it.
    """

    at: Attachment
    link: Path | None


class _Pin(NamedTuple):
    """An open pin."""

    path: Path
    fd: int


def _keep_one(path: Path, present: KernelInstance, settings: Settings, wanted: Mode | None) -> None:
    """Detach all programs but one, and make pins and settings agree with it."""
    with contextlib.ExitStack() as opened:
        links = _opened(path / pins.LINK, opened)
        programs = {
            bpf_programs.info_of(pin.fd).id: pin for pin in _opened(path / pins.PROGRAM, opened)
        }
        found = _lasting(settings.ifindex, programs, links)
        if settings.restore & Restore.RUN:  # netlink attached it, so a killed run has left it
            found = []
        stays = min(
            found, key=lambda each: (each.at.mode is not wanted, each.link is None), default=None
        )
        for pin in links:
            is_dead = not bpf_hooks.link_info(pin.fd).ifindex
            if not is_dead and not (stays and stays.link == pin.path):
                bpf_hooks.link_detach(pin.fd)
        for number, pin in programs.items():
            if not (stays and stays.at.program == number):
                attachment.detach(settings.ifindex, pin.fd)

        _keep_pin(path / pins.LINK, stays.link if stays else None)
        if stays and stays.at.program in programs:
            _keep_pin(path / pins.PROGRAM, programs[stays.at.program].path)
        for name in os.listdir(path):
            if name.endswith(pins.STAGED):
                (path / name).unlink()
        _record(present, settings, stays)


def _opened(path: Path, opened: contextlib.ExitStack) -> list[_Pin]:
    """Open a pin, and the staged one that was to replace it, if they exist."""
    found = []
    for each in (path, pins.staged(path)):
        if each.exists():
            found.append(_Pin(each, libbpf.get_pinned(str(each))))
            opened.callback(os.close, found[-1].fd)
    return found


def _lasting(ifindex: int, programs: dict[int, _Pin], links: list[_Pin]) -> list[_Lasting]:
    """Return the programs that stay attached to an interface without a process.

    Args:
        ifindex: The interface.
        programs: The pinned programs, by id.
        links: The pinned links.
    """
    linked = {
        info.prog_id: pin.path
        for pin in links
        if (info := bpf_hooks.link_info(pin.fd)).ifindex == ifindex
    }
    return [
        _Lasting(each, linked.get(each.program))
        for each in attachment.attachments(ifindex, {*programs, *linked})
        if each.program in linked
        or attachment.is_by_netlink(ifindex, each, programs[each.program].fd)
    ]


def _keep_pin(path: Path, kept: Path | None) -> None:
    """Make a path the pin that is kept: that path itself, the staged one, or none."""
    if kept is None:
        path.unlink(missing_ok=True)
    elif kept != path:
        kept.rename(path)


def _record(present: KernelInstance, settings: Settings, stays: _Lasting | None) -> None:
    """Record in the settings what is attached."""
    restore = settings.restore & ~(Restore.NETLINK | Restore.RUN)
    if stays and not stays.link:
        restore |= Restore.NETLINK
    if restore & Restore.CLSACT and not (stays and not stays.link and stays.at.mode is Mode.TC):
        drop_qdisc(settings.ifindex)
        restore &= ~Restore.CLSACT
    recorded = replace(settings, restore=restore)
    if stays and stays.at.mode is not settings.mode:
        recorded = replace(recorded, mode=stays.at.mode, refusals="")
        log.warning(
            "%s: a change of mode was interrupted; it is attached in %s mode",
            present.interface,
            stays.at.mode.label,
        )
    if recorded != settings:
        present.maps.set_settings(recorded)
