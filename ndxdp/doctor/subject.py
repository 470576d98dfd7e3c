"""Interface under examination, with the facts that several checks need."""

from __future__ import annotations

import logging
import socket
from functools import cached_property

from ndxdp.doctor import anyip, firewall, interfaces, manager, program
from ndxdp.netlink import links
from ndxdp.netlink.addresses import OwnAddress, own_addresses
from ndxdp.netlink.fib import DefaultRoute
from ndxdp.netlink.links import Link
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.rules.table import Table
from ndxdp.store.directories import Trees

log = logging.getLogger(__name__)


class Subject:
    """Interface under examination. Each fact is read when a check needs it, and once only.

    A fact that cannot be read raises an error in each check that needs it.

    Attributes:
        link: The link.
        quiet: The interface has no MAC address, so no node solicits there.
        name: The name of the interface.
        trees: The directories of pins and files.
        above: The name of the interface that has the addresses, routes and sysctls: the bridge of a
            port, else the interface itself.
        ifindex: The index of that interface.
    """

    def __init__(self, link: Link, trees: Trees, *, quiet: bool) -> None:
        self.link = link
        self.quiet = quiet
        self.name = link.name
        self.trees = trees
        self.ifindex = link.l3_ifindex
        self.above = self.name
        if self.ifindex != link.ifindex:
            try:
                self.above = socket.if_indextoname(self.ifindex)
            except OSError:  # the bridge was deleted a moment ago
                self.ifindex = link.ifindex

    @cached_property
    def routes(self) -> dict[str, list[DefaultRoute]]:
        """All IPv6 default routes, by the names of their interfaces."""
        return interfaces.default_routes()

    @property
    def own_routes(self) -> list[DefaultRoute]:
        """Default routes by this interface."""
        return self.routes.get(self.above, [])

    @property
    def gateways(self) -> list[bytes]:
        """Gateways of these routes."""
        return [route.gateway for route in self.own_routes if route.gateway]

    @cached_property
    def addresses(self) -> list[OwnAddress]:
        """Addresses of the interface."""
        return own_addresses(self.ifindex)

    @cached_property
    def managed(self) -> manager.Manager | None:
        """Program that configures the interface."""
        return manager.gather(self.above, self.ifindex)

    @cached_property
    def program(self) -> program.Facts:
        """Programs on the interface."""
        return program.gather(self.trees, self.link)

    @cached_property
    def table(self) -> Table | None:
        """Rules of the interface; None if ndxdp answers nothing there.

        Raises:
            NdxdpError: The rules cannot be read.
        """
        if self.program.error is not None:
            raise self.program.error
        return self.program.answering.table if self.program.answering else None

    @property
    def known_rules(self) -> Rules:
        """Rules of the interface; none if they cannot be read: the check `program` reports that."""
        if self.quiet:
            return Rules()
        try:
            answering = self.program.answering
        except Exception as error:
            log.debug("program:", exc_info=error)
            return Rules()
        return answering.rules if answering else Rules()

    @cached_property
    def delivery(self) -> anyip.Delivery:
        """Destination of packets for the prefixes of the rules, by the kernel's routes."""
        return anyip.gather(self.known_rules, self.ifindex)

    @cached_property
    def firewall(self) -> firewall.Facts:
        """Firewall's rules."""
        try:
            advertised = any(route.by_ra for route in self.own_routes)
        except OSError:  # the routes are not known
            advertised = False
        # Packets that end at this host are not forwarded.
        delivered = Rules.of(dict.fromkeys(self.delivery.here, Rule()))
        return firewall.gather(
            self.above,
            advertised,
            self.known_rules.without(delivered),
            port=self.name if self.above != self.name else "",
            bridged=self._is_bridge,
            quiet=self.quiet,
        )

    @property
    def _is_bridge(self) -> bool:
        if self.above == self.name:
            return self.link.kind == "bridge"
        above = links.find_link(self.above)
        return above is not None and above.kind == "bridge"
