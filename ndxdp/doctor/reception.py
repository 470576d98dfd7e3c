"""Reception of solicitations: multicast filters of NICs, and bridges that snoop MLD."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from ndxdp.doctor.finding import Finding, warning
from ndxdp.netlink.rtnetlink import Rtnetlink, attributes

_RTM_GETLINK = 18
_HEADER = 16  # struct ifinfomsg
_IFLA_LINKINFO, _IFLA_PROMISCUITY, _IFLA_ALLMULTI = 18, 30, 61
_INFO_KIND, _INFO_DATA = 1, 2
_BR_MCAST_ROUTER, _BR_MCAST_SNOOPING = 22, 23
_DELIVER_ALL = 2  # mcast_router: the bridge delivers all groups, as to a multicast router


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
    link = _link(ifindex)
    counts = None
    if _IFLA_ALLMULTI in link:
        keys = (_IFLA_ALLMULTI, _IFLA_PROMISCUITY)
        counts = sum(struct.unpack("=I", link.get(key, bytes(4)))[0] for key in keys)
    info = attributes(link.get(_IFLA_LINKINFO, b""))
    if info.get(_INFO_KIND, b"").rstrip(b"\0") != b"bridge":
        return Facts(interface, attached, counts)
    data = attributes(info.get(_INFO_DATA, b""))
    router, snooping = data.get(_BR_MCAST_ROUTER, b"\1")[0], data.get(_BR_MCAST_SNOOPING, b"\0")[0]
    filtered = bool(snooping) and router != _DELIVER_ALL
    return Facts(interface, attached, counts, filtered)


def _link(ifindex: int) -> dict[int, bytes]:
    """Return a link's attributes (IFLA_*); none if the link was deleted."""
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, ifindex, 0, 0)
    try:
        with Rtnetlink() as kernel:
            (message,) = kernel.ask(_RTM_GETLINK, 0, body)
    except OSError:
        return {}
    return attributes(message[_HEADER:])


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
