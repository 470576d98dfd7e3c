"""The solicited-node groups of one uplink, joined as its configuration says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

from ndxdp.daemon.queriers import Querier
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.daemon.uplink_state import UplinkState
from ndxdp.ndp.profile import Profile
from ndxdp.netlink import bridges
from ndxdp.netlink.links import Link
from ndxdp.rules.address_set import EMPTY, AddressSet
from ndxdp.runtime.daemon_status import DaemonStatus, GroupStatus
from ndxdp.sockets.group_memberships import GROUPS_MAX, GroupMemberships

log = logging.getLogger(__name__)

AUTO_MAX = 1024
"""Groups that `join = "auto"` joins, at most. They cost 4 us for each multicast packet."""

_SLICE = 128  # groups of one turn in the executor: some 20 ms where 16384 are joined

Targets = Mapping[Profile, AddressSet]


class UplinkGroups:
    """The group memberships of one attachment.

    Groups are joined on the interface by which the kernel receives MLD queries, as only there the
    kernel answers them: on the bridge or bond, if the uplink is a port.

    Attributes:
        targets: The targets whose groups are joined, as far as they are to be joined.
    """

    def __init__(self, state: UplinkState, shared: Shared, status: DaemonStatus) -> None:
        """Join nothing until follow()."""
        self.targets: Targets = {}
        self._state, self._shared, self._status = state, shared, status
        self._groups: GroupMemberships | None = None
        self._ifindex = 0
        self._unwatch: Callable[[], None] = lambda: None
        self._limit = -1  # of the last complete update
        self._warned_of = 0

    async def close(self) -> None:
        """Leave all groups."""
        self._unwatch()
        if self._groups:
            await self._shared.call(self._groups.close)
        self._status.note_groups(self._state.spec.interface, None)

    async def follow(self, link: Link, targets: Targets, *, may_be_lost: bool) -> None:
        """Join and leave groups, in slices, until other work is pending.

        Args:
            link: The interface.
            targets: Exact addresses that are answered for unconditionally, by profile.
            may_be_lost: The kernel may have dropped groups.
        """
        state, call = self._state, self._shared.call
        groups = await self._at(link)
        if state.pending.announcement:  # the link may lead to another switch
            self._shared.queriers.forget(self._ifindex)
        if may_be_lost:
            lost = await call(groups.forget_lost)
            self._limit = -1 if lost else self._limit
        limit = await self._limit_now(link)
        if targets is not self.targets or limit != self._limit:
            addresses = AddressSet.union(targets.values()) if limit else EMPTY
            update, more = partial(groups.update, addresses, _SLICE, limit=limit), True
            while more and not state.changed.is_set() and not state.stop.is_set():
                more = await call(update)
            if not more:
                self.targets, self._limit = targets, limit
                self._warn(groups)
        self._note(groups)

    async def _at(self, link: Link) -> GroupMemberships:
        """Return the memberships on the interface by which queries arrive."""
        ifindex = link.l3_ifindex
        if self._groups is None or ifindex != self._ifindex:
            self._unwatch()
            if self._groups:
                await self._shared.call(self._groups.close)
            self._unwatch = self._shared.queriers.watch(ifindex, self._state.changed.set)
            self._groups, self._ifindex, self._limit = GroupMemberships(ifindex), ifindex, -1
        return self._groups

    async def _limit_now(self, link: Link) -> int:
        """Return the number of groups to join at most, by configuration and querier."""
        queriers, join = self._shared.queriers, self._state.spec.join
        near = {link.master, link.lower, link.ifindex if link.kind == "bridge" else 0} - {0}
        if near and queriers.state(self._ifindex) is Querier.SILENT:
            present = await self._shared.call(partial(bridges.has_querier, *near))
            if present:
                queriers.note(self._ifindex)
        if join == "auto":
            return 0 if queriers.state(self._ifindex) is Querier.SILENT else AUTO_MAX
        return GROUPS_MAX if join == "always" else 0

    def _warn(self, groups: GroupMemberships) -> None:
        """Warn of groups above the limit, once until there are none."""
        left_out = groups.left_out if groups.joined >= self._limit else 0
        if left_out and not self._warned_of:
            more = 'set join = "always"' if self._state.spec.join == "auto" else "use fewer"
            log.warning(
                "%s: %d of %d solicited-node groups are not joined, as the limit is %d: a switch"
                " that snoops MLD does not forward their solicitations; %s",
                self._state.spec.interface,
                left_out,
                left_out + groups.joined,
                self._limit,
                more,
            )
        self._warned_of = left_out

    def _note(self, groups: GroupMemberships) -> None:
        querier = self._shared.queriers.state(self._ifindex)
        found = GroupStatus(self._state.spec.join, groups.joined, groups.left_out, querier.value)
        self._status.note_groups(self._state.spec.interface, found)
