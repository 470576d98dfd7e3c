"""The routers on the upstream link of a share, and their prefixes. Pure.

Section numbers are those of RFC 4861 unless another RFC is named. Times are seconds of one
monotonic clock; addresses have 16 bytes.

A client downstream sees one router, this host. If several routers advertise upstream, each of their
advertisements becomes one of this host, so the client knows all their prefixes and options. The
fields that belong to a router are those of the routers together:

- The router lifetime is the longest of what each has left, and the preference (RFC 4191) the
  highest: the end of one router (6.2.5) does not end this host while another one is there.
- So is the lifetime of a route (RFC 4191) that several routers have.

Everything else is per link, not per router, and as it came: the last advertisement counts (6.3.4).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ndxdp.ndp.router_message import (
    PREFERENCE,
    PROXY,
    Parameters,
    RouterFault,
    parse_router_advertisement,
)
from ndxdp.ndp.router_option import (
    AUTONOMOUS,
    INFINITY,
    ON_LINK,
    PREFIX_INFORMATION,
    ROUTE_INFORMATION,
    PrefixInformation,
    is_well_formed,
    lifetime_of,
    option_key,
    prefix_information,
)
from ndxdp.rules.prefix import Prefix
from ndxdp.sharing.prefix_list import PrefixList, is_shareable
from ndxdp.sharing.relayed_frame import remembered
from ndxdp.sharing.upstream_router import WITHDRAWN_VALID, UpstreamRouter, end_of

ROUTERS_MAX = 8
"""The most routers that are remembered. A new one replaces one that is no longer current."""

_DUE_AGAIN = 0.75
"""The part of a router's lifetime after which it is solicited, if it has not been heard since. A
router that is well advertises after a third of it (6.2.1)."""

_SLAAC_LENGTH = 64

_PREFERENCE_ORDER = {0x18: 0, 0x08: 2}  # low, high; medium and the reserved value are 1
_MEDIUM = 1


class KnownRouter(NamedTuple):
    """A router on the upstream link.

    Attributes:
        address: Its link-local address, 16 bytes.
        heard: When its last advertisement came.
        lifetime: Seconds for which it is a default router, by that advertisement.
    """

    address: bytes
    heard: float
    lifetime: int


class Advertised(NamedTuple):
    """An advertisement that may be relayed.

    Attributes:
        router: The router.
        options: Its options, without malformed ones and prefixes that may not be shared.
    """

    router: UpstreamRouter
    options: tuple[bytes, ...]


class UpstreamRouters:
    """The routers, and the prefixes of their link.

    Attributes:
        shared: The prefixes to share.
    """

    def __init__(self, ignored: dict[str, int]) -> None:
        """Know no router.

        Args:
            ignored: The counters of messages, and of prefixes, that are not used, by the reasons of
                IGNORED.
        """
        self.shared = PrefixList()
        self._ignored = ignored
        self._routers: dict[bytes, UpstreamRouter] = {}
        self._restored: dict[Prefix, float] = {}

    def hear(self, now: float, frame: bytes, own: Iterable[bytes]) -> Advertised | None:
        """Take a frame with a router advertisement, and return it if it may be relayed.

        Args:
            now: The time.
            frame: The frame.
            own: The link-local addresses of this host, whose advertisements are ignored.
        """
        heard = parse_router_advertisement(frame)
        if isinstance(heard, RouterFault):
            self._ignored[heard.value] += 1
            return None
        if heard.source in own:
            return None
        if heard.parameters.flags & PROXY:
            self._ignored["proxied"] += 1
            return None
        router = self._router(now, heard.source)
        if not router:
            self._ignored["limit"] += 1
            return None
        options = self._usable(heard.options)
        self._learn(now, options)
        absents = router.hear(now, heard.parameters, remembered(options))
        for prefix, end in self._restored.items():
            router.assume(now, _assumed(now, prefix, end))
        self._restored.clear()
        for absent in absents:
            others = (each for each in self.current(now) if each is not router)
            if not any(each.option_left(now, absent.key) for each in others):
                router.withdraw(now, absent)
                prefix = Prefix.around(absent.information.address, absent.information.length)
                self.shared.end_by(prefix, now + WITHDRAWN_VALID)
        return Advertised(router, options)

    def restore(self, now: float, prefixes: Mapping[Prefix, float | None]) -> None:
        """Take prefixes as once advertised, with their ends; None for no end."""
        for prefix, until in prefixes.items():
            end = math.inf if until is None else until
            if end > now and is_shareable(prefix) and self.shared.set_end(now, prefix, end):
                self._restored[prefix] = end

    def lose(self) -> None:
        """Treat all routers as absent until they are heard again, as when their link is down."""
        for router in self._routers.values():
            router.lose()

    def clear(self) -> None:
        """Forget the routers and prefixes: this is another link."""
        self._routers.clear()
        self._restored.clear()
        self.shared.clear()

    def known(self) -> list[KnownRouter]:
        """Return the routers in the order of their addresses."""
        return [
            KnownRouter(address, router.heard, router.parameters.lifetime)
            for address, router in sorted(self._routers.items())
        ]

    def current(self, now: float) -> list[UpstreamRouter]:
        """Return the routers whose last advertisement may be repeated."""
        return [router for router in self._routers.values() if router.is_current(now)]

    def is_default(self, now: float) -> bool:
        """Return True while one of the routers is a default router."""
        return any(router.lifetime_left(now) for router in self._routers.values())

    def default_until(self) -> float:
        """Return when the last default router ends; minus infinity without one."""
        ends = (router.default_until for router in self._routers.values())
        return max(ends, default=-math.inf)

    def solicit_at(self) -> float:
        """Return when routers are to be solicited, unless one is heard before."""
        times = (
            router.heard + router.parameters.lifetime * _DUE_AGAIN
            for router in self._routers.values()
            if router.default_until > router.heard
        )
        return max(times, default=-math.inf)

    def parameters(self, now: float, router: UpstreamRouter) -> Parameters:
        """Return a router's fixed fields, with lifetime and preference of all routers together."""
        own = router.parameters._replace(lifetime=router.lifetime_left(now))
        others = [
            each
            for each in self._routers.values()
            if each is not router and each.lifetime_left(now)
        ]
        if not others:
            return own
        lifetime = max(own.lifetime, *(each.lifetime_left(now) for each in others))
        flags = [each.parameters.flags & PREFERENCE for each in others]
        if own.lifetime:
            flags.append(own.flags & PREFERENCE)
        highest = max(flags, key=lambda bits: _PREFERENCE_ORDER.get(bits, _MEDIUM))
        return own._replace(lifetime=lifetime, flags=own.flags & ~PREFERENCE | highest)

    def options(
        self, now: float, router: UpstreamRouter, options: Iterable[bytes] | None = None
    ) -> Iterator[bytes]:
        """Yield the options to send for a router, those of withdrawn prefixes at the end.

        Args:
            now: The time.
            router: The router.
            options: The options of its advertisement that is relayed; None to repeat what it has
                advertised last.
        """
        for option in router.options(now) if options is None else options:
            yield self._merged(now, router, option)
        yield from router.withdrawn_options(now)

    def _merged(self, now: float, router: UpstreamRouter, option: bytes) -> bytes:
        """Return a router's option; of a route that another router has for longer, that one's."""
        if option[0] != ROUTE_INFORMATION:
            return option
        key = option_key(option)
        lefts = (each.option_left(now, key) for each in self.current(now) if each is not router)
        found = [option, *(left for left in lefts if left)]
        return max(found, key=lambda each: lifetime_of(each) or 0)

    def _router(self, now: float, address: bytes) -> UpstreamRouter | None:
        """Return the router with an address; None if too many are known."""
        router = self._routers.get(address)
        if router:
            return router
        if len(self._routers) >= ROUTERS_MAX:
            past = [each for each in self._routers.values() if not each.is_current(now)]
            if not past:
                return None
            del self._routers[min(past, key=lambda each: each.heard).address]
        router = self._routers[address] = UpstreamRouter(address)
        return router

    def _usable(self, options: Iterable[bytes]) -> tuple[bytes, ...]:
        """Return the options without malformed ones and prefixes that may not be shared.

        Such a prefix is not relayed either: hosts would take addresses, or believe those of others
        to be on-link, that nobody answers for. Hosts ignore malformed options.
        """
        usable = []
        malformed = refused = False
        for option in options:
            if not is_well_formed(option):
                malformed = True
            elif _is_refused(option):
                refused = True
            else:
                usable.append(option)
        self._ignored["invalid"] += malformed
        self._ignored["prefix"] += refused
        return tuple(usable)

    def _learn(self, now: float, options: Iterable[bytes]) -> None:
        """Take an advertisement's prefixes.

        A prefix with neither flag says nothing of the link. One with the A flag alone does not make
        another one's on-link lifetime shorter (section 6.3.4).
        """
        full = False
        for option in options:
            if option[0] != PREFIX_INFORMATION:
                continue
            information = prefix_information(option)
            prefix = Prefix.around(information.address, information.length)
            for router in self._routers.values():
                router.is_back(option_key(option))
            end = end_of(now, information.valid)
            if information.on_link:
                full = not self.shared.set_end(now, prefix, end) or full
            elif information.flags & AUTONOMOUS:
                full = not self.shared.extend(now, prefix, end) or full
        self._ignored["limit"] += full


def _is_refused(option: bytes) -> bool:
    if option[0] != PREFIX_INFORMATION:
        return False
    information = prefix_information(option)
    prefix = Prefix.around(information.address, information.length)
    is_used = information.on_link or bool(information.flags & AUTONOMOUS)
    return is_used and not is_shareable(prefix)


def _assumed(now: float, prefix: Prefix, end: float) -> PrefixInformation:
    """Return a restored prefix as an option, with the flags that it most likely had."""
    return PrefixInformation(
        address=prefix.address,
        length=prefix.length,
        flags=ON_LINK | (AUTONOMOUS if prefix.length == _SLAAC_LENGTH else 0),
        valid=INFINITY if math.isinf(end) else min(int(end - now), INFINITY - 1),
        preferred=0,
    )
