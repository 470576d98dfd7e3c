"""Multicast memberships of an interface, which the kernel ends when the process ends."""

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

# linux/if_packet.h
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP, _PACKET_DROP_MEMBERSHIP = 1, 2
_PACKET_MR_ALLMULTI = 2


def allmulti(opened: socket.socket, ifindex: int, *, leave: bool = False) -> None:
    """Put an interface into allmulti until a packet socket is closed.

    The kernel closes the socket when the process ends. It counts these memberships, so that ending
    one does not end those of other programs.

    Args:
        opened: The packet socket.
        ifindex: The interface.
        leave: End one membership of this socket instead.

    Raises:
        OSError: There is no such interface, or no such membership.
    """
    request = struct.pack("=iHH8s", ifindex, _PACKET_MR_ALLMULTI, 0, b"")
    option = _PACKET_DROP_MEMBERSHIP if leave else _PACKET_ADD_MEMBERSHIP
    opened.setsockopt(_SOL_PACKET, option, request)


class Allmulti:
    """A packet socket that keeps interfaces in allmulti, and receives nothing."""

    def __init__(self) -> None:
        """Open the socket.

        Raises:
            NdxdpError: The process lacks CAP_NET_RAW.
        """
        self._socket = packet_socket("keeps allmulti on")

    def close(self) -> None:
        """Close the socket, which ends its memberships."""
        self._socket.close()

    @contextlib.contextmanager
    def enabled(self, ifindex: int) -> Iterator[None]:
        """Keep an interface in allmulti during the block; blocks of one interface are counted."""
        allmulti(self._socket, ifindex)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # The interface was deleted with its memberships.
                allmulti(self._socket, ifindex, leave=True)


_FEW = 16
"""Groups that are searched for among all addresses one by one."""

GROUPS_MAX = 16384
"""How many groups are joined on one interface, at most."""


class _MembershipSocket:
    """A socket that has memberships and receives nothing.

    Attributes:
        count: How many memberships the socket has.
        full: The kernel has refused one more.
    """

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.count = 0
        self.full = False


class GroupMemberships:
    """Memberships in the solicited-node groups of exact addresses, on one interface until close().

    Allmulti makes the NIC receive all groups. A switch that snoops MLD, however, forwards a group
    only to ports from which the group was reported. So each group is joined: then the kernel
    reports it, also when a querier asks and when the link comes up again. Addresses with the same
    last 24 bits share a group.

    A socket has room for as many memberships as fit into net.core.optmem_max bytes, at 56 bytes
    each (64-bit kernels): 2340, on older kernels 365. More sockets are opened when they are needed.
    Groups that could not be joined are tried again at the next change. Their addresses are answered
    for nevertheless if no switch snoops.

    To join a group, the kernel searches all groups of the interface: joining 10 000 groups takes
    half a second, joining 20 000 takes two. A large change is therefore made in slices, in a thread
    of its own. Addresses beyond GROUPS_MAX depend on allmulti alone.

    An object may be used in one thread at a time. No capability is needed.
    """

    def __init__(self, ifindex: int) -> None:
        """Join nothing yet; update() does."""
        self._ifindex = ifindex
        self._addresses = EMPTY
        # A group is stored as the last 24 bits of its address, which takes half the memory.
        self._joined: dict[int, _MembershipSocket] = {}
        self._holders: list[_MembershipSocket] = []
        self._logged = False

    def close(self) -> None:
        """Leave all groups."""
        while self._holders:
            self._holders.pop().socket.close()
        self._addresses = EMPTY
        self._joined.clear()

    @property
    def joined(self) -> int:
        """How many groups are joined."""
        return len(self._joined)

    @property
    def failed(self) -> int:
        """How many groups are not joined, because joining has failed or is not finished."""
        wanted = bytearray(1 << 21)  # one bit for each of the 2^24 groups
        for group in map(_group_of, self._addresses):
            wanted[group >> 3] |= 1 << (group & 7)
        return int.from_bytes(wanted).bit_count() - len(self._joined)

    @property
    def sockets(self) -> int:
        """How many sockets are open."""
        return len(self._holders)

    def update(self, addresses: AddressSet, at_most: int | None = None) -> bool:
        """Join the groups of these addresses, and leave all others.

        Args:
            addresses: The addresses.
            at_most: How many groups to join in this call; None for all.

        Returns:
            True if groups are left to join: call update() again.
        """
        before, self._addresses = self._addresses, addresses
        leaving = self._joined.keys() & set(map(_group_of, before - addresses))
        if leaving:
            leaving -= _still_wanted(leaving, addresses)
            # The last one first: the kernel puts new groups at the head of its lists, and looks
            # through these from there.
            for group in [group for group in reversed(self._joined) if group in leaving]:
                self._leave(group)
        count = 0
        for group in map(_group_of, addresses):
            if group in self._joined:
                continue
            if count == at_most:
                return True
            room = len(self._joined) < GROUPS_MAX
            error = self._join(group) if room else errno.ENOSPC
            if error:  # The other groups would fail for the same reason.
                self._log_failure(error)
                return False
            count += 1
        self._logged = False
        return False

    def forget_lost(self) -> int:
        """Leave the groups whose memberships the kernel has removed, so that update() joins them.

        The kernel removes all memberships of an interface if its MTU becomes less than IPv6's 1280
        bytes (addrconf_ifdown()). The sockets still list them, and cannot join before they leave.

        Returns:
            How many groups these are.
        """
        if not self._joined:
            return 0
        try:
            present = _present_groups(self._ifindex)
        except OSError:  # no /proc
            return 0
        lost = self._joined.keys() - present
        for group in lost:
            self._leave(group)
        return len(lost)

    def _join(self, group: int) -> int:
        """Join a group; return 0, or the errno if the kernel refuses."""
        request = self._request(group)
        for holder in reversed(self._holders):
            if holder.full:
                continue
            error = _option(holder.socket, socket.IPV6_JOIN_GROUP, request)
            if not error:
                return self._add(group, holder)
            if error != errno.ENOMEM:
                return error
            holder.full = True
        try:
            holder = _MembershipSocket()
        except OSError as failure:  # for example: too many open files
            return failure.errno or errno.EMFILE
        error = _option(holder.socket, socket.IPV6_JOIN_GROUP, request)
        if error:
            holder.socket.close()
            return error
        self._holders.append(holder)
        return self._add(group, holder)

    def _add(self, group: int, holder: _MembershipSocket) -> int:
        holder.count += 1
        self._joined[group] = holder
        return 0

    def _leave(self, group: int) -> None:
        holder = self._joined.pop(group)
        holder.count -= 1
        if holder.count:
            # An error is no problem: a deleted interface has no memberships.
            _option(holder.socket, socket.IPV6_LEAVE_GROUP, self._request(group))
            holder.full = False
        else:
            self._holders.remove(holder)
            holder.socket.close()

    def _request(self, group: int) -> bytes:
        address = solicited_node_group(bytes(13) + group.to_bytes(3, "big"))
        return address + struct.pack("=I", self._ifindex)  # struct ipv6_mreq

    def _log_failure(self, number: int) -> None:
        """Log a failure once, until all groups have been joined."""
        if not self._logged:
            failed = self.failed
            log.warning(
                "cannot join %d of %d solicited-node groups: %s; a switch that snoops MLD does not"
                " forward their solicitations",
                failed,
                failed + len(self._joined),
                os.strerror(number).lower(),
            )
        self._logged = True


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


def _still_wanted(leaving: set[int], addresses: AddressSet) -> set[int]:
    """Return those of some groups that addresses have."""
    if len(leaving) > _FEW:
        return leaving.intersection(map(_group_of, addresses))
    return {group for group in leaving if addresses.has_ending(group.to_bytes(3, "big"))}


def _group_of(address: bytes) -> int:
    return int.from_bytes(address[13:], "big")


def _option(opened: socket.socket, option: int, request: bytes) -> int:
    """Set a socket option of IPv6; return 0 or the errno."""
    try:
        opened.setsockopt(socket.IPPROTO_IPV6, option, request)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # This socket has joined the group already.
            return 0
        return error.errno or errno.EIO
    return 0
