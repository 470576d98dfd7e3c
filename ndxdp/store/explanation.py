"""Explanations of a verdict: a dry run on a made-up solicitation, and the route of its target."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ndxdp.ndp.frame import target_of
from ndxdp.ndp.reason import Reason
from ndxdp.netlink.fib import Fib, NudState, Route, RouteType
from ndxdp.rules.prefix import Prefix
from ndxdp.store.directories import Tree
from ndxdp.store.instance import open_instance
from ndxdp.store.maps import Maps
from ndxdp.store.ownership import refuse_elsewhere
from ndxdp.store.records import Explained


class Forwarding(NamedTuple):
    """The kernel's route and neighbour entry for a target.

    Attributes:
        type: The type of the route.
        route: The route of a packet to the target; None if there is none, or the kernel does not
            show it.
        interface: The output interface; "" for none.
        state: The state of the target's neighbour entry on the output interface.
        forwards: The forwarding sysctl of the input interface.
    """

    type: RouteType
    route: Route | None
    interface: str
    state: NudState
    forwards: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict on a made-up solicitation.

    Attributes:
        solicitation: The frame.
        verdict: The reason, and the rule that matched.
        reply: The advertisement; None if the solicitation is not answered.
        forwarding: The kernel's tables on the target, if the rule depends on them.
    """

    solicitation: bytes
    verdict: Explained
    reply: bytes | None
    forwarding: Forwarding | None = None


def explain(tree: Tree, interface: str, solicitation: Callable[[bytes], bytes]) -> Explanation:
    """Return the verdict on a made-up solicitation; nothing is counted.

    Args:
        tree: The tree that has the interface.
        interface: The interface's name.
        solicitation: Makes the frame, given the interface's MAC.
    """
    with open_instance(tree, interface) as instance:
        refuse_elsewhere(tree, instance)  # the verdict would use the routes of this namespace
        settings = instance.maps.settings()
        frame = solicitation(settings.mac)
        verdict, reply = instance.verdict(frame)
        verdict = _with_pause(instance.maps, target_of(frame), verdict)
        instance.warn_of_rivals()
        forwarding = None
        if verdict.rule and verdict.rule.answer.asks_kernel:
            forwarding = _forwarding(target_of(frame), settings.l3_ifindex)
    return Explanation(frame, verdict, reply, forwarding)


def _with_pause(maps: Maps, target: bytes, verdict: Explained) -> Explained:
    """Return the verdict with the reason PAUSED if the rule that matched is paused.

    The program counts such a solicitation as DENIED.
    """
    if verdict.reason is not Reason.DENIED or verdict.prefix_len is None:
        return verdict
    prefix = Prefix.around(target, verdict.prefix_len)
    rule = maps.rules_at([prefix]).get(prefix)
    if rule is None or not rule.paused:
        return verdict
    return Explained(Reason.PAUSED, verdict.prefix_len, rule)


def _forwarding(target: bytes, ifindex: int) -> Forwarding:
    with Fib() as fib:
        route = fib.route(target, ifindex)
        entry = fib.route(target, ifindex, matched=True)
        name, state = "", NudState.NONE
        if route.ifindex:
            with contextlib.suppress(OSError):  # the interface was deleted just now
                name = socket.if_indextoname(route.ifindex)
            state = fib.neighbour(route.ifindex, target)
        known = entry._replace(gateway=route.gateway) if entry.prefix else None
        return Forwarding(route.type, known, name, state, fib.forwards(ifindex))
