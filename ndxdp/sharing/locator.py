"""The link that an address lives on: claims, lookups, and the searches that they cause. Pure.

What a message can and cannot do:

- A claim takes an address only from a link that answers nothing for 500 ms.
- Two nodes that do DAD for one address on two links: the first keeps the address, and only the
  second is answered. RFC 4862 section 5.4.3 has both give up, because neither of them knows who
  came first; the learner does know.
- A node ignores questions until its DAD has ended. For that long, no other node takes the address
  by DAD, and none takes it from an owner that does DAD again. An owner that answers late is passed
  on as long as the DAD lasts.
- DAD by one MAC on two links at once counts for the first link, and neither is answered: the
  network reflects the frame (RFC 7527), or the node has moved, and will claim the address again.
- If a node on one link uses an address that is not learned yet, and a node on another link answers
  for the address, neither of them is bound while both are there: it is unknown who came first.
- An address that was heard on the upstream link is not searched downstream for a minute, unless the
  node that had it solicits it itself, or another node there solicits it twice: then it is gone.
- A lookup asks on the downstream links only. If one answers, its answer is checked like any other
  claim, on the upstream link and on all others. So a scan of the prefix from upstream is not
  repeated on the upstream link, and two shares on one link do not make each other search.

Times are seconds of one monotonic clock, addresses have 16 bytes, MACs 6, and a link is named by
its interface's index.
"""

from __future__ import annotations

from ndxdp.ndp.message import Solicitation
from ndxdp.sharing import recent
from ndxdp.sharing.actions import Action, Advertise, Ask
from ndxdp.sharing.bindings import Bindings
from ndxdp.sharing.claim import Claim
from ndxdp.sharing.hosts import LearnedHost
from ndxdp.sharing.rates import Rates
from ndxdp.sharing.scope import Scope, is_global_unicast
from ndxdp.sharing.searches import ROUNDS, Search, Searches
from ndxdp.sharing.tally import Tally


class Locator:
    """The searches of a share, and what is remembered of their results.

    Attributes:
        rates: The limits of claims and lookups.
    """

    def __init__(self, bindings: Bindings, scope: Scope, tally: Tally) -> None:
        """Start without links.

        Args:
            bindings: The learned hosts, which claims change.
            scope: The addresses that may be learned.
            tally: Counts what is asked, answered and refused.
        """
        self._bindings, self._hosts = bindings, bindings.hosts
        self._scope, self._tally = scope, tally
        self._upstream: int | None = None
        self._downstream: tuple[int, ...] = ()
        self._links: tuple[int, ...] = ()
        self.rates = Rates(0)
        self._searches = Searches()
        self._on_upstream = recent.Recent(recent.UPSTREAM_LIFETIME)
        self._unanswered = recent.Recent(recent.ABSENT_LIFETIME)  # target and solicitor
        self._absent = recent.Recent(recent.ABSENT_LIFETIME)
        self._rejected = recent.Recent(recent.REJECTED_LIFETIME)
        self._probes = recent.Probes()

    def set_links(self, upstream: int | None, downstream: tuple[int, ...]) -> None:
        """Take the links that exist; searches that belong to others end."""
        links = (*(() if upstream is None else (upstream,)), *downstream)
        if upstream != self._upstream:
            self._on_upstream.clear()
        if len(links) != len(self._links):
            self.rates = Rates(len(links))
        self._upstream, self._downstream, self._links = upstream, downstream, links
        self._searches.leave(links)

    def leave(self) -> None:
        """End the searches for addresses that may not be claimed any more."""
        scope = self._scope
        self._searches.keep(lambda each: scope.inside(each.target) and each.target not in scope.own)

    def due(self) -> float | None:
        """Return the time at which to call tick(); None without searches."""
        return self._searches.due()

    def may_search(self, now: float, target: bytes) -> bool:
        """Return True if an address may be learned, and is neither searched nor known as absent."""
        return (
            self._scope.admits(target)
            and not self._absent.has(target, now)
            and self._searches.of(target) is None
        )

    def tick(self, now: float) -> list[Action]:
        """Ask again, and end searches."""
        actions: list[Action] = []
        for search in self._searches.take(now):
            step = self._ask if search.rounds < ROUNDS else self._finish
            actions += step(now, search)
        return actions

    # ---- claims

    def claimed(self, now: float, target: bytes, claim: Claim) -> list[Action]:
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
            return self._locate_upstream(now, target, claim.mac)
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
        if search.claim.ifindex == self._upstream and search.claim.dad is None:
            self._bindings.announce_again(host.address)
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
            self._locate_upstream(now, target, claim.mac)
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
        # Upstream, another host's share checks the claims of all its hosts with one MAC.
        one_mac = claim.ifindex != self._upstream or target not in self._hosts
        if reason is None and not self.rates.admits_claim(
            now, claim.ifindex, claim.mac, one_mac=one_mac
        ):
            reason = "rate"
        if reason is not None:
            return self._refuse(reason)
        self._on_upstream.discard(target)
        self._absent.discard(target)
        self._bindings.doubt(now, target)
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
        return self._bindings.refusal(now, target, claim.mac)

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

    def looked_up(self, now: float, ifindex: int, ns: Solicitation) -> list[Action]:
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
                or self._lives_upstream(now, ifindex, ns)
                or self._absent.has(target, now)
                or not self._searches.has_room_for_lookup(ifindex)
                or not self.rates.admits_lookup(now, ifindex)
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

    def _lives_upstream(self, now: float, ifindex: int, ns: Solicitation) -> bool:
        """Return True if the target of a lookup lives on the upstream link, as far as is known.

        A node that solicits an address does not have it. One that solicits it again has had no
        answer for a second, so that nobody there has it.
        """
        target = ns.target
        if not self._on_upstream.has(target, now):
            return False
        if ifindex != self._upstream:
            return True
        lookup = target + ns.source
        if ns.eth_source != self._on_upstream.mac_of(target) and not self._unanswered.has(
            lookup, now
        ):
            self._unanswered.add(lookup, now)
            return True
        self._on_upstream.discard(target)
        return False

    def _locate_upstream(self, now: float, target: bytes, mac: bytes) -> list[Action]:
        """Note that a node on the upstream link has an address, and end a lookup of it."""
        self._on_upstream.add(target, now, mac)
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
            self._on_upstream.add(target, now, claim.mac)
            host = self._hosts.host_of(target)
            return [] if host is None else self._bindings.release(now, host)
        actions = self._bindings.bind(now, target, claim)
        return actions + self._answer(now, search, claim.ifindex)

    def _answer(self, now: float, search: Search, ifindex: int) -> list[Action]:
        """Answer the solicitors of a target that was found on a link."""
        answers = search.answers(now, ifindex)
        self._tally.add("found", len(answers))
        return [*answers]
