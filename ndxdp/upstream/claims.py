"""Claims of other nodes on the link: their unsolicited advertisements, with their MAC.

When a guest has moved to another host, that host announces it. This host hears it, and need not go
on answering for the guest until its own neighbour entry fails.
"""

from __future__ import annotations

from collections.abc import Callable

from ndxdp.ndp.address import is_multicast
from ndxdp.ndp.message import Fault, parse_advertisement
from ndxdp.resting_reader import RestingReader
from ndxdp.sockets.advertisements import FRAMES_AT_ONCE, advertisement_socket, waiting_frames

_PAUSE = 0.05  # seconds without reading after FRAMES_AT_ONCE


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
        self._socket = advertisement_socket(
            "notices that guests have moved to other hosts", ifindex, solicited=False
        )
        self._reader = RestingReader(self._socket.fileno(), self._receive, _PAUSE)

    def close(self) -> None:
        """Stop listening."""
        self._reader.close()
        self._socket.close()

    def _receive(self) -> bool:
        received = 0
        for frame in waiting_frames(self._socket):
            received += 1
            target = claimed_target(frame, self.mac)
            if target is not None:
                self._on_claim(target)
        return received == FRAMES_AT_ONCE


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
