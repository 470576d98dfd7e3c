"""Keepalive of one gateway: solicitations that keep its entry in the kernel's neighbour table.

The kernel solicits a link-local gateway from the host's link-local address, and any other gateway
from the source of the packet that waits. Some upstreams do not answer these sources. Then the entry
goes from REACHABLE by way of STALE, DELAY and PROBE to FAILED, and the host loses its route to the
Internet. A keepalive solicits the gateway from an address that the upstream answers, and writes the
answer into the kernel's table. The entry's state is REACHABLE, not PERMANENT, because a permanent
entry would keep the MAC of a gateway that was replaced.
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
"""Seconds to wait for an answer, and between solicitations (RETRANS_TIMER, RFC 4861 10)."""

TRIES = 3
"""Solicitations from one source without an answer (MAX_MULTICAST_SOLICIT, RFC 4861 10)."""

INTERVAL_MIN, INTERVAL_MAX = 0.1, 60.0

_SHARE = 0.4
"""The default interval, as a share of the base reachable time.

An entry is REACHABLE for 0.5 to 1.5 of that time, at random (RFC 4861 6.3.4).
"""

_BASE_REACHABLE = 30.0  # seconds, if the kernel's value cannot be read (REACHABLE_TIME)

_GAP = 0.1  # seconds: the shortest pause between rounds, even if events request one at once

_PACKET_IGNORE_OUTGOING, _SOL_PACKET = 23, 263  # linux/if_packet.h

_LOST = (NudState.NONE, NudState.INCOMPLETE, NudState.PROBE, NudState.FAILED)
"""States of the entry in which the gateway is solicited at once."""

_FIXED = (NudState.PERMANENT, NudState.NOARP)
"""States that an administrator or a driver has set: the entry is not changed."""


class Source(NamedTuple):
    """An address (16 bytes) to solicit from, and the MAC (6 bytes) of its solicitations."""

    address: bytes
    mac: bytes


@dataclass(frozen=True, slots=True)
class KeepaliveStatus:
    """The state of a keepalive.

    Attributes:
        gateway: The gateway's address, 16 bytes.
        source: The address that the gateway is solicited from, 16 bytes; None without one.
        state: The state of the kernel's entry, as last reported.
        mac: The gateway's MAC in its last answer, 6 bytes; None before the first answer.
        seen: Seconds since the last answer; None before the first answer.
        solicitations: How many solicitations were sent.
        answers: How many of them were answered.
        mac_changes: How many answers had another MAC than the answer before.
        ignored: Advertisements that were not used, by reason.
        silent: The last solicitations were not answered.
    """

    gateway: bytes
    source: bytes | None
    state: NudState
    mac: bytes | None
    seen: float | None
    solicitations: int
    answers: int
    mac_changes: int
    ignored: dict[Fault, int]
    silent: bool


class GatewayKeepalive:
    """The keepalive of one gateway on one interface, while run() runs.

    For use by the event loop's thread only.

    If a source gets no answer to TRIES solicitations, the next source is tried. The source that got
    an answer is used for as long as it gets answers and stays in the list.

    The source may be an address of the host, or one behind the host. The gateway sends an answer to
    an address behind the host to this host's MAC; a packet socket receives the answer, the kernel
    does not use it. docs/gateway.md describes what else may happen to such an answer.

    The gateway is solicited every interval, and at once when the kernel reports that the entry is
    in PROBE or a worse state.
    """

    def __init__(
        self,
        ifindex: int,
        gateway: bytes,
        sources: Sequence[Source],
        *,
        interval: float | None = None,
        changed: Callable[[], None] = lambda: None,
        may_send: Callable[[bytes], bool] = lambda address: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the sockets; run() sends the first solicitation.

        Args:
            ifindex: The interface that has the gateway's neighbour entry.
            gateway: The gateway's address, 16 bytes.
            sources: The addresses to solicit from, the preferred one first.
            interval: Seconds between solicitations. None for 0.4 of the kernel's base reachable
                time for the interface (12 s by default), so that the entry stays REACHABLE.
            changed: Called when another source is used from now on.
            may_send: Returns True if the gateway may be solicited from an address (16 bytes) at the
                time of the call.
            clock: Returns the time in seconds, monotonic.

        Raises:
            NdxdpError: The process lacks CAP_NET_RAW.
            OSError: There is no such interface.
        """
        self._ifindex, self._gateway = ifindex, gateway
        self._sources, self._changed = tuple(sources), changed
        self._may_send = may_send
        self._answered_source: bytes | None = None
        self._name = address_text(gateway)
        self._configured_interval, self._clock = interval, clock
        self._state = NudState.NONE
        self._seen_mac: bytes | None = None
        self._seen_at: float | None = None
        self._solicitations = self._answers = self._mac_changes = 0
        self._ignored: Counter[Fault] = Counter()
        self._silent = False
        self._logged_error = ""
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

    def status(self) -> KeepaliveStatus:
        """Return the present state."""
        return KeepaliveStatus(
            gateway=self._gateway,
            source=self.source,
            state=self._state,
            mac=self._seen_mac,
            seen=None if self._seen_at is None else self._clock() - self._seen_at,
            solicitations=self._solicitations,
            answers=self._answers,
            mac_changes=self._mac_changes,
            ignored=dict(self._ignored),
            silent=self._silent,
        )

    @property
    def source(self) -> bytes | None:
        """The address that the gateway is solicited from first; None without one."""
        if self._answered_source is not None:
            return self._answered_source
        return self._sources[0].address if self._sources else None

    def set_sources(self, sources: Sequence[Source]) -> None:
        """Set the sources; if they have changed, solicit at once.

        If the preferred source has another address than before, it is tried first.
        """
        fresh, before, used = tuple(sources), self._sources, self.source
        if fresh == before:
            return
        self._sources = fresh
        first, first_before = ([each.address for each in some[:1]] for some in (fresh, before))
        if first != first_before or self._answered_source not in {each.address for each in fresh}:
            self._answered_source = None
        if self.source != used:
            self._changed()
        self._wake.set()

    def wake(self) -> None:
        """Solicit at once, because the link is up again."""
        self._wake.set()

    def interval(self) -> float:
        """Return the seconds between solicitations.

        Each router advertisement may change the kernel's base reachable time.
        """
        if self._configured_interval is not None:
            return self._configured_interval
        try:
            base = int(self._base_reachable.read_text()) / 1000
        except (OSError, ValueError):
            base = _BASE_REACHABLE
        return min(max(base * _SHARE, INTERVAL_MIN), INTERVAL_MAX)

    async def run(self) -> None:
        """Solicit the gateway until cancelled."""
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
                    # Up to Python 3.11, wait_for() loses a cancellation if the event is set, too.
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
        """Solicit from each source until one is answered; write the answer into the table."""
        try:
            entry = neighbour(self._ifindex, self._gateway)
            self._state = entry.state
            if entry.state in _FIXED or not any(map(self._is_usable, self._sources)):
                return
            reply = await self._search(entry.mac)
            if reply is None and not any(map(self._is_usable, self._sources)):
                return  # none was left in between
            self._record(reply)
            if reply:
                confirm_neighbour(self._ifindex, self._gateway, reply.mac, router=reply.router)
                self._state = NudState.REACHABLE
            self._logged_error = ""
        except (NdxdpError, OSError) as error:  # The link may be down: the next round tries again.
            if str(error) != self._logged_error:
                self._logged_error = str(error)
                log.warning("cannot solicit the gateway %s: %s", self._name, error)

    async def _search(self, known: bytes | None) -> Reply | None:
        """Solicit TRIES times from each source in turn, until there is an answer.

        Args:
            known: The gateway's MAC in the kernel's entry; None if it has none.
        """
        for source in sorted(self._sources, key=lambda each: each.address != self.source):
            for _ in range(TRIES):
                if not self._is_usable(source):  # Another host may have the address by now.
                    break
                reply = await self._solicit(source, known)
                if reply:
                    if source in self._sources:
                        self._set_answered_source(source.address)
                    return reply
        return None

    def _is_usable(self, source: Source) -> bool:
        return source in self._sources and self._may_send(source.address)

    def _set_answered_source(self, address: bytes) -> None:
        """Use the source that the gateway has answered; log it if it is another one."""
        before, self._answered_source = self.source, address
        if address != before and before is not None:
            log.warning(
                "the gateway %s answers solicitations from %s, but not from %s",
                self._name,
                address_text(address),
                address_text(before),
            )
            self._changed()

    async def _solicit(self, source: Source, known: bytes | None) -> Reply | None:
        """Send one solicitation, and return the answer that arrives within WAIT seconds.

        An answer with O=0 and another MAC than the known one is a proxy's, or a second gateway's.
        It counts only if the known MAC does not answer (RFC 4861 7.2.5).
        """
        pending = PendingSolicitation(source.mac, source.address, self._gateway)
        second: Reply | None = None
        self._listen(source.address)
        try:
            self._socket.send(
                solicit(source.mac, self._gateway, source=source.address, sllao=source.mac)
            )
            self._solicitations += 1
            async with asyncio.timeout(WAIT):
                while True:
                    reply = reply_to(pending, await self._receive(), known)
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
        """Receive answers to `source` from now on; discard frames that arrived before."""
        try:
            while True:
                self._socket.recv(1)
        except BlockingIOError:
            pass
        attach_filter(self._socket, _answers_filter(source, self._gateway))

    async def _receive(self) -> bytes:
        # A flood of frames must keep neither other tasks nor the timeout from running.
        await asyncio.sleep(0)
        return await asyncio.get_running_loop().sock_recv(self._socket, FRAME_MAX + 1)

    def _record(self, reply: Reply | None) -> None:
        """Count an answer, or its absence, and log a change."""
        if reply is None:
            if not self._silent:
                log.warning("the gateway %s does not answer", self._name)
            self._silent = True
            return
        self._answers += 1
        mac = reply.mac.hex(":")
        if self._seen_mac is None:
            log.info("the gateway %s has the MAC %s", self._name, mac)
        elif reply.mac != self._seen_mac:
            self._mac_changes += 1
            before = self._seen_mac.hex(":")
            log.warning(
                "the MAC of the gateway %s has changed from %s to %s", self._name, before, mac
            )
        elif self._silent:
            log.info("the gateway %s answers again", self._name)
        self._silent = False
        self._seen_mac, self._seen_at = reply.mac, self._clock()


def _answers_filter(source: bytes, gateway: bytes) -> bytes:
    """Return a filter that passes the gateway's advertisements to a source.

    The filter compares a few fields; ndp/resolution.py checks the rest.
    """
    conditions = [
        *icmpv6_conditions(TYPE_NA),
        *address_conditions(DESTINATION_AT, source),
        *address_conditions(TARGET_AT, gateway),
    ]
    return program(conditions, last=OPTIONS_AT - 1, keep=FRAME_MAX + 1, ending=other_vlans(0))
