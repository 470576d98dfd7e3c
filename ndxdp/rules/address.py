"""IPv6 and MAC addresses as users write and read them. Pure."""

from __future__ import annotations

import re
import socket

from ndxdp.errors import UsageError
from ndxdp.ndp.address import LOOPBACK, UNSPECIFIED, V4_MAPPED


def parse_address(text: str) -> bytes:
    """Parse an IPv6 address into 16 bytes; raise UsageError for any other text."""
    try:
        return socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        pass
    try:
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        raise UsageError(f"'{text}' is not an IPv6 address", "write it as in 2001:db8::1") from None
    raise UsageError(
        f"'{text}' is an IPv4 address", "Neighbor Discovery is IPv6's: IPv4 has ARP (proxy_arp)"
    )


def parse_mac(text: str) -> bytes:
    """Parse a MAC such as `02:00:5e:10:00:01` into 6 bytes; raise UsageError unless unicast."""
    if not re.fullmatch(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}", text):
        raise UsageError(f"'{text}' is not a MAC address", "write it as in 02:00:5e:10:00:01")
    mac = bytes(int(part, 16) for part in text.split(":"))
    if mac[0] & 1 or not any(mac):
        raise UsageError(f"'{text}' is no MAC that a host can have", "it must be a unicast one")
    return mac


def parse_unicast(text: str) -> bytes:
    """Parse an address that a host can send from; raise UsageError for any other text."""
    address = parse_address(text)
    if address in (UNSPECIFIED, LOOPBACK) or address[0] == 0xFF or address[:12] == V4_MAPPED:
        raise UsageError(f"'{text}' is no source that a host can have", "it must be a unicast one")
    return address


def address_text(address: bytes) -> str:
    """Return an IPv6 address (16 bytes) as RFC 5952 writes it."""
    return socket.inet_ntop(socket.AF_INET6, address)


def mac_text(mac: bytes) -> str:
    """Return a MAC (6 bytes) such as `02:00:5e:10:00:01`."""
    return mac.hex(":")
