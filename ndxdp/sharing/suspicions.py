"""Hosts that may have moved to another link without a claim. Pure.

Times are seconds of one monotonic clock, addresses have 16 bytes, MACs 6, and a link is named by
its interface's index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from ndxdp.sharing.actions import Action, Ask, Verify
from ndxdp.sharing.hosts import Hosts
from ndxdp.sharing.recent import Recent
from ndxdp.sharing.tally import Tally

_LIFETIME = 1.0  # seconds for which the same suspicion causes nothing more

_ADDRESSES = 16  # of a MAC that are asked for at once


class Suspicions:
    """Asks for hosts on links where they may be now. The answer of one is a claim, and is checked.

    All methods need `admits`, which charges one question round to the limits, and returns True if
    it may be sent.
    """

    def __init__(self, hosts: Hosts, tally: Tally) -> None:
        """Suspect nothing yet.

        Args:
            hosts: The learned hosts.
            tally: Counts what is asked.
        """
        self._hosts, self._tally = hosts, tally
        self._recent = Recent(_LIFETIME)

    def sighted(
        self,
        now: float,
        ifindex: int,
        mac: bytes,
        claimed: bytes | None,
        admits: Callable[[], bool],
    ) -> list[Action]:
        """Take a message from a MAC on a downstream link.

        A host that has moved may first solicit its router from its link-local address, which claims
        nothing of the share. So it is asked for the addresses that its MAC has on other links, but
        for the one that the message claims, which is checked anyway.
        """
        elsewhere = [
            address
            for address in islice(self._hosts.addresses_of(mac), _ADDRESSES)
            if self._hosts[address].ifindex != ifindex and address != claimed
        ]
        if not elsewhere:
            return []
        key = ifindex.to_bytes(4, "big") + mac
        return self._ask(now, key, [Ask(ifindex, each, mac) for each in elsewhere], admits)

    def departed(
        self,
        now: float,
        ifindex: int,
        mac: bytes,
        links: Iterable[int],
        upstream: int | None,
        admits: Callable[[], bool],
    ) -> list[Action]:
        """Take the news that a bridge has forgotten a MAC: its port has left, or it is silent.

        The kernel's entry for such a host would be good for some 40 s. A host that is there answers
        the kernel at once.

        Args:
            now: The time.
            ifindex: The downstream interface that the MAC was behind.
            mac: The MAC.
            links: The downstream links.
            upstream: The upstream interface; None without one.
            admits: As above.
        """
        links = tuple(links)
        actions: list[Action] = []
        for address in islice(self._hosts.addresses_of(mac), _ADDRESSES):
            if self._hosts[address].ifindex == ifindex:
                questions = self._elsewhere(address, links, upstream)
                actions += self._ask(now, address, [Verify(address), *questions], admits)
        return actions

    def lost(
        self,
        now: float,
        address: bytes,
        links: Iterable[int],
        upstream: int | None,
        admits: Callable[[], bool],
    ) -> list[Action]:
        """Take the news that the kernel does not reach an address where its route leads to.

        Args:
            now: The time.
            address: The address of a learned host, or another one of the share, whose route leads
                upstream.
            links: The downstream links.
            upstream: The upstream interface; None without one.
            admits: As above.
        """
        return self._ask(now, address, self._elsewhere(address, links, upstream), admits)

    def _elsewhere(
        self, address: bytes, links: Iterable[int], upstream: int | None
    ) -> list[Action]:
        """Return questions for an address on all links but the one that it is routed to."""
        host = self._hosts.host_of(address)
        here = host.ifindex if host is not None else upstream
        questions: list[Action] = [Ask(link, address) for link in links if link != here]
        if upstream not in (here, None):
            questions.append(Ask(upstream, address, is_lookup=True))
        return questions

    def _ask(
        self, now: float, key: bytes, questions: Sequence[Action], admits: Callable[[], bool]
    ) -> list[Action]:
        if not questions or self._recent.has(key, now) or not admits():
            return []
        self._recent.add(key, now)
        self._tally.add("asked", len(questions))
        return [*questions]
