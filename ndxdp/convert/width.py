"""Keys that a converted rule needs because it is wide, or ends at this host. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ndxdp.convert.draft import DraftInterface, DraftRule
from ndxdp.rules import breadth
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules


class Host(NamedTuple):
    """Facts of the converting machine, which need not be the one that will answer.

    on_link: returns the on-link prefixes of an interface, None where that is not known.
    local: prefixes below 128 bits that a local route delivers here.
    """

    on_link: Callable[[str], frozenset[Prefix] | None] = lambda name: None
    local: frozenset[Prefix] = frozenset()


NOWHERE = Host()
"""Nothing is known."""


def settle(interface: DraftInterface, host: Host, origin: str) -> None:
    """Set dad, force and `answer = "local"` of the rules that answer for all of a prefix.

    Args:
        origin: the name of the other responder, for the comments.
    """
    always = [rule for rule in interface.rules if rule.answer == "always"]
    if not always:
        return
    for rule in always:
        rule.defend = False
    interface.comments.append(
        f"dad: no node takes {origin}'s answer to Duplicate Address Detection for a conflict"
    )
    on_link = host.on_link(interface.name)
    asked = False
    for rule in always:
        local = _local_route(rule.prefix, host)
        if local is not None:
            rule.answer = "local"
            rule.comments.append(f"local: this machine has a local route for {local}")
            continue
        asked = asked or rule.prefix.length < 128
        _force(rule, interface.name, on_link, origin)
    if asked:
        interface.comments.append(
            "where a local route delivers a prefix here (ip -6 route add local PREFIX dev lo),"
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
    """Set force where ndxdp would refuse the rule otherwise, or might."""
    rules = Rules.of({rule.prefix: Rule()})
    if breadth.find_all(rules, on_link or ()):
        why = "ndxdp refuses a rule that answers for the other nodes of the link"
    elif on_link is None and breadth.likely(rules):
        why = f"ndxdp leaves this rule out if it covers the on-link prefix of {interface}"
    else:
        return
    rule.force = True
    rule.comments.append(
        f"force: without it {why}. With it, whoever asks for the address of another node gets an"
        f" answer, as from {origin}; better name the prefix of what is behind this host"
    )
