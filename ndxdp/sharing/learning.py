"""The hosts of a share and their links: decisions on claims and lookups. Pure.

The learner binds an address to the downstream link that claims it first, after it has asked for the
address on the other links (RFC 6620: first come, first served). The caller passes it every valid
solicitation and advertisement that comes by the links of the share, except frames whose source MAC
is one of this host's own, because a network may reflect those (RFC 7527). The caller carries out
the actions that a call returns, in their order, before it makes the next call.

Times are seconds of one monotonic clock that never goes back, addresses have 16 bytes, MACs 6, and
a link is named by its interface's index.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

from ndxdp.ndp.message import NeighborAdvertisement, Solicitation
from ndxdp.rules.prefix import Prefix
from ndxdp.sharing.actions import Action, Unbind, Verify
from ndxdp.sharing.bindings import Bindings
from ndxdp.sharing.claim import Claim
from ndxdp.sharing.hosts import HostLimits, LearnedHost
from ndxdp.sharing.locator import Locator
from ndxdp.sharing.scope import Scope
from ndxdp.sharing.suspicions import Suspicions
from ndxdp.sharing.tally import Tally


class Learner:
    """The hosts of one share, and the searches for them.

    Before any message, call set_links(), set_prefixes() and set_reserved(), then adopt() for each
    route that exists already. Without a prefix nothing is learned and everything is forgotten.
    """

    def __init__(self, limits: HostLimits) -> None:
        """Start without links, prefixes and hosts."""
        self._tally = Tally()
        self._bindings = Bindings(limits, self._tally)
        self._hosts = self._bindings.hosts
        self._suspicions = Suspicions(self._hosts, self._tally)
        self._scope = Scope()
        self._locator = Locator(self._bindings, self._scope, self._tally)
        self._upstream: int | None = None
        self._downstream: tuple[int, ...] = ()

    @property
    def hosts(self) -> Mapping[bytes, LearnedHost]:
        """The learned hosts by address; a view that must not be changed, nor kept across calls."""
        return self._hosts

    @property
    def counters(self) -> dict[str, int]:
        """The learner's part of runtime.share_report.COUNTERS: the numbers of its actions.

        The caller counts the announcements that it has sent.
        """
        return self._tally.counters

    @property
    def refused(self) -> Mapping[str, int]:
        """How many claims were refused, by reason: those of runtime.share_report.REFUSALS."""
        return self._tally.refused

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
        self._upstream, self._downstream = upstream, tuple(sorted(downstream - {upstream}))
        self._locator.set_links(self._upstream, self._downstream)
        return self._bindings.forget(
            host for host in self._hosts.values() if host.ifindex not in self._downstream
        )

    def set_prefixes(self, now: float, prefixes: Collection[Prefix]) -> list[Action]:
        """Take the shared prefixes; hosts outside of them are forgotten: an Unbind for each."""
        self._scope.set_prefixes(prefixes)
        return self._leave()

    def set_reserved(
        self, now: float, own: Mapping[int, frozenset[bytes]], routers: frozenset[bytes]
    ) -> list[Action]:
        """Take the addresses that are never learned; hosts that have one are forgotten.

        Args:
            now: The time.
            own: The addresses of this host, by interface.
            routers: The addresses of routers on the upstream link.
        """
        self._scope.set_reserved(own, routers)
        return self._leave()

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
        host = self._hosts.host_of(address)
        if host is not None and host.ifindex == ifindex:
            return []
        if host is not None or ifindex not in self._downstream or not self._scope.admits(address):
            self._tally.add("forgotten")
            return [Unbind(address, ifindex)]
        since, seen = now - max(age, idle), now - idle
        return self._bindings.adopt(LearnedHost(address, ifindex, mac, since, seen))

    def forget(self, now: float, address: bytes) -> list[Action]:
        """Forget a host until its next claim: an Unbind, or nothing for an unknown address."""
        host = self._hosts.host_of(address)
        return [] if host is None else self._bindings.forget([host])

    # ---- messages

    def solicited(self, now: float, ifindex: int, ns: Solicitation) -> list[Action]:
        """Take a solicitation: a claim of its source and a lookup of its target; DAD claims it.

        Args:
            now: The time.
            ifindex: The link that it came by; any other than those of set_links() is ignored.
            ns: The solicitation. Its source MAC is the MAC of the claim.
        """
        if ifindex != self._upstream and ifindex not in self._downstream:
            return []
        claimed = ns.target if ns.dad else ns.source
        claim = Claim(ifindex, ns.eth_source, ns if ns.dad else None, now)
        actions = self._locator.claimed(now, claimed, claim)
        actions += self.sighted(now, ifindex, ns.eth_source, claimed)
        return actions if ns.dad else actions + self._locator.looked_up(now, ifindex, ns)

    def advertised(self, now: float, ifindex: int, na: NeighborAdvertisement) -> list[Action]:
        """Take an advertisement, solicited or not: it claims its target.

        Args:
            now: The time.
            ifindex: The link that it came by; any other than those of set_links() is ignored.
            na: The advertisement. Its source MAC is the MAC of the claim.
        """
        if ifindex != self._upstream and ifindex not in self._downstream:
            return []
        actions = self._locator.claimed(now, na.target, Claim(ifindex, na.eth_source, None, now))
        return actions + self.sighted(now, ifindex, na.eth_source, na.target)

    def sighted(
        self, now: float, ifindex: int, mac: bytes, claimed: bytes | None = None
    ) -> list[Action]:
        """Take any message: the hosts of its source MAC may have moved to this link.

        Args:
            now: The time.
            ifindex: The link that it came by.
            mac: The source MAC.
            claimed: The address that the message claims, which is checked anyway.
        """
        if ifindex not in self._downstream:
            return []
        admits = partial(self._locator.rates.admits_lookup, now, ifindex)
        return self._suspicions.sighted(now, ifindex, mac, claimed, admits)

    def lost(self, now: float, address: bytes) -> list[Action]:
        """Take the news that the kernel solicits an address in vain: it may be on another link.

        Packets for an address that is not learned leave upstream. A router that knows the MAC of
        this host from before the routes were lost, as by a reboot, sends them without asking.
        """
        if address not in self._hosts and not self._locator.may_search(now, address):
            return []
        admits = partial(self._locator.rates.admits_lookup, now, 0)
        return self._suspicions.lost(now, address, self._downstream, self._upstream, admits)

    def departed(self, now: float, ifindex: int, mac: bytes) -> list[Action]:
        """Take the news that a downstream bridge has forgotten a MAC: its hosts may have left.

        Args:
            now: The time.
            ifindex: The downstream interface.
            mac: The MAC.
        """
        admits = partial(self._locator.rates.admits_lookup, now, 0)
        actions = self._suspicions.departed(
            now, ifindex, mac, self._downstream, self._upstream, admits
        )
        for action in actions:
            if isinstance(action, Verify):
                self._bindings.departed(action.address)
        return actions

    # ---- time

    def next_tick(self) -> float | None:
        """Return the time, perhaps past, at which to call tick(); None if nothing is to be done."""
        times = self._locator.due(), self._bindings.due()
        return min((each for each in times if each is not None), default=None)

    def tick(self, now: float) -> list[Action]:
        """Do what is due: ask again, end searches, and ask hosts without a sign of life."""
        return self._locator.tick(now) + self._bindings.tick(now)

    def _leave(self) -> list[Action]:
        """End the searches for addresses that may not be learned, and forget their hosts."""
        self._locator.leave()
        return self._bindings.forget(
            host for host in self._hosts.values() if not self._scope.admits(host.address)
        )
