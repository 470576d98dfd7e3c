"""IPv6 addresses and groups that Neighbor Discovery gives a meaning: 16 bytes each. Pure."""

from __future__ import annotations

import socket

UNSPECIFIED = bytes(16)
LOOPBACK = bytes(15) + b"\1"
V4_MAPPED = bytes(10) + b"\xff\xff"
"""The first 12 bytes of an IPv4-mapped address (RFC 4291 section 2.5.5.2)."""

ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")
ALL_NODES_MAC = bytes.fromhex("333300000001")


def is_link_local(address: bytes) -> bool:
    """Return True for an address in fe80::/10 (RFC 4291 section 2.5.6)."""
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def is_multicast(address: bytes) -> bool:
    """Return True for an address in ff00::/8 (RFC 4291 section 2.7)."""
    return address[0] == 0xFF


def solicited_node_group(address: bytes) -> bytes:
    """Return ff02::1:ffXX:XXXX with the last 24 bits of an address (RFC 4291 section 2.7.1)."""
    return b"\xff\x02" + bytes(9) + b"\x01\xff" + address[13:]


def group_mac(group: bytes) -> bytes:
    """Return the Ethernet address of a multicast group: 33:33 and the last 32 bits (RFC 2464)."""
    return b"\x33\x33" + group[12:]
