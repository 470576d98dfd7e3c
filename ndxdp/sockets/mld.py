"""Queries of Multicast Listener Discovery (RFC 2710, RFC 3810): the messages, and a socket."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import NamedTuple

from ndxdp.ndp.address import is_link_local
from ndxdp.rules.address import parse_address

LISTENER_INTERVAL = 260.0
"""The Multicast Listener Interval by default, in seconds (RFC 3810 9.4)."""

_QUERY = 130
_ICMP6_FILTER = 1  # linux/icmpv6.h
_V1_LEN, _V2_LEN = 24, 28
_ROBUSTNESS, _QUERY_INTERVAL = 2, 125.0  # RFC 3810 9.1 and 9.2
_RESPONSE_INTERVAL = 10.0  # RFC 3810 9.3
_BATCH = 64  # queries of one call


class Query(NamedTuple):
    """A query that an interface received.

    Attributes:
        ifindex: The interface.
        interval: The querier's Multicast Listener Interval, in seconds.
    """

    ifindex: int
    interval: float


class QuerySocket:
    """A raw socket that receives the MLD queries of all interfaces.

    The socket hears what the kernel's MLD hears: queries that a firewall drops reach neither. The
    queries to a port of a bridge or bond arrive on the bridge or bond.
    """

    def __init__(self) -> None:
        """Open the socket.

        Raises:
            OSError: This process does not have CAP_NET_RAW, or the kernel does not have IPv6.
        """
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)
        blocked = [0xFFFFFFFF] * 8
        blocked[_QUERY >> 5] &= ~(1 << (_QUERY & 31))
        self._socket.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *blocked))
        for option in (socket.IPV6_RECVPKTINFO, socket.IPV6_RECVHOPLIMIT):
            self._socket.setsockopt(socket.IPPROTO_IPV6, option, 1)

    def fileno(self) -> int:
        """Return the descriptor, which is readable when receive() has something to return."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def receive(self) -> tuple[list[Query], bool]:
        """Return the valid queries that have arrived, and whether there may be more."""
        found = []
        with contextlib.suppress(BlockingIOError):
            for _ in range(_BATCH):
                message, ancillary, _, source = self._socket.recvmsg(2048, 256)
                query = _query(message, ancillary, source[0])
                if query:
                    found.append(query)
            return found, True
        return found, False


def _query(message: bytes, ancillary: list[tuple[int, int, bytes]], source: str) -> Query | None:
    """Return a valid query (RFC 3810 5.1.14 and 6.2); None for another message."""
    options = {kind: data for level, kind, data in ancillary if level == socket.IPPROTO_IPV6}
    hop_limit = options.get(socket.IPV6_HOPLIMIT, b"")
    arrival = options.get(socket.IPV6_PKTINFO, b"")
    is_query = len(message) >= _V1_LEN and message[0] == _QUERY and len(arrival) == 20
    if not is_query or hop_limit != struct.pack("=i", 1):
        return None
    if not is_link_local(parse_address(source.partition("%")[0])):
        return None
    return Query(struct.unpack_from("=I", arrival, 16)[0], listener_interval(message))


def listener_interval(query: bytes) -> float:
    """Return the Multicast Listener Interval of a querier, in seconds (RFC 3810 9.4).

    Args:
        query: The query from the ICMPv6 header on, at least 24 bytes. A query of version 1 does not
            have the querier's robustness and interval, and a query for one group does not have the
            response interval of general queries: the defaults replace them.
    """
    code = struct.unpack_from("!H", query, 4)[0]
    robustness, interval, response = _ROBUSTNESS, _QUERY_INTERVAL, _RESPONSE_INTERVAL
    if len(query) >= _V2_LEN:
        # RFC 3810 5.1.3 and 5.1.9: large values are floating-point numbers.
        if code >= 0x8000:
            code = (code & 0xFFF | 0x1000) << ((code >> 12 & 7) + 3)
        seconds = query[25]
        if seconds >= 0x80:
            seconds = (seconds & 0xF | 0x10) << ((seconds >> 4 & 7) + 3)
        robustness = query[24] & 7 or _ROBUSTNESS
        interval = float(seconds or _QUERY_INTERVAL)
    if not any(query[8:24]):
        response = code / 1000
    return robustness * interval + response
