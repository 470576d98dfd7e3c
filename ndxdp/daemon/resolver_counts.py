"""The counters of the resolver, written to the maps in batches."""

from __future__ import annotations

import asyncio
import logging
import struct

from ndxdp.errors import NdxdpError
from ndxdp.store.maps import Maps
from ndxdp.store.records import Resolved

log = logging.getLogger(__name__)


class ResolverCounts:
    """Counters that are written once for all events that the event loop handles at a time."""

    def __init__(self, maps: Maps) -> None:
        """Count in a running event loop; maps: the interface's."""
        self._maps = maps
        self._loop = asyncio.get_running_loop()
        self._unwritten: Resolved | None = None

    def add(self, more: Resolved) -> None:
        """Add to the counters."""
        if self._unwritten is None:
            self._unwritten = Resolved()
            self._loop.call_soon(self.write)
        self._unwritten = Resolved(*map(sum, zip(self._unwritten, more, strict=True)))

    def write(self) -> None:
        """Write what was added."""
        more, self._unwritten = self._unwritten, None
        try:
            if more is not None:
                self._maps.count_resolved(more)
        except (OSError, NdxdpError, struct.error) as error:
            log.debug("cannot count: %s", error)
