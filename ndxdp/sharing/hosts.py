"""The learned hosts of a share: where each address lives, and which of them to ask. Pure.

Times are seconds of one monotonic clock, addresses have 16 bytes, MACs 6, and an interface is named
by its index.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

QUESTIONS = 3
"""How often a host without a sign of life is asked: MAX_UNICAST_SOLICIT (RFC 4861 section 10)."""

QUESTION_PAUSE = 1.0
"""Seconds between these questions, and after the last: RETRANS_TIMER (RFC 4861 section 10)."""

_BATCH = 16  # hosts that are asked for the first time at once
_BATCH_PAUSE = 0.05  # seconds until the next batch: 320 hosts a second
_PRESSED_PATIENCE = 10.0
"""Seconds of silence after which a host is asked while others find no room."""

_PRESSED_TIME = 30.0  # seconds for which a claim without room has that effect

_IDLE_PAUSE = 0.5  # seconds, so that thousands of hosts wake the daemon twice a second at most


class HostLimits(NamedTuple):
    """The limits of a share's table of hosts; config.model.Share has the defaults.

    Attributes:
        max_hosts: The most addresses that are learned.
        max_hosts_per_mac: The most addresses that are learned of one MAC.
        expire: Seconds without a sign of life after which an address is forgotten.
    """

    max_hosts: int
    max_hosts_per_mac: int
    expire: float


@dataclass(slots=True)
class LearnedHost:
    """An address and the downstream link that it lives on.

    Attributes:
        address: The address.
        ifindex: The interface that it lives on, the binding anchor of RFC 6620.
        mac: The source MAC of its last claim; None while it is unknown. A change of the MAC does
            not move the host.
        since: When it was learned; a move to another interface does not change it.
        seen: When it showed a sign of life.
        asked: How many questions it has not answered since; 0 unless it is about to expire.
    """

    address: bytes
    ifindex: int
    mac: bytes | None
    since: float
    seen: float
    asked: int = 0


class Hosts(Mapping[bytes, LearnedHost]):
    """Learned hosts by address."""

    def __init__(self, limits: HostLimits) -> None:
        self._limits = limits
        self._hosts: dict[bytes, LearnedHost] = {}
        self._by_mac: dict[bytes, dict[bytes, None]] = {}  # sets of addresses, in order
        # Those that are not being asked, the one without a sign of life for longest first. A plain
        # dict would be slow: to find its first key, it skips the gaps of all removed keys.
        self._idle: OrderedDict[bytes, LearnedHost] = OrderedDict()
        self._is_sorted = True

    def __getitem__(self, address: bytes) -> LearnedHost:
        return self._hosts[address]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._hosts)

    def __len__(self) -> int:
        return len(self._hosts)

    def host_of(self, address: bytes) -> LearnedHost | None:
        """Return the host of an address; None if there is none."""
        return self._hosts.get(address)

    def addresses_of(self, mac: bytes) -> Collection[bytes]:
        """Return the addresses of a MAC; the view must not be kept across calls."""
        return self._by_mac.get(mac, {}).keys()

    def refusal(self, address: bytes, mac: bytes | None) -> str | None:
        """Return the limit that a binding of an address to a MAC would exceed.

        Args:
            address: The address, which may have a host already.
            mac: The MAC; None while it is unknown.

        Returns:
            `limit` or `mac_limit`, as in runtime.share_report.REFUSALS; None if there is room.
        """
        host = self._hosts.get(address)
        if host is None and len(self._hosts) >= self._limits.max_hosts:
            return "limit"
        if mac is None or (host is not None and host.mac == mac):
            return None
        return (
            "mac_limit" if len(self.addresses_of(mac)) >= self._limits.max_hosts_per_mac else None
        )

    def add(self, host: LearnedHost) -> None:
        """Add a host; the caller has asked refusal(), and the address has no host."""
        if self._idle and host.seen < self._idle[next(reversed(self._idle))].seen:
            self._is_sorted = False
        self._hosts[host.address] = self._idle[host.address] = host
        self._file(host)

    def remove(self, address: bytes) -> None:
        """Remove the host of an address."""
        host = self._hosts.pop(address)
        self._idle.pop(address, None)
        self._unfile(host)

    def touch(self, host: LearnedHost, now: float) -> None:
        """Record a sign of life of a host."""
        host.seen, host.asked = now, 0
        self._idle[host.address] = host
        self._idle.move_to_end(host.address)

    def ask(self, host: LearnedHost) -> None:
        """Record that a host was asked for a sign of life."""
        host.asked += 1
        self._idle.pop(host.address, None)

    def change_mac(self, host: LearnedHost, mac: bytes) -> None:
        """Record the MAC of a host; the caller has asked refusal()."""
        self._unfile(host)
        host.mac = mac
        self._file(host)

    def oldest(self) -> LearnedHost | None:
        """Return the host without a sign of life for longest among those that are not asked."""
        if not self._is_sorted:  # once, after the start: adopted hosts come in any order
            ordered = sorted(self._idle.values(), key=lambda host: host.seen)
            self._idle = OrderedDict((host.address, host) for host in ordered)
            self._is_sorted = True
        return self._idle[next(iter(self._idle))] if self._idle else None

    def _file(self, host: LearnedHost) -> None:
        if host.mac is not None:
            self._by_mac.setdefault(host.mac, {})[host.address] = None

    def _unfile(self, host: LearnedHost) -> None:
        if host.mac is not None:
            addresses = self._by_mac[host.mac]
            del addresses[host.address]
            if not addresses:
                del self._by_mac[host.mac]


class _Question(NamedTuple):
    """A question that a host may still answer until the time `due`."""

    due: float
    host: LearnedHost
    seen: float
    asked: int


class Expiry:
    """The questions to hosts without a sign of life, and when they expire.

    The first question is asked so that the host expires after about `expire` seconds. If many hosts
    are due at once, as after a start, they are asked one batch after the other.
    """

    def __init__(self, hosts: Hosts, expire: float) -> None:
        """Watch a table of hosts.

        Args:
            hosts: The table.
            expire: Seconds without a sign of life after which a host expires.
        """
        self._hosts = hosts
        self._usual_patience = max(expire - QUESTIONS * QUESTION_PAUSE, expire / 2)
        self._pressed_until = float("-inf")
        self._patience = self._usual_patience
        self._questions: deque[_Question] = deque()  # in order, because all pauses are equal
        self._next_batch = 0.0

    def press(self, now: float) -> None:
        """Ask hosts soon that are silent: the table is full, and there is a claim without room.

        Hosts that are there answer, and stay. Those that somebody has invented do not.
        """
        self._pressed_until = now + _PRESSED_TIME
        self._patience = min(self._usual_patience, _PRESSED_PATIENCE)

    def due(self) -> float | None:
        """Return the time of the next question or expiry; None without hosts."""
        oldest = self._hosts.oldest()
        batch = None if oldest is None else max(oldest.seen + self._patience, self._next_batch)
        if not self._questions:
            return batch
        question = self._questions[0].due
        return question if batch is None else min(question, batch)

    def take(self, now: float) -> Iterator[LearnedHost]:
        """Yield each host to ask; `asked` counts this question. Above QUESTIONS the host expires.

        The caller removes a host that expires before it takes the next one.
        """
        if now >= self._pressed_until:
            self._patience = self._usual_patience
        while self._questions and self._questions[0].due <= now:
            question = self._questions.popleft()
            host = question.host
            if (host.seen, host.asked) != question[2:] or self._hosts.host_of(
                host.address
            ) is not host:
                continue
            yield self._ask(host, now)
        if now < self._next_batch:
            return
        for _ in range(_BATCH):
            oldest = self._hosts.oldest()
            if oldest is None or oldest.seen + self._patience > now:
                self._next_batch = now + _IDLE_PAUSE
                return
            yield self._ask(oldest, now)
        self._next_batch = now + _BATCH_PAUSE

    def _ask(self, host: LearnedHost, now: float) -> LearnedHost:
        """Count a question, and wait for its answer if it is not the one too many."""
        self._hosts.ask(host)
        if host.asked <= QUESTIONS:
            self._questions.append(_Question(now + QUESTION_PAUSE, host, host.seen, host.asked))
        return host
