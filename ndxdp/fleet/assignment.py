"""The order in which hosts are to answer for a shared address. Pure.

Candidates are the live members of the segment that are not drained. The host that an address is
moved to comes first. Then, with `hosts`, the candidates among these come in their order, and no
others. Without `hosts`, the candidates are sorted by a hash (rendezvous hashing), so that each host
is the first choice for as many addresses as the others, and the loss of a host changes the first
choice of its own addresses only:

    score = BLAKE2b(HOST 00 SEGMENT 00 NAME), digest of 8 bytes, without a key

HOST, SEGMENT and NAME are the bytes of these parts of the keys, 00 is a zero byte. The greatest
score comes first, compared byte by byte; of two hosts with one score, the name that sorts last.
Another implementation that follows this agrees with ndxdp.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ndxdp.fleet.shared_address import SharedAddress

try:
    from _blake2 import blake2b
except ImportError:  # another Python than CPython
    from hashlib import blake2b  # it would load OpenSSL into the daemon, which takes 3 MB

_SCORE = 8  # bytes


class Candidates:
    """The hosts of one segment that may answer for its shared addresses.

    Attributes:
        since: By host, when it became a candidate, in the seconds of add().
    """

    def __init__(self, segment: str) -> None:
        """Have no candidates yet."""
        self._segment = segment
        self._hashes: dict[str, blake2b] = {}  # of all but the name
        self.since: dict[str, float] = {}

    def __contains__(self, host: object) -> bool:
        return host in self.since

    def __len__(self) -> int:
        return len(self.since)

    def add(self, host: str, now: float) -> None:
        """Make a host a candidate."""
        self._hashes[host] = self._begun(host)
        self.since[host] = now

    def remove(self, host: str) -> None:
        """Note that a host is no candidate any more."""
        self._hashes.pop(host, None)
        self.since.pop(host, None)

    def may_have(self, host: str, address: SharedAddress) -> bool:
        """Return True if a host is a candidate for an address."""
        return host in self.since and permits(address, host)

    def has_other(self, host: str, address: SharedAddress) -> bool:
        """Return True if another host than this is a candidate for an address."""
        hosts = address.hosts or islice(self.since, 2)
        return any(other != host and other in self.since for other in hosts)

    def ahead(
        self, host: str, name: str, address: SharedAddress, moved_to: str = ""
    ) -> Iterator[str]:
        """Yield the candidates that are to answer rather than a host, in any order.

        To know that there are some costs a few hashes, however many candidates there are.

        Args:
            host: The host. It need not be a candidate itself.
            name: The name of the address.
            address: The address.
            moved_to: The host that the address is moved to; "" for none.
        """
        if moved_to == host:
            return
        is_moved = self.may_have(moved_to, address)
        if is_moved:
            yield moved_to
        if address.hosts:
            for other in address.hosts:
                if other == host:
                    return
                if other in self.since and not (is_moved and other == moved_to):
                    yield other
            return
        packed = name.encode(errors="surrogateescape")
        own = self._score(host, packed)
        for other, begun in self._hashes.items():
            if other == host or (is_moved and other == moved_to):
                continue
            score = _score(begun, packed)
            if score > own or (score == own and other > host):
                yield other

    def precedes(self, one: str, other: str, name: str, address: SharedAddress) -> bool:
        """Return True if one host is to answer for an address rather than another one."""
        if address.hosts:
            ranked = [host for host in address.hosts if host in (one, other)]
            return ranked[:1] == [one]
        packed = name.encode(errors="surrogateescape")
        return (self._score(one, packed), one) > (self._score(other, packed), other)

    def order(self, name: str, address: SharedAddress, moved_to: str = "") -> list[str]:
        """Return all candidates for an address, the first choice first."""
        able = [host for host in address.hosts or self.since if host in self.since]
        if not address.hosts:
            packed = name.encode(errors="surrogateescape")
            able.sort(key=lambda host: (self._score(host, packed), host), reverse=True)
        return sorted(able, key=lambda host: host != moved_to)

    def _score(self, host: str, packed: bytes) -> bytes:
        return _score(self._hashes.get(host) or self._begun(host), packed)

    def _begun(self, host: str) -> blake2b:
        beginning = f"{host}\0{self._segment}\0".encode(errors="surrogateescape")
        return blake2b(beginning, digest_size=_SCORE)


def _score(begun: blake2b, name: bytes) -> bytes:
    whole = begun.copy()
    whole.update(name)
    return whole.digest()


def permits(address: SharedAddress, host: str) -> bool:
    """Return True if an address may be answered for by a host that is a candidate."""
    return not address.hosts or host in address.hosts
