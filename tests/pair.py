"""A link on which to put real frames, and to see every frame that the program lets pass.

    sender ======== receiver ---- [ bridge ]
                    (the program)   (the tap)

XDP and tc see a frame before the bridge does, so what arrives at the tap has passed them. The
kernel's own IPv6 is off on all three: nothing else is said here.
"""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.topology import build_xdp_pass

SENDER, RECEIVER, TAP = "sender", "receiver", "tap"
MTU = 2000

_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP, _PACKET_AUXDATA, _PACKET_IGNORE_OUTGOING = 1, 8, 23
_PACKET_MR_PROMISC = 1
_TP_STATUS_VLAN_VALID = 0x10
_WAIT = 2.0  # seconds for a frame that must come: never reached in a test that passes
_SILENCE = 0.1  # seconds for a frame that must not come


class Pair:
    """Open sockets at both ends."""

    def __init__(self) -> None:
        self._sender = _packet_socket(SENDER)
        self._tap = _packet_socket(TAP)

    def close(self) -> None:
        self._sender.close()
        self._tap.close()

    def send(self, frame: bytes) -> None:
        self._sender.send(frame)

    def outcome(self, *, nothing: bool = False) -> tuple[bytes | None, bytes | None]:
        """What came back to the sender, and what passed to the tap: one frame in all.

        nothing: neither is expected, so that silence is waited for.
        """
        deadline = time.monotonic() + (_SILENCE if nothing else _WAIT)
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self._sender, self._tap], [], [], left)
            if self._sender in ready:
                return _receive(self._sender), None
            if self._tap in ready:
                return None, _receive(self._tap)
        return None, None

    def passed(self) -> bytes | None:
        """The frame that passed to the tap, None if none comes."""
        return self._one(self._tap, _WAIT)

    def reply(self, *, nothing: bool = False) -> bytes | None:
        """The frame that came back to the sender, None if none comes."""
        return self._one(self._sender, _SILENCE if nothing else _WAIT)

    def _one(self, end: socket.socket, wait: float) -> bytes | None:
        return _receive(end) if select.select([end], [], [], wait)[0] else None

    def is_silent(self) -> bool:
        return not select.select([self._sender, self._tap], [], [], 0)[0]


@contextmanager
def pair(mac: bytes) -> Iterator[Pair]:
    """The link, its receiver with `mac`; the sender takes XDP_TX as a NIC would."""
    run = _ip
    run(f"link add {SENDER} mtu {MTU} type veth peer name {RECEIVER} mtu {MTU}")
    try:
        run(f"link add {TAP} mtu {MTU} type bridge mcast_snooping 0 stp_state 0 forward_delay 0")
        for family in ("ip", "ip6", "arp"):  # or it drops what it finds malformed
            Path(f"/proc/sys/net/bridge/bridge-nf-call-{family}tables").write_text("0")
        for name in (SENDER, RECEIVER, TAP):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            # A router without routes: nothing is known of who lives where.
            Path(f"/proc/sys/net/ipv6/conf/{name}/forwarding").write_text("1")
        run(f"link set {RECEIVER} address {mac.hex(':')} master {TAP} up")
        run(f"link set {TAP} address 02:00:5e:10:ff:ff up")
        run(f"link set {SENDER} up")
        run(f"link set {SENDER} xdp obj {build_xdp_pass()} sec xdp")
        ends = Pair()
        try:
            _wait_until_forwarding(ends)
            yield ends
        finally:
            ends.close()
    finally:
        run(f"link del {SENDER}")
        run(f"link del {TAP}")


def _wait_until_forwarding(ends: Pair) -> None:
    probe = bytes.fromhex("02005e10ffff02005e10008888b5") + bytes(46)
    for _ in range(100):
        ends.send(probe)
        if ends.outcome()[1] == probe:
            break
        time.sleep(0.02)
    while not ends.is_silent():
        ends.outcome()


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)


def _packet_socket(interface: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    opened.bind((interface, 3))
    ifindex = socket.if_nametoindex(interface)
    promiscuous = struct.pack("=iHH8s", ifindex, _PACKET_MR_PROMISC, 0, b"")
    opened.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, promiscuous)
    opened.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
    opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    return opened


def _receive(opened: socket.socket) -> bytes:
    """One frame, with the VLAN tag put back that the kernel keeps beside it."""
    frame, ancillary, _, _ = opened.recvmsg(4096, 64)
    for level, kind, data in ancillary:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            status, _, _, _, _, tci, tpid = struct.unpack_from("=IIIHHHH", data)
            if status & _TP_STATUS_VLAN_VALID:
                return frame[:12] + struct.pack("!HH", tpid, tci) + frame[12:]
    return frame
