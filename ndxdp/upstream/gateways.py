"""Gateway care of one interface: the gateways there are, and the addresses to solicit them from.

The choice is made anew whenever rules, addresses or gateways change. An address that is neither the
host's own nor covered by a rule of ours may be another host's by now: a solicitation from there
would turn the gateway's entry for it to this host.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import NamedTuple

from ndxdp.backoff import persist
from ndxdp.config.model import Gateway
from ndxdp.ndp.profile import Answer
from ndxdp.netlink import links
from ndxdp.netlink.addresses import OwnAddress
from ndxdp.netlink.links import Link
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime.daemon_status import CareStatus, GatewayStatus, NoSource
from ndxdp.runtime.publications import Publication, publish_care
from ndxdp.upstream.gateway_keepalive import GatewayKeepalive, Source

log = logging.getLogger(__name__)

# IFA_F_*, linux/if_addr.h
_TEMPORARY, _DADFAILED, _DEPRECATED, _TENTATIVE, _PERMANENT = 0x01, 0x08, 0x20, 0x40, 0x80


class Choice(NamedTuple):
    """The sources that gateway care may use on an interface, the preferred one first.

    ifindex: the interface that has the gateway's neighbour entry: of a port, its bridge or bond.
    why, named: where there is no source, the reason, and the configured address that it is about.
    """

    ifindex: int
    sources: tuple[Source, ...] = ()
    why: NoSource | None = None
    named: bytes | None = None


NO_KEEPALIVE = Choice(0)
"""The choice where the configuration wants no gateway care."""


def choose(
    wanted: bytes | None,
    link: Link,
    above: Link,
    addresses: Iterable[OwnAddress],
    rules: Rules,
    *,
    paused: bool,
) -> Choice:
    """Choose the sources. Pure.

    Args:
        wanted: the address that the configuration names; None leaves the choice to ndxdp.
        link: the interface that is answered on.
        above: the interface that has the host's addresses: `link`, or the master of the port.
        addresses: those of `above`.
        rules: all rules of `link`.
        paused: nothing is answered at present, so that the addresses behind this host may be
            another host's now: the active one's of a pair, say.
    """
    own = [each for each in addresses if not each.flags & (_DADFAILED | _TENTATIVE)]
    if wanted is not None:
        return _configured(wanted, link, above, own, rules, paused=paused)
    sources = [Source(address, above.mac) for address in _best(own)]
    exact = None if paused else _least_exact(rules)
    if exact is not None:
        sources.append(Source(exact, link.mac))
    elif not sources:  # a deprecated address of the host is better than none
        usable = (each.address for each in own if not each.link_local)
        sources += (Source(address, above.mac) for address in sorted(usable)[:1])
    if sources:
        return Choice(above.ifindex, tuple(sources))
    return Choice(above.ifindex, why=NoSource.PAUSED if paused else NoSource.NO_ADDRESS)


def _configured(
    wanted: bytes,
    link: Link,
    above: Link,
    own: Iterable[OwnAddress],
    rules: Rules,
    *,
    paused: bool,
) -> Choice:
    if any(each.address == wanted for each in own):
        return Choice(above.ifindex, (Source(wanted, above.mac),))
    rule = rules.most_specific(wanted)
    if rule is None or rule.answer is Answer.NEVER or rule.owned:
        return Choice(above.ifindex, why=NoSource.UNCOVERED, named=wanted)
    if rule.profile.lladdr not in (None, link.mac):
        return Choice(above.ifindex, why=NoSource.OTHER_MAC, named=wanted)
    if paused:
        return Choice(above.ifindex, why=NoSource.PAUSED, named=wanted)
    return Choice(above.ifindex, (Source(wanted, link.mac),))


def _best(own: Iterable[OwnAddress]) -> list[bytes]:
    """Return the host's best global address, or nothing.

    A lasting address is better than a temporary one (RFC 8981), a public one better than a unique
    local one, one that somebody set better than one that a router advertisement made.
    """
    usable = [each for each in own if not each.link_local and not each.flags & _DEPRECATED]
    ranked = sorted(
        usable,
        key=lambda each: (
            bool(each.flags & _TEMPORARY),
            each.address[0] >> 5 != 1,  # 2000::/3
            not each.flags & _PERMANENT,
            each.address,
        ),
    )
    return [each.address for each in ranked[:1]]


def _least_exact(rules: Rules) -> bytes | None:
    """Return the first exact address that is answered for, with the interface's own MAC."""
    least = (next(iter(some)) for rule, some in rules.exact.items() if _always(rule))
    return min(least, default=None)


def _always(rule: Rule) -> bool:
    return rule.answer is Answer.ALWAYS and not rule.owned and rule.profile.lladdr is None


class GatewayKeepalives:
    """Care for each gateway of an interface, until end(). Of the loop's thread only."""

    def __init__(self, interface: str, wanted: Gateway) -> None:
        self._interface, self._wanted = interface, wanted
        self._cared: dict[tuple[int, bytes], tuple[GatewayKeepalive, asyncio.Task[None]]] = {}
        self._gateways: frozenset[bytes] = frozenset()
        self._choice: Choice | None = None
        self._publication: Publication | None = None
        self._told: CareStatus | None = None

    def look(self, gateways: frozenset[bytes], choice: Choice, *, came_up: bool) -> None:
        """Follow what there is now."""
        if not self._wanted.keep:
            return
        before, self._choice, self._gateways = self._choice, choice, gateways
        if (choice.why, choice.named) != (before and (before.why, before.named)):
            self._log(choice, before)
        wanted = {(choice.ifindex, gateway) for gateway in gateways}
        for key in set(self._cared) - wanted:
            care, task = self._cared.pop(key)
            task.add_done_callback(lambda _, care=care: care.close())  # type: ignore[misc]
            task.cancel()
        for key in sorted(wanted):
            if key in self._cared:
                care, _ = self._cared[key]
                care.set_sources(choice.sources)
                if came_up:
                    care.wake()
            elif choice.sources:
                with links.interface_errors(self._interface):
                    care = GatewayKeepalive(
                        *key,
                        choice.sources,
                        interval=self._wanted.interval,
                        changed=self._tell,
                    )
                self._cared[key] = (
                    care,
                    asyncio.ensure_future(persist(log, self._interface, care.run)),
                )
        self._tell()

    def news(self) -> list[GatewayStatus]:
        """Return how each gateway that was solicited fares."""
        each = [care.status() for care, _ in list(self._cared.values())]
        return [GatewayStatus(one.silent, one.seen) for one in each if one.asked and one.source]

    async def end(self) -> None:
        """Stop soliciting, and close."""
        for care, task in self._cared.values():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            care.close()
        if self._publication:
            self._publication.close()

    def _tell(self) -> None:
        """Let `status` and `doctor` see the source in use, of several gateways the first one's."""
        fresh = None
        if self._choice is not None and self._gateways:
            used = (self._cared[key][0].source for key in sorted(self._cared))
            choice = self._choice
            first = choice.sources[0].address if choice.sources else choice.named
            fresh = CareStatus(next(filter(None, used), first), choice.why)
        if fresh != self._told:
            if self._publication:
                self._publication.close()
            self._publication = publish_care(self._interface, fresh) if fresh else None
            self._told = fresh

    def _log(self, choice: Choice, before: Choice | None) -> None:
        name = self._interface
        if choice.why:
            reason = CareStatus(choice.named, choice.why).explain(name)
            log.warning("%s: the gateway is not solicited: %s", name, reason)
        elif before:
            log.info("%s: the gateway is solicited again", name)
