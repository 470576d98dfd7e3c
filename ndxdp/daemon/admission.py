"""The rules of one interface that may be answered by, without those for other nodes of the link."""

from __future__ import annotations

import logging

from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.netlink import onlink
from ndxdp.netlink.links import Link
from ndxdp.netlink.onlink import OnLink
from ndxdp.rules import breadth
from ndxdp.rules.breadth import BroadRule
from ndxdp.rules.ruleset import Rules
from ndxdp.session.link_check import warn_of_neighbours

log = logging.getLogger(__name__)


class Admission:
    """Leaves out rules that are too broad, and logs which.

    Call the methods in the executor's thread.
    """

    def __init__(self, *, warns: bool = True) -> None:
        """Have left out nothing yet.

        Args:
            warns: Warn of nodes of the link that have an address with a rule, for new rules.
        """
        self._warns = warns
        self._left_out: frozenset[BroadRule] = frozenset()
        self._compared: Rules | None = None

    def on_link(
        self, spec: InterfaceSpec, link: Link | None, found: OnLink | None = None
    ) -> OnLink:
        """Return the prefixes that are on-link at an interface, if a rule depends on them.

        Args:
            spec: The interface's specification.
            link: The interface; None if it is absent.
            found: These prefixes, if they were read a moment ago.
        """
        if link is None or not breadth.has_candidates(spec.rules, spec.forced):
            return OnLink()
        return onlink.read((link.ifindex, link.master)) if found is None else found

    def admitted(
        self, spec: InterfaceSpec, link: Link | None, here: OnLink, *, refuse: bool = False
    ) -> Rules:
        """Return the specified rules, with a hole for each that answers for nodes of the link.

        A configuration's rule is left out and not refused, as a router advertisement may make its
        prefix on-link at any time.

        Args:
            spec: The interface's specification.
            link: The interface; None if it is absent.
            here: The prefixes that are on-link there.
            refuse: Such a rule is an error.

        Raises:
            NdxdpError: There is such a rule, and `refuse` is true.
        """
        if self._warns and link is not None and spec.rules is not self._compared:
            self._compared = spec.rules
            warn_of_neighbours(spec.interface, link.l3_ifindex, spec.rules)
        found = frozenset(breadth.covering(spec.rules, here.prefixes, spec.forced))
        for broad in sorted(found - self._left_out, key=lambda broad: broad.prefix):
            behind = onlink.behind(broad.prefix, here.ifindexes)
            if refuse:
                raise broad.error(spec.interface, behind)
            sentence, hint = (
                broad.sentence(spec.interface),
                broad.hint(behind, in_file=spec.patient),
            )
            log.error("%s: left out: %s (%s)", spec.interface, sentence, hint)
        for broad in self._left_out - found:
            log.info("%s: %s is no longer left out", spec.interface, broad.prefix)
        self._left_out = found
        return breadth.leave_out(spec.rules, found) if found else spec.rules
