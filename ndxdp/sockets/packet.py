"""Packet sockets that receive solicitations and send advertisements, in batches.

Python's socket module lacks recvmmsg() and sendmmsg(), so both are called in the C library. A batch
of 64 frames takes two system calls; with one call for each frame, throughput is a quarter lower.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import mmap
import os
import select
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int, c_size_t, c_uint, c_void_p

from ndxdp.errors import ModeUnavailable
from ndxdp.ndp.frame import HEADERS_LEN, NA_FRAME_LEN, OTHER_VLAN_LEN, TYPE_NS, VERSION_AT
from ndxdp.sockets.cbpf import (
    LD_B,
    NOTHING,
    PACKET_TYPE,
    Condition,
    attach_filter,
    icmpv6_conditions,
    other_vlans,
    program,
)
from ndxdp.sockets.fanout import SOCKETS, FanoutSet
from ndxdp.sockets.multicast import allmulti

log = logging.getLogger(__name__)

BATCH = 64
"""How many frames one system call receives or sends, at most."""

_RECEIVE_MAX = 1600
"""Bytes that are received of a frame: more than FRAME_MAX, so that a longer frame is noticed."""

_SEND_MAX = NA_FRAME_LEN

_BUFFER = 1 << 18  # bytes of a queue, with the kernel's overhead: about 340 solicitations

QUEUED_MAX = SOCKETS * _BUFFER // 512
"""An upper bound of the solicitations in all queues."""

# linux/if_packet.h, asm-generic/socket.h
_SOL_PACKET = 263
_PACKET_STATISTICS, _PACKET_IGNORE_OUTGOING = 6, 23
_SO_RCVBUFFORCE = 33
_ETH_P_ALL = 3

_PASSES = (
    *icmpv6_conditions(TYPE_NS),
    Condition(LD_B, VERSION_AT, 0x60, mask=0xF0),
    Condition(LD_B, PACKET_TYPE, 0, mask=4),  # neither PACKET_OUTGOING nor PACKET_LOOPBACK
)
"""The conditions of ndp.frame.is_solicitation(), and that another host sent the frame.

Before Linux 6.2 (58ba426388d9), a fan-out group also receives the frames that this host sends.
"""


def solicitation_filter() -> bytes:
    """Return the classic BPF program that passes solicitations, as assemble() returns it."""
    # The kernel removes the tag of a frame in another VLAN. OTHER_VLAN_LEN bytes of it are enough
    # to count it, and too few to be mistaken for a solicitation to answer.
    ending = other_vlans(OTHER_VLAN_LEN)
    return program(_PASSES, last=HEADERS_LEN - 1, keep=_RECEIVE_MAX, ending=ending)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", c_void_p), ("len", c_size_t))


class _MsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", c_void_p),
        ("namelen", c_uint),
        ("iov", c_void_p),
        ("iovlen", c_size_t),
        ("control", c_void_p),
        ("controllen", c_size_t),
        ("flags", c_int),
    )


class _MMsgHdr(ctypes.Structure):
    _fields_ = (("header", _MsgHdr), ("len", c_uint))


_libc = ctypes.CDLL(None, use_errno=True)
_recvmmsg, _sendmmsg = _libc.recvmmsg, _libc.sendmmsg
_recvmmsg.argtypes = (c_int, c_void_p, c_uint, c_int, c_void_p)
_sendmmsg.argtypes = (c_int, c_void_p, c_uint, c_int)


def refuse_without_right() -> None:
    """Raise ModeUnavailable if this process may not open a packet socket."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    except PermissionError:
        raise _no_right() from None


def _no_right() -> ModeUnavailable:
    return ModeUnavailable(
        "this process may not open a packet socket", "run this as root, or with CAP_NET_RAW"
    )


class MessageBatch:
    """The arguments of recvmmsg() and sendmmsg(): BATCH messages with a buffer each.

    Attributes:
        bytes: The buffers, one after the other.
        starts: The offset of each buffer.
        lengths: The length of each received message; the kernel writes it.
        addresses: The address of each struct mmsghdr.
    """

    def __init__(self, size: int) -> None:
        """Allocate the buffers. size: the bytes of one buffer."""
        # A slice of a mmap is a bytes object; a slice of a memoryview would have to be converted.
        self.bytes = mmap.mmap(-1, BATCH * size)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        self._vectors = (_IoVec * BATCH)(*(_IoVec(start + i * size, size) for i in range(BATCH)))
        self._messages = (_MMsgHdr * BATCH)()
        for i, message in enumerate(self._messages):
            message.header.iov = ctypes.addressof(self._vectors[i])
            message.header.iovlen = 1
        words = memoryview(self._messages).cast("B").cast("I")
        stride = ctypes.sizeof(_MMsgHdr) // 4
        self.lengths = words[_MMsgHdr.len.offset // 4 :: stride]
        self.starts = range(0, BATCH * size, size)
        headers = ctypes.addressof(self._messages)
        self.addresses = range(headers, headers + ctypes.sizeof(self._messages), 4 * stride)


class PacketSocket:
    """A packet socket, or a fan-out group of them, for the solicitations of one interface.

    It receives frames before a VLAN interface or a bridge takes them, and no frames of this host.
    Frames begin with the Ethernet header, and have neither FCS nor VLAN tag. Of a frame that had
    the tag of another VLAN, OTHER_VLAN_LEN bytes are received. The interface is in allmulti while
    the socket is open.

    There is one queue until spread() opens more sockets, each of which is the queue of some source
    MACs (fanout.py). receive() serves the queues in turn, so that a neighbour which floods the host
    fills only its own queue.
    """

    def __init__(self, ifindex: int) -> None:
        """Open one socket, and put the interface into allmulti.

        Raises:
            ModeUnavailable: The process lacks CAP_NET_RAW.
            OSError: There is no such interface.
        """
        self._sockets: dict[int, socket.socket] = {}  # by descriptor
        self._polled: select.epoll | None = None  # until spread(), there is one queue only
        self._turns: list[int] = []  # readable queues that receive() has not served in this round
        self._served: set[int] = set()  # queues that were read since the last overflows()
        self._failed = 0  # an errno that receive() has still to raise
        self._group: FanoutSet | None = None
        try:
            self._address = (socket.if_indextoname(ifindex), _ETH_P_ALL)
            try:
                self._first = self._open(solicitation_filter())
            except PermissionError:
                raise _no_right() from None
            self._sockets[self._first.fileno()] = self._first
            allmulti(self._first, ifindex)
        except BaseException:
            self.close()
            raise
        self._in, self._out = MessageBatch(_RECEIVE_MAX), MessageBatch(_SEND_MAX)

    def fileno(self) -> int:
        """Return the descriptor that is readable when any queue has a frame.

        The first spread() changes it; the former one is then readable for the first queue only.
        """
        return (self._polled or self._first).fileno()

    def spread(self) -> None:
        """Spread the source MACs over SOCKETS queues; if they are, spread them differently.

        The call waits some 15 ms for the kernel (synchronize_net()); another thread than that of
        receive() may make it. Nothing changes if the kernel has no fan-out groups, or, before Linux
        6.13 (2cee3e6e2e4b), while the interface is down.
        """
        try:
            if self._polled is None:
                polled = select.epoll()
                polled.register(self._first, select.EPOLLIN)
                self._polled = polled
            self._group = self._group or FanoutSet(self._first)
            try:
                while len(self._sockets) < SOCKETS:
                    self._add_to(self._group, self._polled)
            finally:
                self._group.spread()
        except OSError as error:
            log.debug("opened %d of %d queues: %s", len(self._sockets), SOCKETS, error)

    def close(self) -> None:
        """Close all sockets; the interface leaves allmulti unless another program wants it."""
        if self._polled is not None:
            self._polled.close()
        # Closing one takes some 15 ms (synchronize_net() in packet_release()). They are closed in
        # parallel, because a restart waits for all of them.
        with contextlib.suppress(RuntimeError), ThreadPoolExecutor(SOCKETS) as threads:
            list(threads.map(socket.socket.close, self._sockets.values()))
        for each in self._sockets.values():  # those for which no thread could be started
            each.close()

    def receive(self) -> list[bytes]:
        """Receive the frames that wait, at most BATCH of them.

        Each readable queue is read once in a round, until the batch is full.

        Raises:
            OSError: The interface went down.
        """
        batch, addresses = self._in, self._in.addresses
        count, polled = 0, False
        while count < BATCH:
            if not self._turns:
                if polled:
                    break
                polled = True
                self._turns = self._readable()
                continue
            queue = self._turns.pop()
            self._served.add(queue)
            found = _recvmmsg(queue, addresses[count], BATCH - count, socket.MSG_DONTWAIT, None)
            if found >= 0:
                count += found
            elif (number := ctypes.get_errno()) not in (errno.EAGAIN, errno.EINTR):
                self._failed = number
        if self._failed and not count:  # Frames that other queues had are returned first.
            number, self._failed = self._failed, 0
            raise OSError(number, os.strerror(number))
        data = batch.bytes
        lengths: list[int] = batch.lengths[:count].tolist()
        return [data[at : at + size] for at, size in zip(batch.starts, lengths, strict=False)]

    def send(self, frames: list[bytes]) -> dict[int, int]:
        """Send frames.

        Args:
            frames: The frames, NA_FRAME_LEN (86) bytes each.

        Returns:
            The errno of each frame that was not sent, by its index.
        """
        failed: dict[int, int] = {}
        sender = self._first.fileno()
        for start in range(0, len(frames), BATCH):
            some = frames[start : start + BATCH]
            self._out.bytes[: len(some) * _SEND_MAX] = b"".join(some)
            at = 0
            while at < len(some):
                sent = _sendmmsg(
                    sender,
                    self._out.addresses[at],
                    len(some) - at,
                    socket.MSG_DONTWAIT,
                )
                if sent < 0:
                    number = ctypes.get_errno()
                    if number == errno.EINTR:
                        continue
                    failed[start + at] = number
                    sent = 1  # Skip this frame.
                at += sent
        return failed

    def overflows(self) -> int:
        """Return how many solicitations found a full queue since the last call."""
        lost = 0
        for (
            queue
        ) in self._served:  # A full queue is readable, so receive() serves it sooner or later.
            data = self._sockets[queue].getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            lost += struct.unpack("=II", data)[1]
        self._served.clear()
        return lost

    def _open(self, code: bytes) -> socket.socket:
        # Without a protocol the socket receives nothing: no frame arrives before the filter is set.
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            attach_filter(opened, code)
            opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            _enlarge_buffer(opened)
            # A socket for ETH_P_IPV6 would receive no frame that a bridge or VLAN interface takes.
            opened.bind(self._address)
        except BaseException:
            opened.close()
            raise
        return opened

    def _readable(self) -> list[int]:
        """Return the descriptors of the queues that may have a frame."""
        if self._polled is None:
            return [self._first.fileno()]
        return [queue for queue, _ in self._polled.poll(0)]

    def _add_to(self, group: FanoutSet, polled: select.epoll) -> None:
        opened = self._open(NOTHING)
        try:
            group.join(opened)
            attach_filter(opened, solicitation_filter())
            self._sockets[opened.fileno()] = opened
            polled.register(opened, select.EPOLLIN)
        except BaseException:
            opened.close()
            raise


def _enlarge_buffer(opened: socket.socket) -> None:
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER // 2)
    except PermissionError:  # Without CAP_NET_ADMIN, net.core.rmem_max limits the buffer.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER // 2)
