"""The keys of rules and shared addresses with their values, as `ndxdp fleet list` shows them."""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.fleet.keys import SHARED
from ndxdp.inventory.keyspace import Keyspace
from ndxdp.inventory.rule_key import HOSTS, split_rule_key
from ndxdp.inventory.values import read_all


class Listed(NamedTuple):
    """A key.

    Attributes:
        key: The key below `PREFIX/v1/`.
        value: The value.
        changed: The revision of its last change.
        refusal: Why the daemons refuse the value; "" if they accept it.
    """

    key: str
    value: bytes
    changed: int
    refusal: str


async def read_listing(
    keyspace: Keyspace, kind: str | None = None, host: str | None = None, segment: str | None = None
) -> list[Listed]:
    """Return keys, in their order.

    Args:
        keyspace: The keys.
        kind: `hosts` or `shared`; None for both.
        host: Return only the keys of this host; None for all.
        segment: Return only the keys of this segment; None for all.
    """
    parts = []
    if kind in (None, HOSTS):
        parts.append(f"{HOSTS}/{host}/" if host else f"{HOSTS}/")
        if host and segment:
            parts[-1] += f"{segment}/"
    if kind in (None, SHARED):
        parts.append(f"{SHARED}/{segment}/" if segment else f"{SHARED}/")
    found = (await keyspace.below(parts)).entries
    if segment:
        found = [each for each in found if split_rule_key(each.key).segment == segment]
    refused = dict(read_all(found)[1])
    return [Listed(each.key, each.value, each.changed, refused.get(each.key, "")) for each in found]
