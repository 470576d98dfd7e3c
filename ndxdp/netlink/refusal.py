"""The refusal of an answer because of the kernel's routes and neighbours."""

from __future__ import annotations

import socket

from ndxdp.ndp.address import is_link_local
from ndxdp.ndp.decision import Match
from ndxdp.ndp.profile import Answer
from ndxdp.ndp.reason import Reason
from ndxdp.netlink.fib import Fib, Route, RouteType
from ndxdp.rules.interface_name import matches_dev

_REFUSED = {
    RouteType.LOCAL: Reason.ROUTE_LOCAL,
    RouteType.ANYCAST: Reason.ROUTE_LOCAL,
    RouteType.BLACKHOLE: Reason.ROUTE_BLACKHOLE,
    RouteType.UNREACHABLE: Reason.ROUTE_UNREACHABLE,
    RouteType.PROHIBIT: Reason.ROUTE_PROHIBIT,
}


def refusal(fib: Fib, ifindex: int, target: bytes, rule: Match, defends: bool) -> Reason | None:
    """Return the reason why the kernel's tables rule out an answer; None if they do not.

    The BPF program gets the same result from bpf_fib_lookup() and the maps `locals` and `on_link`.

    Args:
        fib: The tables.
        ifindex: The interface by which a packet for the target would arrive.
        target: The target, 16 bytes.
        rule: A rule that depends on the tables, or an `always` rule if `defends` is true.
        defends: True if the answer would defend the target against DAD.
    """
    if rule.answer is Answer.LOCAL:
        against = None if _is_local(fib.route(target, ifindex)) else Reason.NOT_LOCAL
    else:
        against = _forwarding(fib, ifindex, target, rule, defends)
        if rule.answer is Answer.ALWAYS:
            against = _may_be_on_link(fib, ifindex, target, against)
    if against is None and defends and fib.neighbour(ifindex, target).is_valid:
        return Reason.DAD_ON_LINK
    return against


def _forwarding(fib: Fib, ifindex: int, target: bytes, rule: Match, defends: bool) -> Reason | None:
    if not is_link_local(target) and not fib.forwards(ifindex):
        return Reason.NOT_FORWARDING
    route = fib.route(target, ifindex)
    if route.type is not RouteType.UNICAST:
        return _REFUSED.get(route.type, Reason.NO_ROUTE)
    if route.encap:
        return Reason.ROUTE_ENCAP
    if route.ifindex == ifindex:
        return Reason.ROUTE_BACK
    try:
        if rule.dev and not matches_dev(socket.if_indextoname(route.ifindex), rule.dev):
            return Reason.ROUTE_ELSEWHERE
    except OSError:  # The interface was removed after the lookup.
        return Reason.ROUTE_ELSEWHERE
    if rule.answer is Answer.ALWAYS or (rule.answer is Answer.ROUTED and not defends):
        return None
    if route.gateway is not None:
        return Reason.ROUTE_GATEWAY
    is_valid = fib.neighbour(route.ifindex, target).is_valid
    return None if is_valid else Reason.NO_NEIGHBOUR


def _may_be_on_link(
    fib: Fib, ifindex: int, target: bytes, forwards: Reason | None
) -> Reason | None:
    """Return why an `always` rule must not defend a target, given the result of _forwarding()."""
    if forwards is Reason.ROUTE_BACK:
        return Reason.DAD_ON_LINK
    # Without forwarding the kernel does not return the interface of a route.
    if forwards is Reason.NOT_FORWARDING and not _is_local(fib.route(target, ifindex)):
        return forwards
    return None


def _is_local(route: Route) -> bool:
    return route.type in (RouteType.LOCAL, RouteType.ANYCAST)


def leads_to_neighbour(route: Route, ifindex: int, dev: tuple[str, ...]) -> bool:
    """Return True if a route makes its target a neighbour, by the program's conditions."""
    if route.type is not RouteType.UNICAST or route.encap or route.gateway is not None:
        return False
    if route.ifindex == ifindex:
        return False
    return not dev or matches_dev(socket.if_indextoname(route.ifindex), dev)
