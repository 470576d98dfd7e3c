"""The next steps of a host with the shared addresses of a segment. Pure."""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.fleet.records import Holder


class Acquisition(NamedTuple):
    """An address to acquire, by a transaction that creates the holder's key under the lease.

    The transaction has two conditions: the key `holders/SEGMENT/NAME` does not exist, and
    `shared/SEGMENT/NAME` was last changed at the revision `changed`.

    Attributes:
        name: The name.
        holder: The value of the key, but for `since`, which is 0.
        changed: The revision of the last change of the shared address.
        ends_move: The transaction deletes `moves/SEGMENT/NAME`, too.
    """

    name: str
    holder: Holder
    changed: int
    ends_move: bool


class Decision(NamedTuple):
    """The next steps of a host.

    Attributes:
        acquire: Addresses to acquire.
        release: Addresses to give up. They have left the rules already: first these are written,
            then the holder's key is deleted if it is still under this host's lease.
        again: When to decide again at the latest, even if no key changes; None for no such time.
    """

    acquire: list[Acquisition]
    release: list[str]
    again: float | None
