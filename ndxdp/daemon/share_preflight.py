"""The check of [[share]] against this host, as it is now, for `ndxdp check`."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ndxdp.config.model import Share, share_downstream
from ndxdp.errors import NdxdpError
from ndxdp.netlink import sysctl
from ndxdp.rules.interface_name import is_pattern, natural_order

if TYPE_CHECKING:
    from ndxdp.netlink.link_names import NamedLink
    from ndxdp.netlink.links import Link


class PresentShare(NamedTuple):
    """A share, and which of its downstream interfaces this host has now.

    Attributes:
        share: The share.
        names: The names of the present downstream interfaces, in natural order.
        warnings: Sentences with hints: what prevents the share from working here.
    """

    share: Share
    names: list[str]
    warnings: list[tuple[str, str]]

    def words(self) -> Iterator[str]:
        """Yield which interfaces are here, for a line of `ndxdp check`."""
        yield f"here now: {', '.join(self.names) or 'no downstream interface'}"


def present_shares(shares: Sequence[Share]) -> list[PresentShare]:
    """Return the shares with what this host has of them; without netlink, as if it had nothing."""
    if not shares:
        return []
    from ndxdp.netlink.link_names import present_links

    with contextlib.suppress(OSError):
        links = list(present_links().values())
        return [_present(share, shares, links) for share in shares]
    return [PresentShare(share, [], []) for share in shares]


def _present(share: Share, shares: Sequence[Share], links: list[NamedLink]) -> PresentShare:
    usable = [link for link in links if not link.is_loopback]
    names = [link.name for link in usable if share_downstream(shares, link.name) is share]
    names.sort(key=natural_order)
    warnings: list[tuple[str, str]] = []
    for name in (share.upstream, *share.downstream):
        if not is_pattern(name):
            warnings += _of_name(share, name)
    here = [share.upstream] if any(link.name == share.upstream for link in usable) else []
    if here:
        warnings += _not_on_link(share)
    warnings += _forwarding([*here, *names], share.upstream)
    return PresentShare(share, names, warnings)


def _of_name(share: Share, name: str) -> Iterator[tuple[str, str]]:
    """Yield why an interface that the share names does not work in it."""
    from ndxdp.netlink import links
    from ndxdp.netlink.addresses import own_addresses

    try:
        link = links.find_link(name)
    except NdxdpError:
        return
    role = "upstream" if name == share.upstream else "downstream"
    if link is None:
        yield f"{name}, {role} in a share, is not here: the daemon waits for it", "see: ip -br link"
    elif link.name != name:
        yield (
            f"{name}, {role} in a share, is an alternative name of {link.name}",
            f"write {link.name}: a share needs the interface's own name",
        )
    elif not links.has_mac(link):
        yield from _without_mac(link, role)
    elif link.l3_ifindex != link.ifindex:
        master = socket.if_indextoname(link.l3_ifindex)
        yield f"{name}, {role} in a share, is a port of {master}", f"write {master}"
    elif not link.up:
        yield f"{name}, {role} in a share, is down", f"ip link set dev {name} up"
    elif not any(address.link_local for address in own_addresses(link.ifindex)):
        yield (
            f"{name}, {role} in a share, has no link-local address, so that the daemon cannot"
            " solicit there",
            f"see: ip -6 addr show dev {name}; sysctl net/ipv6/conf/{name}/disable_ipv6",
        )


def _without_mac(link: Link, role: str) -> Iterator[tuple[str, str]]:
    """Yield why an interface without a MAC is of no use; a tunnel may be downstream."""
    if link.name == "lo":
        yield f"lo, {role} in a share, is the loopback interface", "see: ip -br link"
    elif role == "upstream":
        yield (
            f"{link.name}, upstream in a share, has no MAC address, so no router solicits there",
            "a router beyond such a link sends it all packets without asking: add routes instead",
        )


def _not_on_link(share: Share) -> Iterator[tuple[str, str]]:
    """Yield which prefixes of the file this host has no route for on the upstream interface."""
    from ndxdp.netlink import links, onlink

    try:
        link = links.find_link(share.upstream)
        known = onlink.read((link.ifindex, link.master)).prefixes if link else frozenset()
    except (NdxdpError, OSError):
        return
    for prefix in share.prefixes:
        if not any(each.covers(prefix) for each in known):
            yield (
                f"{prefix} is not on-link on {share.upstream}, so hosts behind this host do not"
                " reach its hosts there",
                f"ip -6 route add {prefix} dev {share.upstream}",
            )


def _forwarding(names: list[str], upstream: str) -> Iterator[tuple[str, str]]:
    """Yield which interfaces do not forward, so that no packet passes from one to another."""
    stopped = [name for name in names if _conf(name, "forwarding") == 0]
    if not stopped:
        return
    cure = "sysctl -w net.ipv6.conf.all.forwarding=1"
    if _conf(upstream, "accept_ra") == 1:
        # With forwarding, the kernel accepts router advertisements only if accept_ra is 2.
        cure += f" net/ipv6/conf/{upstream}/accept_ra=2"
    verb = "does" if len(stopped) == 1 else "do"
    yield f"{', '.join(stopped)} {verb} not forward, and a share needs forwarding", cure


def at_start(share: Share) -> Iterator[tuple[str, str]]:
    """Yield, with hints, what a share lacks at its start, and may get later."""
    from ndxdp.netlink import names, onlink
    from ndxdp.netlink.fib import Fib

    upstream = share.upstream
    ifindex = names.index_of(upstream)
    if not ifindex:
        return
    if _conf(upstream, "forwarding") == 1 and _conf(upstream, "accept_ra") == 1:
        with Fib() as fib:
            routes = [route for route in fib.default_routes() if route.ifindex == ifindex]
        if all(route.by_ra for route in routes):  # another one was configured, and stays
            yield (
                f"{upstream} forwards, and its accept_ra is 1: this host ignores its routers",
                f"sysctl -w net/ipv6/conf/{upstream}/accept_ra=2",
            )
    if not share.prefixes and not onlink.read([ifindex]).prefixes:
        yield (
            f"{upstream} has no on-link prefix yet: the share waits for an advertised one",
            f"to see what routers advertise: rdisc6 {upstream}; or name it: --prefix PREFIX",
        )


def _conf(name: str, key: str) -> int | None:
    """Return an IPv6 sysctl of an interface; None if there is none, or it cannot be read."""
    return sysctl.read("net", "ipv6", "conf", name, key)
