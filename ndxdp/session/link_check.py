"""Rules compared with the link: rules that answer for other nodes of it, and for neighbours."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ndxdp.netlink import onlink
from ndxdp.netlink.netns import netns
from ndxdp.netlink.onlink import OnLink
from ndxdp.rules import breadth
from ndxdp.rules.address import address_text
from ndxdp.rules.ruleset import Rules
from ndxdp.store.records import Settings

log = logging.getLogger(__name__)


def refuse_broad(interface: str, rules: Rules, here: Callable[[], OnLink]) -> None:
    """Raise NdxdpError for a rule that covers an on-link prefix of the interface.

    Args:
        interface: The interface's name.
        rules: The rules to check.
        here: Returns the on-link prefixes; called only if a rule may cover one.
    """
    if breadth.has_candidates(rules):
        found = here()
        for broad in breadth.covering(rules, found.prefixes):
            raise broad.error(interface, onlink.behind(broad.prefix, found.ifindexes))


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
            address_text(min(some)),
            known[min(some)].hex(":"),
        )
    for address in breadth.at_neighbours(rules, known):
        log.warning(
            "%s: %s is a present neighbour at %s: the neighbour and ndxdp both answer for it",
            interface,
            address_text(address),
            known[address].hex(":"),
        )
