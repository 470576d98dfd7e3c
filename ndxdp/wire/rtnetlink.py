"""Requests to rtnetlink, and their answers, as bytes.

A socket for each, and no event loop: pyroute2's own, from 0.9 on, starts one for every socket,
and may not be used where another runs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ERRNO = struct.Struct("=i")  # of struct nlmsgerr
_PIECE = 65536  # bytes: the kernel makes no larger ones for a dump

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_DUMP_INTR = 0x10
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12

_TRIES = 8  # of a dump that a change came in between


def exchange(request: bytes) -> list[bytes]:
    """What the kernel answers to a message: each with its header, without the final one.

    request: with its header, whose flags ask for an acknowledgement or for a dump. OSError with
    the kernel's errno for a refusal.
    """
    for _ in range(_TRIES):
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
            # A dump of one interface's addresses is that, and not everybody's.
            with contextlib.suppress(OSError):  # before Linux 4.20
                kernel.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
            kernel.send(request)
            found, is_whole = _answer(kernel)
        if is_whole:
            return found
    raise OSError(errno.EINTR, os.strerror(errno.EINTR))


def _answer(kernel: socket.socket) -> tuple[list[bytes], bool]:
    """The messages, and whether nothing has changed while they were put together."""
    found: list[bytes] = []
    is_whole = True
    while True:
        data, at = kernel.recv(_PIECE), 0
        while at + _HEADER.size <= len(data):
            length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
            is_whole = is_whole and not flags & _NLM_F_DUMP_INTR
            if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                number = -_ERRNO.unpack_from(data, at + _HEADER.size)[0]
                if number:
                    raise OSError(number, os.strerror(number))
                return found, is_whole
            found.append(data[at : at + length])
            at += max((length + 3) & ~3, _HEADER.size)
