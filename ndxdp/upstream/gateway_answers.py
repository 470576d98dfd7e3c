"""The gateways' answers to solicitations from announced addresses.

A gateway sends its answer to the announced address, which the host itself does not have. The kernel
forwards or drops such an answer, so only a packet socket receives it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Container, Iterable, Iterator

from ndxdp.errors import NdxdpError
from ndxdp.ndp.message import Fault, is_sent_to, parse_advertisement
from ndxdp.sockets.advertisements import advertisement_socket, waiting_frames


class GatewayAnswers:
    """The record of which gateways have answered which addresses, and its packet socket.

    For use by the event loop's thread only.

    Attributes:
        mac: The interface's MAC (6 bytes), to which the gateways answer.
    """

    def __init__(
        self, ifindex: int, mac: bytes, gateways: tuple[bytes, ...], addresses: Container[bytes]
    ) -> None:
        """Create an empty record; listen() opens the socket.

        Args:
            ifindex: The interface.
            mac: Its MAC (6 bytes).
            gateways: The gateways' addresses (16 bytes each).
            addresses: The addresses (16 bytes each) whose answers are recorded. The caller may
                change this container, and calls forget() for removed addresses.
        """
        self.mac = mac
        self._ifindex, self._gateways, self._addresses = ifindex, gateways, addresses
        # For each address, bit i is set if gateway _gateways[i] has answered.
        self._answered: dict[bytes, int] = {}
        self._socket: socket.socket | None = None

    @property
    def is_listening(self) -> bool:
        """True if the socket is open, so that an answer would be recorded."""
        return self._socket is not None

    @property
    def gateways(self) -> tuple[bytes, ...]:
        """The gateways' addresses. Setting other ones clears the record."""
        return self._gateways

    @gateways.setter
    def gateways(self, gateways: tuple[bytes, ...]) -> None:
        if gateways != self._gateways:
            self._gateways = gateways
            self._answered.clear()

    def unanswered(self, address: bytes) -> Iterator[bytes]:
        """Yield the gateways that have not answered an address."""
        answered = self._answered.get(address, 0)
        for number, gateway in enumerate(self._gateways):
            if not answered >> number & 1:
                yield gateway

    def forget(self, addresses: Iterable[bytes]) -> None:
        """Delete the answers to some addresses."""
        if self._answered:
            for address in self._answered.keys() & frozenset(addresses):
                del self._answered[address]

    def clear(self) -> None:
        """Delete all answers."""
        self._answered.clear()

    def listen(self) -> None:
        """Open the socket, unless it is open or cannot be opened; see is_listening."""
        if self._socket is not None:
            return
        purpose = "receives the gateways' answers"
        try:
            opened = advertisement_socket(purpose, self._ifindex, solicited=True)
        except (NdxdpError, OSError):  # for example: too many open files
            return
        asyncio.get_running_loop().add_reader(opened.fileno(), self._receive)
        self._socket = opened

    def stop(self) -> None:
        """Close the socket, and delete all answers.

        While the socket is open, the kernel runs its filter for every frame of the interface.
        """
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._answered.clear()

    def _receive(self) -> None:
        """Record the answers that have arrived."""
        assert self._socket is not None
        for frame in waiting_frames(self._socket):
            answer = parse_advertisement(frame)
            if isinstance(answer, Fault) or answer.target not in self._gateways:
                continue
            if not is_sent_to(answer, self.mac):
                continue
            address = answer.destination
            if address in self._addresses:
                bit = 1 << self._gateways.index(answer.target)
                self._answered[address] = self._answered.get(address, 0) | bit
