"""The shares of a daemon: begun, kept and ended as the configuration wants them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ndxdp.backoff import persist
from ndxdp.config.model import Share
from ndxdp.daemon.share import ShareTask
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.daemon.uplink import Uplink
from ndxdp.netlink.host_routes import HostRoutes
from ndxdp.netlink.link_monitor import Changes
from ndxdp.netlink.netns import netns
from ndxdp.rules.rule import SHARE_ORIGIN
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime import report, share_report

log = logging.getLogger(__name__)


@dataclass
class _Entry:
    """A share and its task."""

    share: ShareTask
    task: asyncio.Task[None]


class Shares:
    """Begins and ends shares, and gives the uplinks their rules.

    Call the methods in the event loop's thread.
    """

    def __init__(
        self, directory: Path, shared: Shared, uplinks: Callable[[], Iterable[Uplink]]
    ) -> None:
        """Have no shares yet.

        Args:
            directory: The run directory.
            shared: What all interfaces of the daemon share.
            uplinks: Returns the present uplinks.
        """
        self._directory, self._shared, self._uplinks = directory, shared, uplinks
        self._netns = netns()
        self._entries: dict[Share, _Entry] = {}

    async def put_in_force(self, shares: Iterable[Share]) -> None:
        """Have these shares, and no others.

        A share that the configuration does not have any more leaves no route behind. The routes of
        one that has changed stay on the links that it still has, and are adopted.
        """
        wanted = dict.fromkeys(shares)
        kept = {share.upstream: share for share in wanted}
        ended = [share for share in self._entries if share not in wanted]
        for share in ended:
            self._entries[share].share.leave(kept.get(share.upstream))
            await self._end(share)
        for share in wanted:
            if share not in self._entries:
                self._begin(share)
        self._give_rules()

    def begin(self, shares: Iterable[Share]) -> None:
        """Begin the shares of the first configuration."""
        for share in shares:
            self._begin(share)

    def _begin(self, share: Share) -> None:
        each = ShareTask(
            share,
            self._directory,
            self._netns,
            self._shared,
            self._give_rules,
            self._may_announce,
        )
        task = asyncio.ensure_future(persist(log, f"share of {share.upstream}", each.run))
        self._entries[share] = _Entry(each, task)

    async def _end(self, share: Share) -> None:
        entry = self._entries.pop(share)
        entry.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await entry.task

    async def end(self) -> None:
        """End all shares; the routes stay where the program stays attached upstream."""
        detached = {each.spec.interface for each in self._uplinks() if each.spec.detach}
        for share in list(self._entries):
            if share.upstream in detached:
                self._entries[share].share.leave(None)
            await self._end(share)

    def network_changed(self, changes: Changes) -> None:
        """Notify the shares of changes of the network."""
        for entry in self._entries.values():
            entry.share.network_changed(changes)

    def apply_to(self, uplink: Uplink) -> None:
        """Give an uplink the rules of the share that its interface belongs to."""
        for entry in self._entries.values():
            rules = entry.share.rules_of(uplink.spec.interface)
            if rules is None:
                return  # those of an earlier daemon stay until the share knows more
            if rules:
                uplink.rules.set(SHARE_ORIGIN, rules)
                return
        uplink.rules.set(SHARE_ORIGIN, Rules())

    def _may_announce(self, interface: str) -> bool:
        """Return True if this host answers on an interface, and is not paused there."""
        return any(
            each.may_announce for each in self._uplinks() if each.spec.interface == interface
        )

    def _give_rules(self) -> None:
        for uplink in self._uplinks():
            self.apply_to(uplink)

    def remove_leftovers(self) -> None:
        """Remove what shares have left that are not configured now, and whose daemon has ended."""
        daemons = report.daemons(self._directory, self._netns)
        upstreams = {share.upstream for share in self._entries}
        for each in share_report.reports(self._directory, self._netns):
            if each.upstream in upstreams or share_report.is_running(each, daemons):
                continue
            log.info("removing the routes of the former share of %s", each.upstream)
            with contextlib.closing(HostRoutes()) as routes, contextlib.suppress(OSError):
                routes.remove_by(link.interface for link in each.links)
            share_report.remove(self._directory, self._netns, each.upstream)
