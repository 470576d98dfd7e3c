"""Packet sockets for Neighbor Discovery messages of one interface."""

from __future__ import annotations

import contextlib

from ndxdp.ndp.frame import (
    ETH_P_IPV6,
    ETHERTYPE_AT,
    HEADERS_LEN,
    ICMPV6,
    NEXT_HEADER_AT,
    TYPE_AT,
    TYPE_NA,
    TYPE_NS,
    TYPE_RA,
    TYPE_RS,
)
from ndxdp.sockets.cbpf import (
    AND,
    JEQ,
    LD_B,
    LD_H,
    PACKET_TYPE,
    RET,
    assemble,
    filtered_packet_socket,
    other_vlans,
)
from ndxdp.sockets.multicast import allmulti

_RECEIVE_MAX = 9216  # bytes: a router advertisement may fill the link's MTU
_BATCH = 64  # frames that one call of receive() returns at most
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23


SOLICITATIONS = (TYPE_NS,)
OTHERS = (TYPE_RS, TYPE_RA, TYPE_NA)
"""The types that each of an interface's two sockets receives.

A scan of the prefix fills the queue of the solicitations. Neither advertisements nor router
messages are lost by it.
"""


class DiscoverySocket:
    """A packet socket that receives some types of Neighbor Discovery messages of one interface.

    Frames begin with the Ethernet header, and have neither FCS nor VLAN tag. Those of other VLANs,
    and those of this host, are left out.
    """

    def __init__(
        self,
        ifindex: int,
        types: tuple[int, ...],
        *,
        purpose: str = "learns the hosts of a share",
        every_group: bool = True,
    ) -> None:
        """Open a socket.

        Args:
            ifindex: The interface.
            types: The ICMPv6 types to receive.
            purpose: What the socket does, to complete the sentence of the error.
            every_group: Put the interface into allmulti while the socket is open. Otherwise the
                socket receives the messages to groups that somebody on the host has joined.

        Raises:
            NdxdpError: The process lacks CAP_NET_RAW.
            OSError: There is no such interface.
        """
        self._socket = filtered_packet_socket(purpose, ifindex, discovery_filter(types))
        try:
            with contextlib.suppress(OSError):  # before Linux 4.20; the filter leaves them out, too
                self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            if every_group:
                allmulti(self._socket, ifindex)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, which is readable when a frame waits."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def is_bound(self) -> bool:
        """Return False if the interface has disappeared, even if it is back since.

        The kernel unbinds the socket of an interface that is deleted or moved to another namespace;
        the interface may return with the same index.
        """
        return bool(self._socket.getsockname()[0])

    def receive(self) -> list[bytes]:
        """Return the frames that wait, at most 64 of them.

        Raises:
            OSError: The interface went down or was deleted.
        """
        frames: list[bytes] = []
        while len(frames) < _BATCH:
            try:
                frames.append(self._socket.recv(_RECEIVE_MAX))
            except BlockingIOError:
                break
        return frames

    def send(self, frame: bytes) -> None:
        """Send a frame.

        Raises:
            OSError: The interface refused it: it is down, or its queue is full.
        """
        self._socket.send(frame)


def discovery_filter(types: tuple[int, ...]) -> bytes:
    """Return the classic BPF program that passes these ICMPv6 types, as assemble() returns it."""
    ending = other_vlans(0)
    # Operation, operand, and whether to reject the frame unless they are equal.
    head = [
        (LD_H, ETHERTYPE_AT, False),
        (JEQ, ETH_P_IPV6, True),
        (LD_B, NEXT_HEADER_AT, False),
        (JEQ, ICMPV6, True),
        (LD_B, PACKET_TYPE, False),
        (AND, 4, False),  # PACKET_OUTGOING or PACKET_LOOPBACK
        (JEQ, 0, True),
        (LD_B, HEADERS_LEN - 1, False),  # a shorter frame ends here
        (LD_B, TYPE_AT, False),
    ]
    accept = len(head) + len(types)
    reject = accept + len(ending) + 1
    code = [
        (operation, 0, reject - at - 1 if rejects else 0, operand)
        for at, (operation, operand, rejects) in enumerate(head)
    ]
    for at, each in enumerate(types, len(head)):
        is_last = at == accept - 1
        code.append((JEQ, accept - at - 1, reject - at - 1 if is_last else 0, each))
    return assemble([*code, *ending, (RET, 0, 0, _RECEIVE_MAX), (RET, 0, 0, 0)])
