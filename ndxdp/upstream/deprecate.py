"""Address hygiene: keeps some of the host's addresses deprecated.

The kernel does not choose a deprecated address (RFC 4862 5.5.4) as a source if there is a preferred
one (RFC 6724 5, rule 3). The address still receives packets. Network managers and the kernel set
lifetimes again, with each lease or router advertisement, even those of static addresses
(addrconf_prefix_rcv_add_addr()), so the addresses are compared after each change. Between the
change and its correction, the address is preferred for some milliseconds. During that time, an
address label that no destination has keeps the kernel from choosing it (RFC 6724 5, rule 6).
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
"""The label of addresses whose lifetimes others set; no prefix has this label by default."""

_SETTLE = 0.1  # seconds between comparisons, because managers change several addresses in a row

_RETRY = 5.0  # seconds until the next attempt after a failure


class Change(NamedTuple):
    """An address, and the preferred lifetime to set, in seconds; FOREVER is 2^32 - 1."""

    own: OwnAddress
    preferred: int


def changes(
    addresses: Iterable[OwnAddress],
    deprecated: Iterable[AddressPattern],
    preferred: Iterable[AddressPattern] = (),
) -> list[Change]:
    """Return the changes that make addresses match the patterns. Pure.

    Args:
        addresses: The interface's addresses.
        deprecated: Patterns of the addresses to deprecate. Link-local addresses and ::1 are never
            deprecated, because the kernel needs them.
        preferred: Patterns of the addresses to prefer, even if `deprecated` matches. They get a
            preferred lifetime as long as the valid one.
    """
    deprecated, preferred = tuple(deprecated), tuple(preferred)
    found = []
    for own in addresses:
        state = _wanted_state(own, deprecated, preferred)
        if state is False and own.preferred == 0:
            found.append(Change(own, own.valid))
        elif state is True and own.preferred != 0:
            found.append(Change(own, 0))
    return found


def restorations(
    addresses: Iterable[OwnAddress],
    before: Mapping[bytes, Before],
    deprecated: Iterable[AddressPattern],
    preferred: Iterable[AddressPattern] = (),
) -> list[Change]:
    """Return the changes that restore addresses which no pattern wants changed any more.

    The function is pure but for the clock. An address that someone else has changed since then is
    not restored.

    Args:
        addresses: The interface's addresses.
        before: The former state of each address (16 bytes) that was changed.
        deprecated: Patterns of the addresses to deprecate.
        preferred: Patterns of the addresses to prefer.
    """
    deprecated, preferred = tuple(deprecated), tuple(preferred)
    found = []
    for own in addresses:
        then = before.get(own.address)
        if then is None or _wanted_state(own, deprecated, preferred) is then.deprecated:
            continue
        lifetime = lifetimes.remaining(then, own.valid, FOREVER)
        if then.deprecated == (own.preferred == 0) and then.deprecated == (lifetime != 0):
            found.append(Change(own, lifetime))
    return found


def _wanted_state(
    own: OwnAddress,
    deprecated: tuple[AddressPattern, ...],
    preferred: tuple[AddressPattern, ...],
) -> bool | None:
    """Return True for an address to deprecate, False for one to prefer, None for all others."""
    if any(pattern.matches(own.address) for pattern in preferred):
        return False
    if own.link_local or own.address == LOOPBACK:
        return None
    return True if any(pattern.matches(own.address) for pattern in deprecated) else None


class Deprecator:
    """Keeper of an interface's preferred lifetimes: makes the addresses match patterns.

    Valid lifetimes, prefix lengths and flags are not changed. But the kernel reports a finite valid
    lifetime in whole seconds, so that setting it may lengthen it by less than a second. If an
    address with mngtmpaddr is deprecated, the kernel also deprecates its temporary addresses.

    Attributes:
        applied: How many preferred lifetimes were set.
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
        """Store the patterns; apply() and run() change addresses.

        Args:
            ifindex: The interface.
            deprecated: Patterns of the addresses to deprecate.
            preferred: Patterns of the addresses to prefer, even if `deprecated` matches.
            name: The interface's name, for the log.
            record: The file that stores the former lifetimes. None to store them in memory only.
        """
        self.applied = 0
        self._ifindex, self._name = ifindex, name
        self._deprecated, self._preferred = tuple(deprecated), tuple(preferred)
        self._record = record
        self._before: dict[bytes, Before] = record.changed if record else {}
        self._times: dict[bytes, int] = {}
        self._labelled: set[bytes] | None = None
        self._label_error = ""

    def apply(self) -> int:
        """Compare the addresses with the patterns, and change those that differ.

        Returns:
            How many addresses were changed.

        Raises:
            NdxdpError: The kernel refused a change.
        """
        own = own_addresses(self._ifindex)
        restored = restorations(own, self._before, self._deprecated, self._preferred)
        for change in restored:
            self._set(change)
            self._log_restored(change)
        if restored:
            own = own_addresses(self._ifindex)
        wanted = changes(own, self._deprecated, self._preferred)
        # Preferred addresses first, so that the interface always has one.
        wanted.sort(key=lambda change: change.preferred == 0)
        self._remember(own, wanted)
        for change in wanted:
            self._set(change)
            self._log_kept(change)
        self._label(own)
        return len(wanted) + len(restored)

    def _set(self, change: Change) -> None:
        set_preferred(self._ifindex, change.own, change.preferred)
        self.applied += 1

    def _remember(self, addresses: list[OwnAddress], wanted: list[Change]) -> None:
        """Store the state of addresses that will be changed; delete states that are obsolete."""
        now, before = time.monotonic(), dict(self._before)
        for own, _ in wanted:
            until = None if own.preferred == FOREVER else now + own.preferred
            deprecated = own.preferred != 0
            self._before[own.address] = Before(until if deprecated else 0.0, deprecated)
        present = {own.address: own for own in addresses}
        for address, then in list(self._before.items()):
            found = present.get(address)
            # The address was removed, or it was restored because no pattern matches any more.
            if (
                found is None
                or _wanted_state(found, self._deprecated, self._preferred) != then.deprecated
            ):
                del self._before[address]
        if self._record and self._before != before:
            try:
                self._record.save()
            except (NdxdpError, OSError) as error:  # Deprecating the addresses matters more.
                log.warning(
                    "%s: cannot save the former lifetimes of addresses: %s; they cannot be restored"
                    " after this process has ended",
                    self._name,
                    error,
                )

    def _log_restored(self, change: Change) -> None:
        log.info("%s, as before ndxdp changed it", self._described(change, "again"))

    def _log_kept(self, change: Change) -> None:
        """Log the first two changes of an address: router advertisements never end."""
        address = change.own.address
        times = self._times[address] = self._times.get(address, 0) + 1
        if times == 1:
            log.info("%s", self._described(change, "now"))
        elif times == 2:
            log.info(
                "%s: router advertisements or a network manager set its lifetime; later changes of"
                " this address are not logged",
                self._described(change, "again"),
            )
        else:
            log.debug("%s", self._described(change, "again"))

    def _described(self, change: Change, when: str) -> str:
        where = f"{self._name}: " if self._name else ""
        state = "preferred" if change.preferred else "deprecated"
        return f"{where}{address_text(change.own.address)} is {state} {when}"

    def _label(self, addresses: list[OwnAddress]) -> None:
        """Label the deprecated addresses whose lifetimes others set; remove our other labels."""
        wanted = {
            own.address
            for own in addresses
            if (own.valid != FOREVER or self._times.get(own.address, 0) > 1)
            and _wanted_state(own, self._deprecated, self._preferred) is True
        }
        try:
            if self._labelled is None:
                self._labelled = self._present_labels()
            for address in sorted(wanted ^ self._labelled):
                present = address in wanted
                set_address_label(self._ifindex, address, LABEL, present=present)
                (self._labelled.add if present else self._labelled.discard)(address)
        except NdxdpError as error:  # The addresses are deprecated nevertheless.
            if str(error) != self._label_error:
                self._label_error = str(error)
                log.warning("%s: %s", self._name, error)

    def _present_labels(self) -> set[bytes]:
        """Return our labels of this interface; delete those of interfaces that do not exist."""
        present = address_labels(LABEL)
        existing = {ifindex for ifindex, _ in socket.if_nameindex()}
        for ifindex, address in present:
            if ifindex not in existing:
                set_address_label(ifindex, address, LABEL, present=False)
        return {address for ifindex, address in present if ifindex == self._ifindex}

    def forget(self) -> None:
        """Forget the addresses of an interface that was deleted.

        Its labels are deleted, too, because the kernel keeps labels of deleted interfaces.
        """
        self._before.clear()
        for address in self._labelled or ():
            set_address_label(self._ifindex, address, LABEL, present=False)

    async def run(self, changed: asyncio.Event) -> None:
        """Apply the patterns now and whenever `changed` is set, until cancelled.

        Args:
            changed: Set by the caller when an address of the interface has changed. A change by
                apply() sets it as well; the comparison after it finds no difference.
        """
        loop = asyncio.get_running_loop()
        logged = ""
        while True:
            changed.clear()
            try:
                await asyncio.to_thread(self.apply)
                logged = ""
            except (NdxdpError, OSError) as error:
                if str(error) != logged:
                    logged = str(error)
                    log.warning("%s: cannot set preferred lifetimes: %s", self._name, error)
                loop.call_later(_RETRY, changed.set)
            await asyncio.sleep(_SETTLE)
            await changed.wait()


def restore(directory: Path, interface: str) -> bool:
    """Restore the lifetimes of an interface's addresses that a daemon changed before it ended.

    Args:
        directory: The run directory, which has the record of former lifetimes.
        interface: The interface's name.

    Returns:
        False if there is nothing to restore.

    Raises:
        NdxdpError: A running daemon keeps the addresses, or the kernel refused a change.
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
