"""Announcements: frames that make the upstream aware of addresses behind this host.

Some providers deliver nothing for an address until they have received a frame from it. Any other
router learns the address sooner by an announcement. Kind lists the frames that announce an address.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from enum import Enum

from ndxdp.config.model import Announce
from ndxdp.ndp.message import NONCE_LEN, probe, solicit, unsolicited
from ndxdp.ndp.profile import DEFAULT_PROFILE, Profile
from ndxdp.pace import Pace
from ndxdp.rules.address_set import AddressSet
from ndxdp.runtime.daemon_status import Announced
from ndxdp.sockets.cbpf import packet_socket
from ndxdp.upstream.gateway_answers import GatewayAnswers
from ndxdp.upstream.schedule import Schedule, Turn

ADDRESSES_MAX = 131072
"""How many addresses an Announcer stores by default."""

REPEATS = 3
"""Transmissions of a frame that nothing confirms (MAX_NEIGHBOR_ADVERTISEMENT, RFC 4861 10)."""

_BURST_TIME = 0.05  # seconds: a burst has as many frames as the rate allows in this time, ...
_BURST_MAX = 32  # ... but not more than this, because other tasks of the event loop wait meanwhile
_LEAST_PAUSE = 0.0001  # seconds after so many frames
_TRIES = 4  # attempts to send a frame while the device's queue is full
_RETRY_AFTER = 0.05  # seconds


class Kind(Enum):
    """Kinds of frames that announce an address, in the order in which they are sent."""

    PROBE = "probe"
    """A solicitation for the address from ::, as in DAD, with a nonce."""
    SOLICIT = "solicit_gateway"
    """A solicitation for each gateway, from the address."""
    ADVERTISE = "advertise"
    """An unsolicited advertisement of the address to all nodes, with O=1."""


class Announcer:
    """Sender of announcements for exact addresses (16 bytes) on one interface, while run() runs.

    For use by the event loop's thread only. The caller reports all changes: of the addresses, the
    MAC and the gateways, and by announce_all() an interruption of the link.

    An advertisement is sent REPEATS times, a second apart. A solicitation is sent until the gateway
    answers it: up to 8 times in 64 s. A probe is sent once, as Duplicate Address Detection does
    (DupAddrDetectTransmits, RFC 4862 5.1).

    A probe harms no other node. This host does not receive its own probe, which leaves by a packet
    socket. If the network reflects the probe, it has our MAC and is counted as `own_frame`. Only a
    node that has the address defends it. Do not announce addresses that this host itself has.

    Attributes:
        sent: Frames that were sent, by kind.
        failed: Frames that could not be sent, by kind.
    """

    def __init__(
        self,
        ifindex: int,
        mac: bytes,
        what: Announce,
        gateways: Iterable[bytes] = (),
        *,
        max_addresses: int = ADDRESSES_MAX,
        clock: Callable[[], float] = time.monotonic,
        may_send: Callable[[bytes], bool] = lambda address: True,
    ) -> None:
        """Open a packet socket; run() sends the first frame.

        Args:
            ifindex: The interface.
            mac: Its MAC (6 bytes).
            what: The frames to send for each address, and how fast.
            gateways: The gateways' addresses (16 bytes each).
            max_addresses: How many addresses to store; more are counted in `dropped`.
            clock: Returns the time in seconds, monotonic.
            may_send: Returns True if a frame may be sent for an address (16 bytes) at the time of
                the call. A series ends with a frame that may not be sent.

        Raises:
            NdxdpError: The process lacks CAP_NET_RAW.
            OSError: There is no such interface.
        """
        self.sent = dict.fromkeys(Kind, 0)
        self.failed = dict.fromkeys(Kind, 0)
        self._what, self._mac, self._clock = what, mac, clock
        self._may_send = may_send
        self._schedule = Schedule(max_addresses, clock)
        self._answers = GatewayAnswers(ifindex, mac, tuple(gateways), self._schedule)
        self._suspended = False
        self._on_restart: Callable[[], None] = _nothing
        self._wake = asyncio.Event()
        burst = max(1, min(_BURST_MAX, int(what.rate * _BURST_TIME)))
        self._pace = Pace(what.rate, burst, clock)
        # Frames since other tasks of the event loop could run, and the time of the first one.
        self._at_once, self._began = 0, 0.0
        self._socket = packet_socket("announces addresses")
        try:
            self._socket.bind((socket.if_indextoname(ifindex), 0))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the packet socket. Cancel run() first."""
        self._socket.close()

    @property
    def waiting(self) -> int:
        """How many addresses wait for their first announcement; repetitions do not count."""
        return self._schedule.waiting

    @property
    def new(self) -> int:
        """How many addresses have appeared and wait for their first announcement."""
        return self._schedule.new

    @property
    def repeating(self) -> int:
        """How many addresses were announced, and wait for a repetition."""
        return self._schedule.repeating

    @property
    def known(self) -> int:
        """How many addresses are stored."""
        return self._schedule.known

    @property
    def dropped(self) -> int:
        """How many addresses are not announced, because `max_addresses` others are stored."""
        return self._schedule.dropped

    def total(self) -> Announced:
        """Return the counts of frames of all kinds."""
        return Announced(sum(self.sent.values()), sum(self.failed.values()))

    # ---- changes, reported by the caller

    def on_restart(self, call: Callable[[], None]) -> None:
        """Set what is called when all addresses are announced again; transient ones are not."""
        self._on_restart = call

    def announce(
        self,
        addresses: Iterable[bytes],
        profile: Profile = DEFAULT_PROFILE,
        *,
        transient: bool = False,
    ) -> None:
        """Announce addresses that have appeared.

        Args:
            addresses: The addresses (16 bytes each).
            profile: Its R flag and its MAC are those of the advertisements.
            transient: Do not announce them again by announce_all() or after an interval. The caller
                does so by announce_once(), if they are still there.
        """
        some = _packed(addresses)
        self._answers.forget(some)
        self._schedule.begin(some, profile, transient=transient)
        self._wake.set()

    def announce_once(self, addresses: Iterable[bytes], profile: Profile = DEFAULT_PROFILE) -> None:
        """Announce transient addresses that are still there, without repetition, after all others.

        Args:
            addresses: The addresses (16 bytes each).
            profile: Its R flag and its MAC are those of the advertisements.
        """
        some = _packed(addresses)
        self._answers.forget(some)
        self._schedule.add(some, profile)
        self._wake.set()

    def forget(self, addresses: Iterable[bytes]) -> None:
        """Stop announcing addresses that have disappeared."""
        some = _packed(addresses)
        self._answers.forget(some)
        self._schedule.remove(some)

    def announce_all(self) -> None:
        """Announce all addresses again, with repetitions: the upstream may have lost them."""
        self._answers.clear()
        self._schedule.restart()
        self._wake.set()
        self._on_restart()

    def set_suspended(self, suspended: bool) -> None:
        """Stop sending, or resume and announce all addresses again."""
        was_suspended, self._suspended = self._suspended, suspended
        if was_suspended and not suspended:
            self.announce_all()

    def set_mac(self, mac: bytes) -> None:
        """Set the interface's MAC (6 bytes); if it has changed, announce all addresses again."""
        if mac != self._mac:
            self._mac = self._answers.mac = mac
            self.announce_all()

    def set_gateways(self, gateways: Iterable[bytes]) -> None:
        """Set the gateways' addresses; if one is new, announce all addresses again."""
        before, self._answers.gateways = self._answers.gateways, tuple(gateways)
        if set(self._answers.gateways) - set(before):
            self.announce_all()

    # ---- the loop

    async def run(self) -> None:
        """Send announcements until cancelled. The next call sends those that are left."""
        refresh_at = self._clock() + self._what.interval
        try:
            while True:
                if self._what.interval and self._clock() >= refresh_at:
                    refresh_at = self._clock() + self._what.interval
                    self._refresh()
                turn = None if self._suspended else self._schedule.take()
                if turn:
                    await self._transmit(turn)
                    continue
                self._wake.clear()
                due = None if self._suspended else self._schedule.due
                if due is None:
                    self._answers.stop()
                ends = [] if due is None else [due]
                if self._what.interval:
                    ends.append(refresh_at)
                left = max(0.0, min(ends) - self._clock()) if ends else None
                with contextlib.suppress(TimeoutError):
                    # Up to Python 3.11, wait_for() loses a cancellation if the event is set, too.
                    async with asyncio.timeout(left):
                        await self._wake.wait()
        finally:
            self._answers.stop()

    def _refresh(self) -> None:
        """Announce all addresses once, except those that wait for their first transmission."""
        if self._suspended:
            return
        self._answers.clear()
        self._schedule.refresh()
        self._on_restart()

    async def _transmit(self, turn: Turn) -> None:
        """Send the frames that are due for an address, and schedule the next transmission."""
        following = turn.following
        try:
            if await self._send_all(turn):
                if following is not None and self._is_unfinished(turn.address, following.before):
                    self._schedule.repeat(turn)
                else:
                    self._answers.forget([turn.address])
        except BaseException:
            self._schedule.retry(turn)
            raise

    def _is_unfinished(self, address: bytes, before: int) -> bool:
        """Return True if the address needs one more transmission after `before` of them."""
        if before < REPEATS and self._what.advertise:
            return True
        if before >= REPEATS and not self._answers.is_listening:  # Answers would not be recorded.
            return False
        return any(self._unanswered(address))

    def _unanswered(self, address: bytes) -> Iterator[bytes]:
        """Yield the gateways that are yet to answer the address; none if none is solicited."""
        if self._what.solicit_gateway:
            yield from self._answers.unanswered(address)

    async def _send_all(self, turn: Turn) -> bool:
        """Send the frames of one transmission.

        Returns:
            False if the series is over: the address was forgotten or begins another series, or
            sending was suspended.
        """
        sent = False
        for kind, build in self._frames(turn.address, turn.before):
            if kind is Kind.SOLICIT:
                self._answers.listen()
            await self._wait_for_turn()
            profile = self._schedule.profile_now(turn)
            if profile is None or not self._is_wanted(turn):
                return False
            self._pace.charge()
            sent = True
            if await self._send(turn, build(profile)):
                self.sent[kind] += 1
            else:
                self.failed[kind] += 1
        if not sent:  # Many addresses without a frame to send would block the event loop.
            await asyncio.sleep(0)
        return not self._schedule.is_over(turn)

    async def _wait_for_turn(self) -> None:
        """Wait until a frame may be sent; leave other tasks at least half of the time.

        At a rate above that of the CPU, no frame ever waits for the rate.
        """
        delay = self._pace.delay()
        if not delay and self._at_once >= _BURST_MAX:
            delay = max(self._clock() - self._began, _LEAST_PAUSE)
        while delay:
            await asyncio.sleep(delay)
            self._at_once, delay = 0, self._pace.delay()
        if not self._at_once:
            self._began = self._clock()
        self._at_once += 1

    def _frames(
        self, address: bytes, before: int
    ) -> Iterator[tuple[Kind, Callable[[Profile], bytes]]]:
        """Yield the frames of one transmission, as functions that build them.

        A frame is built just before it is sent, so that it has the interface's present MAC.
        """
        if self._what.probe and not before:
            yield Kind.PROBE, lambda _: probe(self._mac, address, os.urandom(NONCE_LEN))
        for gateway in self._unanswered(address):
            yield (
                Kind.SOLICIT,
                lambda _, to=gateway: solicit(  # type: ignore[misc]
                    self._mac, to, source=address, sllao=self._mac
                ),
            )
        if self._what.advertise and before < REPEATS:
            yield (
                Kind.ADVERTISE,
                lambda profile: unsolicited(
                    self._mac, address, router=profile.router, lladdr=profile.lladdr
                ),
            )

    def _is_wanted(self, turn: Turn) -> bool:
        """Return True if a frame may be sent now. This process may have been stopped before."""
        is_known = self._schedule.profile_now(turn) is not None
        return is_known and not self._suspended and self._may_send(turn.address)

    async def _send(self, turn: Turn, frame: bytes) -> bool:
        """Send a frame; return False if the link is down, or the device's queue stays full."""
        for _ in range(_TRIES):
            if not self._is_wanted(turn):  # it may have changed while the queue was full
                return False
            try:
                self._socket.send(frame)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    return False
                await asyncio.sleep(_RETRY_AFTER)
            else:
                return True
        return False


def _nothing() -> None:
    pass


def _packed(addresses: Iterable[bytes]) -> AddressSet:
    return addresses if isinstance(addresses, AddressSet) else AddressSet.of(addresses)
