"""Multicast reception that lasts as long as a process does."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Iterable

from ndxdp.ndp import solicited_node_group
from ndxdp.wire.raw import packet_socket

log = logging.getLogger(__name__)

_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_ALLMULTI = 2


def allmulti(opened: socket.socket, ifindex: int) -> None:
    """Keep an interface in allmulti until a packet socket is closed, also by the process's death.

    The kernel counts such memberships, so that nobody else's wish is undone.
    """
    request = struct.pack("=iHH8s", ifindex, _PACKET_MR_ALLMULTI, 0, b"")
    opened.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)


class Allmulti:
    """Keeps an interface in allmulti until closed; its socket receives nothing itself."""

    def __init__(self, ifindex: int) -> None:
        self._socket = packet_socket("keeps allmulti on")
        try:
            allmulti(self._socket, ifindex)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()


class _Holder:
    """A socket that holds memberships, and nothing else. full: the kernel gave it no more."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.held = 0
        self.full = False


class Groups:
    """Solicited-node groups of exact addresses, joined on one interface until closed.

    Allmulti opens the NIC. A switch that snoops MLD forwards a group only to the ports that
    reported it: so each group is joined as a listener joins, and the kernel reports it, repeats
    the report when a querier asks, and when the link comes up again. Addresses with the same last
    24 bits share a group, which is left with the last of them.

    A socket holds as many memberships as net.core.optmem_max bytes have room for, at 56 bytes
    each (64-bit kernels): 2340, on older kernels 365. So more sockets are opened as they are
    needed. Groups that even so could not be joined are tried again whenever something changes;
    their addresses are still answered for wherever the switch does not snoop.

    Not for several threads at once; 10 000 joins take half a second, so a large change wants a
    thread of its own. No capability is needed.
    """

    def __init__(self, ifindex: int) -> None:
        self._ifindex = ifindex
        self._addresses: set[bytes] = set()
        self._wanted: dict[bytes, int] = {}  # group -> its addresses
        self._joined: dict[bytes, _Holder] = {}
        self._failed: dict[bytes, None] = {}
        self._holders: list[_Holder] = []
        self._told = False

    def close(self) -> None:
        """Leave all groups."""
        while self._holders:
            self._holders.pop().socket.close()
        self._addresses.clear()
        self._wanted.clear()
        self._joined.clear()
        self._failed.clear()

    @property
    def joined(self) -> int:
        """Groups that this host is a listener of."""
        return len(self._joined)

    @property
    def failed(self) -> int:
        """Groups that could not be joined."""
        return len(self._failed)

    @property
    def sockets(self) -> int:
        return len(self._holders)

    def keep(self, addresses: Iterable[bytes]) -> None:
        """Be a listener of the groups of just these addresses (16 bytes)."""
        desired = set(addresses)
        self.change(desired - self._addresses, self._addresses - desired)

    def change(self, appeared: Iterable[bytes], gone: Iterable[bytes]) -> None:
        """The same, told by what is different; what is known already changes nothing."""
        fresh: list[bytes] = []
        for address in appeared:
            if address not in self._addresses:
                self._addresses.add(address)
                group = solicited_node_group(address)
                self._wanted[group] = self._wanted.get(group, 0) + 1
                if self._wanted[group] == 1:
                    fresh.append(group)
        for address in gone:
            if address in self._addresses:
                self._addresses.discard(address)
                group = solicited_node_group(address)
                self._wanted[group] -= 1
                if not self._wanted[group]:
                    del self._wanted[group]
                    self._leave(group)
        before = tuple(self._failed)
        for at, group in enumerate((*before, *fresh)):
            if group not in self._wanted or group in self._joined:
                continue
            trouble = self._join(group)
            if trouble:  # it is the same for all the others
                rest = (*before, *fresh)[at:]
                self._failed.update((left, None) for left in rest if left in self._wanted)
                self._tell(trouble)
                return
            self._failed.pop(group, None)
        self._told = False

    def _join(self, group: bytes) -> int:
        """0, or the errno of a kernel that has no more memberships to give."""
        request = self._request(group)
        for holder in reversed(self._holders):
            if holder.full:
                continue
            error = _option(holder.socket, socket.IPV6_JOIN_GROUP, request)
            if not error:
                return self._hold(group, holder)
            if error != errno.ENOMEM:
                return error
            holder.full = True
        try:
            holder = _Holder()
        except OSError as failure:  # no more files
            return failure.errno or errno.EMFILE
        error = _option(holder.socket, socket.IPV6_JOIN_GROUP, request)
        if error:
            holder.socket.close()
            return error
        self._holders.append(holder)
        return self._hold(group, holder)

    def _hold(self, group: bytes, holder: _Holder) -> int:
        holder.held += 1
        self._joined[group] = holder
        return 0

    def _leave(self, group: bytes) -> None:
        self._failed.pop(group, None)
        holder = self._joined.pop(group, None)
        if holder is None:
            return
        holder.held -= 1
        if holder.held:
            # When the interface has gone, so have its memberships: an error changes nothing.
            _option(holder.socket, socket.IPV6_LEAVE_GROUP, self._request(group))
            holder.full = False
        else:
            self._holders.remove(holder)
            holder.socket.close()

    def _request(self, group: bytes) -> bytes:
        return group + struct.pack("=I", self._ifindex)  # struct ipv6_mreq

    def _tell(self, number: int) -> None:
        """Once, until all is well again."""
        if not self._told:
            log.warning(
                "%d of %d solicited-node groups could not be joined (%s): a switch that snoops MLD"
                " does not forward the solicitations for them",
                len(self._failed),
                len(self._wanted),
                os.strerror(number),
            )
        self._told = True


def _option(opened: socket.socket, option: int, request: bytes) -> int:
    """Set it; 0 or an errno."""
    try:
        opened.setsockopt(socket.IPPROTO_IPV6, option, request)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # joined already, on this socket
            return 0
        return error.errno or errno.EIO
    return 0
