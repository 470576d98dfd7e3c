"""The interfaces of a share, as they are now."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ndxdp.config.model import Share
from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.netlink import links
from ndxdp.netlink.fib import Fib
from ndxdp.netlink.link_names import present_links
from ndxdp.netlink.links import Link
from ndxdp.netlink.rtnetlink import ask_link
from ndxdp.netlink.uplink_addresses import uplink_addresses
from ndxdp.rules.interface_pattern import Patterns
from ndxdp.runtime.share_report import SharedLink

_IFLA_MTU = 4

MTU_MIN = 1280
"""The smallest MTU of a link with IPv6 (RFC 8200 section 5)."""


class ShareLink(NamedTuple):
    """An interface of a share.

    Attributes:
        name: The name.
        ifindex: The index.
        l3_ifindex: The interface that routes name: the bridge or bond of a port, otherwise the
            interface itself.
        mac: The MAC, 6 bytes; empty on a link without Neighbor Discovery.
        link_local: The usable link-local address, 16 bytes; :: while there is none.
        mtu: The MTU in bytes.
        own: The host's addresses on the interface, 16 bytes each.
        gateways: The gateways (16 bytes each) of default routes on the interface.
        up: True if the interface is up.
        operational: True if it has a carrier, too.
        altnames: The alternative names.
    """

    name: str
    ifindex: int
    l3_ifindex: int
    mac: bytes
    link_local: bytes
    mtu: int
    own: frozenset[bytes]
    gateways: frozenset[bytes]
    up: bool
    operational: bool
    altnames: tuple[str, ...] = ()

    @property
    def has_discovery(self) -> bool:
        """True if nodes on the link find each other by Neighbor Discovery."""
        return bool(self.mac)

    @property
    def problem(self) -> str:
        """Why the share does not work on the interface yet; "" if it does."""
        if not self.up:
            return "it is down"
        # A bridge without a port has no carrier and no address, and nobody lives there.
        if self.operational and self.has_discovery and self.link_local == UNSPECIFIED:
            return "it has no usable link-local address yet"
        return ""


@dataclass(frozen=True, slots=True)
class ShareLinks:
    """The interfaces of a share, and the host's own addresses.

    Attributes:
        upstream: The upstream interface; None while it is absent.
        downstream: The downstream interfaces by their index.
        local: The host's own addresses on all interfaces, 16 bytes each, without link-local ones.
    """

    upstream: ShareLink | None = None
    downstream: tuple[ShareLink, ...] = ()
    local: frozenset[bytes] = frozenset()

    @property
    def routers(self) -> dict[int, frozenset[bytes]]:
        """The link-local addresses by which nodes of other downstream links know this host.

        For each downstream interface, those of the others. Short addresses that people choose, such
        as fe80::1, may be those of other nodes there, and are left out.
        """
        every = {link.link_local for link in self.downstream if any(link.link_local[8:12])}
        return {link.ifindex: frozenset(every - {link.link_local}) for link in self.downstream}

    @property
    def indexes(self) -> frozenset[tuple[int, int]]:
        """The indexes of the downstream interfaces, each with the one that routes name."""
        return frozenset((link.ifindex, link.l3_ifindex) for link in self.downstream)

    @property
    def all(self) -> tuple[ShareLink, ...]:
        """All present interfaces, the upstream one first."""
        return ((self.upstream,) if self.upstream else ()) + self.downstream


class Members:
    """Tells the interfaces of a share by their names."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._patterns = Patterns(share.downstream)

    def is_downstream(self, name: str, altnames: tuple[str, ...] = ()) -> bool:
        """Return True if an interface is a downstream one."""
        if name == self._share.upstream or self._share.upstream in altnames:
            return False
        named = self._patterns.named
        return (
            name in named
            or not named.isdisjoint(altnames)
            or bool(self._patterns.first(name, altnames))
        )

    def is_member(self, name: str, altnames: tuple[str, ...] = ()) -> bool:
        """Return True if an interface is the upstream or a downstream one."""
        is_upstream = name == self._share.upstream or self._share.upstream in altnames
        return is_upstream or self.is_downstream(name, altnames)

    def indexes(self, links: ShareLinks) -> frozenset[int]:
        """Return the indexes of those interfaces that belong to the share."""
        ours = [link for link in links.all if self.is_member(link.name, link.altnames)]
        return frozenset(index for link in ours for index in (link.ifindex, link.l3_ifindex))

    def gone(self, links: Iterable[SharedLink]) -> list[str]:
        """Return the names of those interfaces of an earlier report that are members no more."""
        altnames = {link.name: link.altnames for link in present_links().values()}
        names = [link.interface for link in links]
        return [name for name in names if not self.is_member(name, altnames.get(name, ()))]


def read(share: Share, members: Members) -> ShareLinks:
    """Read the present interfaces of a share.

    Raises:
        NdxdpError: The kernel gave an unexpected error.
        OSError: The same.
    """
    found = links.find_link(share.upstream)
    upstream = _share_link(found) if found is not None else None
    downstream = []
    for each in present_links().values():
        if each.is_loopback or not each.is_whole:
            continue
        if upstream is not None and each.ifindex == upstream.ifindex:
            continue
        if members.is_downstream(each.name, each.altnames):
            link = links.find_link(each.name)
            if link is not None and link.ifindex == each.ifindex:
                downstream.append(_share_link(link)._replace(altnames=each.altnames))
    with Fib() as fib:
        local = frozenset(prefix.address for prefix in fib.local_prefixes() if prefix.length == 128)
    return ShareLinks(upstream, tuple(downstream), local)


def read_timed(share: Share, members: Members) -> tuple[ShareLinks, float]:
    """Read the present interfaces, and how many seconds of processor time that has taken.

    The time is this thread's: it may have waited for other work before, which says nothing.

    Raises:
        NdxdpError: The kernel gave an unexpected error.
        OSError: The same.
    """
    began = time.thread_time()
    return read(share, members), time.thread_time() - began


def _share_link(link: Link) -> ShareLink:
    addresses = uplink_addresses(link)
    return ShareLink(
        link.name,
        link.ifindex,
        link.l3_ifindex,
        link.mac if links.has_mac(link) else b"",
        addresses.link_local,
        _mtu(link.ifindex),
        frozenset(own.address for each in addresses.own.values() for own in each),
        frozenset(gateway for each in addresses.gateways.values() for gateway in each),
        link.up,
        link.operational,
    )


def _mtu(ifindex: int) -> int:
    """Return the MTU of an interface; MTU_MIN if the interface has just disappeared."""
    try:
        attributes = ask_link(ifindex).attributes
    except OSError:
        return MTU_MIN
    value = attributes.get(_IFLA_MTU, b"")
    return int(struct.unpack("=I", value)[0]) if len(value) == 4 else MTU_MIN
