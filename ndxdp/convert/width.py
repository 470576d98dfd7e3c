"""Keys of converted rules that are wide, or that a local route covers. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ndxdp.convert.draft import DraftInterface, DraftRule
from ndxdp.rules import breadth
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules


class Host(NamedTuple):
    """Facts of the machine that converts, which may differ from the one that will answer.

    Attributes:
        on_link: A function that returns the on-link prefixes of an interface; None if unknown.
        local: Prefixes below 128 bits that a local route delivers to the machine.
        leads: A function that returns whether a route for some of a prefix leaves by an interface;
            None if there is no such interface, or if that is unknown.
        uplinks: The interfaces of default routes.
    """

    on_link: Callable[[str], frozenset[Prefix] | None] = lambda name: None
    local: frozenset[Prefix] = frozenset()
    leads: Callable[[Prefix, str], bool | None] = lambda prefix, name: None
    uplinks: frozenset[str] = frozenset()


UNKNOWN = Host()
"""A machine of which nothing is known."""


def restrict(interface: DraftInterface, host: Host, origin: str) -> None:
    """Set dad, force and `answer = "local"` of the rules that answer for a whole prefix.

    Args:
        interface: The interface with its rules.
        host: Facts of this machine.
        origin: The name of the other responder, for the comments.
    """
    always = [rule for rule in interface.rules if rule.answer == "always"]
    if not always:
        return
    for rule in always:
        rule.defend = False
    interface.comments.append(
        f"dad: {origin}'s answers do not disturb Duplicate Address Detection, so neither do these"
    )
    on_link = host.on_link(interface.name)
    ask_for_local = False
    for rule in always:
        local = _local_route(rule.prefix, host)
        if local is not None:
            rule.answer = "local"
            rule.comments.append(f"local: this machine has a local route for {local}")
            continue
        ask_for_local = ask_for_local or rule.prefix.length < 128
        _force(rule, interface.name, on_link, origin)
    if ask_for_local:
        interface.comments.append(
            "if a local route delivers a prefix to this host (ip -6 route add local PREFIX dev lo),"
            ' write answer = "local"'
        )


def _local_route(prefix: Prefix, host: Host) -> Prefix | None:
    """Return the prefix of the local route that covers a rule's prefix."""
    for length in range(min(prefix.length, 127), 0, -1):
        around = Prefix.around(prefix.address, length)
        if around in host.local:
            return around
    return None


def _force(rule: DraftRule, interface: str, on_link: frozenset[Prefix] | None, origin: str) -> None:
    """Set force if ndxdp refuses the rule otherwise, or may refuse it."""
    rules = Rules.of({rule.prefix: Rule()})
    if breadth.find_all(rules, on_link or ()):
        why = "ndxdp refuses a rule that answers for the other nodes of the link"
    elif on_link is None and breadth.likely(rules):
        why = f"ndxdp leaves this rule out if it covers the on-link prefix of {interface}"
    else:
        return
    rule.force = True
    rule.comments.append(
        f"force: without it {why}. With it, ndxdp also answers for the addresses of other nodes, as"
        f" {origin} does; better write the prefix that is behind this host"
    )
