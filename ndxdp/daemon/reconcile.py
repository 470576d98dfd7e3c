"""Makes rules and settings of an interface what they should be, while somebody answers by them.

What is there is read, and only what differs is written: an unchanged rule is not touched. All
that is here takes the tree's lock itself, and wants the executor's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ndxdp.config.model import Resolve
from ndxdp.errors import Damaged
from ndxdp.kernel.abi import Restore
from ndxdp.ndp.limiter import Limits
from ndxdp.netlink import links
from ndxdp.netlink.links import Link
from ndxdp.rules.difference import Difference, difference, mark_owned
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import HOST_ORIGIN
from ndxdp.rules.ruleset import Rules
from ndxdp.session.detach import release
from ndxdp.store import pins
from ndxdp.store.directories import Tree
from ndxdp.store.instance import Instance, KernelInstance, open_instance
from ndxdp.store.ownership import refuse_elsewhere, refuse_if_locked
from ndxdp.store.rule_changes import sync_local_routes

Place = tuple[int, int]
"""A directory's device and inode number."""

log = logging.getLogger(__name__)


def apply_host(tree: Tree, instance: Instance, link: Link, link_local: bytes) -> None:
    """Answer from this MAC and link-local address."""
    with tree.lock_if_usable(urgent=True):
        settings = instance.maps.settings()
        fresh = replace(settings, mac=link.mac, link_local=link_local, l3_ifindex=link.l3_ifindex)
        if fresh != settings:
            instance.maps.set_settings(fresh)
        if fresh.mac != settings.mac:
            log.info("%s answers from %s now", link.name, link.mac.hex(":"))


def apply_rules(
    tree: Tree,
    instance: Instance,
    owned: Mapping[Prefix, str],
    desired_by: Mapping[str, Rules] | None = None,
) -> Rules:
    """Never answer for what the host owns, and write the rules of our sources.

    Args:
        tree: Where the instance is kept.
        instance: The instance.
        owned: Exact addresses, and why each is owned.
        desired_by: What the rules of these sources shall be. Those of others stay, and win, but
            those in the same words are taken over.

    Returns:
        All the rules that there are then.

    Raises:
        NdxdpError: There is no room for the rules; the holes are there all the same.
    """
    with tree.lock_if_usable():
        actual = _apply_holes(instance, owned, instance.maps.rules())
        if desired_by is None:
            return actual
        desired = actual.where(lambda rule: rule.origin not in {*desired_by, HOST_ORIGIN})
        for rules in desired_by.values():
            desired = desired.without(rules.equivalent_in(desired))
        for rules in desired_by.values():
            for prefix, _, there in rules.paired_with(desired):
                log.warning(
                    "%s: %s has a rule by '%s' already", instance.interface, prefix, there.origin
                )
            desired = rules | desired
        desired = mark_owned(owned, desired).applied_to(desired)
        change = difference(desired, actual)
        if change:
            instance.maps.apply(change, actual)
            log.info(
                "%s: rules written %d, removed %d",
                instance.interface,
                len(change.write),
                len(change.remove),
            )
        return desired


def _apply_holes(instance: Instance, owned: Mapping[Prefix, str], actual: Rules) -> Rules:
    change = mark_owned(owned, actual)
    # First what needs no room: rules of others are marked, and holes that went are closed.
    marked = Difference(change.write.restricted_to(actual), change.remove)
    if marked:
        instance.maps.apply(marked, actual)
        actual = marked.applied_to(actual)
    holes = Difference(change.write.without(actual), Rules())
    if holes:
        instance.maps.apply(holes, actual)
        actual = holes.applied_to(actual)
    for prefix, rule in change.write.pairs():
        log.info("%s is %s", prefix, f"{rule.label}: a hole" if rule.owned else "free again")
    for prefix in change.remove:
        log.info("%s: the hole is gone", prefix)
    return actual


def restore_reception(tree: Tree, instance: Instance, link: Link, *, allmulti: bool) -> list[str]:
    """Set again what lets solicitations in, if somebody has switched it off since attaching.

    allmulti: the interface's flag is wanted, too. Returns names of what was set; detaching undoes
    that.
    """
    wanted = Restore(0)
    if allmulti and not link.allmulti:
        wanted |= Restore.ALLMULTI
    if link.mcast_router == 1:
        wanted |= Restore.MCAST_ROUTER
    if not wanted:
        return []
    with tree.lock():
        settings = instance.maps.settings()
        # Written first: a process that is killed in between leaves word of what is to be undone.
        instance.maps.set_settings(replace(settings, restore=settings.restore | wanted))
        if wanted & Restore.ALLMULTI:
            links.set_allmulti(link.ifindex, True)
        if wanted & Restore.MCAST_ROUTER:
            links.set_mcast_router(link.ifindex, 2)
    names = {Restore.ALLMULTI: "allmulti", Restore.MCAST_ROUTER: "mcast_router 2"}
    return [name for bit, name in names.items() if wanted & bit]


def place_of(path: Path) -> Place | None:
    """Return what tells a directory from another one of the same path; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def is_damaged(tree: Tree, instance: Instance, place: Place | None, *, link: bool) -> bool:
    """Return True if somebody has removed pins or files of an interface that is answered on.

    Args:
        tree: Where the instance is kept.
        instance: The instance.
        place: Its directory.
        link: True if its link is pinned, too.
    """
    path = tree.path(instance.interface)
    if place_of(path) != place:
        return True
    missing = instance.maps.missing(path)
    if isinstance(instance, KernelInstance):
        missing += [name for name in instance.pinned(link=link) if not (path / name).exists()]
    return bool(missing)


def repair(
    tree: Tree, instance: Instance, rules: Rules, place: Place | None, *, link: bool
) -> bool:
    """Put back what somebody has removed of an interface's pins or files.

    What this process has open is what there was: rules, counters, program and link. What an
    `attach` has put there since is taken off.

    Args:
        tree: Where the instance is kept.
        instance: The instance.
        rules: All rules of an instance in files.
        place: Its directory, as it was.
        link: True if its link is to be pinned, too.

    Returns:
        True if the directory is a new one, which nobody holds.

    Raises:
        NdxdpError: There is another directory, which another process holds, or which is of another
            network namespace.
    """
    interface = instance.interface
    path = tree.path(interface)
    with tree.lock_if_usable():
        is_new = place_of(path) != place
        if is_new and path.is_dir():
            refuse_if_locked(tree, interface)
            try:
                with open_instance(tree, interface) as other:
                    refuse_elsewhere(tree, other)
                    release(tree, other)
            except Damaged:
                tree.remove(interface)
        if is_new:
            tree.make(interface)
        if isinstance(instance, KernelInstance):
            instance.maps.restore_pins(path)
            for name, fd in instance.pinned(link=link).items():
                if not (path / name).exists():
                    pins.pin(fd, path / name)
        else:
            instance.maps.restore_files(rules)
        return is_new


def beat(tree: Tree, instance: Instance, timeout: float) -> None:
    """Write a heartbeat, `timeout` seconds after which dynamic rules expire; 0: they never do."""
    with tree.shared_lock():
        instance.maps.beat(timeout)


def note_tables(tree: Tree, instance: Instance) -> None:
    """What the program cannot ask the kernel: interfaces by name, and what ends at this host."""
    with tree.lock_if_usable():
        sync_local_routes(instance.maps)
        instance.maps.sync_dev_ifindexes()


def let_request(
    tree: Tree, instance: Instance, limits: Resolve | None, *, solicits: bool = False
) -> None:
    """Tell the program what the daemon does beside it.

    Args:
        tree: Where the instance is kept.
        instance: The instance.
        limits: How often the program may ask for neighbours that are not known; None for never.
        solicits: True if the daemon solicits gateways from addresses behind this host, so that the
            program keeps the kernel from forwarding the answers.
    """
    with tree.lock_if_usable():
        each, total, gateway = limits.limits if limits else Limits()
        settings = replace(
            instance.maps.settings(),
            resolve_interval=each.interval,
            resolve_credit=each.credit,
            resolve_total_interval=total.interval,
            resolve_total_credit=total.credit,
            resolve_gateway_interval=gateway.interval,
            resolve_gateway_credit=gateway.credit,
            solicits=solicits,
        )
        instance.maps.set_settings(settings)
