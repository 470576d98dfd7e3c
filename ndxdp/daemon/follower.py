"""The part of synchronisation that reads the network and writes an interface's maps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ndxdp.daemon import reconcile
from ndxdp.daemon.admission import Admission
from ndxdp.daemon.host_tables import Copies, HostTables
from ndxdp.daemon.lifecycle import Answering
from ndxdp.daemon.rule_cache import RuleCache
from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.daemon.uplink_state import UplinkState
from ndxdp.daemon.wanted_rules import BY_KEYS
from ndxdp.errors import NdxdpError, interface_gone
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.netlink import links
from ndxdp.netlink.addresses import OwnAddress
from ndxdp.netlink.links import Link
from ndxdp.netlink.onlink import OnLink
from ndxdp.netlink.uplink_addresses import uplink_addresses
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.session import kernel_tables
from ndxdp.store import handover
from ndxdp.upstream.gateways import NO_KEEPALIVE, Choice, choose

log = logging.getLogger(__name__)

_RESTORE_PAUSE = 60.0  # seconds between restorations of what another program keeps switching off


@dataclass
class _ByKeys:
    """The rules of one origin that keys in etcd make, and what leaves out those too broad."""

    admission: Admission
    rules: Rules


class Follower:
    """Writes what changes of the network into the maps of one attachment.

    Call all methods but compare_again() in the executor's thread.

    Attributes:
        gateways: Addresses (16 bytes each) of the interface's gateways.
        targets: Exact addresses of `always` and `local` rules, by profile, without owned ones.
        leased_targets: Those of them whose rules are leased: shared addresses that this host holds.
        unleased_targets: The others.
        care: The source addresses from which gateways may be solicited.
        rules: All rules.
        leased: The leased rules: those of shared addresses that this host holds.
        needs_gateway_macs: The program reads the gateways' MACs.
        groups_may_be_lost: The kernel may have dropped multicast groups that were joined.
        copies: The host's tables of which the program reads copies.
    """

    def __init__(
        self,
        state: UplinkState,
        answering: Answering,
        admission: Admission,
        tables: HostTables,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._state, self._answering, self._admission = state, answering, admission
        self._tables = tables
        self._loop = loop
        self._session = answering.session
        self.gateways: frozenset[bytes] = frozenset()
        self.targets: dict[Profile, AddressSet] = {}
        self.leased_targets: dict[Profile, AddressSet] = {}
        self.unleased_targets: dict[Profile, AddressSet] = {}
        self.care: Choice = NO_KEEPALIVE
        self.rules = self.leased = Rules()
        self.needs_gateway_macs = self.groups_may_be_lost = False
        self.copies = Copies()
        self._distinct_rules: tuple[Rule, ...] = ()
        self._network: tuple[object, ...] = ()  # as it was seen last
        self._written: tuple[object, ...] = ()  # what the maps reflect
        self._tables_written: tuple[object, ...] = ()
        self._rules = RuleCache(answering.session)
        self._by_keys = {origin: _ByKeys(Admission(warns=False), Rules()) for origin in BY_KEYS}
        self._on_link: OnLink | None = None
        self._restored_at: float | None = None

    def find(self) -> Link:
        """Return the interface. Raise InterfaceGone if it is absent or another device now."""
        name = self._state.spec.interface
        link = links.find_link(name)
        if link is None or link.ifindex != self._answering.ifindex:
            raise interface_gone(name)
        self._state.follow_links(frozenset((link.ifindex, link.master, link.lower)) - {0})
        return link

    def compare_again(self) -> None:
        """Let the next follow() write everything, even if the network has not changed."""
        self._written = self._tables_written = ()

    def follow(self, desired_by: Mapping[str, Rules] | None = None) -> Link:
        """Write what has changed of the network: holes, MAC, link-local address, local routes.

        Args:
            desired_by: By origin, the rules to write; None if they have not changed.

        Returns:
            The interface.
        """
        spec, session = self._state.spec, self._session
        link = self.find()
        above = self._above(link)
        self.restore_reception(link)
        addresses = uplink_addresses(link)
        own: tuple[OwnAddress, ...] = ()
        if spec.gateway.keep:
            # Lifetimes are left out, as each router advertisement changes them.
            found = addresses.own.get(above.ifindex, [])
            own = tuple(each._replace(preferred=0, valid=0) for each in found)
        here = self._admission.on_link(spec, link, addresses.on_link)
        specs: dict[str, InterfaceSpec] = {}
        for origin, by_keys in self._by_keys.items():
            if desired_by is not None:
                by_keys.rules = desired_by.get(origin, Rules())
            forced = self._state.wanted.forced(origin)
            specs[origin] = replace(spec, rules=by_keys.rules, forced=forced)
            if not here.prefixes:
                here = by_keys.admission.on_link(specs[origin], link, addresses.on_link)
        if here != self._on_link and desired_by is None:
            self._on_link = here
            self._loop.call_soon_threadsafe(self._state.write_rules)
        present = (link.mac, addresses.link_local, addresses.owned, above.ifindex, above.mac, own)
        if present != self._written or desired_by is not None:
            self._written = ()  # after a failure, the next call writes everything again
            if desired_by is not None:
                admitted = self._admission.admitted(spec, link, here)
                desired_by = {**desired_by, spec.origin: admitted}
                for origin in desired_by.keys() & specs.keys():
                    admitted = self._by_keys[origin].admission.admitted(specs[origin], link, here)
                    desired_by[origin] = admitted
            # Locked once for all that is written.
            with session.tree.lock.if_usable(urgent=True), session.maps.opened():
                reconcile.apply_host(session, link, addresses.link_local)
                rules = reconcile.apply_rules(session, addresses.owned, desired_by, self._rules)
                self._note(link, above, own, rules)
                gateways = addresses.gateways
                self.gateways = frozenset(gateways[link.ifindex] | gateways[link.l3_ifindex])
                self._written, self._on_link = present, here
                self._sync_copies(link)
        else:
            self._sync_copies(link)
        if present != self._network:
            self._network, self.groups_may_be_lost = present, True
        return link

    def _sync_copies(self, link: Link) -> None:
        """Bring the copies in step that an answer depends on now."""
        self.copies = self._copies(link)
        self._write_tables()

    def sync_tables(self) -> None:
        """Write what has changed of the host's tables; after a failure, follow() does it."""
        try:
            self._write_tables()
        except Exception as error:
            log.debug("%s: cannot copy the host's tables: %s", self._state.spec.interface, error)
            self._loop.call_soon_threadsafe(self._state.changed.set)

    def _write_tables(self) -> None:
        """Write what has changed of the tables that an answer depends on."""
        tables, copies = self._tables, self.copies
        present = (
            tables.local_routes.get() if copies.local_routes else None,
            tables.names.get() if copies.names else None,
        )
        if present != self._tables_written:
            self._tables_written = ()
            reconcile.sync_kernel_tables(self._session, *present)
            self._tables_written = present

    def _copies(self, link: Link) -> Copies:
        """Return the tables of which the program needs copies."""
        maps, rules = self._session.maps, self._distinct_rules
        if not maps.in_kernel:
            return Copies()  # this process asks the kernel
        solicits = maps.settings().solicits
        reads_routes = kernel_tables.reads_local_routes(rules, link.l3_ifindex, solicits=solicits)
        return Copies(reads_routes, any(rule.dev for rule in rules))

    def _note(self, link: Link, above: Link, own: tuple[OwnAddress, ...], rules: Rules) -> None:
        """Note what the daemon's other parts need of the rules."""
        gateway = self._state.spec.gateway
        settings = self._session.maps.settings()
        self.care = NO_KEEPALIVE
        if gateway.keep:
            self.care = choose(gateway.source, link, above, own, rules, paused=settings.paused)
        unleased: dict[Profile, list[AddressSet]] = {}
        leased: dict[Profile, list[AddressSet]] = {}
        for rule, addresses in rules.exact.items():
            if rule.answer in (Answer.ALWAYS, Answer.LOCAL) and rule.is_applied:
                (leased if rule.leased else unleased).setdefault(rule.profile, []).append(addresses)
        self.leased = rules.where(lambda rule: rule.leased).to_keep()
        self.unleased_targets, self.leased_targets = _united(unleased), _united(leased)
        self.targets = self.unleased_targets
        if leased:
            both = {
                profile: unleased.get(profile, []) + leased.get(profile, [])
                for profile in unleased | leased
            }
            self.targets = _united(both)
        self.rules = rules.to_keep()
        self._distinct_rules = tuple(rules.distinct_rules)
        asks_kernel = any(rule.answer.asks_kernel for rule in self._distinct_rules)
        self.needs_gateway_macs = asks_kernel or bool(settings.limits)

    def _above(self, link: Link) -> Link:
        """Return the interface that has the host's addresses: the master of a port, or `link`."""
        if link.l3_ifindex != link.ifindex:
            with contextlib.suppress(OSError):  # the master may have been deleted just now
                return links.find_link(socket.if_indextoname(link.l3_ifindex)) or link
        return link

    def restore_reception(self, link: Link, *, at_once: bool = False) -> None:
        """Switch on again what lets solicitations in, at most once in _RESTORE_PAUSE.

        If another program switches it off again and again, one warning is logged. In between, this
        process's membership keeps allmulti on.
        """
        before, now = self._restored_at, time.monotonic()
        if before is not None and now - before < _RESTORE_PAUSE and not at_once:
            return
        allmulti = not self._answering.ends_with_process
        restored = reconcile.restore_reception(self._session, link, allmulti=allmulti)
        if not restored:
            return
        self._restored_at = now
        level = logging.WARNING if before is None else logging.DEBUG
        log.log(
            level,
            "%s: another process switched off %s, which lets solicitations in; it is on again",
            link.name,
            " and ".join(restored),
        )
        wake = self._state.changed.set
        self._loop.call_soon_threadsafe(self._loop.call_later, _RESTORE_PAUSE, wake)

    def is_attached(self) -> bool:
        """Return False if the program was detached by another process.

        Raises:
            InterfaceGone: The interface is absent.
        """
        instance = self._session.instance
        if self._session.packets is not None or instance.is_attached(instance.maps.settings()):
            return True
        self.find()
        return False

    def repair_at_end(self) -> None:
        """Repair and restore what no daemon will repair any more, as far as that is possible."""
        with contextlib.suppress(NdxdpError, OSError):
            self._answering.directory.repair()
        with contextlib.suppress(NdxdpError, OSError):
            self.restore_reception(self.find(), at_once=True)
        handover.remove(self._session.tree.path(self._session.interface))


def _united(sets: dict[Profile, list[AddressSet]]) -> dict[Profile, AddressSet]:
    return {profile: AddressSet.union(some) for profile, some in sets.items()}
