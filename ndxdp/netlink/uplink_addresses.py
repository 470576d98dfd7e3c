"""The addresses and gateways of an uplink, for which ndxdp does not answer."""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.netlink import onlink
from ndxdp.netlink.addresses import OwnAddress, own_addresses
from ndxdp.netlink.fib import Fib, gateways_among
from ndxdp.netlink.links import Link
from ndxdp.netlink.onlink import OnLink
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import GATEWAY_LABEL, OWN_LABEL


class UplinkAddresses(NamedTuple):
    """The IPv6 addresses of an uplink and its gateways, as they were at one moment.

    A port has also the addresses and gateways of its bridge or bond.

    Attributes:
        own: The host's addresses, by ifindex.
        gateways: The gateways (16 bytes each) of default routes in all tables, by ifindex.
        link_local: The usable link-local address of the uplink itself, 16 bytes; :: without one.
        owned: The /128 prefixes of all of them. Rules for owned addresses are not applied; the
            values are labels of owned_rule().
        on_link: The on-link prefixes of the uplink.
    """

    own: dict[int, list[OwnAddress]]
    gateways: dict[int, set[bytes]]
    link_local: bytes
    owned: dict[Prefix, str]
    on_link: OnLink = OnLink()


def uplink_addresses(link: Link) -> UplinkAddresses:
    """Read the addresses of an uplink; a missing interface has none."""
    here = [link.ifindex] + ([link.master] if link.master else [])
    own = {ifindex: own_addresses(ifindex) for ifindex in here}
    with Fib() as fib:
        routes = {ifindex: fib.routes_by(ifindex) for ifindex in here}
    gateways = {ifindex: gateways_among(some, ifindex) for ifindex, some in routes.items()}
    prefixes = [each.prefix for some in own.values() for each in some]
    on_link = onlink.among(prefixes, chain.from_iterable(routes.values()), here)
    usable = (each.address for each in own[link.ifindex] if each.link_local and each.is_usable)
    owned: dict[Prefix, str] = {}
    for found in gateways.values():
        owned |= {Prefix(address, 128): GATEWAY_LABEL for address in found}
    for addresses in own.values():
        owned |= {Prefix(each.address, 128): OWN_LABEL for each in addresses}
    return UplinkAddresses(own, gateways, next(usable, UNSPECIFIED), owned, on_link)
