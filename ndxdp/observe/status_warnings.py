"""Warnings about one interface: defects that its maps, links and rules show."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping

from ndxdp.hooks.hook_order import Program
from ndxdp.kernel.abi import Mode
from ndxdp.netlink import neighbour_table, vlan_offload
from ndxdp.rules import breadth
from ndxdp.rules.capacity import room_for
from ndxdp.rules.prefix import Prefix
from ndxdp.runtime.daemon_status import CareStatus
from ndxdp.session.link_check import on_link
from ndxdp.store.instance import Instance, KernelInstance, Place, UserspaceInstance
from ndxdp.store.records import RuleCount, Settings

_NEARLY_FULL = 0.9


def of_interface(
    instance: Instance,
    settings: Settings,
    rules: RuleCount,
    limits: Mapping[str, int],
    care: CareStatus | None,
    place: Place,
) -> Iterator[str]:
    """Yield a sentence on each defect of an interface."""
    interface, device = instance.interface, instance.device()
    if place is Place.ELSEWHERE and interface in {name for _, name in socket.if_nameindex()}:
        yield (
            f"ndxdp answers on {interface} of another network namespace, not on {interface} of this"
            " one: give each namespace a BPF file system of its own (--bpffs)"
        )
    if device not in (None, interface):
        yield (
            f"this interface is called {device} now: `ndxdp attach {device}` continues under that"
            f" name, `ndxdp detach {interface}` stops answering"
        )
        return
    if rules.prefixes:
        yield from _broad(instance, settings)
    by_xdp = place is Place.HERE and settings.mode in (Mode.NATIVE, Mode.GENERIC)
    if by_xdp and vlan_offload.vlans_on(interface):
        from ndxdp.netlink import links  # imports pyroute2, which other interfaces do not need

        link = links.find_link(interface)
        hidden = vlan_offload.hidden_vlans(interface, link.kind) if link else []
        if hidden:
            yield (
                f"the device removes the VLAN tags of {', '.join(hidden)} before XDP sees the"
                " frames: answers may go to the wrong VLAN; attach in tc mode"
            )
    if settings.daemon_dead:
        age = (time.monotonic_ns() - settings.heartbeat) / 1e9
        yield f"no heartbeat of the daemon for {age:.0f} s: ndxdp does not answer for containers"
    if care and care.why:
        yield f"the daemon does not solicit the gateway: {care.explain(interface)}"
    for name, count in (("addresses", rules.addresses), ("prefixes", rules.prefixes)):
        if count > _NEARLY_FULL * limits[name]:
            more = _more_addresses(instance, limits[name]) if name == "addresses" else ""
            left = limits[name] - count
            yield f"the map of {name} is nearly full: it has room for {left} more{more}"
    if any(instance.maps.resolved()):  # `neighbour` rules, which need the kernel's table
        yield from _little_room()


def _more_addresses(instance: Instance, limit: int) -> str:
    """Return how to make room for more than `limit` addresses; "" if there is no larger table."""
    room = room_for(limit)
    if room <= limit:
        return ""
    if isinstance(instance, (KernelInstance, UserspaceInstance)) and instance.is_locked:
        return f"; max_addresses = {room} in its daemon's file makes room"
    return f"; `ndxdp attach {instance.interface} --max-addresses {room}` makes room"


def _little_room() -> Iterator[str]:
    """Yield a warning if the kernel's neighbour table is nearly full."""
    table = neighbour_table.read()
    if table is not None and table.is_nearly_full:
        cure = " ".join(neighbour_table.settings_for(table.entries))
        yield (
            f"the kernel's table of IPv6 neighbours is {table.fill}: ndxdp does not answer for"
            f" neighbours without an entry (sysctl -w {cure})"
        )


def _broad(instance: Instance, settings: Settings) -> Iterator[str]:
    """Yield a warning for each rule that defends addresses of other nodes, or was omitted for that.

    A rule with `dad = "ignore"` causes no warning: its author has considered the case.
    """
    here: frozenset[Prefix] = frozenset()
    with contextlib.suppress(OSError):  # the sandbox of an exporter may exclude netlink
        here = on_link(settings).prefixes
    found = instance.maps.wider(breadth.candidates(here))
    for broad in breadth.find_all(found, here):
        if broad.rule.profile.defend:
            yield (
                f"{broad.sentence(instance.interface)}; origin '{broad.rule.origin}',"
                f" see ndxdp doctor {instance.interface}"
            )
    for prefix, rule in sorted(found.wider.items()):
        if breadth.is_left_out(rule):
            yield (
                f"the daemon left the rule for {prefix} out: it would answer for the other nodes"
                f" on {instance.interface}, too; see ndxdp doctor {instance.interface}"
            )


def of_programs_before(
    instance: Instance, before: list[Program], *, is_locked: bool
) -> Iterator[str]:
    """Yield a sentence on each program at tc that sees frames before ndxdp."""
    rivals = [program for program in before if program.is_rival]
    if not rivals:
        return
    cure = "there is no free place before it"
    if instance.can_come_first():
        renewal = "a restart of ndxdp" if is_locked else f"`ndxdp attach {instance.interface}`"
        cure = f"{renewal} puts ndxdp first"
    for program in rivals:
        yield f"{program} may take solicitations before ndxdp sees them; {cure}"
