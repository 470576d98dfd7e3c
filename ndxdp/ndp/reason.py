"""Reasons for answering a solicitation or not. Pure."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """Why a solicitation is answered or not; the numbers are those of `enum ndp_reason`."""

    NOT_NS = 0
    OTHER_VLAN = 1
    OWN_FRAME = 2
    OTHER_HOST = 3
    BAD_HOP_LIMIT = 4
    BAD_CODE = 5
    BAD_LENGTH = 6
    BAD_OPTION = 7
    BAD_CHECKSUM = 8
    BAD_TARGET = 9
    BAD_SOURCE = 10
    PAUSED = 11
    NO_RULE = 12
    DENIED = 13
    EXPIRED = 14
    LAPSED = 15
    NOT_LOCAL = 16
    NOT_FORWARDING = 17
    NO_ROUTE = 18
    ROUTE_LOCAL = 19
    ROUTE_BLACKHOLE = 20
    ROUTE_UNREACHABLE = 21
    ROUTE_PROHIBIT = 22
    ROUTE_BACK = 23
    ROUTE_ELSEWHERE = 24
    ROUTE_ENCAP = 25
    ROUTE_GATEWAY = 26
    NO_NEIGHBOUR = 27
    DAD_IGNORED = 28
    DAD_ON_LINK = 29
    RATE_LIMITED = 30
    GATEWAY_LIMITED = 31
    RESIZE_FAILED = 32
    SEND_FAILED = 33
    ANSWERED = 34
    ANSWERED_DAD = 35

    @property
    def label(self) -> str:
        """The reason as metrics and commands print it, such as `no_rule`."""
        return self.name.lower()

    @property
    def is_answer(self) -> bool:
        """True if an advertisement is sent."""
        return self >= Reason.ANSWERED
