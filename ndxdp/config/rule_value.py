"""A rule in one JSON value: the keys of [[interface.prefix]], read by the same functions. Pure."""

from __future__ import annotations

import json
from typing import NamedTuple

from ndxdp.config.json_table import JsonDocument
from ndxdp.config.rule_tables import read_rule, refuse_broad
from ndxdp.errors import UsageError
from ndxdp.rules import breadth
from ndxdp.rules.prefix import Prefix, parse_target
from ndxdp.rules.rule import ETCD_ORIGIN, Rule
from ndxdp.rules.ruleset import Rules

VALUE_MAX = 16384
"""Bytes that a value may have."""


_KINDS_MAX = 1024  # values that differ in more than the prefix


class RuleValue(NamedTuple):
    """What a value says.

    Attributes:
        prefix: The prefix.
        rule: The rule for it.
        force: The rule is accepted although it answers for other nodes of the link.
    """

    prefix: Prefix
    rule: Rule
    force: bool


class ValueReader:
    """A reader of the values of one segment. Values that differ in the prefix only share a rule."""

    def __init__(self, label: str) -> None:
        """Have read nothing yet.

        Args:
            label: The name that the rules are counted under, unless a value says
                `"count": false`.
        """
        self._label = label
        self._known: dict[str, RuleValue] = {}  # by everything but the prefix

    def read(self, value: bytes) -> RuleValue:
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
                return known._replace(prefix=prefix)
        found = _read(document, self._label)
        if len(self._known) < _KINDS_MAX:
            self._known[kind] = found
        return found


def _usual_prefix(text: str) -> Prefix | None:
    """Return a prefix that no rule is too broad for; None if that is to be examined."""
    try:
        prefix = parse_target(text)
    except UsageError:
        return None
    return prefix if prefix.length >= breadth.WIDEST and prefix.address[0] != 0xFE else None


def _read(document: JsonDocument, label: str) -> RuleValue:
    table = document.root
    rule = read_rule(table, ETCD_ORIGIN, label)
    table.require("prefix", '{"prefix": "2001:db8::/64"}')
    prefix = table.parsed("prefix", parse_target)
    force = table.boolean("force", False)
    if prefix is not None and not force:
        refuse_broad(table, "prefix", Rules.of({prefix: rule}))
    document.finish()
    assert prefix is not None
    return RuleValue(prefix, rule, force)
