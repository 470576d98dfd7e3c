"""Sentences on what a proposal contains, and on what it leaves out and why. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterator

from ndxdp.proposal.facts import Host, Uplink
from ndxdp.proposal.relations import Relation, called, plain_ways, relation, spare
from ndxdp.rules.prefix import Prefix

_PRIVATE = Prefix(b"\xfc" + bytes(15), 7)
"""Unique local addresses (RFC 4193)."""

_NAMED_MAX = 4  # names in one sentence


def unusable(uplink: Uplink) -> str:
    """Return why ndxdp answers nothing on an uplink; "" if it can."""
    if uplink.quiet:
        return f"{uplink.name} has no MAC address, so no router solicits there"
    if not uplink.up:
        return f"{uplink.name} is down: ip link set dev {uplink.name} up"
    if uplink.disabled:
        return f"IPv6 is disabled on {uplink.name}: its sysctl disable_ipv6 is 1"
    return ""


def all_notes(host: Host, shared: Container[str] = ()) -> Iterator[str]:
    """Yield the notes on a host's proposal.

    Args:
        host: The host.
        shared: The interfaces that a share has downstream, whose prefixes have notes of their own.
    """
    for uplink in host.uplinks:
        reason = unusable(uplink)
        if reason:
            yield reason
    usable = [each for each in host.uplinks if not unusable(each)]
    if len(usable) > 1:
        names = " and ".join(each.name for each in usable)
        yield (
            f"{names} are uplinks: each has rules for its own on-link prefixes only; to choose,"
            f" name one: ndxdp init {usable[0].name}"
        )
    for uplink in usable:
        if uplink.kind == "bridge":
            yield (
                f"guests on ports of {uplink.name} are on the link themselves and answer for"
                " themselves: no rule is for them"
            )
    yield from _of_prefixes(host, usable, shared)
    yield from _of_networks(host)
    yield from _of_others(host, usable)


def _of_prefixes(host: Host, usable: list[Uplink], shared: Container[str]) -> Iterator[str]:
    """Yield a note for each prefix without a rule, and each that is on both sides of the host."""
    places = {way.prefix: called(way) for way in plain_ways(host) if way.dev not in shared}
    places |= {
        subnet: f"the network {network.name}"
        for network in host.networks
        if network.answerable
        for subnet in network.subnets
    }
    names = " and ".join(each.name for each in usable)
    outside: list[str] = []
    for prefix, what in sorted(places.items()):
        found = {relation(prefix, uplink): uplink for uplink in usable}
        if Relation.SAME in found:
            yield _both(host, found[Relation.SAME], prefix, what)
        elif any(each.needs_answer for each in found):
            continue
        elif Relation.WIDER in found:
            yield (
                f"no rule for {prefix} ({what}): it contains an on-link prefix of"
                f" {found[Relation.WIDER].name}, whose nodes answer for themselves"
            )
        elif not _PRIVATE.covers(prefix):
            outside.append(f"{prefix} ({what})")
    if outside and usable:
        yield (
            f"no rule for {_some(outside)}: in no on-link prefix of {names}. If the provider routes"
            " it to this host, no router solicits it; what the router says: ndxdp doctor --probe"
        )


def _both(host: Host, uplink: Uplink, prefix: Prefix, what: str) -> str:
    part = spare(host, uplink, prefix)
    instead = f", such as {part}" if part else ""
    return (
        f"{prefix} is on {uplink.name} and on {what}: the kernel has two routes to it and uses one,"
        f" so that either the gateway or the guests are unreachable. Give the guests a part of"
        f" it{instead}, or a route each, and run init again"
    )


def _of_networks(host: Host) -> Iterator[str]:
    if host.unknown:
        yield (
            f"cannot ask the container engine for its networks ({host.unknown}): its bridges get"
            " rules like those of other guests"
        )
    without = [each.name for each in host.networks if each.driver == "bridge" and not each.subnets]
    if without:
        plural = "networks have" if len(without) > 1 else "network has"
        yield f"the container {plural} no IPv6 subnet, and no rule: {_some(without)}"
    for network in host.networks:
        if not network.subnets or network.answerable:
            continue
        if network.driver in ("macvlan", "ipvlan"):
            yield f"the containers on the {network.driver} network {network.name} answer themselves"
        elif network.internal:
            yield f"the network {network.name} is internal: no packet from outside reaches it"


def _of_others(host: Host, usable: list[Uplink]) -> Iterator[str]:
    """Yield notes on other programs that configure the uplinks, or answer there."""
    for responder in host.responders:
        yield (
            f"{responder.name} (pid {responder.pid}) answers solicitations, too: stop it before"
            " ndxdp starts"
            + (
                "; `ndxdp convert /etc/ndppd.conf` makes a configuration of its file"
                if responder.name == "ndppd"
                else ""
            )
        )
    for uplink in usable:
        if uplink.proxied:
            count = len(uplink.proxied)
            yield (
                f"the kernel's proxy_ndp has {count} entr{'ies' if count > 1 else 'y'} on"
                f" {uplink.name}, which ndxdp makes superfluous: ip -6 neighbour show proxy"
            )
        if uplink.manager == "ifupdown" and uplink.advertised and uplink.accept_ra == 1:
            file = f" ({uplink.manager_file})" if uplink.manager_file else ""
            yield (
                f"ifupdown configures {uplink.name}{file}; with the method dhcp it sets accept_ra"
                " to 1 when it brings the interface up: write `accept_ra 2` there"
            )
        if uplink.attached:
            yield (
                f"ndxdp has rules for {uplink.name} already; those of `ndxdp attach` and `prefix"
                f" add` stay: ndxdp prefix list {uplink.name}"
            )
    for daemon in host.daemons:
        yield f"a daemon of ndxdp runs (pid {daemon.pid}, {daemon.config or 'without a file'})"
    for sentence in host.unseen:
        yield f"not seen: {sentence}"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED_MAX])
    return f"{shown} and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else shown
