"""The keys of one segment: rules that they make, and values that are refused. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from ndxdp.config.rule_value import RuleValue, ValueReader
from ndxdp.daemon.refusals import log_refused
from ndxdp.errors import UsageError
from ndxdp.printable import printable, shown
from ndxdp.rules.changing_rules import ChangingRules, RuleOfKey
from ndxdp.rules.precedence import Precedence
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.ruleset import Rules


class SegmentTable:
    """The keys of this host for one segment.

    Attributes:
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
        self._known: dict[str, RuleValue] = {}
        self._precedence = Precedence()
        self._changing = ChangingRules(self._rule_of)
        self._fresh: list[str] = []  # names that are refused since the last commit
        self.refused: dict[str, str] = {}

    @property
    def rules(self) -> Rules:
        """The rules of the keys as of the last commit()."""
        return self._changing.rules

    @property
    def forced(self) -> frozenset[Prefix]:
        """The prefixes of those of them that have `force`."""
        return self._changing.forced

    def __len__(self) -> int:
        """Return the number of keys, with those whose values are refused."""
        return len(self._known) + sum(name not in self._known for name in self.refused)

    def put(self, name: str, value: bytes, created: int) -> None:
        """Take the value of a key, in place of an earlier one."""
        before = self.refused.get(name, self._earlier.get(name))
        try:
            found = self._reader.read_named(name, value)
        except UsageError as error:
            self.delete(name)
            self._refuse(name, error.summary, before)
            return
        self._forget(name)
        self._known[name] = found
        self._changing.touch(found.prefix)
        for each in self._precedence.put(name, found.prefix, created):
            self._judge(each, before if each == name else None)

    def delete(self, name: str) -> None:
        """Forget a key."""
        self._forget(name)
        for each in self._precedence.remove(name):
            self._judge(each, None)

    def commit(self) -> bool:
        """Bring `rules` and `forced` in step; return True if they have changed."""
        self._log()
        self._earlier = {}
        return self._changing.commit()

    # ---- one key

    def _judge(self, name: str, before: str | None) -> None:
        """Refuse a key if an older one has the same prefix."""
        first = self._precedence.winner(name)
        was_refused = self.refused.pop(name, None) is not None
        if first is not None and first != name:
            reason = f"{shown(first)} has {self._known[name].prefix} already"
            self._refuse(name, reason, "" if was_refused else before)

    def _forget(self, name: str) -> None:
        known = self._known.pop(name, None)
        self.refused.pop(name, None)
        if known is not None:
            self._changing.touch(known.prefix)

    def _rule_of(self, prefix: Prefix) -> RuleOfKey | None:
        name = self._precedence.in_force(prefix)
        if name is None:
            return None
        found = self._known[name]
        return RuleOfKey(found.rule, found.force)

    # ---- refusals

    def _refuse(self, name: str, reason: str, before: str | None) -> None:
        self.refused[name] = printable(reason)
        if self.refused[name] != before and before != "":
            self._fresh.append(name)

    def _log(self) -> None:
        fresh, self._fresh = self._fresh, []
        names = [name for name in dict.fromkeys(fresh) if name in self.refused]
        log_refused([(f"{self._segment}/{shown(name)}", self.refused[name]) for name in names])
