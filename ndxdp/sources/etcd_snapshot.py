"""Many keys of etcd as they are at one moment, and a change that depends on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ndxdp.sources.etcd_api import pages_of, ranges_of
from ndxdp.sources.etcd_session import Session
from ndxdp.sources.etcd_wire import (
    OPS,
    Item,
    encode,
    encode_key,
    end_of,
    header_of,
    item_of,
    readable,
)
from ndxdp.sources.http import NoAnswer, Unknown

BATCH = OPS
"""Keys that one change may have."""

_ANSWER_BYTES = 8 << 20


class Snapshot(NamedTuple):
    """Keys as they are at one revision.

    Attributes:
        revision: The revision.
        items: The keys, in the order of the ranges that were asked for, then of the keys.
    """

    revision: int
    items: list[Item]


async def read(session: Session, beginnings: Sequence[str]) -> Snapshot:
    """Return all keys that begin with one of several texts.

    Raises:
        NoAnswer: The member does not answer, or refuses.
    """
    revision, found = 0, list[Item]()
    try:
        async for page in pages_of(session, ranges_of(beginnings)):
            revision = page.header.revision
            found += page.items
    except Unknown as reason:
        raise NoAnswer(str(reason)) from None  # there is nothing to carry out
    return Snapshot(revision, found)


async def get(session: Session, keys: Sequence[str]) -> list[Item]:
    """Return those of the keys that exist, 60 of them as they are at one moment.

    Raises:
        NoAnswer: The member does not answer, or refuses.
    """
    found: list[Item] = []
    for at in range(0, len(keys), BATCH):
        parts = [{"request_range": {"key": encode_key(key)}} for key in keys[at : at + BATCH]]
        try:
            answer = await session.call("/v3/kv/txn", {"success": parts}, _ANSWER_BYTES)
            with readable():
                for each in answer["responses"]:
                    found += [item_of(kv) for kv in each["response_range"].get("kvs") or ()]
        except Unknown as reason:
            raise NoAnswer(str(reason)) from None  # there is nothing to carry out
    return found


async def change(
    session: Session,
    puts: Mapping[str, bytes],
    deletes: Collection[str] = (),
    unchanged: Collection[str] = (),
    revision: int = 0,
) -> int:
    """Write and delete up to 60 keys, all or none of them.

    The request may be repeated if etcd may have carried it out: it then changes nothing, or the
    same once more.

    Args:
        session: The session with a member.
        puts: The keys to write, and the value of each.
        deletes: The keys to delete.
        unchanged: Beginnings of keys. If any key with one of them was written after `revision`,
            nothing is changed.
        revision: The revision of an earlier snapshot.

    Returns:
        The revision of the change; 0 if nothing is changed.

    Raises:
        NoAnswer: The member does not answer, or refuses.
        Unknown: etcd may have carried out the request.
    """
    compare: list[dict[str, Any]] = [
        {
            "key": encode(beginning.encode()),
            "range_end": encode(end_of(beginning.encode())),
            "target": "MOD",
            "result": "LESS",
            "mod_revision": str(revision + 1),
        }
        for beginning in unchanged
    ]
    wanted: list[dict[str, Any]] = [
        {"request_put": {"key": encode_key(key), "value": encode(value)}}
        for key, value in puts.items()
    ]
    wanted += [{"request_delete_range": {"key": encode_key(key)}} for key in deletes]
    answer = await session.call("/v3/kv/txn", {"compare": compare, "success": wanted})
    with readable():
        return header_of(answer).revision if answer.get("succeeded") is True else 0
