"""A packet socket that receives solicitations, and nothing else, and sends frames, in batches.

Python's socket module has no recvmmsg() and sendmmsg(): they are called in the C library. A
batch of 64 costs two system calls; one call for each frame would cost a quarter of the speed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from ctypes import c_int, c_size_t, c_uint, c_void_p

from ndxdp.errors import ModeUnavailable
from ndxdp.wire.membership import allmulti
from ndxdp.wire.raw import LD_B, LD_H, VLAN_TAG_PRESENT, Condition, attach_filter, program

BATCH = 64
"""Frames for one system call."""

_RECEIVE_MAX = 1600
"""Bytes that are received of a frame. More than ndp.FRAME_MAX, so that a giant is seen as one."""

_SEND_MAX = 86
_BUFFER = 1 << 18  # bytes, as the kernel counts them: about 340 solicitations; more slows it

# linux/if_packet.h, asm-generic/socket.h
_SOL_PACKET = 263
_PACKET_STATISTICS, _PACKET_IGNORE_OUTGOING = 6, 23
_SO_RCVBUFFORCE = 33
_ETH_P_ALL = 3

_PASSES = (
    Condition(LD_B, VLAN_TAG_PRESENT, 0),  # a tag that the NIC or the kernel took off
    Condition(LD_H, 12, 0x86DD),
    Condition(LD_B, 14, 0x60, mask=0xF0),
    Condition(LD_B, 20, 58),
    Condition(LD_B, 54, 135),
)
"""What ndp.is_solicitation() asks for."""

_LAST_HEADER_BYTE = 57


def solicitation_filter() -> bytes:
    """The classic BPF program, of 8 bytes an instruction."""
    return program(_PASSES, last=_LAST_HEADER_BYTE, keep=_RECEIVE_MAX)


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

    def address(self, index: int = 0) -> int:
        return ctypes.addressof(self._messages) + index * ctypes.sizeof(_MMsgHdr)


class PacketSocket:
    """Solicitations that arrive on an interface, before any VLAN or bridge takes them.

    Tagged ones are left alone: their interface is another one. So is what this host sends. The
    interface is kept in allmulti for as long as the socket is open. Frames are bytes from the
    Ethernet header on, without FCS.
    """

    def __init__(self, ifindex: int) -> None:
        """ModeUnavailable without CAP_NET_RAW; OSError if there is no such interface."""
        try:
            # Of no protocol it receives nothing: no frame comes in before the filter is there.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError:
            raise ModeUnavailable(
                "this process may not open a packet socket", "run this as root, or with CAP_NET_RAW"
            ) from None
        try:
            attach_filter(self._socket, solicitation_filter())
            self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            self._enlarge_buffer()
            self._socket.setblocking(False)
            # ETH_P_ALL and not ETH_P_IPV6, which would come after bridge and VLAN interfaces.
            self._socket.bind((socket.if_indextoname(ifindex), _ETH_P_ALL))
            allmulti(self._socket, ifindex)
        except BaseException:
            self._socket.close()
            raise
        self._in, self._out = MessageBatch(_RECEIVE_MAX), MessageBatch(_SEND_MAX)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> list[bytes]:
        """Up to BATCH frames, none if none are there. OSError when the interface goes down."""
        batch = self._in
        count = _recvmmsg(self._socket.fileno(), batch.address(), BATCH, socket.MSG_DONTWAIT, None)
        if count < 0:
            number = ctypes.get_errno()
            if number in (errno.EAGAIN, errno.EINTR):
                return []
            raise OSError(number, os.strerror(number))
        data = batch.bytes
        lengths: list[int] = batch.lengths[:count].tolist()
        return [data[at : at + size] for at, size in zip(batch.starts, lengths, strict=False)]

    def send(self, frames: list[bytes]) -> dict[int, int]:
        """Send frames of 86 bytes; returns those that were not sent: index -> errno."""
        failed: dict[int, int] = {}
        for start in range(0, len(frames), BATCH):
            some = frames[start : start + BATCH]
            self._out.bytes[: len(some) * _SEND_MAX] = b"".join(some)
            at = 0
            while at < len(some):
                sent = _sendmmsg(
                    self._socket.fileno(),
                    self._out.address(at),
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
        data = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        return int(struct.unpack("=II", data)[1])

    def _enlarge_buffer(self) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER // 2)
        except PermissionError:  # that takes CAP_NET_ADMIN; as far as net.core.rmem_max lets us
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER // 2)
