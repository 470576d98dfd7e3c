"""Changes of rules and shared addresses in etcd, examined as the daemons examine them."""

from __future__ import annotations

import asyncio
import random
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ndxdp.errors import NdxdpError, UsageError
from ndxdp.inventory.keyspace import Keyspace
from ndxdp.inventory.rule_key import RuleKey, split_rule_key
from ndxdp.inventory.values import Entry, Readers
from ndxdp.printable import printable
from ndxdp.rules.prefix import Prefix
from ndxdp.sources.etcd_snapshot import BATCH

_PAUSE = 0.02  # seconds; the pause before an attempt is random, up to so long for each before it

_ATTEMPTS = 10
"""How often a change is tried while other writers change keys of the same tables."""


class Change(NamedTuple):
    """A change of one key.

    Attributes:
        key: The key.
        before: Its value; None if there is none.
        after: Its value afterwards; None if it is deleted.
    """

    key: str
    before: bytes | None
    after: bytes | None


def examined(wanted: Mapping[RuleKey, bytes]) -> dict[RuleKey, Prefix]:
    """Return the prefix of each value.

    Raises:
        UsageError: A value is wrong, or two keys of one table have one prefix.
    """
    readers, found = Readers(), dict[RuleKey, Prefix]()
    for key, value in wanted.items():
        try:
            found[key] = readers.read(key, value).prefix
        except UsageError as error:
            message = f"{printable(str(key))}: {error.message}"
            raise UsageError(message, error.hint, error.also) from None
    _refuse_twice(found)
    return found


def _refuse_twice(prefixes: Mapping[RuleKey, Prefix]) -> None:
    """Raise UsageError if two keys of one table have one prefix."""
    owners: dict[tuple[str, Prefix], RuleKey] = {}
    for key, prefix in prefixes.items():
        first = owners.setdefault((key.table, prefix), key)
        if first is not key:
            raise UsageError(f"{key}: {first} has {prefix}, too", "name every prefix once")


async def put(
    keyspace: Keyspace, wanted: Mapping[RuleKey, bytes], *, dry_run: bool = False
) -> list[Change]:
    """Write keys, and return what has changed; a key that has its value already is left alone.

    Other writers may change the same tables at the same time. Up to 60 keys are written all or
    none, and only if their prefixes are still free then. For more keys, which etcd would compare
    with a whole table for each part of them, that is examined afterwards.

    Args:
        keyspace: The keys.
        wanted: The keys, and the value of each.
        dry_run: Change nothing.

    Raises:
        UsageError: A value is wrong.
        NdxdpError: Another key of a table has one of the prefixes. Of more than 60 keys, some may
            be written.
        NoAnswer: etcd does not answer.
    """
    prefixes, changed = examined(wanted), dict[str, Change]()
    tables = sorted({key.table for key in wanted})
    for attempt in range(_ATTEMPTS):
        await asyncio.sleep(random.uniform(0, _PAUSE * attempt))
        present = await keyspace.below(tables)
        changes = _planned(wanted, prefixes, present.entries)
        changed = {each.key: each for each in changes} | changed
        if dry_run or not changes:
            return list(changed.values())
        values = {each.key: each.after for each in changes if each.after is not None}
        if len(values) > BATCH:
            await keyspace.change(values)
        elif await keyspace.change(values, unchanged=tables, revision=present.revision):
            return list(changed.values())
    raise NdxdpError("others change the same keys all the time", "try again")


def _planned(
    wanted: Mapping[RuleKey, bytes], prefixes: Mapping[RuleKey, Prefix], present: Iterable[Entry]
) -> list[Change]:
    """Return the changes that lead to the wanted keys.

    Raises:
        NdxdpError: Another key has one of the prefixes.
    """
    readers, before = Readers(), dict[str, bytes]()
    new = {(key.table, prefix): key for key, prefix in prefixes.items()}
    names = {str(key) for key in wanted}
    for entry in present:
        before[entry.key] = entry.value
        if entry.key in names:
            continue
        other = split_rule_key(entry.key)
        try:
            prefix = readers.read(other, entry.value).prefix
        except UsageError:
            continue  # the daemons refuse it, too
        if (key := new.get((other.table, prefix))) is not None:
            raise NdxdpError(
                f"{printable(str(other))} has {prefix} already, so that {key} would be refused",
                f"delete that first: ndxdp fleet delete {shlex.quote(printable(str(other)))}",
            )
    return [
        Change(str(key), before.get(str(key)), value)
        for key, value in wanted.items()
        if before.get(str(key)) != value
    ]


async def delete(
    keyspace: Keyspace,
    keys: Sequence[RuleKey],
    *,
    missing_ok: bool = False,
    dry_run: bool = False,
) -> list[Change]:
    """Delete keys, up to 60 of them all or none; return what has changed.

    Args:
        keyspace: The keys.
        keys: The keys.
        missing_ok: Leave out keys that do not exist.
        dry_run: Change nothing.

    Raises:
        NdxdpError: A key does not exist.
        NoAnswer: etcd does not answer.
    """
    names = list(dict.fromkeys(map(str, keys)))
    present = {each.key: each.value for each in await keyspace.get(names)}
    missing = [name for name in names if name not in present]
    if missing and not missing_ok:
        more = f", nor {len(missing) - 1} more of these keys" if len(missing) > 1 else ""
        raise NdxdpError(f"etcd has no key {missing[0]}{more}", "list them: ndxdp fleet list")
    changes = [Change(name, present[name], None) for name in names if name in present]
    if changes and not dry_run:
        await keyspace.change({}, [each.key for each in changes])
    return changes
