"""Why no host can answer for a shared address. Pure."""

from __future__ import annotations

from collections.abc import Container, Sequence, Sized
from typing import Protocol

_LISTED_MAX = 5  # hosts in a sentence


class Hosts(Sized, Container[str], Protocol):
    """Some hosts, such as a set of names or Candidates."""


def why_unheld(hosts: Sequence[str], candidates: Hosts, members: Hosts) -> str:
    """Return why no host can answer for an address; "" if one can.

    Args:
        hosts: The only hosts that may answer for it; none for any member.
        candidates: The live members of its segment that are not drained.
        members: The live members of its segment.
    """
    if not members:
        return "no host is a member of the segment"
    if not hosts:
        return "" if candidates else "all members of the segment are drained"
    if any(host in candidates for host in hosts):
        return ""
    alive = [host for host in hosts if host in members]
    if alive:
        return f"all of its hosts that are members are drained: {_listed(alive)}"
    return f"none of its hosts is a member: {_listed(hosts)}"


def _listed(hosts: Sequence[str]) -> str:
    shown = ", ".join(hosts[:_LISTED_MAX])
    more = len(hosts) - _LISTED_MAX
    return f"{shown} and {more} more" if more > 0 else shown
