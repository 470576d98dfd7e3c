"""Packet sockets that receive nothing yet, and classic BPF, which says what they do receive."""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from ndxdp.errors import NdxdpError
from ndxdp.ndp.frame import ETH_P_IPV6, ETHERTYPE_AT, ICMPV6, NEXT_HEADER_AT, TYPE_AT

# linux/bpf_common.h and linux/filter.h: load a word, half-word or byte at a constant offset, mask,
# jump if equal, return. A load from beyond the frame's end returns 0.
LD_W, LD_H, LD_B = 0x20, 0x28, 0x30
JEQ, RET = 0x15, 0x06
AND = 0x54
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h

PACKET_TYPE = 0xFFFFF000 + 4
"""Offset (SKF_AD_OFF + SKF_AD_PKTTYPE) of whom the frame is for: PACKET_HOST and so on."""

VLAN_TAG = 0xFFFFF000 + 44
"""Offset (SKF_AD_OFF + SKF_AD_VLAN_TAG) of that tag's priority and VLAN."""

VLAN_TAG_PRESENT = 0xFFFFF000 + 48
"""Offset (SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT) of 1 where a tag was taken off the frame."""


class Condition(NamedTuple):
    """Passes what has `value` at `offset`, in network byte order. mask: which bits; 0 for all."""

    load: int
    offset: int
    value: int
    mask: int = 0


def icmpv6_conditions(icmp_type: int) -> list[Condition]:
    """Return the conditions for an ICMPv6 message of a type, behind the IPv6 header at once."""
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
    """Assemble the program that passes what meets all conditions and has a byte at offset `last`.

    Args:
        conditions: What a frame must meet.
        last: The offset of the byte that it must have.
        keep: The bytes that are kept of it.
        ending: Instructions, as assemble() takes them, to be run on such a frame. One that runs
            past the last of them is kept.

    Returns:
        8 bytes an instruction (struct sock_filter).
    """
    ending = list(ending)
    code: list[tuple[int, bool, int]] = []  # operation, whether it may reject, operand
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
    """Instructions: operation, how many to skip if it is true, and if it is not, operand."""
    return b"".join(struct.pack("=HBBI", *each) for each in code)


def other_vlans(keep: int) -> list[tuple[int, int, int, int]]:
    """Make an `ending` for program() that keeps other bytes of a frame with the tag of a VLAN.

    The tag is one that the NIC or the kernel took off the frame. A tag without a VLAN (VID 0) says
    no more than a priority.

    Args:
        keep: The bytes of such a frame, 0 to drop it.
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
