"""Neighbor Discovery on the host's port as the hypervisor sees it, and what reaches the router."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Self, TypeVar

from ndxdp.ndp.frame import OPTIONS_AT, OVERRIDE, ROUTER, SOLICITED, flags_of, icmpv6_type_of

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_ETH_P_ALL = 3  # linux/if_ether.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_BUFFER = 1 << 24  # bytes; the default holds some 250 frames, and the kernel drops the rest

_libc = ctypes.CDLL(None, use_errno=True)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Message:
    """A Neighbor Solicitation to the host, or a Neighbor Advertisement from it."""

    kind: str  # "NS" or "NA"
    source: IPv6Address
    destination: IPv6Address
    target: IPv6Address
    passed: bool  # the filter let it through (always True for an NS)
    frame: bytes

    @property
    def flags(self) -> str:
        """The R, S and O flags of an advertisement."""
        flags = flags_of(self.frame) if self.kind == "NA" else 0
        names = zip("RSO", (ROUTER, SOLICITED, OVERRIDE), strict=True)
        return "".join(name for name, bit in names if flags & bit)


class Capture:
    """A watch on the link between hypervisor and host; `messages` is complete after `close`."""

    def __init__(self, at_host: socket.socket, at_router: socket.socket) -> None:
        self.messages: list[Message] = []
        self._at_host = at_host
        self._at_router = at_router

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def advertisements(self) -> list[Message]:
        """The advertisements among the messages."""
        return [message for message in self.messages if message.kind == "NA"]

    @property
    def solicitations(self) -> list[Message]:
        """The solicitations among the messages."""
        return [message for message in self.messages if message.kind == "NS"]

    def close(self) -> None:
        """Stop watching, and sort the frames that the sockets have buffered."""
        time.sleep(0.05)  # frames that are on their way arrive
        seen = _drain(self._at_host)
        arrived = {frame for frame, outgoing in _drain(self._at_router) if not outgoing}
        for frame, to_host in seen:
            kind = {135: "NS", 136: "NA"}.get(_icmpv6_type(frame))
            if kind == ("NS" if to_host else "NA"):
                source, destination, target = (
                    IPv6Address(frame[at : at + 16]) for at in (22, 38, 62)
                )
                passed = to_host or frame in arrived
                self.messages.append(Message(kind, source, destination, target, passed, frame))


def socket_in(namespace: str, *kind: int) -> socket.socket:
    """Open a socket of a kind (its family, type, protocol) in a named network namespace.

    Raises:
        OSError: There is no such namespace, or the socket cannot be opened.
    """
    return run_in(namespace, lambda: socket.socket(*kind))


def run_in(namespace: str, call: Callable[[], _T]) -> _T:
    """Call a function in a named network namespace, and return its result.

    Raises:
        OSError: There is no such namespace, or the function raised the error.
    """
    made: list[_T | OSError] = []

    def make() -> None:
        try:
            with open(f"/run/netns/{namespace}", "rb") as handle:
                if _libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"setns to {namespace}")
            made.append(call())
        except OSError as error:
            made.append(error)

    # What is made stays in the namespace; the thread that entered it ends.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def packet_socket(namespace: str, interface: str) -> socket.socket:
    """Open an AF_PACKET socket on an interface of a named network namespace. Raises OSError."""
    opened = socket_in(namespace, socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
        opened.bind((interface, _ETH_P_ALL))
    except OSError:
        opened.close()
        raise
    return opened


def _drain(packets: socket.socket) -> list[tuple[bytes, bool]]:
    """Return the frames that a socket has buffered, with their directions; close the socket."""
    frames = []
    with packets, contextlib.suppress(BlockingIOError):
        packets.setblocking(False)
        while True:
            frame, address = packets.recvfrom(65536)
            frames.append((frame, address[2] == socket.PACKET_OUTGOING))
    return frames


def _icmpv6_type(frame: bytes) -> int:
    """Return the ICMPv6 type of an untagged frame that can hold an NS or NA, else -1."""
    found = icmpv6_type_of(frame) if len(frame) >= OPTIONS_AT else None
    return -1 if found is None else found
