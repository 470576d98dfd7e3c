"""A view of the fleet as lines for people, and as data for `--json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ndxdp.fleet.records import Member
from ndxdp.inventory.view import AddressView, FleetView, SegmentView
from ndxdp.observe.hosts import moment
from ndxdp.observe.units import elapsed

HEADINGS = ("address", "name", "segment", "held by", "since", "hosts")
_NOTHING = "-"
_NAMES_MAX = 3  # names of addresses in a sentence
_LINES_MAX = 20
"""Lines of members, of problems and of moves; the number of the others is shown."""


def fleet_lines(view: FleetView, now: float, *, every: bool = False) -> Iterator[str]:
    """Yield the lines about each segment, then about drained hosts that are no members.

    Args:
        view: The view.
        now: time.time().
        every: Show all members and problems, not only the first ones.
    """
    for segment in view.segments:
        yield from _segment_lines(segment, view, now, every=every)
    others = [host for host in view.drained if host not in view.hosts()]
    if others:
        yield f"drained, and no member  {_cut(others, every=every)}"


def _segment_lines(
    segment: SegmentView, view: FleetView, now: float, *, every: bool
) -> Iterator[str]:
    addresses, unheld = segment.addresses, segment.unheld
    yield (
        f"segment {segment.segment}  shared {len(addresses)}, held"
        f" {len(addresses) - len(unheld)}, members {len(segment.members)}"
    )
    most = None if every else _LINES_MAX
    held = segment.held()
    for member in segment.members[:most]:
        drained = ", drained" if member.host in view.drained else ""
        words = f"{_since(member, now)}holds {held[member.host]}, ndxdp {member.version or '?'}"
        yield f"  member    {member.host}, {words}{drained}"
    yield from _more("member", len(segment.members), most)
    problems = list(problems_of(segment))
    for sentence in problems[:most]:
        yield f"  WARNING   {sentence}"
    yield from _more("WARNING", len(problems), most)
    moves = segment.moves
    for each in moves[:most]:
        yield f"  move      {each.name} ({each.wanted.prefix}) to {each.move} waits"
    yield from _more("move", len(moves), most)


def problems_of(segment: SegmentView) -> Iterator[str]:
    """Yield a sentence on each problem of a segment."""
    by_reason: dict[str, list[AddressView]] = {}
    for each in segment.unheld:
        by_reason.setdefault(each.problem, []).append(each)
    for reason, found in by_reason.items():
        names = ", ".join(f"{each.name} ({each.wanted.prefix})" for each in found[:_NAMES_MAX])
        more = f" and {len(found) - _NAMES_MAX} more" if len(found) > _NAMES_MAX else ""
        yield f"nobody holds {names}{more}: {reason}"
    for each in segment.addresses:
        if each.holder and each.problem:
            yield f"{each.name} ({each.wanted.prefix}): {each.problem}"
    for key, reason in segment.refused:
        yield f"{key} is refused: {reason}"
    for name in segment.abandoned:
        yield f"{name} is held, but there is no such shared address"
    members = {each.host for each in segment.members}
    for host, count in sorted(segment.held().items()):
        if host not in members:
            yield f"{host} holds {count}, and is no member"


def rows(view: FleetView, now: float) -> Iterator[tuple[str, ...]]:
    """Yield a row of HEADINGS for each address."""
    for segment in view.segments:
        for each in segment.addresses:
            yield (
                str(each.wanted.prefix),
                each.name,
                each.segment,
                each.holder.host if each.holder else _NOTHING,
                f"{elapsed(now - each.holder.since)} ago"
                if each.holder and each.holder.since
                else _NOTHING,
                _hosts(each),
            )


def fleet_data(view: FleetView) -> dict[str, Any]:
    """Return the view as `ndxdp fleet status --json` has it (docs/json.md)."""
    return {
        "revision": view.revision,
        "segments": [_segment_data(each, view) for each in view.segments],
        "drained": view.drained,
    }


def _segment_data(segment: SegmentView, view: FleetView) -> dict[str, Any]:
    held = segment.held()
    return {
        "segment": segment.segment,
        "members": [
            {
                "host": each.host,
                "since": moment(each.since or None),
                "version": each.version,
                "drained": each.host in view.drained,
                "holds": held[each.host],
            }
            for each in segment.members
        ],
        "shared": len(segment.addresses),
        "held": len(segment.addresses) - len(segment.unheld),
        "unheld": len(segment.unheld),
        "addresses": [_address_data(each) for each in segment.addresses],
        "refused": [each._asdict() for each in segment.refused],
        "warnings": list(problems_of(segment)),
    }


def _address_data(each: AddressView) -> dict[str, Any]:
    return {
        "key": f"shared/{each.key}",
        "name": each.name,
        "prefix": str(each.wanted.prefix),
        "hosts": list(each.wanted.hosts),
        "failback": each.wanted.failback,
        "holder": each.holder.host if each.holder else None,
        "since": moment(each.holder.since or None) if each.holder else None,
        "move": each.move or None,
        "problem": each.problem,
    }


def _hosts(each: AddressView) -> str:
    """Return the hosts that may answer, with what is special about them."""
    words = ", ".join(each.wanted.hosts) or "any"
    return f"{words}; failback" if each.wanted.failback else words


def _since(member: Member, now: float) -> str:
    return f"since {elapsed(now - member.since)} ago, " if member.since else ""


def _more(word: str, count: int, most: int | None) -> Iterator[str]:
    if most is not None and count > most:
        yield f"  {word:<9} and {count - most} more: see `ndxdp fleet status --all`"


def _cut(hosts: list[str], *, every: bool) -> str:
    shown = hosts if every else hosts[:_LINES_MAX]
    more = len(hosts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
