"""MLD snooping of bridges."""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.netlink.rtnetlink import ask_link, attributes

_IFLA_LINKINFO = 18
_INFO_KIND, _INFO_DATA = 1, 2
# linux/if_link.h and linux/if_bridge.h
_BR_MCAST_ROUTER, _BR_MCAST_SNOOPING, _BR_MCAST_QUERIER = 22, 23, 25
_BR_MCAST_QUERIER_STATE = 47
_QUERIER_IPV6_OTHER_TIMER = 7
_DELIVER_ALL = 2  # mcast_router: the bridge delivers all groups, as to a multicast router


class Snooping(NamedTuple):
    """How a bridge that snoops MLD treats multicast.

    Attributes:
        filters_host: The bridge delivers only the groups that the host joined to the host.
        has_querier: The bridge sends queries, or has another querier.
    """

    filters_host: bool
    has_querier: bool


def link_attributes(ifindex: int) -> dict[int, bytes]:
    """Return a link's attributes (IFLA_*); none if the link does not exist."""
    try:
        return ask_link(ifindex).attributes
    except OSError:
        return {}


def snooping_of(link: dict[int, bytes]) -> Snooping | None:
    """Return how a link treats multicast; None if the link is no bridge that snoops MLD.

    Args:
        link: The link's attributes.
    """
    info = attributes(link.get(_IFLA_LINKINFO, b""))
    if info.get(_INFO_KIND, b"").rstrip(b"\0") != b"bridge":
        return None
    data = attributes(info.get(_INFO_DATA, b""))
    if not data.get(_BR_MCAST_SNOOPING, b"\0")[0]:
        return None
    others = attributes(data.get(_BR_MCAST_QUERIER_STATE, b""))  # since Linux 5.15
    return Snooping(
        data.get(_BR_MCAST_ROUTER, b"\1")[0] != _DELIVER_ALL,
        bool(data.get(_BR_MCAST_QUERIER, b"\0")[0]) or _QUERIER_IPV6_OTHER_TIMER in others,
    )


def has_querier(*ifindexes: int) -> bool:
    """Return True if one of these links is a bridge that snoops MLD and has a querier."""
    found = (snooping_of(link_attributes(ifindex)) for ifindex in ifindexes if ifindex)
    return any(each is not None and each.has_querier for each in found)
