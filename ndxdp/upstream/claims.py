"""Claims of other nodes on the link: their unsolicited advertisements, with their MAC.

When a guest has moved to another host, that host announces it. This host hears it, and need not go
on answering for the guest until its own neighbour entry fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ndxdp.ndp.address import is_multicast
from ndxdp.ndp.frame import FLAGS_AT, FRAME_MAX, OPTIONS_AT, SOLICITED, TYPE_NA
from ndxdp.ndp.message import Fault, parse_advertisement
from ndxdp.sockets.cbpf import (
    LD_B,
    Condition,
    filtered_packet_socket,
    icmpv6_conditions,
    other_vlans,
    program,
)

_FRAMES_AT_ONCE = 64  # frames that are received before other tasks of the event loop run
_PAUSE = 0.05  # seconds without reading after so many: a flood takes a bounded part of a CPU


class Claims:
    """A packet socket for unsolicited advertisements of other nodes, in a running event loop."""

    def __init__(self, ifindex: int, mac: bytes, on_claim: Callable[[bytes], None]) -> None:
        """Begin to listen.

        Args:
            ifindex: The interface.
            mac: Its MAC (6 bytes), which the caller updates by `mac`.
            on_claim: Called with each target (16 bytes) that another node claims with O=1.

        Raises:
            NdxdpError: The process lacks CAP_NET_RAW.
            OSError: There is no such interface.
        """
        self.mac = mac
        self._on_claim = on_claim
        self._loop = asyncio.get_running_loop()
        self._rest: asyncio.TimerHandle | None = None
        self._socket = filtered_packet_socket(
            "notices that guests have moved to other hosts", ifindex, _unsolicited_advertisements()
        )
        self._loop.add_reader(self._socket.fileno(), self._receive)

    def close(self) -> None:
        """Stop listening."""
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _receive(self) -> None:
        for _ in range(_FRAMES_AT_ONCE):
            try:
                frame = self._socket.recv(FRAME_MAX + 1)
            except BlockingIOError:
                return
            except OSError:  # The socket returns one error when the link goes down.
                continue
            target = claimed_target(frame, self.mac)
            if target is not None:
                self._on_claim(target)
        self._loop.remove_reader(self._socket.fileno())
        self._rest = self._loop.call_later(_PAUSE, self._resume)

    def _resume(self) -> None:
        self._rest = None
        self._loop.add_reader(self._socket.fileno(), self._receive)


def claimed_target(frame: bytes, mac: bytes) -> bytes | None:
    """Return the target of an advertisement by which another node claims it for its own MAC.

    An advertisement without O=1 claims nothing: it is how hosts defend an address against DAD.

    Args:
        frame: A frame, without a VLAN tag.
        mac: The MAC of this host's interface: what has it is no other node's.
    """
    found = parse_advertisement(frame)
    if isinstance(found, Fault) or found.solicited or not found.override:
        return None
    if not is_multicast(found.destination) or mac in (found.eth_source, found.lladdr):
        return None
    return found.target


def _unsolicited_advertisements() -> bytes:
    """Return the classic BPF program that passes unsolicited advertisements outside of VLANs."""
    conditions = [
        *icmpv6_conditions(TYPE_NA),
        Condition(LD_B, FLAGS_AT, 0, mask=SOLICITED),
    ]
    return program(conditions, last=OPTIONS_AT - 1, keep=FRAME_MAX + 1, ending=other_vlans(0))
