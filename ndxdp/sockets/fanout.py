"""Packet sockets that share what arrives: the frames of one soliciting MAC are in one queue.

So a neighbour that fills a queue fills its own. Which one that is, the kernel finds by a classic
BPF program that hashes the Ethernet source with random numbers, so that nobody can choose a MAC
that meets another one.
"""

from __future__ import annotations

import os
import socket
import struct

from ndxdp.sockets.cbpf import LD_H, LD_W, assemble, attach_program

# linux/if_packet.h
_SOL_PACKET = 263

_PACKET_FANOUT, _PACKET_FANOUT_DATA = 18, 22

_CBPF = 6

_UNIQUE_ID, _IGNORE_OUTGOING = 0x2000, 0x4000

# linux/bpf_common.h
_MUL, _RSH, _ADD_X, _XOR_X, _TAX, _RET_A = 0x24, 0x74, 0x0C, 0xAC, 0x07, 0x16

_LINK_LAYER = 0xFFE00000
"""SKF_LL_OFF: the Ethernet header. A fan-out's offset 0 is behind it, a socket filter's is not."""

SOCKETS = 16
"""A power of two. The more there are, the seldomer two neighbours share a queue."""


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
    """A fan-out group of this network namespace. It ends with the last of its sockets.

    Until spread() the first socket gets everything, so that no frame is lost while others join.
    """

    def __init__(self, first: socket.socket) -> None:
        """first: bound, as all the others are to be. OSError if the kernel has no such groups."""
        # UNIQUEID: ids are everybody's in this namespace, and the kernel finds a free one.
        _join(first, _CBPF | _IGNORE_OUTGOING | _UNIQUE_ID, 0)
        self._first = first
        self._id = first.getsockopt(_SOL_PACKET, _PACKET_FANOUT) & 0xFFFF

    def join(self, another: socket.socket) -> None:
        """Add a socket to the group.

        Args:
            another: A bound socket whose filter is NOTHING. With another filter it would receive a
                copy of each frame until it has joined.
        """
        _join(another, _CBPF | _IGNORE_OUTGOING, self._id)

    def spread(self) -> None:
        """Distribute the frames over all sockets, by a hash with new random numbers."""
        attach_program(self._first, _SOL_PACKET, _PACKET_FANOUT_DATA, by_source_mac(os.urandom(12)))


def _join(joining: socket.socket, kind: int, number: int) -> None:
    # struct fanout_args: as an int, the kind is in its upper half whatever the byte order.
    joining.setsockopt(_SOL_PACKET, _PACKET_FANOUT, struct.pack("=I", kind << 16 | number))
