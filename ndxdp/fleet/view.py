"""The keys of one segment's shared addresses, as far as this host knows them. Pure.

The stream of changes has the changes of one range in their order; it may be late, and one range may
be ahead of another one. The answer to this host's own transaction may be ahead of the stream: older
changes of that key are then ignored.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NamedTuple

from ndxdp.fleet.keys import DRAINED, HOLDERS, MEMBERS, MOVES, SHARED
from ndxdp.fleet.records import Holder, Member
from ndxdp.fleet.shared_address import SharedAddress
from ndxdp.printable import printable, shown
from ndxdp.rules.precedence import Precedence
from ndxdp.rules.prefix import Prefix

NEVER = sys.maxsize
"""The revision from which on no host acquires a name whose key stays as it is.

An acquisition fails if the key has changed. But a key that is not in force any more, because of an
older one with its prefix, may still be acquired by a host that does not know of the older one.
"""


class Holding(NamedTuple):
    """The holder of an address.

    Attributes:
        holder: The value of its key.
        lease: The id of the lease that the key is under.
    """

    holder: Holder
    lease: int


@dataclass(slots=True)
class Entry:
    """The keys of one name.

    Attributes:
        has_value: The key of the shared address exists.
        address: The shared address; None without a valid value.
        changed: The revision of the value's last change.
        refusal: Why the value is refused, or not in force; "" if it is in force.
        holding: The holder; None if no host has the address.
        move: The host that the address is moved to; "" for none.
        move_changed: The revision of the last change of the move.
        unheld_since: When this host first saw that no host has the address; None before.
    """

    has_value: bool = False
    address: SharedAddress | None = None
    changed: int = 0
    refusal: str = ""
    holding: Holding | None = None
    move: str = ""
    move_changed: int = 0
    unheld_since: float | None = None

    @property
    def in_force(self) -> SharedAddress | None:
        """The shared address, unless an older key has its prefix."""
        return None if self.refusal else self.address


class View:
    """The keys of one segment.

    Attributes:
        entries: The names that have a key of any kind.
        members: The live members, by host.
        drained: The hosts that give up all shared addresses.
        held_prefixes: The names whose holder answers for a prefix, by the text of the prefix.
        refused: The names whose values are refused, or not in force, with the reason.
        reading: True while all keys are read; until they are, the view mixes old and new keys.
        complete: True once all keys were read.
        changed: Names whose keys have changed; the reader of the view empties it.
        touched: Prefixes that a key had before; the reader empties it.
        vacated: The name that was in force for a prefix before another key, or none, and the
            revision from which on no host acquires it by that name; the reader empties it.
        freed: Prefixes, as texts, that no holder answers for any more; the reader empties it.
        watched: The revision up to which all changes of holders are known.
        regrouped: Hosts that have become or ceased to be members, or drained; the reader empties
            it.
    """

    def __init__(self) -> None:
        """Know no keys yet."""
        self.entries: dict[str, Entry] = {}
        self.members: dict[str, Member] = {}
        self.drained: set[str] = set()
        self.held_prefixes: dict[str, set[str]] = {}
        self.refused: dict[str, str] = {}
        self.reading = self.complete = False
        self.changed: dict[str, None] = {}
        self.touched: set[Prefix] = set()
        self.vacated: dict[Prefix, tuple[str, int]] = {}
        self.freed: set[str] = set()
        self.regrouped: dict[str, None] = {}
        self._precedence = Precedence()
        self._seen: dict[str, set[str]] = {}
        self.watched = 0
        self._ahead: dict[str, int] = {}  # revisions of this host's own writes beyond that

    # ---- all keys

    def begin(self) -> None:
        """Begin to read all keys: each that there is will be put, and then end() is called."""
        self.reading = True
        self._seen = {kind: set() for kind in (SHARED, MEMBERS, HOLDERS, MOVES, DRAINED)}

    def end(self, revision: int) -> None:
        """Forget the keys that were not put since begin().

        Args:
            revision: The revision at which all keys were read.
        """
        seen, self._seen = self._seen, {}
        self.watched = max(self.watched, revision)
        self._ahead = {name: at for name, at in self._ahead.items() if at > revision}
        for name, entry in list(self.entries.items()):
            if entry.has_value and name not in seen[SHARED]:
                self.delete_shared(name, revision)
            if entry.holding and name not in seen[HOLDERS]:
                self.delete_holder(name, revision)
            if entry.move and name not in seen[MOVES]:
                self.delete_move(name)
        for host in [each for each in self.members if each not in seen[MEMBERS]]:
            self.delete_member(host)
        for host in sorted(self.drained - seen[DRAINED]):
            self.delete_drained(host)
        self.reading, self.complete = False, True

    def forget_holders(self) -> None:
        """Forget all holders, and how far the stream has reached: etcd has another history."""
        self.watched, self._ahead = 0, {}
        for name, entry in list(self.entries.items()):
            if entry.holding:
                self._set_holding(name, None)

    # ---- shared addresses

    def put_shared(self, name: str, value: SharedAddress | str, created: int, changed: int) -> None:
        """Take the value of a shared address.

        Args:
            name: The name.
            value: The address; a text is the reason why the value is refused.
            created: The revision of the key's creation.
            changed: The revision of its last change.
        """
        self._saw(SHARED, name)
        entry = self._entry(name)
        if isinstance(value, str):
            self._drop_value(name, entry, changed)
            entry.has_value, entry.changed = True, changed
            self._refuse(name, entry, value)
            return
        if entry.address is not None and entry.address.prefix != value.prefix:
            self._drop_value(name, entry, changed)
        entry.has_value, entry.changed, entry.address = True, changed, value
        before = self._precedence.in_force(value.prefix) or name
        for each in self._precedence.put(name, value.prefix, created):
            self._judge(each)
        if before not in (name, self._precedence.in_force(value.prefix)):
            self.vacated[value.prefix] = before, NEVER

    def delete_shared(self, name: str, changed: int) -> None:
        """Note that the key of a shared address was deleted at a revision."""
        entry = self.entries.get(name)
        if entry is not None:
            self._drop_value(name, entry, changed)
            self._prune(name, entry)

    def _drop_value(self, name: str, entry: Entry, changed: int) -> None:
        address, entry.address = entry.address, None
        entry.has_value, entry.changed = False, 0
        self._refuse(name, entry, "")
        self.changed[name] = None
        if address is None:
            return
        self.touched.add(address.prefix)
        if self._precedence.in_force(address.prefix) == name:
            self.vacated[address.prefix] = name, changed
        for each in self._precedence.remove(name):
            self._judge(each)

    def _judge(self, name: str) -> None:
        """Refuse a key if an older one has the same prefix."""
        entry = self.entries[name]
        assert entry.address is not None
        first = self._precedence.winner(name)
        is_first = first == name
        reason = "" if is_first else f"{shown(first or '')} has {entry.address.prefix} already"
        self._refuse(name, entry, reason)
        self.changed[name] = None

    def _refuse(self, name: str, entry: Entry, reason: str) -> None:
        entry.refusal = printable(reason)
        if reason:
            self.refused[name] = entry.refusal
        else:
            self.refused.pop(name, None)

    @property
    def shared(self) -> int:
        """The number of addresses in force."""
        return self._precedence.prefixes

    def in_force(self, prefix: Prefix) -> str | None:
        """Return the name whose key is in force for a prefix; None if there is none."""
        return self._precedence.in_force(prefix)

    # ---- holders and moves

    def put_holder(self, name: str, holding: Holding, changed: int) -> None:
        """Take the holder of an address, by a key that was last changed at a revision."""
        self._saw(HOLDERS, name)
        if not self._is_old(name, changed):
            self._set_holding(name, holding)

    def delete_holder(self, name: str, changed: int) -> None:
        """Note that the key of a holder was deleted at a revision."""
        if not self._is_old(name, changed):
            self._set_holding(name, None)

    def note_acquired(self, name: str, holding: Holding, revision: int) -> None:
        """Take this host as the holder of an address, as a transaction at a revision has shown.

        The stream knows better if it has passed that revision.
        """
        if revision > max(self.watched, self._ahead.get(name, 0)):
            self._ahead[name] = revision
            self._set_holding(name, holding)

    def _is_old(self, name: str, changed: int) -> bool:
        """Note a change in the stream; return True if an own transaction was later."""
        self.watched = max(self.watched, changed)
        ahead = self._ahead.get(name, 0)
        if ahead and changed >= ahead:
            del self._ahead[name]
        return changed < ahead

    def _set_holding(self, name: str, holding: Holding | None) -> None:
        entry = self._entry(name)
        if entry.holding is not None:
            names = self.held_prefixes[entry.holding.holder.prefix]
            names.discard(name)
            if not names:
                del self.held_prefixes[entry.holding.holder.prefix]
                self.freed.add(entry.holding.holder.prefix)
        if holding is not None:
            self.held_prefixes.setdefault(holding.holder.prefix, set()).add(name)
        entry.holding, entry.unheld_since = holding, None
        self._touch(name, entry)

    def put_move(self, name: str, host: str, changed: int) -> None:
        """Note that somebody moves an address to a host, by a key changed at a revision."""
        self._saw(MOVES, name)
        entry = self._entry(name)
        entry.move, entry.move_changed = host, changed
        self._touch(name, entry)

    def delete_move(self, name: str) -> None:
        """Note that a move has ended."""
        entry = self.entries.get(name)
        if entry is not None:
            entry.move, entry.move_changed = "", 0
            self._touch(name, entry)

    # ---- hosts

    def put_member(self, member: Member) -> None:
        """Take a live member of the segment."""
        self._saw(MEMBERS, member.host)
        self.regrouped[member.host] = None
        self.members[member.host] = member

    def delete_member(self, host: str) -> None:
        """Note that a host is no member of the segment any more."""
        if self.members.pop(host, None) is not None:
            self.regrouped[host] = None

    def put_drained(self, host: str) -> None:
        """Note that somebody has drained a host."""
        self._saw(DRAINED, host)
        self.drained.add(host)
        self.regrouped[host] = None

    def delete_drained(self, host: str) -> None:
        """Note that a host is not drained any more."""
        self.drained.discard(host)
        self.regrouped[host] = None

    # ---- entries

    def _entry(self, name: str) -> Entry:
        entry = self.entries.get(name)
        if entry is None:
            entry = self.entries[name] = Entry()
        return entry

    def _touch(self, name: str, entry: Entry) -> None:
        self.changed[name] = None
        self._prune(name, entry)

    def _prune(self, name: str, entry: Entry) -> None:
        """Forget a name that has no key."""
        if not (entry.has_value or entry.holding or entry.move):
            self.entries.pop(name, None)

    def _saw(self, kind: str, name: str) -> None:
        if self.reading:
            self._seen[kind].add(name)
