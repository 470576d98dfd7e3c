"""Moving a shared address to a host, and draining a host, until the daemons have done it."""

from __future__ import annotations

import asyncio
import math
import time
from typing import NamedTuple

from ndxdp import progress
from ndxdp.errors import NdxdpError
from ndxdp.fleet.keys import DRAINED, HOLDERS, MOVES
from ndxdp.fleet.records import decode_holder, decode_move, encode
from ndxdp.inventory.keyspace import Keyspace
from ndxdp.inventory.view import AddressView, FleetView, SegmentView
from ndxdp.printable import printable
from ndxdp.rules.prefix import Prefix

_PAUSE = 0.02  # seconds between two looks at a holder
_PAUSE_MAX = 0.5

_SETTLED = 0.3
"""Seconds after which a host that holds nothing is looked at again: its daemon may just have
acquired an address when it read that it is drained."""

_LISTED_MAX = 5


class Moved(NamedTuple):
    """A move that has been done.

    Attributes:
        former: The host that held the address before; "" for nobody.
        seconds: How long it took; 0 if the host held the address already.
        prefix: The prefix of the address.
    """

    former: str
    seconds: float
    prefix: Prefix


async def move(keyspace: Keyspace, segment: str, name: str, host: str, timeout: float) -> Moved:
    """Move a shared address to a host, and wait until the host answers for it.

    Args:
        keyspace: The keys.
        segment: The segment.
        name: The name of the address.
        host: The host.
        timeout: Seconds to wait.

    Raises:
        NdxdpError: There is no such address, the host may not get it, or the time is over.
        NoAnswer: etcd does not answer.
    """
    view = await keyspace.view([segment])
    address = _address(view, segment, name)
    refuse_impossible(view, address, host)
    former = address.holder.host if address.holder else ""
    if former == host:
        return Moved(former, 0, address.wanted.prefix)
    began = time.monotonic()
    lease = await keyspace.grant(math.ceil(timeout) + 2)
    key, holder = f"{MOVES}/{segment}/{name}", f"{HOLDERS}/{segment}/{name}"
    try:
        if not await keyspace.create(key, encode(host=host), lease):
            found = await keyspace.get([key])
            other = decode_move(found[0].value) if found else ""
            raise NdxdpError(
                f"{address.key} is just being moved to {printable(other) or 'another host'}",
                "wait a moment, then: ndxdp fleet status",
            )
        pause = _PAUSE
        while await _holder(keyspace, holder) != host:
            if time.monotonic() - began > timeout:
                break
            await asyncio.sleep(pause)
            pause = min(pause * 1.2, _PAUSE_MAX)
    finally:
        await keyspace.revoke(lease)
    took = time.monotonic() - began
    if await _holder(keyspace, holder) != host:
        raise _not_moved(await keyspace.view([segment]), address, host, timeout)
    return Moved(former, took, address.wanted.prefix)


async def _holder(keyspace: Keyspace, key: str) -> str:
    found = await keyspace.get([key])
    return decode_holder(found[0].value).host if found else ""


def _address(view: FleetView, segment: str, name: str) -> AddressView:
    """Return a shared address by its name; raise NdxdpError if there is none."""
    found = view.segment(segment) or SegmentView(segment, [], [], [], [])
    for each in found.addresses:
        if each.name == name:
            return each
    for key, reason in found.refused:
        if key == f"shared/{segment}/{name}":
            raise NdxdpError(f"{key} is refused: {reason}", "put a valid value: ndxdp fleet put")
    names = ", ".join(each.name for each in found.addresses[:_LISTED_MAX])
    raise NdxdpError(
        f"there is no shared address {segment}/{name}",
        f"some of its segment are {names}; all: ndxdp fleet list shared --segment {segment}"
        if names
        else "its segment has none; those of all segments: ndxdp fleet list shared",
    )


def refuse_impossible(view: FleetView, address: AddressView, host: str) -> None:
    """Raise NdxdpError if a host cannot get an address."""
    wanted = address.wanted
    segment = view.segment(address.segment)
    members = [each.host for each in segment.members] if segment else []
    value = f"ndxdp fleet put shared/{address.key} {wanted.prefix}"
    if wanted.hosts and host not in wanted.hosts:
        raise NdxdpError(
            f"{host} is not one of the hosts of {address.key}: {_listed(list(wanted.hosts))}",
            f"add it: {value} {' '.join(f'--host {each}' for each in (*wanted.hosts, host))}",
        )
    if host not in members:
        raise NdxdpError(
            f"{host} is no live member of {address.segment}",
            f"its members are {_listed(members)}" if members else "it has no member",
        )
    if host in view.drained:
        raise NdxdpError(f"{host} is drained", f"ndxdp fleet undrain {host}")


def _not_moved(view: FleetView, address: AddressView, host: str, timeout: float) -> NdxdpError:
    """Return the error for a move that was not done in time; it says who holds the address."""
    segment = view.segment(address.segment)
    found = [each for each in (segment.addresses if segment else []) if each.name == address.name]
    holder = found[0].holder if found else None
    state = f"{holder.host} holds it" if holder else "nobody holds it"
    if found and found[0].problem:
        state += f": {found[0].problem}"
    if not found:
        state = "its key was deleted meanwhile"
    gone = not segment or host not in {each.host for each in segment.members}
    hint = f"{host} is no member any more" if gone else f"on {host}: ndxdp status"
    return NdxdpError(f"{address.key} was not moved within {timeout:g} s: {state}", hint)


class Drained(NamedTuple):
    """A host that holds nothing.

    Attributes:
        released: The number of addresses that it held.
        seconds: How long it took to release them.
        unheld: The addresses that it held, and that nobody holds now.
        is_member: The host is a member of a segment.
    """

    released: int
    seconds: float
    unheld: list[AddressView]
    is_member: bool


async def drain(keyspace: Keyspace, host: str, timeout: float) -> Drained:
    """Drain a host, and wait until it holds no address.

    Args:
        keyspace: The keys.
        host: The host.
        timeout: Seconds to wait while the host gives up nothing more.

    Raises:
        NdxdpError: The host holds addresses after that time. It stays drained.
        NoAnswer: etcd does not answer.
    """
    first = await _held(keyspace, host)
    began = time.monotonic()
    await keyspace.change({f"{DRAINED}/{host}": encode(since=time.time())})
    with progress.step("addresses given up", len(first)):
        took = await _until_empty(keyspace, host, len(first), timeout) - began
    view = await keyspace.view()
    mine = {key.removeprefix(f"{HOLDERS}/") for key in first}
    unheld = [each for segment in view.segments for each in segment.unheld if each.key in mine]
    return Drained(len(first), took, unheld, host in view.hosts())


async def _until_empty(keyspace: Keyspace, host: str, count: int, timeout: float) -> float:
    """Wait until a host holds nothing; return that time of the monotonic clock.

    Args:
        keyspace: The keys.
        host: The host.
        count: The number of addresses that it holds.
        timeout: Seconds to wait while that number does not decrease.

    Raises:
        NdxdpError: The host has given up nothing in that time.
    """
    deadline, emptied = time.monotonic() + timeout, 0.0
    while True:
        before = time.monotonic()
        held = await _held(keyspace, host)
        now = time.monotonic()
        if not held:
            if emptied:
                return emptied
            emptied = now
            await asyncio.sleep(_SETTLED)
            continue
        emptied = 0.0
        if len(held) < count:
            progress.advance(count - len(held))
            count, deadline = len(held), now + timeout
        elif now > deadline:
            names = _listed([key.removeprefix(f"{HOLDERS}/") for key in held])
            raise NdxdpError(
                f"{host} still holds {len(held)}, and has given up none for {timeout:g} s: {names}",
                f"on {host}: ndxdp status; it stays drained until: ndxdp fleet undrain {host}",
            )
        await _until_released(keyspace, host, held[0], deadline)
        await asyncio.sleep(now - before)  # leave etcd as much time as the request took


async def _held(keyspace: Keyspace, host: str) -> list[str]:
    """Return the keys of the addresses that a host holds."""
    found = await keyspace.below([f"{HOLDERS}/"])
    return [each.key for each in found.entries if decode_holder(each.value).host == host]


async def _until_released(keyspace: Keyspace, host: str, key: str, deadline: float) -> None:
    """Wait until a host does not hold an address, or a time of the monotonic clock has come."""
    pause = _PAUSE
    while time.monotonic() < deadline and await _holder(keyspace, key) == host:
        await asyncio.sleep(pause)
        pause = min(pause * 1.2, _PAUSE_MAX)
    await asyncio.sleep(_PAUSE)


async def undrain(keyspace: Keyspace, host: str) -> bool:
    """Let a drained host take addresses again; return False if it is not drained."""
    key = f"{DRAINED}/{host}"
    if not await keyspace.get([key]):
        return False
    await keyspace.change({}, [key])
    return True


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_LISTED_MAX])
    more = len(names) - _LISTED_MAX
    return f"{shown} and {more} more" if more > 0 else shown
