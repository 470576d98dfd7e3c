"""The right of the daemon to send frames for an address: a fence in addition to the program's."""

from __future__ import annotations

import logging

from ndxdp.errors import NdxdpError
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.store.maps import Maps

log = logging.getLogger(__name__)


class LeaseGuard:
    """Tells for which addresses of one interface the daemon may send a frame now.

    For a leased address, that is only while the host's lease lasts. The daemon may have been
    stopped at any time, so each sender of a frame asks right before. For the event loop's thread
    only.
    """

    def __init__(self, maps: Maps) -> None:
        """Know no rules yet.

        Args:
            maps: The interface's maps, which have the end of the lease.
        """
        self._maps = maps
        self._rules = Rules()
        self._exact: list[tuple[Rule, AddressSet]] = []
        self._lengths: list[int] = []
        self._has_leased = False

    def follow(self, rules: Rules, leased: Rules) -> None:
        """Take the rules, before another host may take over an address.

        Args:
            rules: All rules of the interface.
            leased: Those of them that are leased.
        """
        if rules is self._rules:
            return
        self._rules, self._has_leased = rules, bool(leased)
        self._exact, self._lengths = [], []
        if leased:
            self._exact = sorted(rules.exact.items(), key=lambda each: not each[0].leased)
            self._lengths = sorted({prefix.length for prefix in rules.wider}, reverse=True)

    def may_send(self, address: bytes) -> bool:
        """Return True unless the address (16 bytes) is leased and the lease has lapsed."""
        rule = self._rule(address) if self._has_leased else None
        return rule is None or not rule.leased or self._lasts()

    def holds(self, address: bytes) -> bool:
        """Return True if this host answers for an address (16 bytes) under its lease now."""
        rule = self._rule(address) if self._has_leased else None
        return rule is not None and rule.leased and rule.is_applied and self._lasts()

    def _rule(self, address: bytes) -> Rule | None:
        """Return the most specific rule of an address."""
        for rule, some in self._exact:
            if address in some:
                return rule
        found = (self._rules.wider.get(Prefix.around(address, each)) for each in self._lengths)
        return next((rule for rule in found if rule is not None), None)

    def _lasts(self) -> bool:
        try:
            return not self._maps.has_lapsed()
        except (OSError, NdxdpError) as error:
            log.debug("cannot read the lease: %s", error)
            return False
