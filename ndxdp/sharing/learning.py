"""Who lives where on a share: its decisions on claims and lookups. Pure.

The learner binds an address to the downstream link that claims it first, after the other links were
asked for it (RFC 6620: first come, first served). The caller passes it every valid Neighbor
Solicitation and Advertisement of the share's links, except frames whose source MAC is one of this
host's own (RFC 7527: a network may reflect them), and carries out the actions that each call
returns, in their order. Until an action is carried out, the caller makes no other call.

Times are seconds of one monotonic clock that never goes back, addresses have 16 bytes, MACs 6, and
a link is named by its interface's index.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ndxdp.ndp.message import NeighborAdvertisement, Solicitation
from ndxdp.rules.prefix import Prefix
from ndxdp.runtime.share_report import REFUSALS
from ndxdp.sharing.actions import Action
from ndxdp.sharing.hosts import HostLimits, Hosts, LearnedHost

COUNTED = ("learned", "moved", "expired", "forgotten", "defended", "asked", "found")
"""The counters of runtime.share_report.COUNTERS that a learner keeps."""


class Learner:
    """The hosts of one share, and the searches for them.

    Before any message, call set_links(), set_prefixes() and set_reserved(), then adopt() for each
    route that exists already. Without a prefix nothing is learned and everything is forgotten.

    Attributes:
        counters: The counters in COUNTED, by name. Actions are counted when they are returned.
        refused: How many claims were refused, by reason: those of REFUSALS.
    """

    def __init__(self, limits: HostLimits) -> None:
        """Start without links, prefixes and hosts."""
        self.counters = dict.fromkeys(COUNTED, 0)
        self.refused = dict.fromkeys(REFUSALS, 0)
        self._hosts = Hosts(limits)

    @property
    def hosts(self) -> Mapping[bytes, LearnedHost]:
        """The learned hosts by address; a view that must not be changed, nor kept across calls."""
        return self._hosts

    # ---- the network

    def set_links(
        self, now: float, upstream: int | None, downstream: frozenset[int]
    ) -> list[Action]:
        """Take the links that exist; hosts on a downstream link that went away are forgotten.

        Args:
            now: The time.
            upstream: The upstream interface; None while there is none.
            downstream: The downstream interfaces with Neighbor Discovery.

        Returns:
            An Unbind for each host that is forgotten. The kernel may have removed the route.
        """
        raise NotImplementedError

    def set_prefixes(self, now: float, prefixes: Collection[Prefix]) -> list[Action]:
        """Take the shared prefixes; hosts outside of them are forgotten: an Unbind for each."""
        raise NotImplementedError

    def set_reserved(
        self, now: float, own: Mapping[int, frozenset[bytes]], routers: frozenset[bytes]
    ) -> list[Action]:
        """Take the addresses that are never learned; hosts that have one are forgotten.

        Args:
            now: The time.
            own: The addresses of this host, by interface.
            routers: The addresses of routers on the upstream link.

        Returns:
            An Unbind for each host that is forgotten.
        """
        raise NotImplementedError

    # ---- routes

    def adopt(
        self,
        now: float,
        address: bytes,
        ifindex: int,
        mac: bytes | None = None,
        *,
        age: float = 0.0,
        idle: float = 0.0,
    ) -> list[Action]:
        """Learn a host from a route that exists, without a check.

        Args:
            now: The time.
            address: The address.
            ifindex: The interface that it is routed to.
            mac: Its MAC; None if it is unknown.
            age: Seconds since it was learned.
            idle: Seconds since its last sign of life.

        Returns:
            Nothing, or an Unbind if the host must not stay: its link is unknown, its address is
            outside the prefixes or reserved (both counted as forgotten), or a limit is reached
            (counted as refused).
        """
        raise NotImplementedError

    def forget(self, now: float, address: bytes) -> list[Action]:
        """Forget a host whose route another program removed: an Unbind, or nothing if unknown.

        The host is learned again by its next claim.
        """
        raise NotImplementedError

    # ---- messages

    def solicited(self, now: float, ifindex: int, ns: Solicitation) -> list[Action]:
        """Take a solicitation: a claim of its source and a lookup of its target; DAD claims it.

        Args:
            now: The time.
            ifindex: The link that it came by; any other than those of set_links() is ignored.
            ns: The solicitation. Its source MAC is the MAC of the claim.
        """
        raise NotImplementedError

    def advertised(self, now: float, ifindex: int, na: NeighborAdvertisement) -> list[Action]:
        """Take an advertisement, solicited or not: it claims its target.

        Args:
            now: The time.
            ifindex: The link that it came by; any other than those of set_links() is ignored.
            na: The advertisement. Its source MAC is the MAC of the claim.
        """
        raise NotImplementedError

    # ---- time

    def next_tick(self) -> float | None:
        """Return the time at which to call tick(); None if there is nothing to wait for.

        The time may be in the past. It may change with every other call.
        """
        raise NotImplementedError

    def tick(self, now: float) -> list[Action]:
        """Do what is due: ask again, end searches, and ask hosts without a sign of life."""
        raise NotImplementedError
