"""The shared addresses of a segment as one host knows them, for reports. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ndxdp.fleet.assignment import Candidates, permits
from ndxdp.fleet.shared_address import SharedAddress
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
    hosts = list(candidates.since)
    for name, entry in list(view.entries.items()):
        if not entry.has_value:
            continue
        address, holder = entry.address, entry.holding.holder if entry.holding else None
        problem = entry.refusal
        if address and not holder and not problem:
            problem = _why_unheld(address, hosts)
        yield AddressState(
            name,
            str(address.prefix) if address else "",
            address.hosts if address else (),
            address.failback if address else False,
            holder.host if holder else "",
            holder.since if holder else 0.0,
            problem,
        )


def _why_unheld(address: SharedAddress, candidates: list[str]) -> str:
    """Return why no host can answer; "" if one can."""
    if any(permits(address, host) for host in candidates):
        return ""
    some = f"none of its hosts ({', '.join(address.hosts)})" if address.hosts else "no host"
    return f"{some} is a member of the segment and not drained"
