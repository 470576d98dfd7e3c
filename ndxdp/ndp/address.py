"""IPv6 addresses and groups that Neighbor Discovery gives a meaning. Pure."""

from __future__ import annotations

import socket

UNSPECIFIED = bytes(16)

LOOPBACK = bytes(15) + b"\1"

ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")

ALL_NODES_MAC = bytes.fromhex("333300000001")

V4_MAPPED = bytes(10) + b"\xff\xff"


def is_link_local(address: bytes) -> bool:
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def solicited_node_group(address: bytes) -> bytes:
    """ff02::1:ffXX:XXXX of the address's last 24 bits (RFC 4291 2.7.1)."""
    return b"\xff\x02" + bytes(9) + b"\x01\xff" + address[13:]
