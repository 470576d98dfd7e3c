"""The place in etcd's history up to which a watcher knows the keys. Pure."""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.sources.etcd_wire import Header, Item


class Position(NamedTuple):
    """The place in the history of a cluster up to which this process knows the keys.

    Attributes:
        cluster: The id of the cluster.
        term: The term of its leader.
        revisions: The revision of each range up to which its keys are known.
        changed: The revision of the last change of a key.
        written: The keys that were written at that revision; none if they were deleted.
    """

    cluster: int
    term: int
    revisions: tuple[int, ...]
    changed: int = 0
    written: frozenset[bytes] = frozenset()

    def precedes(self, header: Header) -> bool:
        """Return True if the history that a header is from may continue this one."""
        return (
            header.cluster == self.cluster
            and header.term >= self.term
            and header.revision >= max(self.revisions)
        )

    def reaches(self, number: int, revision: int) -> Position:
        """Return the position with another revision of a range; ranges are counted from 1 on."""
        revisions = list(self.revisions)
        revisions[number - 1] = revision
        return self._replace(revisions=tuple(revisions))

    def after(self, items: list[Item]) -> Position:
        """Return the position after some changes; the revisions are left as they are."""
        newest = max((item.changed for item in items), default=0)
        if newest < self.changed or not items:
            return self
        written = {item.key for item in items if item.changed == newest and item.value is not None}
        if newest == self.changed:
            written |= self.written
        return self._replace(changed=newest, written=frozenset(written))
