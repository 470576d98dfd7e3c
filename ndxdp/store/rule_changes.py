"""Changes to the live rules of one interface, by commands: add, delete, pause and resume."""

from __future__ import annotations

import logging
import socket
from dataclasses import replace

from ndxdp.errors import NdxdpError, UsageError
from ndxdp.netlink import onlink
from ndxdp.netlink.fib import Fib
from ndxdp.netlink.netns import netns
from ndxdp.netlink.onlink import OnLink
from ndxdp.rules import breadth
from ndxdp.rules.difference import difference, merge
from ndxdp.rules.rule import HOST_ORIGIN, OWN_LABEL, owned_rule
from ndxdp.rules.ruleset import Rules
from ndxdp.store.directories import Tree
from ndxdp.store.instance import open_instance
from ndxdp.store.maps import Maps
from ndxdp.store.ownership import refuse_elsewhere
from ndxdp.store.records import Settings

log = logging.getLogger(__name__)

_NEVER_ANSWERED = "the host's own and its gateway's addresses are never answered for"


def add_rules(
    tree: Tree, interface: str, rules: Rules, *, replacing: bool = False, force: bool = False
) -> None:
    """Add rules to live maps: all of them or, on an error, none.

    An equal rule that is already present stays unchanged, with its origin.

    Args:
        tree: The tree that has the interface.
        interface: The interface's name.
        rules: The rules to add.
        replacing: Replace different rules of the same origin.
        force: Accept rules that cover an on-link prefix of the interface.

    Raises:
        NdxdpError: A prefix has another rule, a rule is too broad, or the maps have no room.
    """
    with tree.lock(), open_instance(tree, interface) as instance:
        refuse_elsewhere(tree, instance)
        if not force and breadth.has_candidates(rules):
            here = on_link(instance.maps.settings())
            for broad in breadth.covering(rules, here.prefixes):
                raise broad.error(interface, onlink.behind(broad.prefix, here.ifindexes))
        actual = instance.maps.rules()
        desired = merge(rules, actual, replacing=replacing)
        _log_kept(interface, rules, actual)
        instance.maps.apply(difference(desired, actual), actual)
        sync_local_routes(instance.maps)
        tree.notify(interface)
        settings = instance.maps.settings()
        if netns() == settings.netns:
            warn_of_neighbours(interface, settings.l3_ifindex, rules)


def _log_kept(interface: str, rules: Rules, actual: Rules) -> None:
    """Log the rules that are already present with another origin, which they keep."""
    if not log.isEnabledFor(logging.INFO):
        return
    for prefix, rule, present in rules.paired_with(actual):
        if present.origin not in (rule.origin, HOST_ORIGIN):
            log.info(
                "%s: %s already has that rule; its origin stays '%s'",
                interface,
                prefix,
                present.origin,
            )


def on_link(settings: Settings) -> OnLink:
    """Return the on-link prefixes where an instance answers; none in another network namespace."""
    if netns() != settings.netns:
        return OnLink()
    return onlink.read((settings.ifindex, settings.l3_ifindex))


def warn_of_neighbours(interface: str, ifindex: int, rules: Rules) -> None:
    """Log a warning for each rule that answers for neighbours on the uplink.

    Args:
        interface: The interface's name, for the log.
        ifindex: The interface that has the uplink's neighbours: a bridge, for a port of it.
        rules: The rules to check.
    """
    known = onlink.neighbours(ifindex)
    for prefix, some in breadth.around_neighbours(rules, known).items():
        log.warning(
            "%s: the rule for %s answers for %d present neighbours, such as %s at %s",
            interface,
            prefix,
            len(some),
            socket.inet_ntop(socket.AF_INET6, min(some)),
            known[min(some)].hex(":"),
        )
    for address in breadth.at_neighbours(rules, known):
        log.warning(
            "%s: %s is a present neighbour at %s: the neighbour and ndxdp both answer for it",
            interface,
            socket.inet_ntop(socket.AF_INET6, address),
            known[address].hex(":"),
        )


def sync_local_routes(maps: Maps) -> None:
    """Write the prefixes that this host has itself into the maps that a program reads.

    Without a daemon, the program does not learn of later changes.
    """
    if maps.in_kernel:
        with Fib() as fib:
            maps.set_locals(fib.local_prefixes())


def delete_rules(
    tree: Tree, interface: str, named: Rules | None, origin: str, *, missing_ok: bool = False
) -> None:
    """Remove rules of one origin: all that are named or, on an error, none.

    Args:
        tree: The tree that has the interface.
        interface: The interface's name.
        named: Rules of which only the prefixes count; None for all rules of the origin.
        origin: The origin of the rules.
        missing_ok: Ignore prefixes that have no rule of the origin.

    Raises:
        NdxdpError: A prefix has no rule, or a rule of another origin.
    """
    if origin == HOST_ORIGIN:
        raise UsageError(
            f"rules of origin '{HOST_ORIGIN}' are ndxdp's own",
            _NEVER_ANSWERED,
        )
    with tree.lock(), open_instance(tree, interface) as instance:
        refuse_elsewhere(tree, instance)
        actual = instance.maps.rules()
        if named is None:
            removed = actual.where(lambda rule: rule.origin == origin)
        else:
            removed = actual.restricted_to(named)
        if named is not None and not missing_ok:
            for prefix in named.without(actual):
                raise NdxdpError(f"{prefix} has no rule", "ndxdp prefix list shows all")
            for prefix, rule in removed.where(lambda rule: rule.origin != origin).pairs():
                raise NdxdpError(
                    f"the rule of {prefix} is not of origin '{origin}' but of '{rule.origin}'",
                    _NEVER_ANSWERED
                    if rule.origin == HOST_ORIGIN
                    else f"name it if you mean it: --origin {rule.origin}",
                )
        removed = removed.where(lambda rule: rule.origin == origin)
        # The host still has the addresses of owned rules, so these rules become holes.
        owned = removed.where(lambda rule: rule.owned)
        desired = actual.without(removed) | dict.fromkeys(owned, owned_rule(OWN_LABEL))
        instance.maps.apply(difference(desired, actual), actual)
        tree.notify(interface)


def set_paused(tree: Tree, interface: str, *, paused: bool) -> None:
    """Pause answering, or resume it, from the next solicitation on."""
    with tree.lock(), open_instance(tree, interface) as instance:
        refuse_elsewhere(tree, instance)
        settings = instance.maps.settings()
        instance.maps.set_settings(replace(settings, paused=paused))
        tree.notify(interface)  # a daemon also stops or starts other work
