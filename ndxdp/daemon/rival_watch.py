"""The watch for rivals on an uplink: a packet socket for the advertisements of other nodes.

Hosts that take over an address announce it to all nodes, so every host of the link hears them.
Nodes that are no members of the segment are probed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Self

from ndxdp.daemon.share_sockets import PacedReader
from ndxdp.errors import NdxdpError
from ndxdp.fleet.rival_probes import RivalProbes
from ndxdp.fleet.rivals import Rival, Rivals
from ndxdp.ndp.frame import TYPE_NA
from ndxdp.ndp.message import NONCE_LEN, probe
from ndxdp.pace import Pace
from ndxdp.rules.address import address_text, mac_text
from ndxdp.rules.ruleset import Rules
from ndxdp.sockets.discovery import DiscoverySocket

log = logging.getLogger(__name__)

_LINES_RATE, _LINES_BURST = 1 / 60, 10
"""Lines in the log per second, and at once: a node may forge any number of MACs."""

_PROBE_RATE, _PROBE_BURST = 10.0, 10
"""Probes per second, and at once."""

_RETRY = 30.0  # seconds until a socket that could not be opened is tried again


class RivalWatch:
    """Counts the advertisements of other MACs for addresses that this host answers for.

    A socket is open only while this host answers for shared addresses. It is read at a bounded
    rate: in a flood, advertisements are lost, and the count is too small. Each single address is
    probed 2 s after it is new here, and every 10 minutes; wider prefixes are not. For use by the
    event loop's thread only, except for `count` and seen().

        with RivalWatch("eth0", ifindex, lambda: link.mac) as watch:
            watch.hold(leased)    # at each change
    """

    def __init__(
        self,
        interface: str,
        ifindex: int,
        own_mac: Callable[[], bytes],
        clock: Callable[[], float] = time.monotonic,
        may_answer: Callable[[], bool] = lambda: True,
        on_rival: Callable[[], None] = lambda: None,
    ) -> None:
        """Watch nothing until hold().

        Args:
            interface: The name of the uplink, for the log.
            ifindex: The uplink.
            own_mac: Returns the MAC (6 bytes) that this host answers with there.
            clock: Returns the time in seconds, monotonic.
            may_answer: Returns False once this host's lease has lapsed. After this process was
                stopped, advertisements of the next holder may have waited for it.
            on_rival: Called when the log has named a rival.
        """
        self._may_answer, self._on_rival = may_answer, on_rival
        self._interface, self._ifindex, self._own_mac = interface, ifindex, own_mac
        self._rivals, self._probes, self._clock = Rivals(clock), RivalProbes(), clock
        self._probe_pace = Pace(_PROBE_RATE, _PROBE_BURST, clock)
        self._probing: asyncio.TimerHandle | None = None
        self._lines, self._left_out = Pace(_LINES_RATE, _LINES_BURST, clock), 0
        self._socket: DiscoverySocket | None = None
        self._reader: PacedReader | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._has_failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch nothing more; the count stays."""
        self.hold(Rules())

    @property
    def count(self) -> int:
        """The advertisements of other MACs so far."""
        return self._rivals.count

    def seen(self, most: int = 20) -> list[Rival]:
        """Return the rivals that were seen last, the latest first."""
        return self._rivals.seen(most)

    def hold(self, leased: Rules) -> None:
        """Take the leased rules that this host answers by now on the uplink.

        For a second after a prefix is new here, advertisements of its former holder are not
        counted. A socket that cannot be opened is tried again every 30 s.
        """
        new, gone = self._rivals.hold(leased)
        self._probes.remove(gone)
        self._probes.add(new, self._clock())
        self._follow()

    def _follow(self) -> None:
        """Have a socket if something is held, and none otherwise."""
        if not self._rivals.holds_any:
            self._stop()
        elif self._socket is None or not self._socket.is_bound():
            self._stop()
            self._start()
        else:
            self._probe_when_due()

    def _start(self) -> None:
        try:
            self._socket = DiscoverySocket(
                self._ifindex,
                (TYPE_NA,),
                purpose="notices that two hosts answer for a shared address",
                every_group=False,
            )
        except (NdxdpError, OSError) as error:
            if not self._has_failed:
                log.warning(
                    "%s: cannot notice that two hosts answer for a shared address: %s",
                    self._interface,
                    error.strerror if isinstance(error, OSError) else error,
                )
            self._has_failed = True
            self._retry = asyncio.get_running_loop().call_later(_RETRY, self._follow)
            return
        self._has_failed = False
        self._reader = PacedReader(self._socket, self._on_frames)
        self._probe_when_due()

    def _stop(self) -> None:
        for timer in (self._retry, self._probing):
            if timer is not None:
                timer.cancel()
        if self._reader is not None:
            self._reader.close()  # closes the socket, too
        self._socket = self._reader = self._retry = self._probing = None

    def _probe_when_due(self) -> None:
        """Send the probes that are due, and wait for the next one."""
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None
        if self._socket is None:
            return
        while not self._probe_pace.delay() and (address := self._probes.take(self._clock())):
            self._probe_pace.charge()
            with contextlib.suppress(OSError):  # the link is down, or its queue is full
                self._socket.send(probe(self._own_mac(), address, os.urandom(NONCE_LEN)))
        due = self._probes.due()
        if due is not None:
            wait = max(due - self._clock(), self._probe_pace.delay())
            loop = asyncio.get_running_loop()
            self._probing = loop.call_later(wait, self._probe_when_due)

    def _on_frames(self, frames: list[bytes]) -> None:
        if not self._may_answer():
            return
        own_mac = self._own_mac()
        for frame in frames:
            found = self._rivals.see(frame, own_mac)
            if found and found[1]:
                self._report(found[0])

    def _report(self, rival: Rival) -> None:
        if self._lines.delay():
            self._left_out += 1
            return
        self._lines.charge()
        self._on_rival()
        log.warning(
            "%s: %s answers for %s, too, which this host answers for: two hosts have the address",
            self._interface,
            mac_text(rival.mac),
            address_text(rival.address),
        )
        if self._left_out:
            log.warning("%s: %d more rivals were left out", self._interface, self._left_out)
            self._left_out = 0
