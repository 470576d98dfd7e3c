"""Memberships in solicited-node groups, which last as long as their process."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from itertools import chain

from ndxdp.ndp.address import solicited_node_group
from ndxdp.rules.address_set import EMPTY, AddressSet

log = logging.getLogger(__name__)

GROUPS_MAX = 16384
"""Groups that are joined on one interface, at most."""

SOCKET_MAX = 256
"""Groups of one socket. Closing a socket leaves them all under one lock, within a millisecond."""

_FEW = 16
"""Changed addresses whose groups are searched for among all addresses one by one."""

_BITMAP = 1 << 21  # bytes: one bit for each of the 2**24 groups


class _MembershipSocket:
    """A socket that has memberships, and does nothing else.

    Attributes:
        socket: The socket.
        groups: The groups, the newest last. The values mean nothing; a dict has an order.
        is_full: The kernel has refused another membership.
    """

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.groups: dict[int, None] = {}
        self.is_full = False


class GroupMemberships:
    """Memberships of one interface in the solicited-node groups of exact addresses.

    Allmulti opens the NIC. A switch that snoops MLD forwards a group only to the ports that
    reported the group. So each group is joined as a listener joins it, and the kernel reports the
    group, repeats the report when a querier asks, and when the link comes up again. Addresses with
    the same last 24 bits share a group, which is left with the last of these addresses. No
    capability is needed.

    The kernel keeps the groups of an interface in a list, the newest first, and walks the list for
    each join, for each leave up to the group, and for each multicast packet. So a large change
    needs a thread of its own, and slices, and the newest groups are left first. A socket has room
    for net.core.optmem_max bytes of memberships, 56 bytes each on 64-bit kernels.

    Groups that could not be joined are tried again at the next change. Use an object in one thread
    at a time.

    Attributes:
        left_out: The number of groups that are wanted and not joined. It is valid once update() has
            returned False.
    """

    def __init__(self, ifindex: int) -> None:
        """Join nothing yet.

        Args:
            ifindex: The interface.
        """
        self.left_out = 0
        self._ifindex = ifindex
        self._addresses, self._limit = EMPTY, GROUPS_MAX
        self._is_planned = True
        # Groups are the last 24 bits of their addresses: half the memory of 16 bytes.
        self._socket_of: dict[int, _MembershipSocket] = {}
        self._sockets: list[_MembershipSocket] = []  # the newest last
        self._leaving: list[tuple[_MembershipSocket, list[int]]] = []  # the next one last
        self._joining: list[int] = []  # the next one last
        self._wanted = 0
        self._is_logged = False

    def close(self) -> None:
        """Leave all groups, the newest first."""
        while self._sockets:
            self._sockets.pop().socket.close()
        self._socket_of.clear()
        self._leaving, self._joining = [], []
        self._addresses, self._wanted, self.left_out = EMPTY, 0, 0

    @property
    def joined(self) -> int:
        """The number of groups that are joined."""
        return len(self._socket_of)

    @property
    def sockets(self) -> int:
        """The number of sockets that have the memberships."""
        return len(self._sockets)

    def update(
        self, addresses: AddressSet, at_most: int | None = None, *, limit: int | None = None
    ) -> bool:
        """Leave and join groups until the groups of these addresses, and no others, are joined.

        Args:
            addresses: The addresses. The groups of other addresses are left.
            at_most: The number of groups to leave or join now; a socket's groups may exceed it.
                None for no bound.
            limit: The number of groups to have at the end, at most. Groups that are joined already
                stay. None for GROUPS_MAX.

        Returns:
            True if there is more to leave or join: call update() again.
        """
        limit = GROUPS_MAX if limit is None else limit
        is_same = limit == self._limit and addresses == self._addresses
        if not (self._is_planned and is_same):
            self._plan(addresses, limit)
        rest = len(self._socket_of) + limit if at_most is None else at_most
        while self._leaving and rest > 0:
            rest -= self._leave_next(rest)
        while self._joining and rest > 0:
            rest -= 1
            number = self._join(self._joining[-1])
            if number:  # the error is the same for the other groups
                self._joining, self._is_planned = [], False
                self._log(number)
                break
            self._joining.pop()
        self.left_out = max(self._wanted - len(self._socket_of), 0)
        if self._is_planned and not self._joining:
            self._is_logged = False
        return bool(self._leaving or self._joining)

    def forget_lost(self) -> int:
        """Leave the groups that the kernel has dropped, so that update() can join them again.

        The kernel drops all groups of an interface whose MTU goes below IPv6's 1280 bytes
        (addrconf_ifdown()). The sockets still have them, and must leave before they join again.

        Returns:
            The number of these groups.
        """
        if not self._socket_of:
            return 0
        try:
            present = _present_groups(self._ifindex)
        except OSError:  # there is no /proc
            return 0
        lost = [group for group in reversed(self._socket_of) if group not in present]
        for group in lost:
            self._leave(group)
        if lost:
            self._leaving, self._joining, self._is_planned = [], [], False
        return len(lost)

    def _plan(self, addresses: AddressSet, limit: int) -> None:
        """Decide which groups to leave and which to join."""
        is_complete = self._is_planned and not self._leaving and not self._joining
        before, is_same_limit = self._addresses, limit == self._limit
        self._addresses, self._limit, self._is_planned = addresses, limit, True
        few = _few_changes(before, addresses) if is_complete and is_same_limit else None
        if few:
            unwanted, appeared = few
            self._wanted += len(appeared) - len(unwanted)
        elif not addresses:  # which is usual, and takes no bitmap
            self._wanted, unwanted, appeared = 0, set(self._socket_of), set()
        else:
            self._wanted, wanted = _bitmap(addresses)
            unwanted = {each for each in self._socket_of if not wanted[each >> 3] >> (each & 7) & 1}
            appeared = set()
        kept = [group for group in self._socket_of if group not in unwanted]
        surplus = set(kept[limit:])
        self._leaving = []
        for opened in self._sockets:
            leaving = [each for each in opened.groups if each in unwanted or each in surplus]
            if leaving:
                self._leaving.append((opened, leaving))
        room = min(limit, self._wanted) - min(limit, len(kept))
        joining: dict[int, None] = {}
        candidates = chain(appeared, map(_group_of, addresses))
        while len(joining) < room:
            group = next(candidates)
            if group not in self._socket_of:
                joining[group] = None
        self._joining = list(reversed(joining))

    def _leave_next(self, at_most: int) -> int:
        """Leave groups of one socket; return how many groups are left.

        Args:
            at_most: Groups to leave, unless the socket can be closed.
        """
        opened, leaving = self._leaving[-1]
        if len(leaving) == len(opened.groups):
            self._leaving.pop()
            for group in leaving:
                del self._socket_of[group]
            self._sockets.remove(opened)
            opened.socket.close()
            return len(leaving)
        now = leaving[-at_most:]
        for group in reversed(now):
            self._leave(group)
        del leaving[-at_most:]
        if not leaving:
            self._leaving.pop()
        return len(now)

    def _leave(self, group: int) -> None:
        opened = self._socket_of.pop(group)
        del opened.groups[group]
        if opened.groups:
            # If the interface has gone, so have its memberships: an error changes nothing.
            _set(opened.socket, socket.IPV6_LEAVE_GROUP, self._request(group))
            opened.is_full = False
        else:
            self._sockets.remove(opened)
            opened.socket.close()

    def _join(self, group: int) -> int:
        """Join a group; return 0, or the errno of the kernel's refusal."""
        for opened in reversed(self._sockets):
            if opened.is_full or len(opened.groups) >= SOCKET_MAX:
                continue
            number = self._join_by(opened, group)
            if number != errno.ENOMEM:
                return number
            opened.is_full = True
        try:
            opened = _MembershipSocket()
        except OSError as error:  # there are too many open files
            return error.errno or errno.EMFILE
        number = self._join_by(opened, group)
        if number:
            opened.socket.close()
        else:
            self._sockets.append(opened)
        return number

    def _join_by(self, opened: _MembershipSocket, group: int) -> int:
        number = _set(opened.socket, socket.IPV6_JOIN_GROUP, self._request(group))
        if not number:
            opened.groups[group] = None
            self._socket_of[group] = opened
        return number

    def _request(self, group: int) -> bytes:
        address = solicited_node_group(bytes(13) + group.to_bytes(3, "big"))
        return address + struct.pack("=I", self._ifindex)  # struct ipv6_mreq

    def _log(self, number: int) -> None:
        """Log that groups could not be joined, once until all are joined."""
        if not self._is_logged:
            log.warning(
                "cannot join %d of %d solicited-node groups: %s; a switch that snoops MLD does not"
                " forward their solicitations",
                self._wanted - len(self._socket_of),
                self._wanted,
                os.strerror(number).lower(),
            )
        self._is_logged = True


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


def _few_changes(before: AddressSet, after: AddressSet) -> tuple[set[int], set[int]] | None:
    """Return the groups that disappear and appear with a small change; None for a large one."""
    removed, added = before - after, after - before
    if len(removed) + len(added) > _FEW:
        return None
    gone = {each for each in map(_group_of, removed) if not after.has_ending(each.to_bytes(3))}
    new = {each for each in map(_group_of, added) if not before.has_ending(each.to_bytes(3))}
    return gone, new


def _bitmap(addresses: AddressSet) -> tuple[int, bytearray]:
    """Return how many groups addresses have, and a bitmap of the groups."""
    bitmap, count = bytearray(_BITMAP), 0
    for group in map(_group_of, addresses):
        at, bit = group >> 3, 1 << (group & 7)
        if not bitmap[at] & bit:
            bitmap[at] |= bit
            count += 1
    return count, bitmap


def _group_of(address: bytes) -> int:
    return int.from_bytes(address[13:], "big")


def _set(opened: socket.socket, option: int, request: bytes) -> int:
    """Set an option of a socket; return 0 or an errno."""
    try:
        opened.setsockopt(socket.IPPROTO_IPV6, option, request)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # this socket has joined the group already
            return 0
        return error.errno or errno.EIO
    return 0
