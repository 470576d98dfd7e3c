"""Reception of solicitations: multicast filters of NICs, and bridges that snoop MLD."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ndxdp.doctor.finding import Finding, warning
from ndxdp.netlink import bridges

_IFLA_PROMISCUITY, _IFLA_ALLMULTI = 30, 61


@dataclass(frozen=True, slots=True)
class Facts:
    """Multicast reception of an interface.

    Attributes:
        interface: The interface.
        attached: ndxdp is attached to the interface.
        counts: How many users keep the interface promiscuous or in allmulti; None before Linux 6.0.
        filtered: The interface is a bridge that snoops MLD, and delivers only the groups that the
            host joined.
    """

    interface: str
    attached: bool
    counts: int | None
    filtered: bool = False


def gather(interface: str, ifindex: int, attached: bool) -> Facts:
    """Collect how an interface receives multicast.

    Args:
        interface: The name of the interface.
        ifindex: Its index.
        attached: ndxdp is attached to it.
    """
    link = bridges.link_attributes(ifindex)
    counts = None
    if _IFLA_ALLMULTI in link:
        keys = (_IFLA_ALLMULTI, _IFLA_PROMISCUITY)
        counts = sum(struct.unpack("=I", link.get(key, bytes(4)))[0] for key in keys)
    snooping = bridges.snooping_of(link)
    return Facts(interface, attached, counts, snooping is not None and snooping.filters_host)


def judge(facts: Facts) -> list[Finding]:
    """Return warnings about groups that are not received.

    An interface without ndxdp needs only the groups of the host's own addresses.
    """
    if not facts.attached:
        return []
    found = []
    if facts.counts == 0:
        found.append(
            warning(
                f"{facts.interface} is not in allmulti",
                "its multicast filter passes only the groups of the host's own addresses",
                f"ip link set dev {facts.interface} allmulticast on",
            )
        )
    if facts.filtered:
        found.append(
            warning(
                f"the bridge {facts.interface} snoops MLD, and is no multicast router",
                "if the link has an MLD querier, the bridge does not deliver solicitations for"
                " other addresses to this host",
                f"ip link set dev {facts.interface} type bridge mcast_router 2",
            )
        )
    return found
