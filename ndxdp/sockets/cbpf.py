"""Classic BPF: programs that filter what a socket receives, and packet sockets to filter.

The kernel runs the program for each frame and keeps as many bytes as the program returns: 0 drops
the frame.
"""

from __future__ import annotations

import array
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ndxdp.errors import NdxdpError
from ndxdp.ndp.frame import ETH_P_IPV6, ETHERTYPE_AT, ICMPV6, NEXT_HEADER_AT, TYPE_AT

# linux/bpf_common.h and linux/filter.h: load a word, half-word or byte at a constant offset, mask,
# jump if equal, return. A load beyond the end of the frame ends the program, which returns 0.
LD_W, LD_H, LD_B = 0x20, 0x28, 0x30
JEQ, RET = 0x15, 0x06
AND = 0x54
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_ETH_P_ALL = 3  # linux/if_ether.h

PACKET_TYPE = 0xFFFFF000 + 4
"""Offset (SKF_AD_OFF + SKF_AD_PKTTYPE) of the packet type, PACKET_HOST and so on."""

VLAN_TAG = 0xFFFFF000 + 44
"""Offset (SKF_AD_OFF + SKF_AD_VLAN_TAG) of the priority and VLAN of a removed tag."""

VLAN_TAG_PRESENT = 0xFFFFF000 + 48
"""Offset (SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT) of 1 if a tag was removed from the frame."""


class Condition(NamedTuple):
    """A condition on a frame: a field of the frame has a value.

    Attributes:
        load: The field's size: LD_W, LD_H or LD_B.
        offset: The field's offset in bytes.
        value: The value, of a field in network byte order.
        mask: The bits to compare; 0 for all.
    """

    load: int
    offset: int
    value: int
    mask: int = 0


def icmpv6_conditions(icmp_type: int) -> list[Condition]:
    """Return the conditions for an ICMPv6 message of a type, without extension headers."""
    return [
        Condition(LD_H, ETHERTYPE_AT, ETH_P_IPV6),
        Condition(LD_B, NEXT_HEADER_AT, ICMPV6),
        Condition(LD_B, TYPE_AT, icmp_type),
    ]


def address_conditions(offset: int, address: bytes) -> list[Condition]:
    """Return the conditions for an address (16 bytes) at an offset."""
    return [Condition(LD_W, offset + at, word) for at, (word,) in _words(address)]


def _words(data: bytes) -> Iterable[tuple[int, tuple[int]]]:
    return ((at, struct.unpack_from("!I", data, at)) for at in range(0, len(data), 4))


def program(
    conditions: Iterable[Condition],
    *,
    last: int,
    keep: int,
    ending: Iterable[tuple[int, int, int, int]] = (),
) -> bytes:
    """Assemble the program that passes frames which meet all conditions and are long enough.

    Args:
        conditions: The conditions.
        last: The offset of a byte that the frame must have.
        keep: How many bytes of the frame to keep.
        ending: Instructions for assemble(), which run for such a frame. They may end the program;
            a frame for which they do not is kept.

    Returns:
        The program, as assemble() returns it.
    """
    ending = list(ending)
    code: list[tuple[int, bool, int]] = []  # operation, True if it may reject the frame, operand
    for condition in conditions:
        code.append((condition.load, False, condition.offset))
        if condition.mask:
            code.append((AND, False, condition.mask))
        code.append((JEQ, True, condition.value))
    code.append((LD_B, False, last))
    reject = len(code) + len(ending) + 1
    return assemble(
        [
            *(
                (operation, 0, reject - at - 1 if rejects else 0, operand)
                for at, (operation, rejects, operand) in enumerate(code)
            ),
            *ending,
            (RET, 0, 0, keep),
            (RET, 0, 0, 0),
        ]
    )


def assemble(code: Iterable[tuple[int, int, int, int]]) -> bytes:
    """Assemble a program.

    Args:
        code: The instructions: operation, how many instructions to skip if its comparison is true,
            how many to skip if it is false, and operand.

    Returns:
        8 bytes for each instruction (struct sock_filter), in the byte order of the host.
    """
    return b"".join(struct.pack("=HBBI", *each) for each in code)


def other_vlans(keep: int) -> list[tuple[int, int, int, int]]:
    """Return an `ending` for program() that treats frames of a VLAN differently.

    The kernel, or the NIC, removes a frame's tag before the program runs. A tag with VID 0 has only
    a priority: such a frame belongs to no VLAN.

    Args:
        keep: How many bytes to keep of a frame of a VLAN; 0 to drop it.
    """
    return [
        (LD_B, 0, 0, VLAN_TAG_PRESENT),
        (JEQ, 4, 0, 0),
        (LD_H, 0, 0, VLAN_TAG),
        (AND, 0, 0, 0x0FFF),
        (JEQ, 1, 0, 0),
        (RET, 0, 0, keep),
    ]


NOTHING = assemble([(RET, 0, 0, 0)])
"""The program that passes nothing."""


def attach_filter(opened: socket.socket, code: bytes) -> None:
    """Attach a classic BPF program to a socket as its filter, and replace the previous one.

    Args:
        opened: The socket.
        code: The program, as assemble() returns it.
    """
    attach_program(opened, socket.SOL_SOCKET, _SO_ATTACH_FILTER, code)


def attach_program(opened: socket.socket, level: int, option: int, code: bytes) -> None:
    """Give a socket a classic BPF program by setsockopt(2).

    Args:
        opened: The socket.
        level: The level of the option.
        option: An option that takes a struct sock_fprog.
        code: The program, as assemble() returns it.
    """
    # struct sock_fprog: number of instructions, their address
    instructions = array.array("B", code)
    address, size = instructions.buffer_info()
    opened.setsockopt(level, option, struct.pack("@HP", size // 8, address))


def packet_socket(purpose: str) -> socket.socket:
    """Open a packet socket without a protocol: it receives nothing until it is bound.

    Args:
        purpose: What the socket does, to complete the sentence of the error.

    Raises:
        NdxdpError: This process does not have CAP_NET_RAW.
    """
    try:
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except PermissionError:
        raise NdxdpError(
            f"this process may not open a packet socket, which {purpose}",
            "run this as root, or with CAP_NET_RAW too",
        ) from None


def filtered_packet_socket(purpose: str, ifindex: int, code: bytes) -> socket.socket:
    """Open a packet socket that receives what a filter passes of an interface's frames.

    It receives frames before a bridge takes those of its port.

    Args:
        purpose: As for packet_socket().
        ifindex: The interface.
        code: The filter, as assemble() returns it.

    Raises:
        NdxdpError: This process does not have CAP_NET_RAW.
        OSError: There is no such interface, or this process has too many open files.
    """
    opened = packet_socket(purpose)
    try:
        attach_filter(opened, code)
        opened.bind((socket.if_indextoname(ifindex), _ETH_P_ALL))
    except BaseException:
        opened.close()
        raise
    return opened


def frames_within(packets: socket.socket, size: int, seconds: float) -> Iterator[bytes]:
    """Yield the frames that a packet socket receives within so many seconds from now on.

    Args:
        packets: The socket.
        size: The most bytes to receive of a frame.
        seconds: The time, which includes that of the caller between two frames.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if not select.select([packets], [], [], left)[0]:
            return
        yield packets.recv(size)
