"""How the networks behind the host relate to the on-link prefixes of an uplink. Pure."""

from __future__ import annotations

import re
from enum import Enum

from ndxdp.proposal.facts import Host, Uplink, Way
from ndxdp.rules.prefix import Prefix, free_part


class Relation(Enum):
    """The position of a prefix among the on-link prefixes of an uplink.

    INSIDE: the router solicits each address, as it does for its other neighbours.
    SAME: the prefix is on-link on the uplink as a whole, too.
    AROUND: the uplink has an address of the prefix, and no on-link prefix around that address.
    WIDER: the prefix contains an on-link prefix.
    OUTSIDE: the prefix is routed to the host, or private.
    """

    INSIDE = "inside"
    SAME = "same"
    AROUND = "around"
    WIDER = "wider"
    OUTSIDE = "outside"

    @property
    def needs_answer(self) -> bool:
        """True if the upstream router may solicit the addresses of the prefix."""
        return self in (Relation.INSIDE, Relation.SAME, Relation.AROUND)


def relation(prefix: Prefix, uplink: Uplink) -> Relation:
    """Return how a prefix relates to an uplink."""
    if prefix in uplink.on_link:
        return Relation.SAME
    if any(on_link.covers(prefix) for on_link in uplink.on_link):
        return Relation.INSIDE
    if any(prefix.covers(on_link) for on_link in uplink.on_link):
        return Relation.WIDER
    single = [Prefix(address, 128) for address in uplink.addresses]
    if any(prefix.covers(each) for each in single):
        return Relation.AROUND
    return Relation.OUTSIDE


def plain_ways(host: Host) -> list[Way]:
    """Return the routes behind the host, except those of the engine's networks."""
    engines = {subnet for network in host.networks for subnet in network.subnets}
    return [way for way in host.ways if way.prefix not in engines]


def spare(host: Host, uplink: Uplink, on_link: Prefix) -> Prefix | None:
    """Return a part of an on-link prefix that nothing here uses; None if there is none."""
    used = [way.prefix for way in host.ways]
    used += [subnet for network in host.networks for subnet in network.subnets]
    return free_part(on_link, [*uplink.addresses, *uplink.gateways], used)


# ---- names ---------------------------------------------------------------------------------------

_CALLED = (
    (r"virbr\d+", "libvirt's bridge"),
    (r"lxcbr\d+", "LXC's bridge"),
    (r"lxdbr\d+", "LXD's bridge"),
    (r"incusbr\d+", "Incus's bridge"),
    (r"vmbr\d+", "Proxmox VE's bridge"),
    (r"docker0|docker_gwbridge|br-[0-9a-f]{12}", "Docker's bridge"),
    (r"podman\d+|cni-podman\d+", "Podman's bridge"),
)
"""Patterns of names, and whose interfaces have such names by default."""

_KINDS = {"bridge": "the bridge", "wireguard": "the WireGuard tunnel", "tun": "the tap or tunnel"}


def called(way: Way) -> str:
    """Return a name for the interface of a route, such as `libvirt's bridge virbr0`."""
    return called_link(way.dev, way.kind)


def called_link(name: str, kind: str) -> str:
    """Return a name for an interface of some kind, such as `libvirt's bridge virbr0`."""
    for pattern, owner in _CALLED:
        if kind == "bridge" and re.fullmatch(pattern, name):
            return f"{owner} {name}"
    return f"{_KINDS.get(kind, 'the interface')} {name}"
