"""The keys of etcd below `PREFIX/v1/`: read at one moment, changed together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ndxdp.inventory.values import Entry
from ndxdp.inventory.view import FleetView, beginnings, view_of
from ndxdp.sources import etcd_snapshot
from ndxdp.sources.etcd_client import EtcdClient, denial
from ndxdp.sources.etcd_session import Denied
from ndxdp.sources.etcd_settings import Etcd
from ndxdp.sources.etcd_snapshot import BATCH
from ndxdp.sources.etcd_wire import Item


class Reading(NamedTuple):
    """Keys as they are at one revision of etcd."""

    revision: int
    entries: list[Entry]


class Keyspace:
    """The keys below `PREFIX/v1/`, a text that the names of keys here do not have.

    Each method raises NoAnswer if etcd does not answer, and NdxdpError if it refuses.

    Attributes:
        client: The client.
        settings: The table [etcd].
    """

    def __init__(self, client: EtcdClient, settings: Etcd) -> None:
        """Send nothing yet."""
        self.client, self.settings = client, settings

    async def below(self, parts: Sequence[str]) -> Reading:
        """Return all keys with one of several beginnings."""
        wanted = list(map(self.full, parts))
        with _Permission(self.settings, "read", parts):
            found = await self.client.call(lambda etcd: etcd_snapshot.read(etcd.session, wanted))
        return Reading(found.revision, list(map(self._entry, found.items)))

    async def get(self, keys: Sequence[str]) -> list[Entry]:
        """Return those of the keys that exist."""
        wanted = list(map(self.full, keys))
        with _Permission(self.settings, "read", keys):
            found = await self.client.call(lambda etcd: etcd_snapshot.get(etcd.session, wanted))
        return list(map(self._entry, found))

    async def change(
        self,
        puts: Mapping[str, bytes],
        deletes: Collection[str] = (),
        unchanged: Collection[str] = (),
        revision: int = 0,
    ) -> bool:
        """Write and delete keys, 60 at a time; see etcd_snapshot.change().

        Return False if somebody has changed keys with the beginnings `unchanged` in the meantime;
        some changes may have been made then.
        """
        each: list[tuple[str, bytes | None]] = [*puts.items(), *((key, None) for key in deletes)]
        guarded = list(map(self.full, unchanged))
        for at in range(0, len(each), BATCH):
            revision = await self._change(dict(each[at : at + BATCH]), guarded, revision)
            if not revision:
                return False
        return True

    async def _change(
        self, wanted: Mapping[str, bytes | None], guarded: Sequence[str], revision: int
    ) -> int:
        """Write and delete up to 60 keys; return the revision of the change, 0 without one."""
        written = {self.full(key): each for key, each in wanted.items() if each is not None}
        deleted = [self.full(key) for key, each in wanted.items() if each is None]
        with _Permission(self.settings, "write", list(wanted)):
            return await self.client.call(
                lambda etcd: etcd_snapshot.change(etcd.session, written, deleted, guarded, revision)
            )

    async def grant(self, seconds: int) -> int:
        """Grant a lease that lasts for some seconds at least; return its id."""
        return (await self.client.call(lambda etcd: etcd.grant(seconds))).id

    async def create(self, key: str, value: bytes, lease: int) -> bool:
        """Create a key under a lease; return False if it exists."""
        with _Permission(self.settings, "write", [key]):
            return bool(
                await self.client.call(lambda etcd: etcd.acquire({self.full(key): value}, lease))
            )

    async def revoke(self, lease: int) -> None:
        """End a lease, and delete its keys."""
        await self.client.call(lambda etcd: etcd.revoke(lease))

    async def view(self, segments: Sequence[str] = ()) -> FleetView:
        """Return the shared addresses of segments, of all without one, and all about them."""
        found = await self.below(beginnings(segments))
        return view_of(found.entries, found.revision)

    def full(self, key: str) -> str:
        """Return the whole name of a key."""
        return self.settings.root + key

    def _entry(self, item: Item) -> Entry:
        return Entry(
            item.name_below(self.settings.root), item.value or b"", item.created, item.changed
        )


class _Permission:
    """A block whose requests etcd may deny; the error names the keys, and the cure."""

    def __init__(self, settings: Etcd, verb: str, keys: Sequence[str]) -> None:
        self._settings, self._verb, self._keys = settings, verb, keys

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Denied):
            return
        first, *others = self._keys or [""]
        more = f", and {len(others)} more" if others else ""
        wish = f"{self._verb} {self._settings.root}{first}{more}"
        raise denial(error, self._settings, wish) from None
