"""Address resolution by this host: a solicitation that was sent, and the answer to it. Pure.

Section numbers are those of RFC 4861.
"""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.ndp.message import Fault, is_sent_to, parse_advertisement


class PendingSolicitation(NamedTuple):
    """A solicitation that was sent to the target's solicited-node group.

    Attributes:
        mac: The source MAC, 6 bytes.
        source: The IPv6 source, 16 bytes.
        target: The target, 16 bytes.
    """

    mac: bytes
    source: bytes
    target: bytes


class Reply(NamedTuple):
    """The answer to a solicitation: the target's MAC (6 bytes), the R flag and the O flag."""

    mac: bytes
    router: bool
    override: bool


def reply_to(pending: PendingSolicitation, frame: bytes, known: bytes | None) -> Reply | Fault:
    """Return the answer that a frame is to a solicitation, or why the frame is no answer.

    Args:
        pending: The solicitation.
        frame: The frame that was received.
        known: The MAC that the target had so far, None if unknown. An advertisement without a
            TLLAO confirms this MAC and no other (7.2.5); the answer to a multicast solicitation
            must have a TLLAO (7.2.4).
    """
    advertisement = parse_advertisement(frame)
    if isinstance(advertisement, Fault):
        return advertisement
    if not is_sent_to(advertisement, pending.mac):
        return Fault.OTHER_HOST
    if advertisement.destination != pending.source:
        return Fault.OTHER_DESTINATION
    if advertisement.target != pending.target:
        return Fault.OTHER_TARGET
    if not advertisement.solicited:
        return Fault.NOT_SOLICITED
    mac = advertisement.lladdr
    if mac is None:
        if advertisement.eth_source != known:
            return Fault.NO_LLADDR
        mac = known
    if mac[0] & 1 or not any(mac) or mac == pending.mac:
        return Fault.BAD_LLADDR
    return Reply(mac, advertisement.router, advertisement.override)
