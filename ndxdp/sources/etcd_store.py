"""Keys and leases in etcd: read, and keys created and deleted under a lease."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from ndxdp.sources import etcd_snapshot
from ndxdp.sources.etcd_session import LeaseLost, Session
from ndxdp.sources.etcd_wire import OPS, Item, encode, encode_key, header_of, item_of, readable
from ndxdp.sources.http import NoAnswer, Unknown

_T = TypeVar("_T")


class Lease(NamedTuple):
    """A lease.

    Attributes:
        id: The id.
        ttl: Seconds after which it expires if nobody renews it.
    """

    id: int
    ttl: int


class Store:
    """The keys and leases of etcd, by the requests to one member.

    Each method raises NoAnswer for a request that etcd has certainly not carried out: LeaseLost and
    Denied are two reasons. It raises Unknown if etcd may have carried out the request. All requests
    may be repeated then: grant() leaves a lease that ends by itself, and revoke() returns False.

    Attributes:
        session: The session with the member.
    """

    def __init__(self, session: Session) -> None:
        """Send nothing yet."""
        self.session = session

    # ---- keys

    async def get(self, key: str) -> Item | None:
        """Return a key; None if there is none. A majority of the members confirms it."""
        try:
            answer = await self.session.call("/v3/kv/range", {"key": encode_key(key)})
            with readable():
                header_of(answer)  # an answer of something else has none, and no keys either
                found = [item_of(each) for each in answer.get("kvs") or ()]
        except Unknown as reason:
            raise NoAnswer(str(reason)) from None  # there is nothing to carry out
        return found[0] if found else None

    async def below(self, beginning: str) -> list[Item]:
        """Return all keys that begin with a text, as they are at one moment."""
        return (await etcd_snapshot.read(self.session, [beginning])).items

    async def acquire(
        self,
        keys: Mapping[str, bytes],
        lease: int,
        delete: Mapping[str, str] | None = None,
        unchanged: Mapping[str, tuple[str, int]] | None = None,
    ) -> dict[str, int]:
        """Create the keys that do not exist, under a lease.

        Each key is created or left alone by itself; a transaction has 60 of them. The request may
        be repeated: a key that the lease has already is one of the result.

        Args:
            keys: The keys, and the value of each.
            lease: The id of the lease.
            delete: For some of the keys, another key that is deleted in the moment of the creation.
            unchanged: For some of the keys, another key and the revision of its last change: only
                if that is its last change still, the key is created.

        Returns:
            The keys that exist under the lease, created now or before, and the revision of the
            transaction that shows it.

        Raises:
            LeaseLost: etcd does not have the lease. Keys of earlier transactions went with it.
        """
        others, conditions = delete or {}, unchanged or {}
        found: dict[str, int] = {}
        for batch in _batches(keys.items()):
            parts = [
                _creation(key, value, lease, others.get(key), conditions.get(key))
                for key, value in batch
            ]
            answers, revision = await self._transact(parts)
            with readable():
                for (key, _), answer in zip(batch, answers, strict=True):
                    if answer.get("succeeded") is True or _lease_of(answer) == lease:
                        found[key] = revision
        return found

    async def release(self, keys: Collection[str], lease: int) -> dict[str, int]:
        """Delete the keys that are under a lease.

        Args:
            keys: The keys.
            lease: The id of the lease.

        Returns:
            For each key, the revision from which on it is not under the lease.
        """
        found: dict[str, int] = {}
        for batch in _batches(keys):
            _, revision = await self._transact([_deletion(key, lease) for key in batch])
            found |= dict.fromkeys(batch, revision)
        return found

    async def _transact(self, parts: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
        """Carry out transactions in one; return the answer of each, and the revision."""
        asked = {"success": [{"request_txn": part} for part in parts]}
        answer = await self.session.call("/v3/kv/txn", asked)
        with readable():
            answers = [each["response_txn"] for each in answer["responses"]]
            if len(answers) != len(parts) or not all(isinstance(each, dict) for each in answers):
                raise ValueError("another number of transactions")
            return answers, int(answer["header"]["revision"])

    # ---- leases

    async def grant(self, ttl: int) -> Lease:
        """Grant a lease.

        Args:
            ttl: Seconds; etcd may grant more.
        """
        answer = await self.session.call("/v3/lease/grant", {"TTL": str(ttl)})
        with readable():
            found = Lease(int(answer["ID"]), int(answer["TTL"]))
            if found.id <= 0 or found.ttl <= 0:
                raise ValueError("no lease")
            return found

    async def keepalive(self, lease: int) -> int:
        """Renew a lease, and return its TTL in seconds, counted from the renewal.

        Raises:
            LeaseLost: etcd does not have the lease.
        """
        answer = await self.session.call("/v3/lease/keepalive", {"ID": str(lease)})
        with readable():
            result = answer["result"]
            if int(result["ID"]) != lease:
                raise ValueError("another lease")
            ttl = int(result.get("TTL") or 0)
        if ttl <= 0:
            raise LeaseLost("etcd does not have the lease: it has expired, or was revoked")
        return ttl

    async def revoke(self, lease: int) -> bool:
        """End a lease, and delete its keys; return False if etcd does not have it."""
        try:
            await self.session.call("/v3/lease/revoke", {"ID": str(lease)})
        except LeaseLost:
            return False
        return True


def _creation(
    key: str, value: bytes, lease: int, delete: str | None, unchanged: tuple[str, int] | None
) -> dict[str, Any]:
    """Return the transaction that creates a key, or reads it if it exists."""
    compare = [
        {"key": encode_key(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
    ]
    if unchanged is not None:
        other, changed = unchanged
        compare.append(
            {
                "key": encode_key(other),
                "target": "MOD",
                "result": "EQUAL",
                "mod_revision": str(changed),
            }
        )
    put = {"key": encode_key(key), "value": encode(value), "lease": str(lease)}
    success: list[dict[str, Any]] = [{"request_put": put}]
    if delete is not None:
        success.append({"request_delete_range": {"key": encode_key(delete)}})
    failure = [{"request_range": {"key": encode_key(key)}}]
    return {"compare": compare, "success": success, "failure": failure}


def _deletion(key: str, lease: int) -> dict[str, Any]:
    """Return the transaction that deletes a key if it is under a lease."""
    ours = {"key": encode_key(key), "target": "LEASE", "result": "EQUAL", "lease": str(lease)}
    return {"compare": [ours], "success": [{"request_delete_range": {"key": encode_key(key)}}]}


def _lease_of(answer: dict[str, Any]) -> int:
    """Return the lease of the key that a transaction has read; 0 without one."""
    kvs = answer["responses"][0]["response_range"].get("kvs") or ()
    return item_of(kvs[0]).lease if kvs else 0


def _batches(each: Collection[_T]) -> Iterator[list[_T]]:
    """Yield the elements in lists of 60 at most."""
    elements = iter(each)
    while batch := list(islice(elements, OPS)):
        yield batch
