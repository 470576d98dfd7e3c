"""The shared addresses of a segment as one host knows them, for reports. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ndxdp.fleet.assignment import Candidates
from ndxdp.fleet.unheld import why_unheld
from ndxdp.fleet.view import View


class AddressState(NamedTuple):
    """A shared address as this host knows it.

    Attributes:
        name: The name.
        prefix: The prefix, as a text; "" without a valid value.
        hosts: The only hosts that may answer; () for any member.
        failback: The first choice gets the address back.
        holder: The host that answers; "" if nobody does.
        since: time.time() when it acquired the address; 0 without a holder.
        problem: Why the value is refused, or why no host can answer; "" without a problem.
    """

    name: str
    prefix: str
    hosts: tuple[str, ...]
    failback: bool
    holder: str
    since: float
    problem: str


def address_states(view: View, candidates: Candidates) -> Iterator[AddressState]:
    """Yield all shared addresses, with those whose values are refused."""
    # a key of this host may outlive its membership
    members = {*candidates.since, *(view.drained & view.members.keys())}
    for name, entry in list(view.entries.items()):
        if not entry.has_value:
            continue
        address, holder = entry.address, entry.holding.holder if entry.holding else None
        problem = entry.refusal
        if address and not holder and not problem:
            problem = why_unheld(address.hosts, candidates, members)
        yield AddressState(
            name,
            str(address.prefix) if address else "",
            address.hosts if address else (),
            address.failback if address else False,
            holder.host if holder else "",
            holder.since if holder else 0.0,
            problem,
        )
