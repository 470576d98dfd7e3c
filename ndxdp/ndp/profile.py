"""How a rule answers. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class Answer(IntEnum):
    """What a rule says of its targets; the numbers are `enum ndp_answer`'s."""

    NEVER = 0
    ALWAYS = 1
    ROUTED = 2
    NEIGHBOUR = 3
    LOCAL = 4

    @property
    def asks_kernel(self) -> bool:
        """True if the kernel's tables decide."""
        return self >= Answer.ROUTED

    @property
    def asks_routes(self) -> bool:
        """True if the route decides by which a packet for the target leaves this host."""
        return self in (Answer.ROUTED, Answer.NEIGHBOUR)


class NaSource(Enum):
    """An advertisement's source where it is not an address given outright."""

    TARGET = "target"
    LINK_LOCAL = "link-local"


@dataclass(frozen=True, slots=True)
class Profile:
    """How a rule answers.

    source: the advertisement's IPv6 source: the target, the interface's link-local address
        (the target while it has none), or an address of 16 bytes.
    router, override: the R and O flags. A proxy's advertisement has O=0 (7.2.8).
    defend: answer Duplicate Address Detection for the target.
    lladdr: the TLLAO, 6 bytes; None for the interface's MAC.
    """

    source: NaSource | bytes = NaSource.TARGET
    router: bool = True
    override: bool = False
    defend: bool = True
    lladdr: bytes | None = None


DEFAULT_PROFILE = Profile()
