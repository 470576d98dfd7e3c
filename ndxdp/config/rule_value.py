"""A rule in one JSON value: the keys of [[interface.prefix]], read by the same functions. Pure."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, TypeVar

from ndxdp.config.json_table import JsonDocument
from ndxdp.config.rule_tables import read_rule, refuse_broad
from ndxdp.config.toml_table import Table
from ndxdp.errors import UsageError
from ndxdp.rules import breadth
from ndxdp.rules.prefix import Prefix, parse_target
from ndxdp.rules.rule import ETCD_ORIGIN, Rule
from ndxdp.rules.ruleset import Rules

VALUE_MAX = 16384
"""Bytes that a value may have."""


_KINDS_MAX = 1024  # values that differ in more than the prefix

_V = TypeVar("_V")


class RuleValue(NamedTuple):
    """The content of a value.

    Attributes:
        prefix: The prefix.
        rule: The rule for it.
        force: The rule is accepted although it answers for other nodes of the link.
    """

    prefix: Prefix
    rule: Rule
    force: bool


class KindReader(ABC, Generic[_V]):
    """A reader of the values of one segment. Values that differ in the prefix only share a rule."""

    def __init__(self) -> None:
        """Have read nothing yet."""
        self._known: dict[str, _V] = {}  # by everything but the prefix

    @abstractmethod
    def read_document(self, document: JsonDocument) -> _V:
        """Return what a value says; raise UsageError if it is wrong."""

    @abstractmethod
    def with_prefix(self, found: _V, prefix: Prefix) -> _V:
        """Return what a value says that differs in the prefix only."""

    def read_named(self, name: str, value: bytes) -> _V:
        """Return what the value of a key says.

        Raises:
            UsageError: The name after the segment is empty, or the value is wrong.
        """
        if not name:
            raise UsageError("the key ends after the segment", "write SEGMENT/NAME")
        return self.read(value)

    def read(self, value: bytes) -> _V:
        """Return what a value says.

        Raises:
            UsageError: The value is wrong. The message is the first problem, `also` has the others.
        """
        if len(value) > VALUE_MAX:
            raise UsageError(
                f"the value has {len(value)} bytes, more than {VALUE_MAX}", "no rule needs so many"
            )
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise UsageError("the value is not UTF-8", "write JSON") from None
        document = JsonDocument(text, "the value")
        rest = {key: part for key, part in document.data.items() if key != "prefix"}
        kind = json.dumps(rest, sort_keys=True)
        given = document.data.get("prefix")
        known = self._known.get(kind)
        if known is not None and isinstance(given, str):
            prefix = _usual_prefix(given)
            if prefix is not None:
                return self.with_prefix(known, prefix)
        found = self.read_document(document)
        if len(self._known) < _KINDS_MAX:
            self._known[kind] = found
        return found


class ValueReader(KindReader[RuleValue]):
    """A reader of the values of one segment that are rules of this host."""

    def __init__(self, label: str) -> None:
        """Have read nothing yet.

        Args:
            label: The name that the rules are counted under, unless a value says
                `"count": false`.
        """
        super().__init__()
        self._label = label

    def read_document(self, document: JsonDocument) -> RuleValue:
        """Return what a value says; raise UsageError if it is wrong."""
        found = read_value(document.root, ETCD_ORIGIN, self._label)
        document.finish()
        assert found is not None
        return found

    def with_prefix(self, found: RuleValue, prefix: Prefix) -> RuleValue:
        """Return the same with another prefix."""
        return found._replace(prefix=prefix)


def _usual_prefix(text: str) -> Prefix | None:
    """Return a prefix that no rule is too broad for; None if that is to be examined."""
    try:
        prefix = parse_target(text)
    except UsageError:
        return None
    return prefix if prefix.length >= breadth.WIDEST and prefix.address[0] != 0xFE else None


def read_value(table: Table, origin: str, label: str) -> RuleValue | None:
    """Return what the keys of [[interface.prefix]] in a value say; None without a valid prefix.

    Args:
        table: The value.
        origin: The origin of the rule.
        label: The name that the rule is counted under, unless the value says `"count": false`.
    """
    rule = read_rule(table, origin, label)
    table.require("prefix", '{"prefix": "2001:db8::/64"}')
    prefix = table.parsed("prefix", parse_target)
    force = table.boolean("force", False)
    if prefix is None:
        return None
    if not force:
        refuse_broad(table, "prefix", Rules.of({prefix: rule}))
    return RuleValue(prefix, rule, force)
