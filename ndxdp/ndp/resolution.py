"""Address resolution of this host: a solicitation and its answer. Pure."""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.ndp.message import Fault, is_sent_to, parse_advertisement


class PendingSolicitation(NamedTuple):
    """A solicitation that was sent: from which MAC and address, for which target."""

    mac: bytes
    source: bytes
    target: bytes


class Reply(NamedTuple):
    """What an answer says: the target's MAC, R and O flag."""

    mac: bytes
    router: bool
    override: bool


def reply_to(question: PendingSolicitation, frame: bytes, known: bytes | None) -> Reply | Fault:
    """What a frame says to a question that was sent to the target's solicited-node group.

    known: the MAC that the target is believed to have. An advertisement without TLLAO confirms
    that and no other (7.2.5); one that answers a multicast solicitation must have it (7.2.4).
    """
    heard = parse_advertisement(frame)
    if isinstance(heard, Fault):
        return heard
    if not is_sent_to(heard, question.mac):
        return Fault.OTHER_HOST
    if heard.destination != question.source:
        return Fault.OTHER_DESTINATION
    if heard.target != question.target:
        return Fault.OTHER_TARGET
    if not heard.solicited:
        return Fault.NOT_SOLICITED
    mac = heard.lladdr
    if mac is None:
        if heard.eth_source != known:
            return Fault.NO_LLADDR
        mac = known
    if mac[0] & 1 or not any(mac) or mac == question.mac:
        return Fault.BAD_LLADDR
    return Reply(mac, heard.router, heard.override)
