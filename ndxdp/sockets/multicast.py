"""Multicast reception that lasts as long as a process does."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Iterator

from ndxdp.ndp.address import solicited_node_group
from ndxdp.rules.address_set import EMPTY, AddressSet
from ndxdp.sockets.cbpf import packet_socket

log = logging.getLogger(__name__)

_SOL_PACKET = 263

_PACKET_ADD_MEMBERSHIP, _PACKET_DROP_MEMBERSHIP = 1, 2

_PACKET_MR_ALLMULTI = 2


def allmulti(opened: socket.socket, ifindex: int, *, leave: bool = False) -> None:
    """Keep an interface in allmulti until a packet socket is closed, also by the process's death.

    The kernel counts such memberships, so that nobody else's wish is undone. leave: end one.
    """
    request = struct.pack("=iHH8s", ifindex, _PACKET_MR_ALLMULTI, 0, b"")
    option = _PACKET_DROP_MEMBERSHIP if leave else _PACKET_ADD_MEMBERSHIP
    opened.setsockopt(_SOL_PACKET, option, request)


class Allmulti:
    """Keeps interfaces in allmulti until closed; its one socket receives nothing itself."""

    def __init__(self) -> None:
        self._socket = packet_socket("keeps allmulti on")

    def close(self) -> None:
        """Keep none any more."""
        self._socket.close()

    @contextlib.contextmanager
    def enabled(self, ifindex: int) -> Iterator[None]:
        """Keep an interface in allmulti during the block; blocks of one interface are counted."""
        allmulti(self._socket, ifindex)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it has gone, and the membership with it
                allmulti(self._socket, ifindex, leave=True)


GROUPS_MAX = 16384
"""Groups that are joined on one interface."""


class _MembershipSocket:
    """A socket that holds memberships, and nothing else. full: the kernel gave it no more."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.held = 0
        self.full = False


class GroupMemberships:
    """Solicited-node groups of exact addresses, joined on one interface until closed.

    Allmulti opens the NIC. A switch that snoops MLD forwards a group only to the ports that
    reported it: so each group is joined as a listener joins, and the kernel reports it, repeats
    the report when a querier asks, and when the link comes up again. Addresses with the same last
    24 bits share a group, which is left with the last of them.

    A socket holds as many memberships as net.core.optmem_max bytes have room for, at 56 bytes
    each (64-bit kernels): 2340, on older kernels 365. So more sockets are opened as they are
    needed. Groups that even so could not be joined are tried again whenever something changes;
    their addresses are still answered for wherever the switch does not snoop.

    The kernel looks through all groups of the interface for each one that is joined: 10 000 take
    half a second, 20 000 two. So a large change wants a thread of its own, and slices; and beyond
    GROUPS_MAX addresses are served by allmulti alone. Not for several threads at once. No
    capability is needed.
    """

    def __init__(self, ifindex: int) -> None:
        self._ifindex = ifindex
        self._addresses = EMPTY
        # Groups are the last 24 bits of their addresses: half the memory of 16 bytes.
        self._joined: dict[int, _MembershipSocket] = {}
        self._holders: list[_MembershipSocket] = []
        self._told = False

    def close(self) -> None:
        """Leave all groups."""
        while self._holders:
            self._holders.pop().socket.close()
        self._addresses = EMPTY
        self._joined.clear()

    @property
    def joined(self) -> int:
        """Groups that this host is a listener of."""
        return len(self._joined)

    @property
    def failed(self) -> int:
        """Groups that are not joined, as they could not be, or not yet."""
        wanted = bytearray(1 << 21)  # a bit for each group that there can be
        for group in map(_group_of, self._addresses):
            wanted[group >> 3] |= 1 << (group & 7)
        return int.from_bytes(wanted).bit_count() - len(self._joined)

    @property
    def sockets(self) -> int:
        """How many sockets hold the memberships."""
        return len(self._holders)

    def update(self, addresses: AddressSet, at_most: int | None = None) -> bool:
        """Be a listener of the groups of just these addresses.

        at_most: groups to join now. True if there are more of them: call it again.
        """
        before, self._addresses = self._addresses, addresses
        leaving = self._joined.keys() & set(map(_group_of, before - addresses))
        if leaving:
            for group in leaving.difference(map(_group_of, addresses)):
                self._leave(group)
        count = 0
        for group in map(_group_of, addresses):
            if group in self._joined:
                continue
            if count == at_most:
                return True
            room = len(self._joined) < GROUPS_MAX
            trouble = self._join(group) if room else errno.ENOSPC
            if trouble:  # it is the same for all the others
                self._tell(trouble)
                return False
            count += 1
        self._told = False
        return False

    def forget_lost(self) -> int:
        """Make ready to join again what the kernel has dropped; return how many groups that are.

        The kernel drops all groups of an interface whose MTU goes below IPv6's 1280 bytes
        (addrconf_ifdown()). The sockets still list them, and must leave before they join anew.
        """
        try:
            present = _present_groups(self._ifindex)
        except OSError:  # no /proc
            return 0
        lost = self._joined.keys() - present
        for group in lost:
            self._leave(group)
        return len(lost)

    def _join(self, group: int) -> int:
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
            holder = _MembershipSocket()
        except OSError as failure:  # no more files
            return failure.errno or errno.EMFILE
        error = _option(holder.socket, socket.IPV6_JOIN_GROUP, request)
        if error:
            holder.socket.close()
            return error
        self._holders.append(holder)
        return self._hold(group, holder)

    def _hold(self, group: int, holder: _MembershipSocket) -> int:
        holder.held += 1
        self._joined[group] = holder
        return 0

    def _leave(self, group: int) -> None:
        holder = self._joined.pop(group)
        holder.held -= 1
        if holder.held:
            # When the interface has gone, so have its memberships: an error changes nothing.
            _option(holder.socket, socket.IPV6_LEAVE_GROUP, self._request(group))
            holder.full = False
        else:
            self._holders.remove(holder)
            holder.socket.close()

    def _request(self, group: int) -> bytes:
        address = solicited_node_group(bytes(13) + group.to_bytes(3, "big"))
        return address + struct.pack("=I", self._ifindex)  # struct ipv6_mreq

    def _tell(self, number: int) -> None:
        """Once, until all is well again."""
        if not self._told:
            failed = self.failed
            log.warning(
                "%d of %d solicited-node groups could not be joined (%s): a switch that snoops MLD"
                " does not forward the solicitations for them",
                failed,
                failed + len(self._joined),
                os.strerror(number),
            )
        self._told = True


def _present_groups(ifindex: int) -> set[int]:
    """Return the solicited-node groups of an interface, each as its last 24 bits."""
    prefix = solicited_node_group(bytes(16))[:13].hex()
    found = set()
    with open("/proc/thread-self/net/igmp6", encoding="ascii") as lines:
        for line in lines:
            index, _, group, *_ = line.split()
            if int(index) == ifindex and group.startswith(prefix):
                found.add(int(group[26:], 16))
    return found


def _group_of(address: bytes) -> int:
    return int.from_bytes(address[13:], "big")


def _option(opened: socket.socket, option: int, request: bytes) -> int:
    """Set it; 0 or an errno."""
    try:
        opened.setsockopt(socket.IPPROTO_IPV6, option, request)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # joined already, on this socket
            return 0
        return error.errno or errno.EIO
    return 0
