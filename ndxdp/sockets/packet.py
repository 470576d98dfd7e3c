"""Packet sockets that receive solicitations, and nothing else, and send frames, in batches.

Python's socket module has no recvmmsg() and sendmmsg(): they are called in the C library. A
batch of 64 costs two system calls; one call for each frame would cost a quarter of the speed.
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
"""Frames for one system call."""

_RECEIVE_MAX = 1600
"""Bytes that are received of a frame. More than ndp.FRAME_MAX, so that a giant is seen as one."""

_SEND_MAX = NA_FRAME_LEN

_BUFFER = 1 << 18  # bytes of a queue, as the kernel counts them: about 340 solicitations

QUEUED_MAX = SOCKETS * _BUFFER // 512
"""Solicitations; all queues hold fewer."""

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
"""What ndp.is_solicitation() asks for; and that this host did not send it.

A group of sockets gets what the host sends, before Linux 6.2 (58ba426388d9).
"""


def solicitation_filter() -> bytes:
    """Return the classic BPF program that passes solicitations, as assemble() returns it."""
    # A packet socket sees no tag: of a solicitation in another VLAN it gets so much that it can be
    # counted, and not be taken for one that is to be answered.
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


class MessageBatch:
    """BATCH messages of one buffer each, of `size` bytes, that lie one after the other."""

    def __init__(self, size: int) -> None:
        # A slice of a mmap is bytes at once; that of a memoryview would have to be copied.
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
    """Solicitations that arrive on an interface, before any VLAN or bridge takes them.

    Of one with the tag of another VLAN, OTHER_VLAN_LEN bytes are received. What this host sends is
    not received. The interface is kept in allmulti for as long as the socket is open. Frames are
    bytes from the Ethernet header on, without FCS and VLAN tag.

    All wait in one queue until spread() makes it into several sockets, each the queue of some
    soliciting MACs (fanout.py). These take turns, so that a neighbour that solicits more than can
    be answered fills its own.
    """

    def __init__(self, ifindex: int) -> None:
        """ModeUnavailable without CAP_NET_RAW; OSError if there is no such interface."""
        self._sockets: dict[int, socket.socket] = {}  # by their descriptors
        self._polled = select.epoll()
        self._turns: list[int] = []  # queues that had something and have not been asked
        self._asked: set[int] = set()  # since overflows() was
        self._failed = 0
        self._group: FanoutSet | None = None
        try:
            self._address = (socket.if_indextoname(ifindex), _ETH_P_ALL)
            try:
                self._first = self._open(solicitation_filter())
            except PermissionError:
                raise ModeUnavailable(
                    "this process may not open a packet socket",
                    "run this as root, or with CAP_NET_RAW",
                ) from None
            self._add(self._first)
            allmulti(self._first, ifindex)
        except BaseException:
            self.close()
            raise
        self._in, self._out = MessageBatch(_RECEIVE_MAX), MessageBatch(_SEND_MAX)

    def fileno(self) -> int:
        """Readable when any queue is."""
        return self._polled.fileno()

    def spread(self) -> None:
        """Make one queue into many; if it is, have another chance say which MACs share one.

        Waits for what is at work in the kernel to end (synchronize_net()), some 15 ms, and may be
        called in another thread than receive(). Where the kernel has no such groups, nothing
        changes. Before Linux 6.13 (2cee3e6e2e4b) that is so while the interface is down, too.
        """
        try:
            self._group = self._group or FanoutSet(self._first)
            try:
                while len(self._sockets) < SOCKETS:
                    self._add_to(self._group)
            finally:
                self._group.spread()
        except OSError as error:
            log.debug("%d of %d queues: %s", len(self._sockets), SOCKETS, error)

    def close(self) -> None:
        """Close all queues; the interface leaves allmulti if nobody else needs it."""
        self._polled.close()
        # Each waits for what is at work in the kernel to end (synchronize_net() in
        # packet_release()), some 15 ms: all at a time, or a restart would take that much longer.
        with contextlib.suppress(RuntimeError), ThreadPoolExecutor(SOCKETS) as threads:
            list(threads.map(socket.socket.close, self._sockets.values()))
        for each in self._sockets.values():  # where no more threads are to be had
            each.close()

    def receive(self) -> list[bytes]:
        """Up to BATCH frames; fewer if no more are there. OSError when the interface goes down.

        Each queue that has something gets one turn, of what is left of a batch, in each round.
        """
        batch, addresses = self._in, self._in.addresses
        count, polled = 0, False
        while count < BATCH:
            if not self._turns:
                if polled:
                    break
                polled = True
                self._turns = [queue for queue, _ in self._polled.poll(0)]
                continue
            queue = self._turns.pop()
            self._asked.add(queue)
            found = _recvmmsg(queue, addresses[count], BATCH - count, socket.MSG_DONTWAIT, None)
            if found >= 0:
                count += found
            elif (number := ctypes.get_errno()) not in (errno.EAGAIN, errno.EINTR):
                self._failed = number
        if self._failed and not count:  # what others held is not to be lost for it
            number, self._failed = self._failed, 0
            raise OSError(number, os.strerror(number))
        data = batch.bytes
        lengths: list[int] = batch.lengths[:count].tolist()
        return [data[at : at + size] for at, size in zip(batch.starts, lengths, strict=False)]

    def send(self, frames: list[bytes]) -> dict[int, int]:
        """Send frames of 86 bytes; returns those that were not sent: index -> errno."""
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
                    failed[start + at] = number  # and on with the next one
                    sent = 1
                at += sent
        return failed

    def overflows(self) -> int:
        """Solicitations that found no room since this was last asked for."""
        lost = 0
        for queue in self._asked:  # a full one is readable, so that it is there or will be
            data = self._sockets[queue].getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            lost += struct.unpack("=II", data)[1]
        self._asked.clear()
        return lost

    def _open(self, code: bytes) -> socket.socket:
        # Of no protocol it receives nothing: no frame comes in before the filter is there.
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            attach_filter(opened, code)
            opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            _enlarge_buffer(opened)
            # ETH_P_ALL and not ETH_P_IPV6, which would come after bridge and VLAN interfaces.
            opened.bind(self._address)
        except BaseException:
            opened.close()
            raise
        return opened

    def _add(self, opened: socket.socket) -> None:
        self._sockets[opened.fileno()] = opened
        self._polled.register(opened, select.EPOLLIN)

    def _add_to(self, group: FanoutSet) -> None:
        opened = self._open(NOTHING)
        try:
            group.join(opened)
            attach_filter(opened, solicitation_filter())
            self._add(opened)
        except BaseException:
            opened.close()
            raise


def _enlarge_buffer(opened: socket.socket) -> None:
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER // 2)
    except PermissionError:  # that takes CAP_NET_ADMIN; as far as net.core.rmem_max lets us
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER // 2)
