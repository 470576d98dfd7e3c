"""Batches of keys, as the watcher of etcd passes them on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

from ndxdp.sources.etcd_wire import Item

_YIELD_AFTER = 250  # keys that are read at once


class Batch(NamedTuple):
    """Some keys with their present values.

    Attributes:
        items: The keys; a key without a value was deleted.
        begins: Forget all earlier keys first: this is the first page of all keys.
        ends: The batch completes a set of keys that was or is valid at one moment.
    """

    items: list[Item]
    begins: bool = False
    ends: bool = True

    async def each(self) -> AsyncIterator[Item]:
        """Yield the keys; now and then, the loop's other tasks get their turn."""
        for number, item in enumerate(self.items, 1):
            yield item
            if number % _YIELD_AFTER == 0:
                await asyncio.sleep(0)
