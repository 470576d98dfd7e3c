"""The keys and headers in the answers of etcd's JSON gateway. Pure.

etcd writes 64-bit numbers as strings, and leaves out fields that are 0, false or empty. Keys and
values are in base64. The fields are those of etcd's protocol buffers (rpc.proto, kv.proto).
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from ndxdp.sources.http import Unknown

MALFORMED = "the answer is malformed"

OPS = 60
"""Operations of a transaction. etcd permits 128 by default, with comparisons and nested ones."""


class Header(NamedTuple):
    """The header of an answer.

    Attributes:
        cluster: The id of the cluster.
        term: The term of the cluster's leader, which never decreases.
        revision: The revision of the store, which never decreases.
    """

    cluster: int
    term: int
    revision: int


class Item(NamedTuple):
    """A key with its value; the value is None after a deletion.

    Attributes:
        key: The key.
        value: The value.
        created: The revision of the key's creation.
        changed: The revision of its last change.
        lease: The id of the lease that the key goes with; 0 for none.
    """

    key: bytes
    value: bytes | None
    created: int
    changed: int
    lease: int = 0

    def name_below(self, beginning: str) -> str:
        """Return the key without a beginning. A key is bytes, and need not be UTF-8."""
        return self.key.decode(errors="surrogateescape").removeprefix(beginning)


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turn an error of the block, which parses an answer, into Unknown."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Unknown(f"{MALFORMED} ({str(error)[:100]})") from None


def header_of(answer: dict[str, Any]) -> Header:
    """Return the header of an answer; raise an error that readable() translates."""
    found = answer["header"]
    return Header(
        int(found.get("cluster_id") or 0),
        int(found.get("raft_term") or 0),
        int(found.get("revision") or 0),
    )


def item_of(found: dict[str, Any], *, deleted: bool = False) -> Item:
    """Return a key of an answer; raise an error that readable() translates."""
    value = None if deleted else decode(found.get("value") or "")
    created, changed = found.get("create_revision") or 0, found.get("mod_revision") or 0
    lease = int(found.get("lease") or 0)
    return Item(decode(found["key"]), value, int(created), int(changed), lease)


def encode(text: bytes) -> str:
    """Return the base64 of a key or value."""
    return base64.b64encode(text).decode()


def encode_key(key: str) -> str:
    """Return the base64 of a key. It need not be UTF-8: the watcher reads it in the same way."""
    return encode(key.encode(errors="surrogateescape"))


def decode(text: str) -> bytes:
    """Return the key or value of a base64; raise ValueError for another text."""
    return base64.b64decode(text, validate=True)


def end_of(beginning: bytes) -> bytes:
    """Return the end of the range of all keys with a beginning, which does not end in 0xff."""
    return beginning[:-1] + bytes([beginning[-1] + 1])
