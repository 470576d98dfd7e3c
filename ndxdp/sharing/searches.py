"""Searches for the link that an address lives on. Pure.

Times are seconds of one monotonic clock, addresses have 16 bytes, MACs 6, and a link is named by
its interface's index.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ndxdp.ndp.message import Solicitation
from ndxdp.sharing.actions import Advertise, Ask
from ndxdp.sharing.claim import PATIENCE, Claim
from ndxdp.sharing.hosts import LearnedHost

ROUNDS = 2
"""How often a search asks: two DAD_NSOL in TENT_LT (RFC 6620)."""

ROUND = 0.25
"""Seconds between the rounds of a search, and after the last: TENT_LT is 500 ms (RFC 6620)."""

CLAIMS = 1024
"""The most searches by claims."""

LOOKUPS = 128
"""The most searches by lookups (RFC 6583)."""

_LOOKUPS_OF_LINK = LOOKUPS // 2  # so that a scan from one link leaves room for the others
_WAITERS = 8


@dataclass(slots=True)
class Waiter:
    """A node that has solicited the target of a search.

    Attributes:
        ifindex: The link that the solicitation came by.
        solicitation: The solicitation.
        until: The time up to which an answer is of use.
    """

    ifindex: int
    solicitation: Solicitation
    until: float


@dataclass(slots=True, eq=False)
class Search:
    """A search for an address.

    Attributes:
        target: The address.
        ifindex: The link whose claim or lookup began the search.
        claim: The claim to check; None while nobody has claimed the address.
        skipped: A link that a search by a lookup does not ask on, because its only solicitor is
            there, and asks itself; 0 for none.
        is_disputed: True if the claim is not the first: another link has answered that one.
        rounds: How often it has asked.
        due: The time of the next round, or of the end.
        waiters: The nodes that wait for an answer, by link and address.
    """

    target: bytes
    ifindex: int
    claim: Claim | None
    skipped: int = 0
    is_disputed: bool = False
    rounds: int = 0
    due: float = 0.0
    waiters: dict[tuple[int, bytes], Waiter] = field(default_factory=dict)

    @property
    def origin(self) -> int:
        """The link of the claim; without one, that of the lookup."""
        return self.ifindex if self.claim is None else self.claim.ifindex

    def wait(self, now: float, ifindex: int, ns: Solicitation) -> None:
        """Remember a solicitor, unless there are too many; a repetition prolongs the first."""
        key = ifindex, ns.source
        if key in self.waiters or len(self.waiters) < _WAITERS:
            self.waiters[key] = Waiter(ifindex, ns, now + PATIENCE)

    def questions(self, links: Iterable[int], host: LearnedHost | None) -> list[Ask]:
        """Return what a round asks: on all links but that of the claim, or the skipped one.

        Args:
            links: The links to ask on.
            host: The learned host that has the address so far; its MAC is asked, too.
        """
        skipped = self.skipped if self.claim is None else self.claim.ifindex
        questions = [Ask(link, self.target) for link in links if link != skipped]
        if host is not None and host.mac is not None:
            questions.insert(0, Ask(host.ifindex, self.target, host.mac))
        return questions

    def answers(self, now: float, ifindex: int) -> list[Advertise]:
        """Return the answers to the solicitors on other links than the one of the address."""
        return [
            Advertise(each.ifindex, each.solicitation)
            for each in self.waiters.values()
            if each.ifindex != ifindex and each.until >= now
        ]


class Searches(Mapping[bytes, Search]):
    """The searches by target. Each does one step after the other, ROUND apart."""

    def __init__(self) -> None:
        self._searches: dict[bytes, Search] = {}
        self._lookups: dict[int, int] = {}  # searches without a claim, by link
        self._steps: deque[tuple[float, Search]] = deque()  # in order: all are ROUND away

    def __getitem__(self, target: bytes) -> Search:
        return self._searches[target]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._searches)

    def __len__(self) -> int:
        return len(self._searches)

    def of(self, target: bytes) -> Search | None:
        """Return the search for an address; None if there is none."""
        return self._searches.get(target)

    def has_room_for_claim(self) -> bool:
        """Return True if one more claim may be checked."""
        return len(self._searches) - sum(self._lookups.values()) < CLAIMS

    def has_room_for_lookup(self, ifindex: int) -> bool:
        """Return True if the target of one more lookup from a link may be searched."""
        return (
            self._lookups.get(ifindex, 0) < _LOOKUPS_OF_LINK
            and sum(self._lookups.values()) < LOOKUPS
        )

    def begin(self, target: bytes, ifindex: int, claim: Claim | None = None) -> Search:
        """Add a search for an address that has none; the caller has asked for room.

        Args:
            target: The address.
            ifindex: The link that the claim or the lookup came by.
            claim: The claim; None for a lookup.
        """
        search = Search(target, ifindex, claim, skipped=0 if claim else ifindex)
        self._searches[target] = search
        if claim is None:
            self._count_lookup(ifindex, 1)
        return search

    def check(self, search: Search, claim: Claim) -> None:
        """Check a claim from now on: the search starts again."""
        if search.claim is None:
            self._count_lookup(search.ifindex, -1)
        search.claim, search.rounds = claim, 0

    def step(self, search: Search, now: float) -> None:
        """Count a round, and plan the next step."""
        search.rounds += 1
        search.due = now + ROUND
        self._steps.append((search.due, search))

    def end(self, search: Search) -> None:
        """Remove a search."""
        del self._searches[search.target]
        if search.claim is None:
            self._count_lookup(search.ifindex, -1)

    def keep(self, wanted: Callable[[Search], bool]) -> None:
        """Remove all searches except those that are wanted."""
        for search in [each for each in self._searches.values() if not wanted(each)]:
            self.end(search)

    def leave(self, links: Container[int]) -> None:
        """Remove what belongs to other links than these: searches, and solicitors."""
        self.keep(lambda search: search.origin in links)
        for search in self._searches.values():
            gone = [key for key, each in search.waiters.items() if each.ifindex not in links]
            for key in gone:
                del search.waiters[key]

    def due(self) -> float | None:
        """Return the time of the next step; it may be one that is not to be done any more."""
        return self._steps[0][0] if self._steps else None

    def take(self, now: float) -> Iterator[Search]:
        """Yield each search whose next step is due."""
        while self._steps and self._steps[0][0] <= now:
            due, search = self._steps.popleft()
            if search.due == due and self._searches.get(search.target) is search:
                yield search

    def _count_lookup(self, ifindex: int, change: int) -> None:
        count = self._lookups.get(ifindex, 0) + change
        if count:
            self._lookups[ifindex] = count
        else:
            del self._lookups[ifindex]
