"""Packet sockets that are read at a bounded rate, and those of a share's interface."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ndxdp.pace import Pace
from ndxdp.resting_reader import RestingReader
from ndxdp.sockets.discovery import OTHERS, SOLICITATIONS, DiscoverySocket

log = logging.getLogger(__name__)

_RATE = 2000.0
"""Frames per second that are read of one socket. A flood fills the queue, and takes a bounded part
of a CPU: some 40 µs for each frame."""

_BURST = 500  # frames that are read at once after a quiet time

_PAUSE = 0.05  # seconds for which a socket in a flood is not read


OnFrames = Callable[[int, list[bytes]], None]
"""Takes the index of an interface and the frames that have come by it."""


class PacedReader:
    """Reads one socket in an event loop, and rests when frames come faster than _RATE."""

    def __init__(self, socket: DiscoverySocket, on_frames: Callable[[list[bytes]], None]) -> None:
        """Begin to read.

        Args:
            socket: The socket, which close() closes.
            on_frames: Takes the frames that have come.
        """
        self._socket, self._on_frames = socket, on_frames
        self._pace = Pace(_RATE, _BURST, asyncio.get_running_loop().time)
        self._reader = RestingReader(socket.fileno(), self._read, _PAUSE)

    def close(self) -> None:
        """Stop reading, and close the socket."""
        self._reader.close()
        self._socket.close()

    def _read(self) -> bool:
        if self._pace.delay():
            return True
        try:
            frames = self._socket.receive()
        except OSError as error:  # the interface went down: it says so once
            log.debug("cannot receive: %s", error)
            return False
        self._pace.charge(len(frames))
        if frames:
            self._on_frames(frames)
        return False


class LinkSockets:
    """The two sockets of an interface: solicitations have a queue of their own."""

    def __init__(self, ifindex: int, on_frames: OnFrames) -> None:
        """Open the sockets, and begin to read.

        Args:
            ifindex: The interface.
            on_frames: Takes the interface and the frames that have come by it.

        Raises:
            NdxdpError: The process lacks CAP_NET_RAW.
            OSError: There is no such interface.
        """
        self._sender = DiscoverySocket(ifindex, OTHERS)
        try:
            solicitations = DiscoverySocket(ifindex, SOLICITATIONS)
        except BaseException:
            self._sender.close()
            raise
        self._readers = [
            PacedReader(each, lambda frames: on_frames(ifindex, frames))
            for each in (self._sender, solicitations)
        ]

    def close(self) -> None:
        """Close both sockets."""
        for reader in self._readers:
            reader.close()

    def is_bound(self) -> bool:
        """Return False if the interface has disappeared, even if it is back since."""
        return self._sender.is_bound()

    def send(self, frame: bytes) -> bool:
        """Send a frame; return False if the interface refused it."""
        try:
            self._sender.send(frame)
        except OSError as error:
            log.debug("cannot send: %s", error)
            return False
        return True
