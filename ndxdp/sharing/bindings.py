"""The bindings of a share: which address is routed to which downstream link, and until when. Pure.

Times are seconds of one monotonic clock, addresses have 16 bytes, MACs 6, and an interface is named
by its index.
"""

from __future__ import annotations

from collections.abc import Iterable

from ndxdp.sharing.actions import Action, Announce, Ask, Bind, Unbind
from ndxdp.sharing.announcements import Announcements
from ndxdp.sharing.claim import Claim
from ndxdp.sharing.hosts import QUESTIONS, Expiry, HostLimits, Hosts, LearnedHost
from ndxdp.sharing.recent import Moves
from ndxdp.sharing.tally import Tally


class Bindings:
    """The learned hosts, and what has to be done to their routes.

    Attributes:
        hosts: The hosts. Only this class changes them.
    """

    def __init__(self, limits: HostLimits, tally: Tally) -> None:
        """Start without hosts; count in `tally`."""
        self.hosts = Hosts(limits)
        self._expiry = Expiry(self.hosts, limits.expire)
        self._moves = Moves()
        self._announcements = Announcements()
        self._tally = tally

    def adopt(self, host: LearnedHost) -> list[Action]:
        """Take a host that has a route already: nothing, or an Unbind if a limit is reached."""
        reason = self.hosts.refusal(host.address, host.mac)
        if reason is not None:
            self._tally.refuse(reason)
            return [Unbind(host.address, host.ifindex)]
        self.hosts.add(host)
        return []

    def holds(self, address: bytes, now: float) -> bool:
        """Return True if an address has moved too often, and stays where it is for now."""
        return self._moves.holds(address, now)

    def refusal(self, now: float, address: bytes, mac: bytes) -> str | None:
        """Return the limit that keeps an address from a MAC, as Hosts.refusal().

        Where the table is full, hosts that are silent are asked, so that there is room soon if some
        of them have left, or never existed.
        """
        reason = self.hosts.refusal(address, mac)
        if reason == "limit":
            self._expiry.press(now)
        return reason

    def confirm(self, now: float, host: LearnedHost, mac: bytes) -> None:
        """Record a sign of life of a host on its link.

        A MAC that has too many addresses does not become that of the host.
        """
        self.hosts.touch(host, now)
        if host.mac == mac:
            return
        reason = self.hosts.refusal(host.address, mac)
        if reason is None:
            self.hosts.change_mac(host, mac)
        else:
            self._tally.refuse(reason)

    def bind(self, now: float, address: bytes, claim: Claim) -> list[Action]:
        """Bind an address to the link of a claim; the caller has asked refusal()."""
        ifindex, mac = claim.ifindex, claim.mac
        host = self.hosts.host_of(address)
        if host is None:
            self.hosts.add(LearnedHost(address, ifindex, mac, now, now))
            self._tally.add("learned")
            self._announcements.add(address)
            if address in self._moves:  # it is back from the upstream link
                self._moves.add(address, now)
            return [Bind(address, ifindex)]
        self.confirm(now, host, mac)
        if host.ifindex == ifindex:
            return []
        former, host.ifindex = host.ifindex, ifindex
        self._moves.add(address, now)
        self._tally.add("moved")
        return [Bind(address, ifindex, former)]

    def announce_again(self, address: bytes) -> None:
        """Announce an address again that was learned a moment ago, and that another node claims.

        That may be a belated announcement of the host that the address came from. To announce any
        other address would be a quarrel with a node that has the same one.
        """
        if address in self._announcements:
            self._announcements.add(address)

    def doubt(self, now: float, address: bytes) -> None:
        """Announce an address only later: another node claims it, which is checked.

        An announcement would refuse the claim of the host that the address has moved to.
        """
        self._announcements.postpone(address, now)

    def departed(self, address: bytes) -> None:
        """Announce an address no more that seems to have left."""
        self._announcements.discard(address)

    def release(self, now: float, host: LearnedHost) -> list[Action]:
        """Forget a host that has moved to the upstream link."""
        self._remove(host.address)
        self._moves.add(host.address, now)
        self._tally.add("moved")
        return [Unbind(host.address, host.ifindex)]

    def forget(self, hosts: Iterable[LearnedHost]) -> list[Action]:
        """Forget hosts whose route, prefix or link no longer exists."""
        hosts = list(hosts)
        for host in hosts:
            self._remove(host.address)
        self._tally.add("forgotten", len(hosts))
        return [Unbind(host.address, host.ifindex) for host in hosts]

    def due(self) -> float | None:
        """Return the time at which to call tick(); None without hosts."""
        times = self._expiry.due(), self._announcements.due()
        return min((each for each in times if each is not None), default=None)

    def tick(self, now: float) -> list[Action]:
        """Announce new hosts; ask those without a sign of life, and forget the silent ones.

        The first question goes to the host's MAC, the others to the address's group: the host may
        have another MAC now.
        """
        actions: list[Action] = [Announce(each) for each in self._announcements.take(now)]
        for host in self._expiry.take(now):
            if host.asked > QUESTIONS:
                self._remove(host.address)
                self._tally.add("expired")
                actions.append(Unbind(host.address, host.ifindex))
            else:
                mac = host.mac if host.asked == 1 else None
                self._tally.add("asked")
                actions.append(Ask(host.ifindex, host.address, mac))
        return actions

    def _remove(self, address: bytes) -> None:
        self.hosts.remove(address)
        self._announcements.discard(address)
