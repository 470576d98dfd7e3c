"""Soliciting of a gateway, for the kernel's entry to stay where the upstream ignores the kernel.

The kernel solicits a link-local gateway from the host's link-local address, and another gateway
from the source of the packet that waits. Where the upstream does not answer those, the entry goes
from REACHABLE by way of STALE, DELAY and PROBE to FAILED, and with it the way out. So the gateway
is solicited here, from an address that the upstream answers, and the answer is put into the
kernel's table, as reachable: not as permanent, which would hold on to the MAC of a gateway that
has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ndxdp.errors import NdxdpError
from ndxdp.ndp.frame import DESTINATION_AT, ETH_P_IPV6, FRAME_MAX, OPTIONS_AT, TARGET_AT, TYPE_NA
from ndxdp.ndp.message import Fault, solicit
from ndxdp.ndp.resolution import PendingSolicitation, Reply, reply_to
from ndxdp.netlink.fib import NudState
from ndxdp.netlink.neighbour_monitor import NeighbourWatch
from ndxdp.netlink.neighbours import confirm_neighbour, neighbour
from ndxdp.rules.address import address_text
from ndxdp.sockets.cbpf import (
    NOTHING,
    address_conditions,
    attach_filter,
    icmpv6_conditions,
    other_vlans,
    packet_socket,
    program,
)

log = logging.getLogger(__name__)

WAIT = 1.0
"""Seconds for an answer, and between solicitations (RETRANS_TIMER, RFC 4861 10)."""

TRIES = 3
"""Solicitations without an answer before a pause of the interval (MAX_MULTICAST_SOLICIT)."""

INTERVAL_MIN, INTERVAL_MAX = 0.1, 60.0

_SHARE = 0.4
"""Of the base reachable time: the kernel takes from 0.5 to 1.5 of it at random (6.3.4)."""

_BASE_REACHABLE = 30.0  # seconds, where the kernel does not say (REACHABLE_TIME)

_GAP = 0.1  # seconds between rounds, whatever the events say


_PACKET_IGNORE_OUTGOING, _SOL_PACKET = 23, 263

_LOST = (NudState.NONE, NudState.INCOMPLETE, NudState.PROBE, NudState.FAILED)
"""States of the entry that call for a solicitation at once."""

_NOT_OURS = (NudState.PERMANENT, NudState.NOARP)
"""States that somebody chose: the entry is left alone."""


class Source(NamedTuple):
    """An address (16 bytes) to solicit from, and the MAC (6 bytes) that has it."""

    address: bytes
    mac: bytes


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """Everything that is known of a gateway.

    source: the address that it is solicited from, None while there is none. state: the kernel's
    entry, as far as it told. mac: 6 bytes, what the gateway said last; None before. seen: seconds
    since it answered, None before it did. asked, answered: solicitations. moved: how often it
    answered with another MAC than before. ignored: advertisements that were not used, by reason.
    silent: it did not answer the last time.
    """

    gateway: bytes
    source: bytes | None
    state: NudState
    mac: bytes | None
    seen: float | None
    asked: int
    answered: int
    moved: int
    ignored: dict[Fault, int]
    silent: bool


class GatewayKeepalive:
    """Caretaker of one gateway (16 bytes) on one interface, while run() runs.

    sources: the addresses to solicit from, the preferred one first. The next one is tried where one
    gets no answer TRIES times, and kept as long as it is answered and the list allows. An address
    of the host is the simple case: the kernel hears the answer, too. An address behind the host
    works as well: the answer reaches our MAC for an address that is not ours, the kernel does not
    listen to it, and we do. The kernel then forwards it: with a global gateway to the container,
    where the hop limit of then 254 makes it void; an answer of a link-local gateway may not be
    forwarded (RFC 4291 2.5.6), so the kernel sends the gateway an ICMPv6 error instead. The route
    to the address must not lead back to the upstream, or the answer goes to and fro.

    changed: called when another source is used from now on.

    interval: seconds between solicitations; None for 0.4 of the kernel's base reachable time for
    the interface, 12 s by default, so that the entry stays REACHABLE. An event of the kernel's
    entry in PROBE or worse brings one at once, whatever the interval is.

    Of the loop's thread only.
    """

    def __init__(
        self,
        ifindex: int,
        gateway: bytes,
        sources: Sequence[Source],
        *,
        interval: float | None = None,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """NdxdpError without CAP_NET_RAW; OSError if there is no such interface."""
        self._ifindex, self._gateway = ifindex, gateway
        self._sources, self._changed = tuple(sources), changed
        self._answered_to: bytes | None = None
        self._name = address_text(gateway)
        self._chosen, self._clock = interval, clock
        self._state = NudState.NONE
        self._seen_mac: bytes | None = None
        self._seen_at: float | None = None
        self._asked = self._answered = self._moved = 0
        self._ignored: Counter[Fault] = Counter()
        self._silent = False
        self._troubled = ""
        self._wake = asyncio.Event()
        interface = socket.if_indextoname(ifindex)
        self._base_reachable = Path(f"/proc/sys/net/ipv6/neigh/{interface}/base_reachable_time_ms")
        self._watch = NeighbourWatch(ifindex, gateway)
        try:
            self._socket = packet_socket("solicits the gateway")
        except BaseException:
            self._watch.close()
            raise
        try:
            attach_filter(self._socket, NOTHING)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            self._socket.bind((interface, ETH_P_IPV6))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the sockets. Cancel run() first."""
        self._watch.close()
        self._socket.close()

    def status(self) -> GatewayStatus:
        """Return the state of the gateway, as known now."""
        return GatewayStatus(
            gateway=self._gateway,
            source=self.source,
            state=self._state,
            mac=self._seen_mac,
            seen=None if self._seen_at is None else self._clock() - self._seen_at,
            asked=self._asked,
            answered=self._answered,
            moved=self._moved,
            ignored=dict(self._ignored),
            silent=self._silent,
        )

    @property
    def source(self) -> bytes | None:
        """The address that the gateway is solicited from first; None while there is none."""
        if self._answered_to is not None:
            return self._answered_to
        return self._sources[0].address if self._sources else None

    def set_sources(self, sources: Sequence[Source]) -> None:
        """Solicit from these sources, at once if they differ from the former ones.

        The search begins anew at the first one where that is another one than before.
        """
        fresh, before, was = tuple(sources), self._sources, self.source
        if fresh == before:
            return
        self._sources = fresh
        first, first_before = ([each.address for each in some[:1]] for some in (fresh, before))
        if first != first_before or self._answered_to not in {each.address for each in fresh}:
            self._answered_to = None
        if self.source != was:
            self._changed()
        self._wake.set()

    def wake(self) -> None:
        """Solicit now: the link is up again."""
        self._wake.set()

    def interval(self) -> float:
        """Seconds between solicitations. The kernel's base may change with each RA."""
        if self._chosen is not None:
            return self._chosen
        try:
            base = int(self._base_reachable.read_text()) / 1000
        except (OSError, ValueError):
            base = _BASE_REACHABLE
        return min(max(base * _SHARE, INTERVAL_MIN), INTERVAL_MAX)

    async def run(self) -> None:
        """Care until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._watch.fileno(), self._on_event)
        try:
            while True:
                began = self._clock()
                self._wake.clear()
                await self._round()
                await asyncio.sleep(_GAP)
                left = began + self.interval() - self._clock()
                with contextlib.suppress(TimeoutError):
                    # wait_for() swallows a cancellation that comes beside the event, up to 3.11.
                    async with asyncio.timeout(max(left, 0)):
                        await self._wake.wait()
        finally:
            loop.remove_reader(self._watch.fileno())

    def _on_event(self) -> None:
        state = self._watch.drain()
        if state is not None:
            self._state = state
            if state in _LOST:
                self._wake.set()

    async def _round(self) -> None:
        """Solicit until there is an answer, and put it into the table."""
        try:
            entry = neighbour(self._ifindex, self._gateway)
            self._state = entry.state
            if entry.state in _NOT_OURS or not self._sources:
                return
            reply = await self._search(entry.mac)
            if reply is None and not self._sources:  # taken away meanwhile
                return
            self._note(reply)
            if reply:
                confirm_neighbour(self._ifindex, self._gateway, reply.mac, router=reply.router)
                self._state = NudState.REACHABLE
            self._troubled = ""
        except (NdxdpError, OSError) as error:  # the link is down, perhaps: it goes on
            if str(error) != self._troubled:
                self._troubled = str(error)
                log.warning("gateway %s: %s", self._name, error)

    async def _search(self, known: bytes | None) -> Reply | None:
        """Solicit from each source in turn, TRIES times at most, until there is an answer."""
        for source in sorted(self._sources, key=lambda each: each.address != self.source):
            for _ in range(TRIES):
                if source not in self._sources:  # nobody may speak for it any more
                    break
                reply = await self._ask(source, known)
                if reply:
                    if source in self._sources:
                        self._keep(source.address)
                    return reply
        return None

    def _keep(self, address: bytes) -> None:
        """Note that the gateway answers this source."""
        was, self._answered_to = self.source, address
        if address != was and was is not None:
            before, now = (address_text(each) for each in (was, address))
            log.warning("gateway %s answers %s, but not %s", self._name, now, before)
            self._changed()

    async def _ask(self, source: Source, known: bytes | None) -> Reply | None:
        """Send one solicitation, and return the answer to it within WAIT.

        An answer with O=0 and another MAC than the one that is known counts only if the known
        one keeps silent: it is a proxy's, or a second gateway's (RFC 4861 7.2.5).
        """
        question = PendingSolicitation(source.mac, source.address, self._gateway)
        second: Reply | None = None
        self._listen(source.address)
        try:
            self._socket.send(
                solicit(source.mac, self._gateway, source=source.address, sllao=source.mac)
            )
            self._asked += 1
            async with asyncio.timeout(WAIT):
                while True:
                    reply = reply_to(question, await self._receive(), known)
                    if isinstance(reply, Fault):
                        self._ignored[reply] += 1
                    elif known is None or reply.mac == known or reply.override:
                        return reply
                    else:
                        second = second or reply
        except TimeoutError:
            return second
        finally:
            attach_filter(self._socket, NOTHING)

    def _listen(self, source: bytes) -> None:
        """Receive answers to `source` from now on, and nothing of what came before."""
        try:
            while True:
                self._socket.recv(1)
        except BlockingIOError:
            pass
        attach_filter(self._socket, _answers_filter(source, self._gateway))

    async def _receive(self) -> bytes:
        # It lets others run, and the time-out come, however many frames there are.
        await asyncio.sleep(0)
        return await asyncio.get_running_loop().sock_recv(self._socket, FRAME_MAX + 1)

    def _note(self, reply: Reply | None) -> None:
        """Count, and log what is new."""
        if reply is None:
            if not self._silent:
                log.warning("gateway %s does not answer", self._name)
            self._silent = True
            return
        self._answered += 1
        mac = reply.mac.hex(":")
        if self._seen_mac is None:
            log.info("gateway %s is %s", self._name, mac)
        elif reply.mac != self._seen_mac:
            self._moved += 1
            log.warning(
                "gateway %s is %s now, no longer %s", self._name, mac, self._seen_mac.hex(":")
            )
        elif self._silent:
            log.info("gateway %s answers again", self._name)
        self._silent = False
        self._seen_mac, self._seen_at = reply.mac, self._clock()


def _answers_filter(source: bytes, gateway: bytes) -> bytes:
    """Pass what may be an advertisement of the gateway to the source; ndp/host.py checks it."""
    conditions = [
        *icmpv6_conditions(TYPE_NA),
        *address_conditions(DESTINATION_AT, source),
        *address_conditions(TARGET_AT, gateway),
    ]
    return program(conditions, last=OPTIONS_AT - 1, keep=FRAME_MAX + 1, ending=other_vlans(0))
