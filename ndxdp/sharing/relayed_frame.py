"""Router advertisements as this host sends them downstream. Pure.

What differs from the router's advertisement (RFC 4389 sections 4.1.2 and 4.1.3.3):

- MACs, source and destination; the P flag is set; the checksum is computed again.
- The option with the sender's MAC has this host's MAC. It is added if there was none.
- The MTU is the smaller one of the option and the downstream interface's; without an option, the
  downstream interface's MTU is added if it is below the upstream interface's. (Where the upstream
  MTU is below, this host sends Packet Too Big.)
- The options of SEND are left out: they hold only in the message that the router has signed.

No frame is longer than the downstream link permits: the options are then distributed over several
advertisements (RFC 4861 section 6.2.3). An option that fits none of them is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ndxdp.ndp.frame import SLLAO
from ndxdp.ndp.router_message import PROXY, RA_LEN, Parameters, advertise_router
from ndxdp.ndp.router_option import MTU, SIGNED, lladdr_option, mtu_of, mtu_option

_IPV6_HEADER = 40
_LLADDR_LEN = 8
_PACKET_MAX = 1500
"""Bytes. A link's own MTU may be larger than that of its hosts, which then lose larger packets."""
_MTU_MIN = 1280  # RFC 8200 section 5

_INTERNAL = frozenset((SLLAO, *SIGNED))


def remembered(options: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the options without those that hold only for the frame of the router itself."""
    return (option for option in options if option[0] not in _INTERNAL)


def relayed_frames(
    mac: bytes,
    source: bytes,
    mtus: tuple[int, int],
    parameters: Parameters,
    options: Iterable[bytes],
    to: tuple[bytes, bytes],
) -> list[bytes]:
    """Return the frames of one advertisement, mostly one.

    Args:
        mac: The MAC of the downstream interface.
        source: Its link-local address.
        mtus: The MTUs of the upstream and of the downstream interface.
        parameters: The fixed fields; the P flag is set here.
        options: The options of the router; well-formed.
        to: The MAC and the IPv6 address of the destination.
    """
    upstream_mtu, mtu = mtus
    limit = min(mtu, _PACKET_MAX)
    lladdr = lladdr_option(mac)
    sent: list[bytes] = []
    limited = False
    for option in options:
        if option[0] == SLLAO:
            if lladdr not in sent:
                sent.append(lladdr)
        elif option[0] == MTU:
            smaller = min(mtu_of(option), mtu)
            limit = min(limit, max(smaller, _MTU_MIN))
            sent.append(option[:4] + smaller.to_bytes(4, "big"))
            limited = True
        elif option[0] not in SIGNED:
            sent.append(option)
    if lladdr not in sent:
        sent.insert(0, lladdr)
    if not limited and mtu < upstream_mtu:
        sent.append(mtu_option(mtu))
    parameters = parameters._replace(flags=parameters.flags | PROXY)
    eth_destination, destination = to
    return [
        advertise_router(
            mac,
            source,
            parameters,
            part,
            destination=destination,
            eth_destination=eth_destination,
        )
        for part in _parts(sent, lladdr, limit - _IPV6_HEADER - RA_LEN)
    ]


def _parts(options: list[bytes], lladdr: bytes, room: int) -> list[bytes]:
    """Distribute options over messages with room for so many bytes; each has the MAC's option."""
    whole = b"".join(options)
    if len(whole) <= room:
        return [whole]
    parts: list[bytes] = []
    part = lladdr
    for option in options:
        if option == lladdr or len(option) > room - _LLADDR_LEN:
            continue
        if len(part) + len(option) > room:
            parts.append(part)
            part = lladdr
        part += option
    return [*parts, part]
