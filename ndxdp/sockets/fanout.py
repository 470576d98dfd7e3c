"""A fan-out group of packet sockets, in which each source MAC has one queue.

A neighbour that floods the host fills only its own queue. The kernel chooses the queue by a classic
BPF program, which hashes the source MAC with random numbers. So a neighbour cannot choose a MAC
that has the same queue as another neighbour's.
"""

from __future__ import annotations

import os
import socket
import struct

from ndxdp.sockets.cbpf import LD_H, LD_W, assemble, attach_program

# linux/if_packet.h: PACKET_FANOUT_CBPF, PACKET_FANOUT_FLAG_*
_SOL_PACKET = 263
_PACKET_FANOUT, _PACKET_FANOUT_DATA = 18, 22
_CBPF = 6
_UNIQUE_ID, _IGNORE_OUTGOING = 0x2000, 0x4000

# linux/bpf_common.h
_MUL, _RSH, _ADD_X, _XOR_X, _TAX, _RET_A = 0x24, 0x74, 0x0C, 0xAC, 0x07, 0x16

_LINK_LAYER = 0xFFE00000
"""Offset of the Ethernet header (SKF_LL_OFF).

In a fan-out program, unlike in a socket filter, offset 0 is after the Ethernet header.
"""

SOCKETS = 16
"""Sockets of a group, a power of two. With more of them, fewer neighbours share a queue."""


def by_source_mac(salt: bytes) -> bytes:
    """Return the classic BPF program that hashes a frame's source MAC to a number below SOCKETS.

    The kernel uses the number modulo the sockets of the group. The first two multiplications hash
    the two halves of the MAC; the upper bits of a product with an odd number are the well-mixed
    ones. The third separates consecutive MACs, of which many would otherwise share a queue.

    Args:
        salt: 12 random bytes, which keep others from choosing MACs with the same hash.
    """
    first, second, third = (number | 1 for number in struct.unpack("=3I", salt))
    return assemble(
        [
            (LD_W, 0, 0, _LINK_LAYER + 6),
            (_MUL, 0, 0, first),
            (_TAX, 0, 0, 0),
            (LD_H, 0, 0, _LINK_LAYER + 10),
            (_MUL, 0, 0, second),
            (_ADD_X, 0, 0, 0),
            (_TAX, 0, 0, 0),
            (_RSH, 0, 0, 15),
            (_XOR_X, 0, 0, 0),
            (_MUL, 0, 0, third),
            (_RSH, 0, 0, 32 - (SOCKETS - 1).bit_length()),
            (_RET_A, 0, 0, 0),
        ]
    )


class FanoutSet:
    """A fan-out group; it exists until its last socket is closed.

    Until spread(), the first socket receives all frames, so that no frame is lost while other
    sockets join.
    """

    def __init__(self, first: socket.socket) -> None:
        """Create a group of one socket.

        Args:
            first: The first socket. All sockets of the group are bound to the same interface and
                protocol.

        Raises:
            OSError: The kernel has no fan-out groups.
        """
        # With FLAG_UNIQUEID, the kernel chooses an id that no process of this namespace uses.
        _join(first, _CBPF | _IGNORE_OUTGOING | _UNIQUE_ID, 0)
        self._first = first
        self._id = first.getsockopt(_SOL_PACKET, _PACKET_FANOUT) & 0xFFFF

    def join(self, another: socket.socket) -> None:
        """Add a socket to the group.

        Args:
            another: A bound socket whose filter is NOTHING. With another filter, it would receive
                a copy of each frame until it has joined.
        """
        _join(another, _CBPF | _IGNORE_OUTGOING, self._id)

    def spread(self) -> None:
        """Distribute the frames over all sockets, by a hash with new random numbers."""
        attach_program(self._first, _SOL_PACKET, _PACKET_FANOUT_DATA, by_source_mac(os.urandom(12)))


def _join(joining: socket.socket, kind: int, number: int) -> None:
    # The option's value is an int with the kind in its upper half, in any byte order.
    joining.setsockopt(_SOL_PACKET, _PACKET_FANOUT, struct.pack("=I", kind << 16 | number))
