"""How a rule answers: when it does, and what its advertisements contain. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class Answer(IntEnum):
    """When a rule answers for its targets; the numbers are those of `enum ndp_answer`."""

    NEVER = 0
    ALWAYS = 1
    ROUTED = 2
    NEIGHBOUR = 3
    LOCAL = 4

    @property
    def asks_kernel(self) -> bool:
        """True if the answer depends on the kernel's routes and neighbours."""
        return self >= Answer.ROUTED

    @property
    def asks_routes(self) -> bool:
        """True if the answer depends on the route by which a packet for the target leaves."""
        return self in (Answer.ROUTED, Answer.NEIGHBOUR)


class NaSource(Enum):
    """The IPv6 source of an advertisement, where the rule does not name an address."""

    TARGET = "target"
    LINK_LOCAL = "link-local"


@dataclass(frozen=True, slots=True)
class Profile:
    """The contents of a rule's advertisements, and whether the rule answers DAD.

    Attributes:
        source: The IPv6 source: the target, the interface's link-local address (the target while
            the interface has none), or an address of 16 bytes.
        router: The R flag.
        override: The O flag, which is 0 in a proxy's advertisements (RFC 4861 section 7.2.8).
        defend: True if Duplicate Address Detection for the target is answered.
        lladdr: The MAC in the TLLAO, 6 bytes; None for the interface's MAC.
    """

    source: NaSource | bytes = NaSource.TARGET
    router: bool = True
    override: bool = False
    defend: bool = True
    lladdr: bytes | None = None


DEFAULT_PROFILE = Profile()
