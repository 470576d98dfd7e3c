"""Who lives where on a share: its decisions on claims and lookups. Pure.

The learner binds an address to the downstream link that claims it first, after it has asked for the
address on the other links (RFC 6620: first come, first served). The caller passes it every valid
solicitation and advertisement that comes by the links of the share, except frames whose source MAC
is one of this host's own, because a network may reflect those (RFC 7527). The caller carries out
the actions that a call returns, in their order, before it makes the next call.

What a message can and cannot do:

- A claim takes an address only from a link that answers nothing for 500 ms.
- Two nodes that do DAD for one address on two links: the first keeps the address, and only the
  second is answered. RFC 4862 section 5.4.3 has both give up, because neither of them knows who
  came first; the learner does know.
- DAD by one MAC on two links at once counts for the first link, and neither is answered: the
  network reflects the frame (RFC 7527), or the node has moved, and will claim the address again.
- If a node on one link uses an address that is not learned yet, and a node on another link answers
  for the address, neither of them is bound while both are there: it is unknown who came first.
- A lookup asks on the downstream links only. If one answers, its answer is checked like any other
  claim, on the upstream link and on all others. So a scan of the prefix from upstream is not
  repeated on the upstream link, and two shares on one link do not make each other search.

Times are seconds of one monotonic clock that never goes back, addresses have 16 bytes, MACs 6, and
a link is named by its interface's index.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

from ndxdp.ndp.message import NeighborAdvertisement, Solicitation
from ndxdp.rules.prefix import Prefix
from ndxdp.sharing import recent
from ndxdp.sharing.actions import Action, Advertise, Ask, Unbind
from ndxdp.sharing.bindings import Bindings
from ndxdp.sharing.claim import Claim
from ndxdp.sharing.hosts import HostLimits, LearnedHost
from ndxdp.sharing.rates import Rates
from ndxdp.sharing.scope import Scope, is_global_unicast
from ndxdp.sharing.searches import ROUNDS, Search, Searches
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
        self._upstream: int | None = None
        self._downstream: tuple[int, ...] = ()
        self._links: tuple[int, ...] = ()
        self._rates = Rates(0)
        self._searches = Searches()
        self._on_upstream = recent.Recent(recent.UPSTREAM_LIFETIME)
        self._absent = recent.Recent(recent.ABSENT_LIFETIME)
        self._rejected = recent.Recent(recent.REJECTED_LIFETIME)
        self._probes = recent.Probes()

    @property
    def hosts(self) -> Mapping[bytes, LearnedHost]:
        """The learned hosts by address; a view that must not be changed, nor kept across calls."""
        return self._hosts

    @property
    def counters(self) -> dict[str, int]:
        """Those of runtime.share_report.COUNTERS that are the learner's; it counts its actions."""
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
        downstream -= {upstream}
        links = (*(() if upstream is None else (upstream,)), *sorted(downstream))
        if upstream != self._upstream:
            self._on_upstream.clear()
        if len(links) != len(self._links):
            self._rates = Rates(len(links))
        self._upstream, self._downstream, self._links = upstream, tuple(sorted(downstream)), links
        self._searches.leave(links)
        return self._bindings.forget(
            host for host in self._hosts.values() if host.ifindex not in downstream
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
        if ifindex not in self._links:
            return []
        claimed = ns.target if ns.dad else ns.source
        claim = Claim(ifindex, ns.eth_source, ns if ns.dad else None, now)
        actions = self._claimed(now, claimed, claim)
        actions += self.sighted(now, ifindex, ns.eth_source, claimed)
        return actions if ns.dad else actions + self._looked_up(now, ifindex, ns)

    def advertised(self, now: float, ifindex: int, na: NeighborAdvertisement) -> list[Action]:
        """Take an advertisement, solicited or not: it claims its target.

        Args:
            now: The time.
            ifindex: The link that it came by; any other than those of set_links() is ignored.
            na: The advertisement. Its source MAC is the MAC of the claim.
        """
        if ifindex not in self._links:
            return []
        actions = self._claimed(now, na.target, Claim(ifindex, na.eth_source, None, now))
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
        admits = partial(self._rates.admits_lookup, now, ifindex)
        return self._suspicions.sighted(now, ifindex, mac, claimed, admits)

    def lost(self, now: float, address: bytes) -> list[Action]:
        """Take the news that the kernel does not reach a host: it may be on another link now."""
        admits = partial(self._rates.admits_lookup, now, 0)
        return self._suspicions.lost(now, address, self._downstream, admits)

    # ---- time

    def next_tick(self) -> float | None:
        """Return the time, perhaps past, at which to call tick(); None if nothing is to be done."""
        times = self._searches.due(), self._bindings.due()
        return min((each for each in times if each is not None), default=None)

    def tick(self, now: float) -> list[Action]:
        """Do what is due: ask again, end searches, and ask hosts without a sign of life."""
        actions: list[Action] = []
        for search in self._searches.take(now):
            step = self._ask if search.rounds < ROUNDS else self._finish
            actions += step(now, search)
        return actions + self._bindings.tick(now)

    # ---- claims

    def _claimed(self, now: float, target: bytes, claim: Claim) -> list[Action]:
        """Take a claim of an address."""
        if not is_global_unicast(target) or claim.mac[0] & 1 or not any(claim.mac):
            return []
        is_upstream = claim.ifindex == self._upstream
        if not self._scope.inside(target):
            return [] if is_upstream else self._refuse("outside")
        if target in self._scope.own:
            return self._refuse("own_address")
        probe = self._probes.rival(target, claim, now)
        if probe is not None and claim.dad is not None:
            return self._reject(now, claim)
        host, search = self._hosts.host_of(target), self._searches.of(target)
        if host is not None and host.ifindex == claim.ifindex:
            if claim.dad is None or host.mac in (None, claim.mac):
                return self._confirm(now, host, claim)
            if search is None:
                return []  # if the owner is there, it hears the same solicitation
        if search is not None and search.claim is not None:
            return self._compare(now, search, search.claim, claim)
        if is_upstream and claim.dad is None and host is None:
            return self._locate_upstream(now, target)
        if probe is None or self._rejected.has(target, now):
            return self._check(now, target, claim)
        # The owner answers late, as Linux's proxy_ndp does (up to 0.8 s), but in time for the node.
        self._probes.discard(target)
        return self._reject(now, probe) + self._check(now, target, claim)

    def _confirm(self, now: float, host: LearnedHost, claim: Claim) -> list[Action]:
        """Take a sign of life of a learned host; a claim of its address by another link fails."""
        self._bindings.confirm(now, host, claim.mac)
        if claim.dad is not None:  # it need not answer questions meanwhile
            self._probes.add(host.address, claim)
            self._rejected.add(host.address, now)
        search = self._searches.of(host.address)
        if search is None or (search.claim and search.claim.is_same_probe(claim)):
            return []
        self._searches.end(search)
        if search.claim is None or search.claim.ifindex == host.ifindex:
            return self._answer(now, search, host.ifindex)
        self._rejected.add(host.address, now)
        return self._reject(now, search.claim)

    def _compare(self, now: float, search: Search, first: Claim, claim: Claim) -> list[Action]:
        """Take a claim of an address while another one is checked; it confirms none that counts."""
        target = search.target
        if claim.ifindex == first.ifindex:
            if claim.dad is None:
                first.mac = claim.mac
            elif claim.mac == first.mac:
                first.dad, first.heard = claim.dad, now
            return []
        if claim.dad is not None:
            return [] if first.is_same_probe(claim) else self._reject(now, claim)
        # The address is in use on another link.
        actions = self._reject(now, first)
        if claim.ifindex == self._upstream and target not in self._hosts:
            self._locate_upstream(now, target)
        elif not search.is_disputed:
            search.is_disputed = True
            actions += self._check(now, target, claim)
            if search.claim is claim:
                return actions
        self._searches.end(search)
        self._rejected.add(target, now)
        return actions

    def _check(self, now: float, target: bytes, claim: Claim) -> list[Action]:
        """Begin to check a claim: search for the address on the other links.

        DAD is checked even if the address cannot be learned, so that a duplicate is found.
        """
        search = self._searches.of(target)
        reason = None if claim.dad is not None else self._obstacle(now, target, claim)
        is_new = search is None or search.claim is None
        if reason is None and is_new and not self._searches.has_room_for_claim():
            reason = "rate"
        if reason is None and not self._rates.admits_claim(now, claim.ifindex, claim.mac):
            reason = "rate"
        if reason is not None:
            return self._refuse(reason)
        self._on_upstream.discard(target)
        self._absent.discard(target)
        if search is None:
            search = self._searches.begin(target, claim.ifindex, claim)
        else:
            self._searches.check(search, claim)
        return self._ask(now, search)

    def _obstacle(self, now: float, target: bytes, claim: Claim) -> str | None:
        """Return why an address cannot be bound to the link of a claim: a key of REFUSALS."""
        if self._bindings.holds(target, now):
            return "unstable"
        if self._rejected.has(target, now) and claim.dad is None:
            return "elsewhere"
        if claim.ifindex == self._upstream:
            return None
        if self._scope.is_router(target):
            return "router"
        return self._hosts.refusal(target, claim.mac)

    def _reject(self, now: float, claim: Claim) -> list[Action]:
        """Refuse a claim because the address is in use on another link; DAD is answered."""
        if claim.dad is None or not claim.waits(now):
            return self._refuse("elsewhere")
        self._tally.add("defended")
        return [Advertise(claim.ifindex, claim.dad)]

    def _refuse(self, reason: str) -> list[Action]:
        """Count a refused claim, which causes no action."""
        self._tally.refuse(reason)
        return []

    # ---- lookups

    def _looked_up(self, now: float, ifindex: int, ns: Solicitation) -> list[Action]:
        """Take a lookup of an address: search for an address that nobody is known to have.

        The kernel's rules answer for a learned host. For an address on the upstream link, the
        daemon's resolver asks there.
        """
        target = ns.target
        if target in self._hosts or not self._scope.admits(target):
            return []
        search = self._searches.of(target)
        if search is None:
            others = [link for link in self._downstream if link != ifindex]
            if (
                not others
                or self._on_upstream.has(target, now)
                or self._absent.has(target, now)
                or not self._searches.has_room_for_lookup(ifindex)
                or not self._rates.admits_lookup(now, ifindex)
            ):
                return []
            search = self._searches.begin(target, ifindex)
            search.wait(now, ifindex, ns)
            return self._ask(now, search)

        search.wait(now, ifindex, ns)
        skipped = search.skipped
        if search.claim is not None or skipped == ifindex or skipped not in self._downstream:
            return []
        search.skipped = 0  # the solicitor there is not the only one any more
        self._tally.add("asked")
        return [Ask(skipped, target)]

    def _locate_upstream(self, now: float, target: bytes) -> list[Action]:
        """Note that an address lives on the upstream link, and end a lookup of it."""
        self._on_upstream.add(target, now)
        if (search := self._searches.of(target)) and search.claim is None:
            self._searches.end(search)
        return []

    # ---- searches

    def _ask(self, now: float, search: Search) -> list[Action]:
        """Do a round of a search."""
        links = self._downstream if search.claim is None else self._links
        questions = search.questions(links, self._hosts.host_of(search.target))
        self._searches.step(search, now)
        self._tally.add("asked", len(questions))
        return [*questions]

    def _finish(self, now: float, search: Search) -> list[Action]:
        """End a search that no other link has answered: the claim succeeds."""
        self._searches.end(search)
        target, claim = search.target, search.claim
        if claim is None:
            self._absent.add(target, now)
            return []
        reason = self._obstacle(now, target, claim)
        if reason is not None:
            return self._refuse(reason)
        self._probes.add(target, claim)
        if claim.ifindex == self._upstream:
            self._on_upstream.add(target, now)
            host = self._hosts.host_of(target)
            return [] if host is None else self._bindings.release(now, host)
        actions = self._bindings.bind(now, target, claim)
        return actions + self._answer(now, search, claim.ifindex)

    def _answer(self, now: float, search: Search, ifindex: int) -> list[Action]:
        """Answer the solicitors of a target that was found on a link."""
        answers = search.answers(now, ifindex)
        self._tally.add("found", len(answers))
        return [*answers]

    def _leave(self) -> list[Action]:
        """End the searches for addresses that may not be learned, and forget their hosts."""
        scope = self._scope
        self._searches.keep(lambda each: scope.inside(each.target) and each.target not in scope.own)
        return self._bindings.forget(
            host for host in self._hosts.values() if not scope.admits(host.address)
        )
