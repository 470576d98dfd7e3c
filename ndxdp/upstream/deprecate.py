"""Address hygiene: chosen own addresses stay deprecated, so that the host sends from another one.

A deprecated address (RFC 4862 5.5.4) is answered for and receives as before; the kernel does not
choose it as a source where there is a preferred one (RFC 6724 5, rule 3). Network managers and the
kernel itself set lifetimes anew, with each lease or router advertisement (addrconf_prefix_rcv_add_
addr(), for static addresses as well); so they are looked at with each change. Until then such an
address is preferred for some milliseconds. What keeps the kernel from choosing it meanwhile is an
address label that no destination has (RFC 6724 5, rule 6).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ndxdp.errors import NdxdpError
from ndxdp.ndp.address import LOOPBACK
from ndxdp.netlink import links
from ndxdp.netlink.addresses import (
    FOREVER,
    OwnAddress,
    address_labels,
    own_addresses,
    set_address_label,
    set_preferred,
)
from ndxdp.netlink.netns import netns
from ndxdp.rules.address import address_text
from ndxdp.rules.prefix import AddressPattern
from ndxdp.store import lifetimes
from ndxdp.store.lifetimes import Before, Record

log = logging.getLogger(__name__)

LABEL = 0x6E64
"""The label of addresses that are deprecated again and again: no prefix has it by default."""

_SETTLE = 0.1  # seconds between two looks: managers change several addresses one after the other

_RETRY = 5.0  # seconds after a failure


class Change(NamedTuple):
    """An address, and the preferred lifetime (s) that it is to have."""

    own: OwnAddress
    preferred: int


def changes(
    addresses: Iterable[OwnAddress],
    deprecated: Iterable[AddressPattern],
    preferred: Iterable[AddressPattern] = (),
) -> list[Change]:
    """Return what has to be changed; nothing if all is as it should be. Pure.

    deprecated: patterns of addresses to be deprecated; link-local ones and ::1 never are, as the
    kernel needs them. preferred: patterns of addresses to be preferred, also if `deprecated` has
    them; they are for as long as they are valid.
    """
    deprecated, preferred = tuple(deprecated), tuple(preferred)
    found = []
    for own in addresses:
        wish = _wish(own, deprecated, preferred)
        if wish is False and own.preferred == 0:
            found.append(Change(own, own.valid))
        elif wish is True and own.preferred != 0:
            found.append(Change(own, 0))
    return found


def restorations(
    addresses: Iterable[OwnAddress],
    before: Mapping[bytes, Before],
    deprecated: Iterable[AddressPattern],
    preferred: Iterable[AddressPattern] = (),
) -> list[Change]:
    """Return what has to be restored, as the patterns no longer want it. Pure but for the clock.

    before: what the addresses were that were changed. Whatever somebody else changed since then
    stays as it is.
    """
    deprecated, preferred = tuple(deprecated), tuple(preferred)
    found = []
    for own in addresses:
        then = before.get(own.address)
        if then is None or _wish(own, deprecated, preferred) is then.deprecated:
            continue
        lifetime = lifetimes.remaining(then, own.valid, FOREVER)
        if then.deprecated == (own.preferred == 0) and then.deprecated == (lifetime != 0):
            found.append(Change(own, lifetime))
    return found


def _wish(
    own: OwnAddress,
    deprecated: tuple[AddressPattern, ...],
    preferred: tuple[AddressPattern, ...],
) -> bool | None:
    """Return True for an address to be deprecated, False for a preferred one, None for others."""
    if any(pattern.matches(own.address) for pattern in preferred):
        return False
    if own.link_local or own.address == LOOPBACK:
        return None
    return True if any(pattern.matches(own.address) for pattern in deprecated) else None


class Deprecator:
    """Keeps an interface's addresses as changes() wants them.

    Valid lifetimes, prefix lengths and flags stay as they are; of a finite valid lifetime the
    kernel tells whole seconds, so that it may become longer by less than one. Deprecating an
    address with mngtmpaddr deprecates its temporary addresses, too: that is the kernel's doing.

    name: of the interface, for the log. record: where the former lifetimes are noted; None: in
    memory. applied: preferred lifetimes that were set.
    """

    def __init__(
        self,
        ifindex: int,
        deprecated: Iterable[AddressPattern],
        preferred: Iterable[AddressPattern] = (),
        *,
        name: str = "",
        record: Record | None = None,
    ) -> None:
        self.applied = 0
        self._ifindex, self._name = ifindex, name
        self._deprecated, self._preferred = tuple(deprecated), tuple(preferred)
        self._record = record
        self._before: dict[bytes, Before] = record.changed if record else {}
        self._times: dict[bytes, int] = {}
        self._labelled: set[bytes] | None = None
        self._label_trouble = ""

    def apply(self) -> int:
        """Look, and change what has to be; returns how many that were. NdxdpError if refused."""
        own = own_addresses(self._ifindex)
        restored = restorations(own, self._before, self._deprecated, self._preferred)
        for change in restored:
            self._set(change)
            self._log(change.own.address, "restored", "preferred" if change.preferred else "")
        if restored:
            own = own_addresses(self._ifindex)
        wanted = changes(own, self._deprecated, self._preferred)
        # The preferred ones first: there is never a moment without one.
        wanted.sort(key=lambda change: change.preferred == 0)
        self._note(own, wanted)
        for change in wanted:
            self._set(change)
            self._log(change.own.address, "kept", "preferred" if change.preferred else "")
        self._label(own)
        return len(wanted) + len(restored)

    def _set(self, change: Change) -> None:
        set_preferred(self._ifindex, change.own, change.preferred)
        self.applied += 1

    def _note(self, addresses: list[OwnAddress], wanted: list[Change]) -> None:
        """Remember what addresses are before they are changed; forget what no longer matters."""
        now, before = time.monotonic(), dict(self._before)
        for own, _ in wanted:
            until = None if own.preferred == FOREVER else now + own.preferred
            deprecated = own.preferred != 0
            self._before[own.address] = Before(until if deprecated else 0.0, deprecated)
        present = {own.address: own for own in addresses}
        for address, then in list(self._before.items()):
            found = present.get(address)
            # The address has gone; or the patterns no longer want it, and it was restored.
            if found is None or _wish(found, self._deprecated, self._preferred) != then.deprecated:
                del self._before[address]
        if self._record and self._before != before:
            try:
                self._record.save()
            except (NdxdpError, OSError) as error:  # the addresses matter more
                log.warning("what the addresses were before is not noted: %s", error)

    def _log(self, address: bytes, how: str, preferred: str) -> None:
        """Log the first two times of an address; router advertisements come for ever."""
        text = address_text(address)
        state = preferred or "deprecated"
        where = f"{self._name}: " if self._name else ""
        if how == "restored":
            log.info("%s%s is %s again, as it was found", where, text, state)
            return
        times = self._times[address] = self._times.get(address, 0) + 1
        if times == 1:
            log.info("%s%s is %s now", where, text, state)
        elif times == 2:
            log.info(
                "%s%s is %s again: router advertisements or a network manager set its lifetime"
                " anew; what follows of that is not logged",
                where,
                text,
                state,
            )
        else:
            log.debug("%s%s is %s again", where, text, state)

    def _label(self, addresses: list[OwnAddress]) -> None:
        """Label the deprecated addresses that others set the lifetimes of, and no others."""
        wanted = {
            own.address
            for own in addresses
            if (own.valid != FOREVER or self._times.get(own.address, 0) > 1)
            and _wish(own, self._deprecated, self._preferred) is True
        }
        try:
            if self._labelled is None:
                self._labelled = self._present_labels()
            for address in sorted(wanted ^ self._labelled):
                present = address in wanted
                set_address_label(self._ifindex, address, LABEL, present=present)
                (self._labelled.add if present else self._labelled.discard)(address)
        except NdxdpError as error:  # the addresses are deprecated all the same
            if str(error) != self._label_trouble:
                self._label_trouble = str(error)
                log.warning("%s: %s", self._name, error)

    def _present_labels(self) -> set[bytes]:
        """Return our labels of this interface; delete those of interfaces that have gone."""
        present = address_labels(LABEL)
        gone = {ifindex for ifindex, _ in present} - {
            ifindex for ifindex, _ in socket.if_nameindex()
        }
        for ifindex, address in present:
            if ifindex in gone:
                set_address_label(ifindex, address, LABEL, present=False)
        return {address for ifindex, address in present if ifindex == self._ifindex}

    def forget(self) -> None:
        """Forget an interface that has gone, and delete its labels, which the kernel would keep."""
        self._before.clear()
        for address in self._labelled or ():
            set_address_label(self._ifindex, address, LABEL, present=False)

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


def restore(directory: Path, interface: str) -> bool:
    """Give the addresses of an interface back the lifetimes that an ended daemon changed.

    False if there is nothing to restore. NdxdpError while a daemon keeps them, or if the kernel
    refuses.
    """
    if not lifetimes.exists(directory, interface):
        return False
    link = links.find_link(interface)
    ifindex = link.ifindex if link else 0
    with Record(directory, interface, ifindex, netns()) as record:
        if link:
            Deprecator(ifindex, (), name=interface, record=record).apply()
        record.changed.clear()
    return True
