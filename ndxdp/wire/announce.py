"""Tells the upstream of addresses that live behind this host, before it asks.

Some providers deliver nothing for an address until they have seen it speak; any router learns
the sooner where it is. Three things can be said of each address, see Kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from ndxdp.ndp import DEFAULT_PROFILE, Profile, solicit
from ndxdp.neighbour import NONCE_LEN, probe, unsolicited
from ndxdp.state import Announced
from ndxdp.wire.raw import packet_socket

ADDRESSES_MAX = 131072
"""Addresses that an Announcer remembers unless told otherwise."""

_BURST_TIME = 0.05  # seconds' worth of frames that may go at once, ...
_BURST_MAX = 32  # ... and how many at most: the loop has others to serve
_TRIES = 4  # for a frame that finds the device's queue full
_TRY_AGAIN = 0.05  # seconds


class Kind(Enum):
    """What is said of an address, in this order."""

    PROBE = "probe"
    """A DAD-style solicitation from ::, with a nonce."""
    SOLICIT = "solicit_gateway"
    """A solicitation from the address for each gateway."""
    ADVERTISE = "advertise"
    """An unsolicited advertisement with O=1 to all nodes."""


@dataclass(frozen=True, slots=True)
class Announcements:
    """What an interface announces, and how fast.

    rate: frames per second. interval: seconds after which all addresses are announced anew, 0
    for never. max_addresses: how many are remembered; what is beyond is not announced.
    """

    probe: bool = False
    solicit_gateway: bool = True
    advertise: bool = True
    rate: float = 200.0
    interval: float = 0.0
    max_addresses: int = ADDRESSES_MAX


class Pace:
    """A token bucket as one number (GCRA): when the next frame is due. Pure but for the clock.

    rate: frames per second. burst: frames that may go at once. clock: seconds, monotonic.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self._interval = 1 / rate
        self._credit = (burst - 1) / rate
        self._clock = clock
        self._due = clock()

    def delay(self) -> float:
        """Seconds until a frame may go; 0 if it may now."""
        return max(0.0, self._due - self._credit - self._clock())

    def charge(self) -> None:
        self._due = max(self._due, self._clock()) + self._interval


class Announcer:
    """Announces exact addresses (16 bytes) on one interface, while run() runs.

    Of the loop's thread only. The caller tells of whatever changes: addresses, the MAC, gateways,
    and by announce_all() that the link is up. An address that waits is not queued twice, and new
    ones go before those that are repeated.

    A probe is no harm to whom it is not meant for: it leaves by a packet socket, which this host's
    own answering does not hear; reflected by the network it bears our MAC, which is `own_frame`;
    and nobody defends an address against it but who has it. Do not announce addresses of this
    host itself: they are not behind it.

    sent, failed: frames by kind. dropped: addresses that there was no room for.
    """

    def __init__(
        self,
        ifindex: int,
        mac: bytes,
        what: Announcements,
        gateways: Iterable[bytes] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """NdxdpError without CAP_NET_RAW; OSError if there is no such interface."""
        self.sent = dict.fromkeys(Kind, 0)
        self.failed = dict.fromkeys(Kind, 0)
        self.dropped = 0
        self._what, self._mac, self._gateways, self._clock = what, mac, tuple(gateways), clock
        self._known: dict[bytes, Profile] = {}
        # Dicts whose first key is taken again and again must be ordered ones: a plain one walks
        # over the gaps of all those that went before.
        self._new: OrderedDict[bytes, None] = OrderedDict()
        self._again: OrderedDict[bytes, None] = OrderedDict()
        self._wake = asyncio.Event()
        burst = max(1, min(_BURST_MAX, int(what.rate * _BURST_TIME)))
        self._pace = Pace(what.rate, burst, clock)
        self._socket = packet_socket("announces addresses")
        try:
            self._socket.bind((socket.if_indextoname(ifindex), 0))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    @property
    def waiting(self) -> int:
        """Addresses that are yet to be announced."""
        return len(self._new) + len(self._again)

    @property
    def known(self) -> int:
        """Addresses that are remembered."""
        return len(self._known)

    def total(self) -> Announced:
        """Frames of all kinds."""
        return Announced(sum(self.sent.values()), sum(self.failed.values()))

    # ---- what the caller tells

    def announce(self, addresses: Iterable[bytes], profile: Profile = DEFAULT_PROFILE) -> None:
        """Announce addresses that have appeared. Of the profile R flag and TLLAO are used."""
        for address in addresses:
            if address not in self._known and len(self._known) >= self._what.max_addresses:
                self.dropped += 1
                continue
            self._known[address] = profile
            self._again.pop(address, None)
            self._new[address] = None
        self._wake.set()

    def forget(self, addresses: Iterable[bytes]) -> None:
        """These have gone: nothing more is said of them."""
        for address in addresses:
            self._known.pop(address, None)
            self._new.pop(address, None)
            self._again.pop(address, None)

    def announce_all(self) -> None:
        """Announce all that are known anew: the link is up again, or the upstream another one."""
        self._again.update((address, None) for address in self._known if address not in self._new)
        self._wake.set()

    def set_mac(self, mac: bytes) -> None:
        """The interface's MAC (6 bytes); if it has changed, all addresses are announced anew."""
        if mac != self._mac:
            self._mac = mac
            self.announce_all()

    def set_gateways(self, gateways: Iterable[bytes]) -> None:
        """The gateways' addresses; with a new one all addresses are announced anew."""
        before, self._gateways = self._gateways, tuple(gateways)
        if set(self._gateways) - set(before):
            self.announce_all()

    # ---- the loop

    async def run(self) -> None:
        """Announce until cancelled. What was not sent then waits for the next run()."""
        again = self._clock() + self._what.interval
        while True:
            if self._what.interval and self._clock() >= again:
                again = self._clock() + self._what.interval
                self.announce_all()
            queue = self._new or self._again
            if queue:
                address, _ = queue.popitem(last=False)
                try:
                    await self._tell(address)
                except BaseException:
                    if address in self._known:
                        self._new[address] = None
                    raise
                continue
            self._wake.clear()
            left = again - self._clock() if self._what.interval else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), left)

    async def _tell(self, address: bytes) -> None:
        for kind, build in self._frames(address):
            while delay := self._pace.delay():
                await asyncio.sleep(delay)
            profile = self._known.get(address)
            if profile is None:  # it went while we waited
                return
            self._pace.charge()
            if await self._send(build(profile)):
                self.sent[kind] += 1
            else:
                self.failed[kind] += 1

    def _frames(self, address: bytes) -> Iterator[tuple[Kind, Callable[[Profile], bytes]]]:
        """Built only when they are sent, so that they carry the MAC of that moment."""
        if self._what.probe:
            yield Kind.PROBE, lambda _: probe(self._mac, address, os.urandom(NONCE_LEN))
        if self._what.solicit_gateway:
            for gateway in self._gateways:
                yield (
                    Kind.SOLICIT,
                    lambda _, to=gateway: solicit(  # type: ignore[misc]
                        self._mac, to, source=address, sllao=self._mac
                    ),
                )
        if self._what.advertise:
            yield (
                Kind.ADVERTISE,
                lambda profile: unsolicited(
                    self._mac, address, router=profile.router, lladdr=profile.lladdr
                ),
            )

    async def _send(self, frame: bytes) -> bool:
        """False if it could not be sent: the link is down, or its queue stays full."""
        for _ in range(_TRIES):
            try:
                self._socket.send(frame)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    return False
                await asyncio.sleep(_TRY_AGAIN)
            else:
                return True
        return False
