"""Requests to rtnetlink and their answers, as bytes.

pyroute2's sockets are not used: since version 0.9 each starts an event loop and cannot be used
where another loop runs. They are also too slow for the userspace path, which sends requests for
every solicitation.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from ndxdp.errors import NdxdpError, is_exhausted

# linux/netlink.h
NLM_F_ACK, NLM_F_DUMP, NLM_F_CREATE = 0x4, 0x300, 0x400
_NLM_F_REQUEST, _NLM_F_DUMP_INTR = 0x1, 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12
RTM_GETLINK = 18  # linux/rtnetlink.h
LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: the index is the third field
_NLA_TYPE = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length, type
_ERRNO = struct.Struct("=i")  # of struct nlmsgerr
WITHOUT_STATISTICS = _ATTRIBUTE.pack(8, 29) + struct.pack("=I", 1 << 3)
"""The attribute of a request for links, IFLA_EXT_MASK, that leaves out their statistics, which are
half of an answer (RTEXT_FILTER_SKIP_STATS)."""
_PIECE = 65536  # bytes; the kernel sends no larger messages in a dump
_TRIES = 8  # attempts at a dump that changes interrupt


class Receiver:
    """Receives the messages of a netlink socket into one buffer.

    The bytes object that recv() makes first is so large that malloc maps memory for it, and unmaps
    it afterwards: that takes longer than an answer of the kernel.
    """

    def __init__(self, receiving: socket.socket) -> None:
        """Make a buffer for a socket."""
        self._socket, self._buffer = receiving, memoryview(bytearray(_PIECE))

    def receive(self) -> bytes:
        """Return one or more messages; raise OSError as recv() does."""
        return bytes(self._buffer[: self._socket.recv_into(self._buffer)])


class Rtnetlink:
    """An open netlink socket for use by one thread; close() it after use."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        """Open a socket; protocol: rtnetlink, or one with the same rules (NETLINK_SOCK_DIAG)."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        # With strict checking, a dump of one interface's addresses has no others.
        with contextlib.suppress(OSError):  # before Linux 4.20
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        self._receive = Receiver(self._socket).receive
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Send a request and return the bodies of the answers.

        Args:
            kind: The message type.
            flags: NLM_F_ACK or NLM_F_DUMP, and others.
            body: The message without its nlmsghdr.

        Raises:
            OSError: The kernel refused the request; the errno is the kernel's.
        """
        self._sequence += 1
        length = HEADER.size + len(body)
        header = HEADER.pack(length, kind, flags | _NLM_F_REQUEST, self._sequence, 0)
        return [message[HEADER.size :] for message in self.exchange(header + body)]

    def first(self, kind: int, body: bytes) -> bytes:
        """Ask for a dump and return the body of its first message; then close() the socket.

        Raises:
            OSError: The kernel refused the request, or the dump is empty.
        """
        length = HEADER.size + len(body)
        flags = NLM_F_DUMP | _NLM_F_REQUEST
        self._socket.send(HEADER.pack(length, kind, flags, 1, 0) + body)
        for (_, found, *_), message in records(self._receive(), HEADER):
            if found not in (_NLMSG_ERROR, _NLMSG_DONE):
                return message[HEADER.size :]
            break
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def exchange(self, request: bytes) -> list[bytes]:
        """Send a request with its nlmsghdr and return the answers with theirs; see ask()."""
        for _ in range(_TRIES):
            self._socket.send(request)
            answers, is_whole = self._answers(request)
            if is_whole:
                return answers
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    def gather(self, kind: int, body: bytes) -> list[bytes]:
        """Ask for a dump and return the answers with their nlmsghdr.

        If changes keep interrupting the dump, each of which may hide an entry, return the answers
        of all attempts, the latest last.

        Args:
            kind: The message type.
            body: The message without its nlmsghdr.

        Raises:
            OSError: The kernel refused the request; the errno is the kernel's.
        """
        found: list[bytes] = []
        for _ in range(_TRIES):
            self._sequence += 1
            length = HEADER.size + len(body)
            header = HEADER.pack(length, kind, NLM_F_DUMP | _NLM_F_REQUEST, self._sequence, 0)
            self._socket.send(header + body)
            answers, is_whole = self._answers(header)
            found += answers
            if is_whole:
                return answers
        return found

    def _answers(self, request: bytes) -> tuple[list[bytes], bool]:
        """Return the answers, and False if a change interrupted the dump."""
        _, _, wanted, sequence, _ = HEADER.unpack_from(request)
        found: list[bytes] = []
        is_whole = True
        while True:
            for (_, kind, flags, of, _), message in records(self._receive(), HEADER):
                if of != sequence:
                    continue  # an answer to an earlier request that failed
                is_whole = is_whole and not flags & _NLM_F_DUMP_INTR
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    number = -_ERRNO.unpack_from(message, HEADER.size)[0]
                    if number:
                        raise OSError(number, os.strerror(number))
                    return found, is_whole
                found.append(message)
                if not wanted & (NLM_F_ACK | NLM_F_DUMP):
                    return found, True


def exchange(request: bytes) -> list[bytes]:
    """Send one request and return the answers with their headers, except the final message.

    Args:
        request: The message with its nlmsghdr, whose flags ask for an acknowledgement or a dump.

    Raises:
        OSError: The kernel refused the request; the errno is the kernel's.
    """
    with Rtnetlink() as kernel:
        return kernel.exchange(request)


class LinkAnswer(NamedTuple):
    """The kernel's answer about a link.

    Attributes:
        ifindex: The index.
        type: ARPHRD_*.
        flags: IFF_*.
        attributes: The attributes (IFLA_*).
    """

    ifindex: int
    type: int
    flags: int
    attributes: dict[int, bytes]


def ask_link(ifindex: int = 0, more: bytes = b"") -> LinkAnswer:
    """Return the kernel's answer about one link, without statistics.

    Args:
        ifindex: The link; 0 if an attribute names it.
        more: Attributes of the request.

    Raises:
        OSError: The kernel refused the request; ENODEV for a link that does not exist.
    """
    body = LINK.pack(0, 0, ifindex, 0, 0) + more + WITHOUT_STATISTICS
    with Rtnetlink() as kernel:
        (answer,) = kernel.ask(RTM_GETLINK, 0, body)
    _, kind, found, flags, _ = LINK.unpack_from(answer)
    return LinkAnswer(found, kind, flags, attributes(answer[LINK.size :]))


def number_of(value: bytes | None) -> int:
    """Return an attribute of one or of four bytes as a number; 0 without it."""
    return int.from_bytes(value or b"", sys.byteorder)


def text_of(value: bytes | None) -> str:
    """Return an attribute that is a name, which ends with zeros; "" without it."""
    return (value or b"").rstrip(b"\0").decode(errors="replace")


def records(data: bytes, header: struct.Struct) -> Iterator[tuple[tuple[Any, ...], bytes]]:
    """Yield header fields and bytes of consecutive records, each padded to 4 bytes.

    The first field of the header is the record's length. Messages, attributes and next hops are
    such records.
    """
    at = 0
    while at + header.size <= len(data):
        fields = header.unpack_from(data, at)
        yield fields, data[at : at + fields[0]]
        at += max((fields[0] + 3) & ~3, header.size)


def each_attribute(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Yield number and value of each attribute from an offset on; several may have one number."""
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _NLA_TYPE, data[at + 4 : at + length]
        at += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """Build a netlink attribute (struct rtattr), padded to 4 bytes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes by number; the last of several with one number wins."""
    # Written out, because userspace mode reads a route's ten attributes for a solicitation.
    found: dict[int, bytes] = {}
    at, last = 0, len(data) - _ATTRIBUTE.size
    while at <= last:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        found[kind & _NLA_TYPE] = data[at + 4 : at + length]
        at += (length + 3) & ~3 or _ATTRIBUTE.size
    return found


@contextlib.contextmanager
def netlink_errors() -> Iterator[None]:
    """Turn unexpected netlink errors of a block into NdxdpError, except for exhausted resources."""
    try:
        yield
    except OSError as error:
        if is_exhausted(error):
            raise
        raise NdxdpError(
            f"netlink error: {error.strerror}", "try again: an interface may have just changed"
        ) from error
