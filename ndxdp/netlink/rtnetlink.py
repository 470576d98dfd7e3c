"""Requests to rtnetlink, and their answers, as bytes.

Not by pyroute2's sockets: from 0.9 on each starts an event loop, and may not be used where another
runs. And the userspace path asks for every solicitation, in microseconds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any, Self

# linux/netlink.h
NLM_F_ACK, NLM_F_DUMP, NLM_F_CREATE = 0x4, 0x300, 0x400
_NLM_F_REQUEST, _NLM_F_DUMP_INTR = 0x1, 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12
_NLA_TYPE = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length, type
_ERRNO = struct.Struct("=i")  # of struct nlmsgerr
_PIECE = 65536  # bytes: the kernel makes no larger ones for a dump
_TRIES = 8  # of a dump that a change came in between


class Rtnetlink:
    """An open socket, of one thread. close() when done.

    protocol: another of netlink's that is spoken in the same way, as NETLINK_SOCK_DIAG.
    """

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        # A dump of one interface's addresses is that, and not everybody's.
        with contextlib.suppress(OSError):  # before Linux 4.20
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """The bodies of the answers; OSError with the kernel's errno for a refusal."""
        self._sequence += 1
        length = HEADER.size + len(body)
        header = HEADER.pack(length, kind, flags | _NLM_F_REQUEST, self._sequence, 0)
        return [message[HEADER.size :] for message in self.exchange(header + body)]

    def exchange(self, request: bytes) -> list[bytes]:
        """The same of a message that has its header, and of answers with theirs."""
        for _ in range(_TRIES):
            self._socket.send(request)
            answers = self._answers(request)
            if answers is not None:
                return answers
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    def _answers(self, request: bytes) -> list[bytes] | None:
        """None if something has changed while a dump was put together."""
        _, _, wanted, sequence, _ = HEADER.unpack_from(request)
        found: list[bytes] = []
        is_whole = True
        while True:
            for (_, kind, flags, of, _), message in records(self._socket.recv(_PIECE), HEADER):
                if of != sequence:
                    continue  # what was left when an earlier request was refused
                is_whole = is_whole and not flags & _NLM_F_DUMP_INTR
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    number = -_ERRNO.unpack_from(message, HEADER.size)[0]
                    if number:
                        raise OSError(number, os.strerror(number))
                    return found if is_whole else None
                found.append(message)
                if not wanted & (NLM_F_ACK | NLM_F_DUMP):
                    return found


def exchange(request: bytes) -> list[bytes]:
    """What the kernel answers to a message: each with its header, without the final one.

    request: with its header, whose flags ask for an acknowledgement or for a dump. OSError with
    the kernel's errno for a refusal.
    """
    with Rtnetlink() as kernel:
        return kernel.exchange(request)


def records(data: bytes, header: struct.Struct) -> Iterator[tuple[tuple[Any, ...], bytes]]:
    """What stands one after the other, padded to 4 bytes each: its header's fields, and all of it.

    The first field is the length. Messages, attributes and next hops are such.
    """
    at = 0
    while at + header.size <= len(data):
        fields = header.unpack_from(data, at)
        yield fields, data[at : at + fields[0]]
        at += max((fields[0] + 3) & ~3, header.size)


def attribute(kind: int, value: bytes) -> bytes:
    """A netlink attribute (struct rtattr), padded to 4 bytes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by their number; of several of one number the last."""
    return {kind & _NLA_TYPE: record[4:] for (_, kind), record in records(data, _ATTRIBUTE)}
