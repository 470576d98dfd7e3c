"""Writes to an interface's maps while a program or this process answers by them.

Each function reads the present state and writes only the difference: an unchanged rule is not
touched. All of them lock the session's tree. Call them in the executor's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from ndxdp.config.model import Resolve
from ndxdp.daemon.rule_cache import RuleCache
from ndxdp.kernel.abi import Restore
from ndxdp.ndp.limiter import Limits
from ndxdp.netlink import links
from ndxdp.netlink.links import Link
from ndxdp.rules.difference import Difference, difference, mark_owned
from ndxdp.rules.pausing import names_of, with_pauses, without_pauses
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import HOST_ORIGIN, SHARED_ORIGIN
from ndxdp.rules.ruleset import Rules
from ndxdp.session.session import Session
from ndxdp.store.maps import Maps

log = logging.getLogger(__name__)


def apply_host(session: Session, link: Link, link_local: bytes) -> None:
    """Answer from the interface's present MAC and link-local address."""
    maps = session.maps
    with session.tree.lock.if_usable(urgent=True):
        settings = maps.settings()
        fresh = replace(settings, mac=link.mac, link_local=link_local, l3_ifindex=link.l3_ifindex)
        if fresh != settings:
            maps.set_settings(fresh)
        if fresh.mac != settings.mac:
            log.info("%s answers from %s now", link.name, link.mac.hex(":"))


def apply_rules(
    session: Session,
    owned: Mapping[Prefix, str],
    desired_by: Mapping[str, Rules] | None = None,
    cache: RuleCache | None = None,
) -> Rules:
    """Make holes for owned addresses, and write the rules of the daemon's origins.

    Args:
        session: The interface.
        owned: Exact addresses that are never answered for, and why each is owned.
        desired_by: By origin, the rules to write; the first origin wins. Rules of other origins
            stay and take precedence, except over rules of shared addresses, for which exactly one
            host answers; an identical rule passes to the daemon's origin.
        cache: The interface's rules; without it, they are read from the maps.

    Returns:
        All rules of the interface afterwards.

    Raises:
        NdxdpError: The rules do not fit; the holes are made even so.
    """
    maps, interface, cache = session.maps, session.interface, cache or RuleCache(session)
    with session.tree.lock.if_usable():
        actual = _apply_holes(maps, owned, cache.rules())
        if desired_by is None:
            cache.keep(actual)
            return actual
        names = names_of(actual)
        others = without_pauses(actual)
        desired = others.where(lambda rule: rule.origin not in {*desired_by, HOST_ORIGIN})
        shared = desired_by.get(SHARED_ORIGIN, Rules())
        for prefix, _, present in shared.paired_with(desired):
            log.warning(
                "%s: the rule for %s by '%s' is removed: etcd shares the address among hosts",
                *(interface, prefix, present.origin),
            )
        desired = desired.without(shared)
        for rules in desired_by.values():
            desired = desired.without(rules.equivalent_in(desired))
        for rules in desired_by.values():
            for prefix, _, present in rules.paired_with(desired):
                log.warning("%s: %s has a rule by '%s' already", interface, prefix, present.origin)
            desired = rules | desired
        desired = with_pauses(mark_owned(owned, desired).applied_to(desired), names)
        change = difference(desired, actual)
        if change:
            maps.apply(change, actual)
            written, removed = len(change.write), len(change.remove)
            log.info("%s: rules written %d, removed %d", interface, written, removed)
        cache.keep(desired)
        return desired


def _apply_holes(maps: Maps, owned: Mapping[Prefix, str], actual: Rules) -> Rules:
    """Bring holes in step with the owned addresses; return all rules afterwards."""
    change = mark_owned(owned, actual)
    # First the changes that need no room: rules of other origins are marked, old holes are removed.
    marked = Difference(change.write.restricted_to(actual), change.remove)
    if marked:
        maps.apply(marked, actual)
        actual = marked.applied_to(actual)
    holes = Difference(change.write.without(actual), Rules())
    if holes:
        maps.apply(holes, actual)
        actual = holes.applied_to(actual)
    for prefix, rule in change.write.pairs():
        if rule.owned:
            log.info("added a hole for %s: %s", prefix, owned[prefix])
        else:
            log.info("the rule for %s is in force again: the host no longer owns it", prefix)
    for prefix in change.remove:
        log.info("removed the hole for %s", prefix)
    return actual


def restore_reception(session: Session, link: Link, *, allmulti: bool) -> list[str]:
    """Switch on again the settings of the interface that let solicitations in.

    Detaching restores them.

    Args:
        session: The interface.
        link: The interface as the kernel has it.
        allmulti: The interface's own flag is wanted, too.

    Returns:
        The names of the settings that had been switched off since attaching.
    """
    wanted = Restore(0)
    if allmulti and not link.allmulti:
        wanted |= Restore.ALLMULTI
    if link.mcast_router == 1:
        wanted |= Restore.MCAST_ROUTER
    if not wanted:
        return []
    with session.tree.lock.exclusive():
        settings = session.maps.settings()
        # Written first, so that detaching restores the interface if this process is killed here.
        session.maps.set_settings(replace(settings, restore=settings.restore | wanted))
        if wanted & Restore.ALLMULTI:
            links.set_allmulti(link.ifindex, True)
        if wanted & Restore.MCAST_ROUTER:
            links.set_mcast_router(link.ifindex, 2)
    names = {Restore.ALLMULTI: "allmulti", Restore.MCAST_ROUTER: "mcast_router 2"}
    return [name for bit, name in names.items() if wanted & bit]


def write_heartbeat(session: Session, timeout: float) -> None:
    """Write a heartbeat, `timeout` seconds after which dynamic rules expire; 0 for never."""
    with session.tree.lock.shared():
        session.maps.beat(timeout)


def sync_kernel_tables(
    session: Session,
    local_routes: set[Prefix] | None,
    names: list[tuple[int, str]] | None,
) -> None:
    """Update the maps' copies of tables that a program cannot read.

    Args:
        session: The interface.
        local_routes: The prefixes that this host receives; None if no answer depends on them.
        names: The index and the name of each interface; None if no rule names one.
    """
    if local_routes is None and names is None:
        return
    with session.tree.lock.if_usable():
        if local_routes is not None:
            session.maps.set_locals(local_routes)
        if names is not None:
            session.maps.sync_dev_ifindexes(names)


def enable_resolution(session: Session, limits: Resolve | None, *, solicits: bool = False) -> None:
    """Let the program ask the daemon for unknown neighbours, or let it ask no more.

    Args:
        session: The interface.
        limits: How often the program may ask; None for never.
        solicits: The daemon solicits gateways from addresses behind this host. The program keeps
            the kernel from forwarding the answers.
    """
    with session.tree.lock.if_usable():
        each, total, gateway = limits.limits if limits else Limits()
        settings = replace(
            session.maps.settings(),
            resolve_interval=each.interval,
            resolve_credit=each.credit,
            resolve_total_interval=total.interval,
            resolve_total_credit=total.credit,
            resolve_gateway_interval=gateway.interval,
            resolve_gateway_credit=gateway.credit,
            solicits=solicits,
        )
        session.maps.set_settings(settings)
