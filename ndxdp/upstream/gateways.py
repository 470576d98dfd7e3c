"""Gateway care of one interface: its keepalives, and the choice of the addresses to solicit from.

The addresses are chosen again whenever rules, addresses or gateways change. An address that is
neither the host's own nor covered by a rule may belong to another host by now: a solicitation from
that address would make the gateway send the other host's packets to this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
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
_TEMPORARY, _DEPRECATED, _PERMANENT = 0x01, 0x20, 0x80


class Choice(NamedTuple):
    """The sources that gateway care may use on an interface, the preferred one first.

    Attributes:
        ifindex: The interface that has the gateway's neighbour entry: the bridge or bond of a port.
        sources: The sources; empty if there is a reason.
        why: The reason why there is no source; None if there is one.
        named: The configured address that the reason is about; None without one.
    """

    ifindex: int
    sources: tuple[Source, ...] = ()
    why: NoSource | None = None
    named: bytes | None = None


NO_KEEPALIVE = Choice(0)
"""The choice if the configuration does not enable gateway care."""


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
        wanted: The address that the configuration names; None leaves the choice to ndxdp.
        link: The interface on which ndxdp answers.
        above: The interface that has the host's addresses: `link`, or the master of the port.
        addresses: The addresses of `above`.
        rules: All rules of `link`.
        paused: Answering is paused, so that another host, such as the active one of a pair, may
            have the addresses behind this host.
    """
    own = [each for each in addresses if each.is_usable]
    if wanted is not None:
        return _configured(wanted, link, above, own, rules, paused=paused)
    sources = [Source(address, above.mac) for address in _best(own)]
    exact = None if paused else _least_exact(rules)
    if exact is not None:
        sources.append(Source(exact, link.mac))
    elif not sources:  # A deprecated address of the host is better than none.
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
    """Return the choice of the configured address, or the reason why it may not be used."""
    if any(each.address == wanted for each in own):
        return Choice(above.ifindex, (Source(wanted, above.mac),))
    rule = rules.most_specific(wanted)
    if rule is None or (rule.answer is Answer.NEVER and not rule.paused) or rule.owned:
        return Choice(above.ifindex, why=NoSource.UNCOVERED, named=wanted)
    if rule.profile.lladdr not in (None, link.mac):
        return Choice(above.ifindex, why=NoSource.OTHER_MAC, named=wanted)
    if paused or rule.paused:
        return Choice(above.ifindex, why=NoSource.PAUSED, named=wanted)
    return Choice(above.ifindex, (Source(wanted, link.mac),))


def _best(own: Iterable[OwnAddress]) -> list[bytes]:
    """Return the host's best global address, or an empty list.

    A lasting address is better than a temporary one (RFC 8981), a public address better than a
    unique local one, and one that was set better than one from a router advertisement.
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
    """Return the first exact address of an `always` rule with the interface's own MAC."""
    least = (next(iter(some)) for rule, some in rules.exact.items() if _always(rule))
    return min(least, default=None)


def _always(rule: Rule) -> bool:
    """Return True if the rule's addresses are always this host's to solicit from."""
    is_ours = rule.is_applied and not rule.leased
    return rule.answer is Answer.ALWAYS and is_ours and rule.profile.lladdr is None


class GatewayKeepalives:
    """The keepalives of an interface's gateways, until end(). For the event loop's thread only."""

    def __init__(
        self,
        interface: str,
        wanted: Gateway,
        may_send: Callable[[bytes], bool] = lambda address: True,
    ) -> None:
        """Create no keepalive yet; follow() does.

        Args:
            interface: The name of the interface on which ndxdp answers.
            wanted: The configuration of gateway care.
            may_send: See GatewayKeepalive.
        """
        self._interface, self._wanted, self._may_send = interface, wanted, may_send
        self._keepalives: dict[tuple[int, bytes], tuple[GatewayKeepalive, asyncio.Task[None]]] = {}
        self._gateways: frozenset[bytes] = frozenset()
        self._choice: Choice | None = None
        self._publication: Publication | None = None
        self._published: CareStatus | None = None

    def follow(self, gateways: frozenset[bytes], choice: Choice, *, came_up: bool) -> None:
        """Create and end keepalives, so that each gateway has one if there is a source.

        Args:
            gateways: The gateways' addresses (16 bytes each).
            choice: The sources.
            came_up: The link has come up since the last call.
        """
        if not self._wanted.keep:
            return
        before, self._choice, self._gateways = self._choice, choice, gateways
        if (choice.why, choice.named) != (before and (before.why, before.named)):
            self._log(choice, before)
        wanted = {(choice.ifindex, gateway) for gateway in gateways}
        for key in set(self._keepalives) - wanted:
            keepalive, task = self._keepalives.pop(key)
            task.add_done_callback(lambda _, ended=keepalive: ended.close())  # type: ignore[misc]
            task.cancel()
        for key in sorted(wanted):
            if key in self._keepalives:
                keepalive, _ = self._keepalives[key]
                keepalive.set_sources(choice.sources)
                if came_up:
                    keepalive.wake()
            elif choice.sources:
                with links.interface_errors(self._interface):
                    keepalive = GatewayKeepalive(
                        *key,
                        choice.sources,
                        interval=self._wanted.interval,
                        changed=self._publish,
                        may_send=self._may_send,
                    )
                self._keepalives[key] = (
                    keepalive,
                    asyncio.ensure_future(persist(log, self._interface, keepalive.run)),
                )
        self._publish()

    def statuses(self) -> list[GatewayStatus]:
        """Return the status of each gateway that was solicited."""
        each = [keepalive.status() for keepalive, _ in list(self._keepalives.values())]
        return [
            GatewayStatus(one.silent, one.seen) for one in each if one.solicitations and one.source
        ]

    async def end(self) -> None:
        """End all keepalives, and withdraw the published status."""
        for keepalive, task in self._keepalives.values():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            keepalive.close()
        if self._publication:
            self._publication.close()

    def _publish(self) -> None:
        """Publish the source in use for `status` and `doctor`: that of the first gateway."""
        fresh = None
        if self._choice is not None and self._gateways:
            used = (self._keepalives[key][0].source for key in sorted(self._keepalives))
            choice = self._choice
            first = choice.sources[0].address if choice.sources else choice.named
            fresh = CareStatus(next(filter(None, used), first), choice.why)
        if fresh != self._published:
            if self._publication:
                self._publication.close()
            self._publication = publish_care(self._interface, fresh) if fresh else None
            self._published = fresh

    def _log(self, choice: Choice, before: Choice | None) -> None:
        name = self._interface
        if choice.why:
            reason = CareStatus(choice.named, choice.why).explain(name)
            log.warning("%s: the gateway is not solicited: %s", name, reason)
        elif before:
            log.info("%s: the gateway is solicited again", name)
