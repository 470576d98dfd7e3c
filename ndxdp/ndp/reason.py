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
    NOT_LOCAL = 15
    NOT_FORWARDING = 16
    NO_ROUTE = 17
    ROUTE_LOCAL = 18
    ROUTE_BLACKHOLE = 19
    ROUTE_UNREACHABLE = 20
    ROUTE_PROHIBIT = 21
    ROUTE_BACK = 22
    ROUTE_ELSEWHERE = 23
    ROUTE_ENCAP = 24
    ROUTE_GATEWAY = 25
    NO_NEIGHBOUR = 26
    DAD_IGNORED = 27
    DAD_ON_LINK = 28
    RATE_LIMITED = 29
    GATEWAY_LIMITED = 30
    RESIZE_FAILED = 31
    SEND_FAILED = 32
    ANSWERED = 33
    ANSWERED_DAD = 34

    @property
    def label(self) -> str:
        """The reason as metrics and commands print it, such as `no_rule`."""
        return self.name.lower()

    @property
    def is_answer(self) -> bool:
        """True if an advertisement is sent."""
        return self >= Reason.ANSWERED
