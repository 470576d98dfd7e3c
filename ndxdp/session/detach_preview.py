"""Previews of a detach, made without a change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ndxdp.errors import Damaged, NdxdpError
from ndxdp.kernel import bpf_programs
from ndxdp.kernel.abi import Restore
from ndxdp.netlink import links, tc_filters
from ndxdp.netlink.qdisc import has_egress_filters
from ndxdp.rules.address import address_text
from ndxdp.rules.ruleset import Rules
from ndxdp.session.preview import Preview, state
from ndxdp.store import lifetimes
from ndxdp.store.directories import Trees
from ndxdp.store.instance import Instance, KernelInstance, open_instance
from ndxdp.store.ownership import refuse_elsewhere, refuse_if_locked
from ndxdp.store.records import Settings


def detaching(trees: Trees, interface: str) -> Preview:
    """Return what detach_interface() would change.

    Raises:
        NdxdpError: Detaching would fail.
    """
    directory = trees.files.root
    link = links.find_link(interface)
    before, after, actual = state(None, None, link), state(None, None, link), Rules()
    notes: list[str] = []
    if trees.have(interface) or not lifetimes.exists(directory, interface):
        tree = trees.of(interface)
        if tree.path(interface).is_dir():
            refuse_if_locked(tree, interface)
        try:
            with open_instance(tree, interface) as present:
                refuse_elsewhere(tree, present)
                settings, actual = present.maps.settings(), present.maps.rules()
                if present.is_attached(settings):
                    before = state(settings, present.maps.max_entries("addresses"), link)
                after |= _restored(present, settings)
        except Damaged as error:
            notes.append(f"{error.message}: they are removed")
    notes += _restored_lifetimes(trees, interface)
    return Preview(interface, before, after, actual, notes=tuple(notes))


def _restored(instance: Instance, settings: Settings) -> dict[str, Any]:
    """Return the part of the state that detaching restores."""
    restored: dict[str, Any] = {}
    if settings.restore & Restore.ALLMULTI:
        restored["allmulti"] = False
    if settings.restore & Restore.MCAST_ROUTER:
        restored["mcast_router"] = 1
    if settings.restore & Restore.CLSACT and isinstance(instance, KernelInstance):
        ours = bpf_programs.info_of(instance.prog_fd).id
        others = [each for each in tc_filters.at_ingress(settings.ifindex) if each.program != ours]
        restored["clsact"] = bool(others) or has_egress_filters(settings.ifindex)
    return restored


def _restored_lifetimes(trees: Trees, interface: str) -> Iterator[str]:
    """Yield a sentence on the addresses whose lifetimes detaching restores."""
    for kept in lifetimes.kept(trees.files.root):
        if kept.interface != interface:
            continue
        if kept.running:
            raise NdxdpError(
                f"the addresses of {interface} are kept by a running `ndxdp run`",
                "stop that process first",
            )
        addresses = ", ".join(map(address_text, kept.deprecated))
        if addresses:
            yield f"the preferred lifetimes of {addresses} are restored"
