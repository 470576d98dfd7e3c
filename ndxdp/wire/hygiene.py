"""Keeps chosen own addresses deprecated, so that what the host sends leaves from another one.

A deprecated address (RFC 4862 5.5.4) is answered for and receives as before; the kernel does not
choose it as a source where there is a preferred one (RFC 6724 5, rule 3). Network managers set
lifetimes anew, with each router advertisement or lease; so they are looked at with each change.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from typing import NamedTuple

from ndxdp.errors import NdxdpError
from ndxdp.policy import Prefix
from ndxdp.wire import netlink
from ndxdp.wire.netlink import OwnAddress

log = logging.getLogger(__name__)

_SETTLE = 0.1  # seconds between two looks: managers change several addresses one after the other
_RETRY = 5.0  # seconds after a failure


class Change(NamedTuple):
    """An address, and the preferred lifetime (s) that it is to have."""

    own: OwnAddress
    preferred: int


def changes(
    addresses: Iterable[OwnAddress], deprecated: Iterable[Prefix], preferred: bytes | None
) -> list[Change]:
    """What has to be changed; nothing if all is as it should be. Pure.

    deprecated: prefixes whose addresses are to be deprecated, a /128 for a single one; link-local
    addresses never are, as the kernel needs them. preferred: the address (16 bytes) to be
    preferred, also within those prefixes; it is for as long as it is valid.
    """
    prefixes = tuple(deprecated)
    found = []
    for own in addresses:
        if own.address == preferred:
            if own.preferred == 0:
                found.append(Change(own, own.valid))
        elif own.preferred != 0 and not own.link_local and _within(own.address, prefixes):
            found.append(Change(own, 0))
    return found


def _within(address: bytes, prefixes: tuple[Prefix, ...]) -> bool:
    return any(Prefix.around(address, prefix.length) == prefix for prefix in prefixes)


class Hygiene:
    """Keeps an interface's addresses as changes() wants them.

    Valid lifetimes, prefix lengths and flags stay as they are; of a finite valid lifetime the
    kernel tells whole seconds, so that it may become longer by less than one. Deprecating an
    address with mngtmpaddr deprecates its temporary addresses, too: that is the kernel's doing.

    applied: preferred lifetimes that were set.
    """

    def __init__(
        self, ifindex: int, deprecated: Iterable[Prefix], preferred: bytes | None = None
    ) -> None:
        self.applied = 0
        self._ifindex = ifindex
        self._deprecated, self._preferred = tuple(deprecated), preferred

    def apply(self) -> int:
        """Look, and change what has to be; returns how many that were. NdxdpError if refused."""
        own = netlink.own_addresses(self._ifindex)
        wanted = changes(own, self._deprecated, self._preferred)
        # The preferred one first: there is never a moment without one.
        for change in sorted(wanted, key=lambda change: change.preferred == 0):
            netlink.set_preferred(self._ifindex, change.own, change.preferred)
            self.applied += 1
            text = socket.inet_ntop(socket.AF_INET6, change.own.address)
            log.info("%s is %s now", text, "preferred" if change.preferred else "deprecated")
        return len(wanted)

    async def run(self, changed: asyncio.Event) -> None:
        """Apply now and whenever `changed` is set, until cancelled.

        The caller sets it when an address of the interface changed. Our own change sets it, too:
        the look that follows finds nothing to do, and there it ends.
        """
        loop = asyncio.get_running_loop()
        troubled = ""
        while True:
            changed.clear()
            try:
                await asyncio.to_thread(self.apply)
                troubled = ""
            except (NdxdpError, OSError) as error:
                if str(error) != troubled:
                    troubled = str(error)
                    log.warning("addresses are not kept: %s", error)
                loop.call_later(_RETRY, changed.set)
            await asyncio.sleep(_SETTLE)
            await changed.wait()
