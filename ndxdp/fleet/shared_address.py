"""An address, or prefix, that exactly one of several hosts answers for. Pure."""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule


class SharedAddress(NamedTuple):
    """The value of a key `shared/SEGMENT/NAME`.

    Attributes:
        prefix: The prefix.
        rule: The rule of the host that answers for it, without `leased`.
        force: The rule is accepted although it answers for other nodes of the link.
        hosts: The only hosts that may answer, the first choice first; () for any member of the
            segment.
        failback: The first choice gets the address back when it is alive again.
    """

    prefix: Prefix
    rule: Rule
    force: bool = False
    hosts: tuple[str, ...] = ()
    failback: bool = False
