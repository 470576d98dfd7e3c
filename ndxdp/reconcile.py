"""Makes rules and settings of an interface what they should be, while somebody answers by them.

What is there is read, and only what differs is written: an unchanged rule is not touched. All
that is here takes the tree's lock itself, and wants the executor's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from ndxdp.config import Resolve
from ndxdp.instance import Instance, note_locals
from ndxdp.kernel.pins import Tree
from ndxdp.policy import HOST_SOURCE, Difference, Prefix, Rules, difference, hold, hole
from ndxdp.wire.netlink import Link

log = logging.getLogger(__name__)


def apply_sources(tree: Tree, instance: Instance, desired_by: Mapping[str, Rules]) -> None:
    """Make the rules of these sources what they should be; those of others stay.

    A rule of another source, for the same prefix, wins. NdxdpError if there is no room.
    """
    with tree.lock():
        maps = instance.maps
        actual = maps.rules()
        desired = {prefix: rule for prefix, rule in actual.items() if rule.source not in desired_by}
        for rules in desired_by.values():
            for prefix, rule in rules.items():
                there = desired.get(prefix)
                if there is None or there.source == HOST_SOURCE:
                    held = there is not None or (prefix in actual and actual[prefix].held)
                    desired[prefix] = replace(rule, held=True) if held else rule
                else:
                    log.warning("%s has a rule by '%s' already", prefix, there.source)
        for prefix, rule in actual.items():
            if rule.held and prefix not in desired:
                desired[prefix] = hole("own")
        change = difference(desired, actual)
        if change.write or change.remove:
            maps.apply(change, actual)
            log.info(
                "%s: rules written %d, removed %d",
                instance.interface,
                len(change.write),
                len(change.remove),
            )


def apply_host(
    tree: Tree, instance: Instance, link: Link, link_local: bytes, owned: Mapping[Prefix, str]
) -> Rules:
    """Answer from this MAC and link-local address, and never for what the host owns.

    Returns all the rules that there are then.
    """
    with tree.lock():
        settings = instance.maps.settings()
        fresh = replace(settings, mac=link.mac, link_local=link_local, l3_ifindex=link.l3_ifindex)
        if fresh != settings:
            instance.maps.set_settings(fresh)
        if fresh.mac != settings.mac:
            log.info("%s answers from %s now", link.name, link.mac.hex(":"))
        return _apply_holes(instance, owned)


def beat(tree: Tree, instance: Instance, timeout: float) -> None:
    """The heartbeat, `timeout` seconds after which dynamic rules lapse; 0: they never do."""
    with tree.lock():
        settings = instance.maps.settings()
        if not timeout and not settings.heartbeat_timeout:
            return
        fresh = replace(
            settings, heartbeat=time.monotonic_ns(), heartbeat_timeout=round(timeout * 1e9)
        )
        instance.maps.set_settings(fresh)


def note_tables(tree: Tree, instance: Instance) -> None:
    """What the program cannot ask the kernel: interfaces by name, and what ends at this host."""
    with tree.lock():
        note_locals(instance.maps)
        instance.maps.match_vias()


def let_request(tree: Tree, instance: Instance, limits: Resolve | None) -> None:
    """Have the program ask for neighbours that are not known, so often; None: no more."""
    with tree.lock():
        settings = replace(
            instance.maps.settings(),
            resolve_interval=limits.interval if limits else 0,
            resolve_credit=limits.credit if limits else 0,
        )
        instance.maps.set_settings(settings)


def _apply_holes(instance: Instance, owned: Mapping[Prefix, str]) -> Rules:
    maps = instance.maps
    actual = maps.rules()
    change = hold(owned, actual)
    # First what needs no room: rules of others are marked, and holes that went are closed.
    marked = {prefix: rule for prefix, rule in change.write.items() if prefix in actual}
    if marked or change.remove:
        maps.apply(Difference(marked, change.remove), actual)
    holes = {prefix: rule for prefix, rule in change.write.items() if prefix not in actual}
    if holes:
        maps.apply(Difference(holes, []), maps.rules())
    for prefix, rule in change.write.items():
        log.info("%s is %s", prefix, f"{rule.label}: a hole" if rule.held else "free again")
    for prefix in change.remove:
        log.info("%s: the hole is gone", prefix)
    return maps.rules() if change.write or change.remove else actual
