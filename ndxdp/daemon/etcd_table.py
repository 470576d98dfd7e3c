"""The keys of one segment: rules that they make, and values that are refused. Pure."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ndxdp.config.rule_value import ValueReader
from ndxdp.errors import UsageError
from ndxdp.printable import printable
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules

log = logging.getLogger(__name__)

_NAME_MAX = 100  # characters of a name in messages
_LOGGED_MAX = 20  # lines on refused values for one batch


class _Known(NamedTuple):
    """The valid value of a key, and the revision of the key's creation."""

    created: int
    prefix: Prefix
    rule: Rule
    force: bool


class SegmentTable:
    """The keys of this host for one segment.

    Attributes:
        rules: The rules of the keys as of the last commit().
        forced: The prefixes of those of them that have `force`.
        refused: By name, why the value of a key is refused.
    """

    def __init__(self, segment: str, earlier: Mapping[str, str] | None = None) -> None:
        """Have no keys yet.

        Args:
            segment: The segment.
            earlier: The values that were refused before; the log has them already.
        """
        self._segment, self._earlier = segment, earlier or {}
        self._reader = ValueReader(segment)
        self._known: dict[str, _Known] = {}
        self._owners: dict[Prefix, str] = {}  # the name whose rule is in force
        self._rivals: dict[Prefix, set[str]] = {}  # names with a prefix that another name has
        self._touched: set[Prefix] = set()
        self._fresh: list[str] = []  # names that are refused since the last commit
        self.rules = Rules()
        self.forced: frozenset[Prefix] = frozenset()
        self.refused: dict[str, str] = {}

    def __len__(self) -> int:
        """Return the number of keys, with those whose values are refused."""
        twice = sum(map(len, self._rivals.values()))
        return len(self._known) + len(self.refused) - twice

    def put(self, name: str, value: bytes, created: int) -> None:
        """Take the value of a key, in place of an earlier one."""
        before = self.refused.get(name, self._earlier.get(name))
        self._forget(name)
        try:
            if not name:
                raise UsageError("the key ends after the segment", "write SEGMENT/NAME")
            found = self._reader.read(value)
        except UsageError as error:
            others = f" (and {len(error.also)} more)" if error.also else ""
            self._refuse(name, f"{error.message}{others}", before)
            return
        self._known[name] = _Known(created, found.prefix, found.rule, found.force)
        self._claim(name, found.prefix, before)

    def delete(self, name: str) -> None:
        """Forget a key."""
        self._forget(name)

    def commit(self) -> bool:
        """Bring `rules` and `forced` in step; return True if they have changed."""
        self._log()
        self._earlier = {}
        touched, self._touched = self._touched, set()
        if not touched:
            return False
        there = {
            prefix: self._known[self._owners[prefix]].rule
            for prefix in touched
            if prefix in self._owners
        }
        changed = self.rules.changed_at(touched, Rules.of(there))
        forced = {
            prefix
            for prefix in touched
            if prefix in self._owners and self._known[self._owners[prefix]].force
        }
        is_new = forced != touched & self.forced or changed != self.rules
        if forced or self.forced:
            self.forced = (self.forced - touched) | forced
        self.rules = changed
        return is_new

    # ---- one key

    def _claim(self, name: str, prefix: Prefix, before: str | None = None) -> None:
        """Put the rule of a key in force, unless an older key has the same prefix."""
        self._touched.add(prefix)
        owner = self._owners.get(prefix)
        if owner is None:
            self._owners[prefix] = name
            return
        first, second = sorted((owner, name), key=self._age)
        self._owners[prefix] = first
        self._rivals.setdefault(prefix, set()).add(second)
        self.refused.pop(first, None)
        self._refuse(
            second, f"{shown(first)} has {prefix} already", before if second == name else None
        )

    def _age(self, name: str) -> tuple[int, str]:
        return self._known[name].created, name

    def _forget(self, name: str) -> None:
        known = self._known.pop(name, None)
        self.refused.pop(name, None)
        if known is None:
            return
        prefix = known.prefix
        rivals = self._rivals.get(prefix, set())
        if self._owners[prefix] != name:
            rivals.discard(name)
        else:
            self._touched.add(prefix)
            del self._owners[prefix]
            if rivals:
                next_one = min(rivals, key=self._age)
                rivals.discard(next_one)
                self._owners[prefix] = next_one
                self.refused.pop(next_one, None)
                for other in rivals:
                    self._refuse(other, f"{shown(next_one)} has {prefix} already", "")
        if not rivals:
            self._rivals.pop(prefix, None)

    # ---- refusals

    def _refuse(self, name: str, reason: str, before: str | None) -> None:
        self.refused[name] = printable(reason)
        if self.refused[name] != before and before != "":
            self._fresh.append(name)

    def _log(self) -> None:
        fresh, self._fresh = self._fresh, []
        names = [name for name in dict.fromkeys(fresh) if name in self.refused]
        for name in names[:_LOGGED_MAX]:
            log.warning(
                "etcd: %s/%s is refused: %s", self._segment, shown(name), self.refused[name]
            )
        if len(names) > _LOGGED_MAX:
            log.warning("etcd: %d more values are refused", len(names) - _LOGGED_MAX)


def shown(name: str) -> str:
    """Return the name of a key for messages."""
    return printable(name if len(name) <= _NAME_MAX else f"{name[:_NAME_MAX]}…")


def union(tables: Iterable[SegmentTable]) -> tuple[Rules, frozenset[Prefix]]:
    """Return the rules of several segments, and the forced prefixes; the first segment wins."""
    rules, forced = Rules(), frozenset[Prefix]()
    for table in tables:
        forced = forced | frozenset(each for each in table.forced if each not in rules)
        rules = table.rules | rules if rules else table.rules
    return rules, forced
