"""A queue of addresses that is fair between interfaces, and between the MACs of each. Pure."""

from __future__ import annotations

from collections import OrderedDict


class FairQueue:
    """Addresses (16 bytes) that wait for their turn, each once.

    The interfaces take turns, and the MACs of an interface take turns when its turn comes. So a
    guest that appears with thousands of addresses delays its neighbours by one address each, and
    the guests on other interfaces likewise.
    """

    def __init__(self) -> None:
        """Create an empty queue."""
        self._owners: dict[bytes, tuple[int, bytes]] = {}
        self._links: OrderedDict[int, OrderedDict[bytes, OrderedDict[bytes, None]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, address: object) -> bool:
        return address in self._owners

    def put(self, address: bytes, ifindex: int, mac: bytes) -> None:
        """Add an address, the last one of its MAC; one that is queued with this owner stays."""
        owner = ifindex, mac
        if self._owners.get(address) == owner:
            return
        self.discard(address)
        self._owners[address] = owner
        macs = self._links.setdefault(ifindex, OrderedDict())
        macs.setdefault(mac, OrderedDict())[address] = None

    def discard(self, address: bytes) -> None:
        """Remove an address, if it is queued."""
        owner = self._owners.pop(address, None)
        if owner is not None:
            self._remove(address, *owner)

    def clear(self) -> None:
        """Remove all addresses."""
        self._owners.clear()
        self._links.clear()

    def take(self) -> bytes | None:
        """Remove and return the address whose turn it is; None if the queue is empty."""
        if not self._links:
            return None
        ifindex, macs = next(iter(self._links.items()))
        mac, addresses = next(iter(macs.items()))
        address = next(iter(addresses))
        del self._owners[address]
        self._remove(address, ifindex, mac)
        if mac in macs:
            macs.move_to_end(mac)
        if ifindex in self._links:
            self._links.move_to_end(ifindex)
        return address

    def _remove(self, address: bytes, ifindex: int, mac: bytes) -> None:
        macs = self._links[ifindex]
        del macs[mac][address]
        if not macs[mac]:
            del macs[mac]
        if not macs:
            del self._links[ifindex]
