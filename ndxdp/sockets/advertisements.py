"""Packet sockets that receive Neighbor Advertisements of one kind: solicited, or unsolicited."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from ndxdp.ndp.frame import FLAGS_AT, FRAME_MAX, OPTIONS_AT, SOLICITED, TYPE_NA
from ndxdp.sockets.cbpf import (
    LD_B,
    Condition,
    filtered_packet_socket,
    icmpv6_conditions,
    other_vlans,
    program,
)

FRAMES_AT_ONCE = 64
"""Frames that are received before other tasks of the event loop run."""


def advertisement_socket(purpose: str, ifindex: int, *, solicited: bool) -> socket.socket:
    """Return a socket for the advertisements, outside of VLANs, that arrive on an interface.

    Args:
        purpose: What the socket is for, for the error.
        ifindex: The interface.
        solicited: The S flag of the advertisements.

    Raises:
        NdxdpError: The process lacks CAP_NET_RAW.
        OSError: There is no such interface, or too many files are open.
    """
    conditions = [
        *icmpv6_conditions(TYPE_NA),
        Condition(LD_B, FLAGS_AT, SOLICITED if solicited else 0, mask=SOLICITED),
    ]
    code = program(conditions, last=OPTIONS_AT - 1, keep=FRAME_MAX + 1, ending=other_vlans(0))
    return filtered_packet_socket(purpose, ifindex, code)


def waiting_frames(opened: socket.socket) -> Iterator[bytes]:
    """Yield the frames that have arrived, FRAMES_AT_ONCE at most.

    A frame that is longer than FRAME_MAX is cut one byte behind that.
    """
    for _ in range(FRAMES_AT_ONCE):
        try:
            frame = opened.recv(FRAME_MAX + 1)
        except BlockingIOError:
            return
        except OSError:  # The socket returns one error when the link goes down.
            continue
        yield frame
