"""The keys of shared addresses in etcd. Pure.

Below `PREFIX/v1/`:

    shared/SEGMENT/NAME     an address that exactly one member of the segment answers for
    members/SEGMENT/HOST    leased: the host is alive, and may answer on the segment
    holders/SEGMENT/NAME    leased: the host that answers for the address now
    moves/SEGMENT/NAME      the host that somebody moves the address to; it goes with the move
    drained/HOST            the host gives up all shared addresses, and takes none
"""

from __future__ import annotations

from typing import NamedTuple

SHARED, MEMBERS, HOLDERS, MOVES, DRAINED = "shared", "members", "holders", "moves", "drained"


class FleetKey(NamedTuple):
    """A key below `PREFIX/v1/`.

    Attributes:
        kind: The first part, such as `shared`.
        segment: The segment; "" for `drained`.
        name: The name of the shared address; the name of the host for `members` and `drained`.
    """

    kind: str
    segment: str
    name: str

    def __str__(self) -> str:
        return "/".join(part for part in (self.kind, self.segment, self.name) if part)


def ranges(segments: list[str]) -> list[str]:
    """Return the beginnings, below `PREFIX/v1/`, of all keys that a host of segments follows."""
    kinds = (SHARED, MEMBERS, HOLDERS, MOVES)
    return [f"{DRAINED}/", *(f"{kind}/{segment}/" for segment in segments for kind in kinds)]


def parse_key(text: str) -> FleetKey | None:
    """Return the parts of a key below `PREFIX/v1/`; None for a key of another kind."""
    kind, _, rest = text.partition("/")
    if kind == DRAINED:
        return FleetKey(kind, "", rest)
    if kind not in (SHARED, MEMBERS, HOLDERS, MOVES):
        return None
    segment, _, name = rest.partition("/")
    return FleetKey(kind, segment, name)
