"""Announcements to the upstream of addresses that live behind this host, before it asks.

Some providers deliver nothing for an address until they have seen it speak; any router learns
the sooner where it is. Three kinds of frames can announce an address, see Kind.
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
from dataclasses import dataclass, field
from enum import Enum

from ndxdp.config.model import Announce
from ndxdp.errors import NdxdpError
from ndxdp.ndp.frame import FLAGS_AT, FRAME_MAX, OPTIONS_AT, SOLICITED, TYPE_NA
from ndxdp.ndp.message import (
    NONCE_LEN,
    Fault,
    is_sent_to,
    parse_advertisement,
    probe,
    solicit,
    unsolicited,
)
from ndxdp.ndp.profile import DEFAULT_PROFILE, Profile
from ndxdp.runtime.daemon_status import Announced
from ndxdp.sockets.cbpf import (
    LD_B,
    Condition,
    attach_filter,
    icmpv6_conditions,
    other_vlans,
    packet_socket,
    program,
)

ADDRESSES_MAX = 131072
"""Addresses that an Announcer remembers by default."""

REPEATS = 3
"""Transmissions of what nobody confirms (MAX_NEIGHBOR_ADVERTISEMENT, RFC 4861 10)."""

_PAUSES = (1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between the transmissions to a gateway that does not answer.

The first ones are RETRANS_TIMER (RFC 4861 10). The last transmission is 64 s after the first: a
switch that runs spanning tree forwards nothing for 30 s after the link has come up.
"""

_BURST_TIME = 0.05  # seconds' worth of frames that may go at once, ...
_BURST_MAX = 32  # ... and how many at most: the loop has others to serve
_TRIES = 4  # for a frame that finds the device's queue full
_TRY_AGAIN = 0.05  # seconds
_ANSWERS_AT_ONCE = 64  # are read before the loop serves others
_ETH_P_ALL = 3  # before a bridge takes the frames of its port


class Kind(Enum):
    """What is said of an address, in this order."""

    PROBE = "probe"
    """A DAD-style solicitation from ::, with a nonce."""
    SOLICIT = "solicit_gateway"
    """A solicitation from the address for each gateway."""
    ADVERTISE = "advertise"
    """An unsolicited advertisement with O=1 to all nodes."""


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
        """Count one frame as sent."""
        self._due = max(self._due, self._clock()) + self._interval


@dataclass(slots=True)
class _Lane:
    """Addresses that wait for the same transmission, with the time at which each is due.

    The lane is sorted, as an address always waits for the same time. before: transmissions that
    the address has had. following: the lane of the next one; None for the last.

    The queue is ordered by its class: a plain dict, whose first key is taken again and again,
    walks over the gaps of all keys that were taken before.
    """

    before: int
    following: _Lane | None
    queue: OrderedDict[bytes, float] = field(default_factory=OrderedDict)

    @property
    def due(self) -> float:
        """When the first address is due."""
        return next(iter(self.queue.values()))


def _lanes() -> list[_Lane]:
    """Return one lane for each transmission of a series, the first transmission first."""
    made: list[_Lane] = []
    for before in range(len(_PAUSES), -1, -1):
        made.insert(0, _Lane(before, made[0] if made else None))
    return made


class Announcer:
    """The announcer of exact addresses (16 bytes) on one interface, at work while run() runs.

    Only the loop's thread may use it. The caller reports every change: addresses, the MAC,
    gateways, and by announce_all() that the link was interrupted.

    An advertisement is sent REPEATS times, a second apart. A solicitation is sent until the
    gateway answers it: REPEATS times, and then after growing pauses, 8 times in all. A probe is
    sent once, as Duplicate Address Detection does (DupAddrDetectTransmits, RFC 4862 5.1). New
    addresses go first, then their repetitions; then all that is announced anew.

    A probe harms nobody: it leaves by a packet socket, which this host's own answering does not
    hear; if the network reflects it, it bears our MAC and is counted as `own_frame`; and only a
    node that has the address defends it. Do not announce addresses of this host itself.

    sent, failed: frames by kind. dropped: addresses that there was no room for.
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
    ) -> None:
        """Open a packet socket, and send nothing until run().

        Args:
            ifindex: The interface.
            mac: Its MAC (6 bytes).
            what: The frames to send for each address, and how fast.
            gateways: The gateways' addresses (16 bytes each).
            max_addresses: How many addresses to remember; more are counted in `dropped`.
            clock: The time in seconds, monotonic.

        Raises:
            NdxdpError: The process lacks CAP_NET_RAW.
            OSError: There is no such interface.
        """
        self.sent = dict.fromkeys(Kind, 0)
        self.failed = dict.fromkeys(Kind, 0)
        self.dropped = 0
        self._what, self._mac, self._gateways, self._clock = what, mac, tuple(gateways), clock
        self._max_addresses = max_addresses
        self._known: dict[bytes, Profile] = {}
        new, again = _lanes(), _lanes()
        self._new, self._again, self._refreshed = new[0], again[0], _Lane(0, None)
        self._all_lanes = [*new, *again, self._refreshed]
        # A bit for each gateway, by its place in _gateways, that has answered the address.
        self._answered: dict[bytes, int] = {}
        self._suspended = False
        self._wake = asyncio.Event()
        burst = max(1, min(_BURST_MAX, int(what.rate * _BURST_TIME)))
        self._pace = Pace(what.rate, burst, clock)
        self._answers: socket.socket | None = None
        self._ifindex = ifindex
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
        """Addresses that are yet to be announced; repetitions do not count."""
        return sum(len(lane.queue) for lane in self._all_lanes if not lane.before)

    @property
    def repeating(self) -> int:
        """Addresses that were announced, and are to be announced once more."""
        return sum(len(lane.queue) for lane in self._all_lanes if lane.before)

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
        now = self._clock()
        others = [lane.queue for lane in self._busy() if lane is not self._new]
        for address in addresses:
            if address not in self._known and len(self._known) >= self._max_addresses:
                self.dropped += 1
                continue
            self._known[address] = profile
            self._answered.pop(address, None)
            for queue in others:
                queue.pop(address, None)
            self._new.queue[address] = now
        self._wake.set()

    def forget(self, addresses: Iterable[bytes]) -> None:
        """Send nothing more about these addresses: they have gone."""
        queues = [lane.queue for lane in self._busy()]
        for address in addresses:
            self._known.pop(address, None)
            self._answered.pop(address, None)
            for queue in queues:
                queue.pop(address, None)

    def announce_all(self) -> None:
        """Announce all known addresses anew, with repetitions: the upstream may have lost them."""
        now = self._clock()
        for lane in self._busy():
            if lane is not self._new:
                lane.queue.clear()
        self._answered.clear()
        self._again.queue.update((a, now) for a in self._known if a not in self._new.queue)
        self._wake.set()

    def set_suspended(self, suspended: bool) -> None:
        """Stop sending, or resume and announce all known addresses again."""
        was_suspended, self._suspended = self._suspended, suspended
        if was_suspended and not suspended:
            self.announce_all()

    def set_mac(self, mac: bytes) -> None:
        """Set the interface's MAC (6 bytes); if it is another one, announce all addresses anew."""
        if mac != self._mac:
            self._mac = mac
            self.announce_all()

    def set_gateways(self, gateways: Iterable[bytes]) -> None:
        """Set the gateways' addresses; if one is new, announce all addresses anew."""
        before, self._gateways = self._gateways, tuple(gateways)
        if self._gateways != before:
            self._answered.clear()
        if set(self._gateways) - set(before):
            self.announce_all()

    # ---- the loop

    async def run(self) -> None:
        """Send announcements until cancelled. Those that are left wait for the next call."""
        refresh_at = self._clock() + self._what.interval
        try:
            while True:
                if self._what.interval and self._clock() >= refresh_at:
                    refresh_at = self._clock() + self._what.interval
                    self._refresh()
                lane = None if self._suspended else self._next()
                if lane:
                    await self._transmit(lane)
                    continue
                self._wake.clear()
                ends = [lane.due for lane in self._busy()] if not self._suspended else []
                if not ends:
                    self._stop_listening()
                if self._what.interval:
                    ends.append(refresh_at)
                left = max(0.0, min(ends) - self._clock()) if ends else None
                with contextlib.suppress(TimeoutError):
                    # wait_for() swallows a cancellation that comes beside the event, up to 3.11.
                    async with asyncio.timeout(left):
                        await self._wake.wait()
        finally:
            self._stop_listening()

    def _busy(self) -> list[_Lane]:
        """Return the lanes that have addresses, in the order in which they are served."""
        return [lane for lane in self._all_lanes if lane.queue]

    def _next(self) -> _Lane | None:
        """Return the first lane whose first address is due, or None."""
        now = self._clock()
        return next((lane for lane in self._busy() if lane.due <= now), None)

    def _refresh(self) -> None:
        """Announce all known addresses once, but those that wait for their first transmission."""
        if self._suspended:
            return
        self._answered.clear()
        now, waiting = self._clock(), (self._new.queue, self._again.queue)
        self._refreshed.queue.update(
            (a, now) for a in self._known if not any(a in queue for queue in waiting)
        )

    async def _transmit(self, lane: _Lane) -> None:
        """Send what is due for the first address of a lane, and have it wait for what follows."""
        address, _ = lane.queue.popitem(last=False)
        if not lane.queue:  # frees its memory, which a dict keeps
            lane.queue = OrderedDict()
        try:
            if await self._tell(address, lane.before):
                following = lane.following
                if following and self._is_unfinished(address, following.before):
                    following.queue[address] = self._clock() + _PAUSES[lane.before]
                else:
                    self._answered.pop(address, None)
        except BaseException:
            if address in self._known:
                self._new.queue[address] = self._clock()
            raise

    def _is_unfinished(self, address: bytes, before: int) -> bool:
        """Something is left to be sent of an address that had so many transmissions."""
        if before < REPEATS and self._what.advertise:
            return True
        heard = before < REPEATS or self._answers is not None
        return heard and any(self._unanswered(address))

    def _unanswered(self, address: bytes) -> Iterator[bytes]:
        """Yield the gateways that have not answered the address; none if none is solicited."""
        if self._what.solicit_gateway:
            answered = self._answered.get(address, 0)
            for number, gateway in enumerate(self._gateways):
                if not answered >> number & 1:
                    yield gateway

    async def _tell(self, address: bytes, before: int) -> bool:
        """Send the frames of one transmission.

        before: transmissions that the address has had. Returns False if the address went, or is
        to be announced anew, or sending was held meanwhile.
        """
        sent = False
        for kind, build in self._frames(address, before):
            if kind is Kind.SOLICIT:
                self._listen()
            while delay := self._pace.delay():
                await asyncio.sleep(delay)
            profile = self._known.get(address)
            if profile is None or self._suspended:
                return False
            self._pace.charge()
            sent = True
            if await self._send(build(profile)):
                self.sent[kind] += 1
            else:
                self.failed[kind] += 1
        if not sent:  # many such addresses would keep the loop from others
            await asyncio.sleep(0)
        waits = address in self._new.queue or address in self._again.queue
        return address in self._known and not waits

    def _frames(
        self, address: bytes, before: int
    ) -> Iterator[tuple[Kind, Callable[[Profile], bytes]]]:
        """Built only when they are sent, so that they carry the MAC of that moment."""
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

    async def _send(self, frame: bytes) -> bool:
        """Send a frame; return False if the link is down, or the device's queue stays full."""
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

    # ---- the gateways' answers

    def _listen(self) -> None:
        """Receive the gateways' answers from now on, if a socket for that can be had.

        Without one each solicitation is sent REPEATS times.
        """
        if self._answers is not None:
            return
        try:
            opened = packet_socket("hears whether gateways answer")
        except (NdxdpError, OSError):  # no more files, perhaps
            return
        try:
            attach_filter(opened, _solicited_advertisements())
            opened.bind((socket.if_indextoname(self._ifindex), _ETH_P_ALL))
        except OSError:
            opened.close()
            return
        asyncio.get_running_loop().add_reader(opened.fileno(), self._hear)
        self._answers = opened

    def _stop_listening(self) -> None:
        """Close the socket for answers: while it is open, the kernel filters every frame for it."""
        if self._answers is not None:
            asyncio.get_running_loop().remove_reader(self._answers.fileno())
            self._answers.close()
            self._answers = None
        self._answered.clear()

    def _hear(self) -> None:
        """Note which gateways have answered which addresses."""
        assert self._answers is not None
        for _ in range(_ANSWERS_AT_ONCE):
            try:
                frame = self._answers.recv(FRAME_MAX + 1)
            except BlockingIOError:
                return
            except OSError:  # reported once when the link goes down
                continue
            heard = parse_advertisement(frame)
            if isinstance(heard, Fault) or heard.target not in self._gateways:
                continue
            if not is_sent_to(heard, self._mac):
                continue
            address = heard.destination
            if address in self._known:
                bit = 1 << self._gateways.index(heard.target)
                self._answered[address] = self._answered.get(address, 0) | bit


def _solicited_advertisements() -> bytes:
    """Return the classic BPF program that passes solicited advertisements outside of VLANs."""
    conditions = [
        *icmpv6_conditions(TYPE_NA),
        Condition(LD_B, FLAGS_AT, SOLICITED, mask=SOLICITED),
    ]
    return program(conditions, last=OPTIONS_AT - 1, keep=FRAME_MAX + 1, ending=other_vlans(0))
