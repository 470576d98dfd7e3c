"""Values of keys in etcd, read as the daemons read them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ndxdp.config.rule_value import RuleValue, ValueReader
from ndxdp.config.shared_value import SharedValueReader
from ndxdp.errors import UsageError
from ndxdp.fleet.shared_address import SharedAddress
from ndxdp.inventory.rule_key import RuleKey, split_rule_key
from ndxdp.printable import printable
from ndxdp.rules.prefix import Prefix

Value = RuleValue | SharedAddress


class Entry(NamedTuple):
    """A key in etcd.

    Attributes:
        key: The key below `PREFIX/v1/`.
        value: The value.
        created: The revision of its creation.
        changed: The revision of its last change.
    """

    key: str
    value: bytes
    created: int = 0
    changed: int = 0


class Refusal(NamedTuple):
    """A key whose value the daemons refuse, and the reason."""

    key: str
    reason: str


class Readers:
    """Readers of values, one for each table of keys."""

    def __init__(self) -> None:
        """Have read nothing yet."""
        self._known: dict[str, ValueReader | SharedValueReader] = {}

    def read(self, key: RuleKey, value: bytes) -> Value:
        """Return what a value says; raise UsageError if the daemons would refuse the value."""
        reader = self._known.get(key.table)
        if reader is None:
            reader = ValueReader(key.segment) if key.host else SharedValueReader(key.segment)
            self._known[key.table] = reader
        return reader.read_named(key.name, value)


def read_all(entries: Iterable[Entry]) -> tuple[dict[RuleKey, Value], list[Refusal]]:
    """Return what the values say, by key, and the keys whose values are refused.

    Of several keys of one table with one prefix, the one that was created first is in force.

    Args:
        entries: Keys of `hosts/` and `shared/`.
    """
    readers, found, refused = Readers(), dict[RuleKey, Value](), list[Refusal]()
    owners: dict[tuple[str, Prefix], RuleKey] = {}
    for entry in sorted(entries, key=lambda each: (each.created, each.key)):
        key = split_rule_key(entry.key)
        try:
            value = readers.read(key, entry.value)
        except UsageError as error:
            refused.append(Refusal(entry.key, printable(error.summary)))
            continue
        first = owners.setdefault((key.table, value.prefix), key)
        if first is key:
            found[key] = value
        else:
            why = f"{printable(first.name)} has {value.prefix} already"
            refused.append(Refusal(entry.key, why))
    return found, sorted(refused)
