"""Shared addresses, their members and their holders, as etcd has them at one moment. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ndxdp.fleet import keys
from ndxdp.fleet.assignment import Candidates
from ndxdp.fleet.keys import DRAINED, HOLDERS, MEMBERS, MOVES, SHARED
from ndxdp.fleet.records import Holder, Member, decode_holder, decode_member, decode_move
from ndxdp.fleet.shared_address import SharedAddress
from ndxdp.fleet.unheld import why_unheld
from ndxdp.inventory.values import Entry, Refusal, read_all
from ndxdp.rules.interface_name import natural_order

KINDS = (SHARED, MEMBERS, HOLDERS, MOVES, DRAINED)
"""The kinds of keys that a view is made of."""


class AddressView(NamedTuple):
    """A shared address.

    Attributes:
        segment: The segment.
        name: The name in the key.
        wanted: What the value says.
        holder: The host that answers for it; None for nobody.
        move: The host that it is being moved to; "" without a move.
        problem: Why nobody answers for it, or what is wrong with its holder; "" if nothing is.
    """

    segment: str
    name: str
    wanted: SharedAddress
    holder: Holder | None
    move: str
    problem: str

    @property
    def key(self) -> str:
        """The segment and the name, as commands take them."""
        return f"{self.segment}/{self.name}"


@dataclass(frozen=True, slots=True)
class SegmentView:
    """A segment.

    Attributes:
        segment: The name.
        members: The live members, in natural order.
        addresses: The shared addresses, in natural order of their names.
        refused: The keys whose values are refused.
        abandoned: The names of holders whose addresses no longer exist, or are refused.
    """

    segment: str
    members: list[Member]
    addresses: list[AddressView]
    refused: list[Refusal]
    abandoned: list[str]

    @property
    def unheld(self) -> list[AddressView]:
        """The addresses that nobody answers for."""
        return [each for each in self.addresses if each.holder is None]

    @property
    def moves(self) -> list[AddressView]:
        """The addresses that are being moved."""
        return [each for each in self.addresses if each.move]

    def held(self) -> Counter[str]:
        """Return the number of addresses that each host answers for."""
        return Counter(each.holder.host for each in self.addresses if each.holder)


@dataclass(frozen=True, slots=True)
class FleetView:
    """All segments, or some.

    Attributes:
        segments: The segments, in natural order.
        drained: The hosts that are drained, in natural order.
        revision: The revision of etcd.
    """

    segments: list[SegmentView]
    drained: list[str]
    revision: int = 0

    def segment(self, name: str) -> SegmentView | None:
        """Return a segment by its name; None if etcd has no key of it."""
        return next((each for each in self.segments if each.segment == name), None)

    def hosts(self) -> set[str]:
        """Return the hosts that are members of any segment."""
        return {member.host for each in self.segments for member in each.members}


@dataclass(slots=True)
class _Keys:
    """The keys of one segment, by their names."""

    shared: dict[str, Entry] = field(default_factory=dict)
    members: dict[str, bytes] = field(default_factory=dict)
    holders: dict[str, bytes] = field(default_factory=dict)
    moves: dict[str, bytes] = field(default_factory=dict)


def beginnings(segments: Sequence[str] = ()) -> list[str]:
    """Return the beginnings of the keys that a view of segments needs, of all without one."""
    return keys.ranges(list(segments)) if segments else [f"{kind}/" for kind in KINDS]


def view_of(entries: Iterable[Entry], revision: int = 0) -> FleetView:
    """Return the view of some keys; keys of other kinds are left out.

    Args:
        entries: The keys of all segments, or of some.
        revision: The revision of etcd.
    """
    found: dict[str, _Keys] = {}
    drained = set()
    for entry in entries:
        key = keys.parse_key(entry.key)
        if key is None or not key.name:
            continue
        if key.kind == DRAINED:
            drained.add(key.name)
            continue
        of = found.setdefault(key.segment, _Keys())
        match key.kind:
            case keys.SHARED:
                of.shared[key.name] = entry
            case keys.MEMBERS:
                of.members[key.name] = entry.value
            case keys.HOLDERS:
                of.holders[key.name] = entry.value
            case keys.MOVES:
                of.moves[key.name] = entry.value
    return FleetView(
        [_segment(name, found[name], drained) for name in sorted(found, key=natural_order)],
        sorted(drained, key=natural_order),
        revision,
    )


def _segment(segment: str, found: _Keys, drained: set[str]) -> SegmentView:
    members = [
        decode_member(host, found.members[host])
        for host in sorted(found.members, key=natural_order)
    ]
    values, refused = read_all(found.shared.values())
    wanted = {key.name: each for key, each in values.items() if isinstance(each, SharedAddress)}
    live = {each.host for each in members}
    able, addresses = Candidates(segment), []
    for host in live - drained:
        able.add(host, 0)
    for name in sorted(wanted, key=natural_order):
        value = found.holders.get(name)
        holder = decode_holder(value) if value is not None else None
        move = decode_move(found.moves[name]) if name in found.moves else ""
        if holder is None:
            problem = why_unheld(wanted[name].hosts, able, live)
            if not problem:
                first = able.order(name, wanted[name])[0]
                problem = f"{first} is its first choice, and has not acquired it yet"
        else:
            is_former = holder.prefix not in ("", str(wanted[name].prefix))
            problem = (
                f"{holder.host} still answers for {holder.prefix} instead" if is_former else ""
            )
        addresses.append(AddressView(segment, name, wanted[name], holder, move, problem))
    abandoned = sorted(found.holders.keys() - wanted.keys(), key=natural_order)
    return SegmentView(segment, members, addresses, refused, abandoned)
