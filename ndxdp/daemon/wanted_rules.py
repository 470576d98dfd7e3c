"""The rules that the daemon wants on one interface, by where they come from."""

from __future__ import annotations

from collections.abc import Callable

from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import DOCKER_ORIGIN, ETCD_ORIGIN, SHARE_ORIGIN, SHARED_ORIGIN
from ndxdp.rules.ruleset import Rules

BY_KEYS = (SHARED_ORIGIN, ETCD_ORIGIN)
"""Origins of the rules that keys in etcd make, of which one may have `force`."""


class WantedRules:
    """The rules of containers, of etcd and of a share that one interface gets.

    Rules that are not known yet are None: what an earlier daemon has written stays until then.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        """Know nothing yet.

        Args:
            on_change: Called after each change.
        """
        self._on_change = on_change
        self._by: dict[str, Rules] = {}
        self._forced: dict[str, frozenset[Prefix]] = {}

    def get(self, origin: str) -> Rules | None:
        """Return the rules of an origin; None if they are not known yet."""
        return self._by.get(origin)

    def forced(self, origin: str) -> frozenset[Prefix]:
        """Return the prefixes of an origin that have `force`."""
        return self._forced.get(origin, frozenset())

    def set(self, origin: str, rules: Rules, forced: frozenset[Prefix] = frozenset()) -> None:
        """Take the rules of an origin.

        Args:
            origin: The origin.
            rules: The rules.
            forced: The prefixes whose rule is accepted although it answers for other nodes of the
                link.
        """
        if rules != self._by.get(origin) or forced != self.forced(origin):
            self._by[origin], self._forced[origin] = rules, forced
            self._on_change()

    def by_origin(self, spec: InterfaceSpec) -> dict[str, Rules]:
        """Return the rules that the daemon wants, by origin; an earlier one wins."""
        wanted: dict[str, Rules | None] = {
            SHARED_ORIGIN: self._by.get(SHARED_ORIGIN, None if spec.segments else Rules()),
            spec.origin: spec.rules,
            DOCKER_ORIGIN: self._by.get(DOCKER_ORIGIN, None if spec.selectors else Rules()),
            ETCD_ORIGIN: self._by.get(ETCD_ORIGIN, None if spec.segments else Rules()),
            SHARE_ORIGIN: self._by.get(SHARE_ORIGIN),
        }
        return {origin: rules for origin, rules in wanted.items() if rules is not None}
