"""Router advertisements and solicitations of a share: what is learned, relayed, answered. Pure.

Section numbers are those of RFC 4861 unless another RFC is named. Times are seconds of one
monotonic clock; addresses have 16 bytes, MACs 6. An interface is named by its index.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from ndxdp.rules.prefix import Prefix
from ndxdp.runtime.share_report import IGNORED


class RelayLink(NamedTuple):
    """An interface of a share that has a MAC.

    Attributes:
        ifindex: Its index.
        mac: Its MAC, 6 bytes.
        link_local: Its link-local address, 16 bytes; :: while there is none. Without it nothing is
            sent on a downstream link, and solicitations upstream come from ::.
        mtu: Its MTU in bytes.
    """

    ifindex: int
    mac: bytes
    link_local: bytes
    mtu: int


class Send(NamedTuple):
    """Send a frame.

    Attributes:
        ifindex: The interface.
        frame: The frame, from the Ethernet header on.
    """

    ifindex: int
    frame: bytes


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


class Relay:
    """The router advertisements of one share.

    Attributes:
        relayed: Advertisements that were relayed; one that goes to several links counts once.
        solicited: Solicitations from downstream that were answered.
        ignored: Messages, and prefixes in them, that were not used, by the reasons of IGNORED.
    """

    def __init__(self, *, relay: bool = True, chance: Callable[[], float] = random.random) -> None:
        """Know no link and no router.

        Args:
            relay: Send router advertisements downstream. Without it the prefixes are still learned,
                and routers solicited.
            chance: Returns a random number from 0 to below 1, for delays.
        """
        self.relayed = 0
        self.solicited = 0
        self.ignored: dict[str, int] = dict.fromkeys(IGNORED, 0)
        self._relay, self._chance = relay, chance

    def set_links(
        self, now: float, upstream: RelayLink | None, downstream: Mapping[int, RelayLink]
    ) -> None:
        """Set the interfaces of the share; frames that follow from the change come by tick().

        A downstream link that is new or has changed is sent the current advertisements. Without an
        upstream link, clients are told that this host is no default router (RFC 7084 G-5); prefixes
        stay until their lifetimes end. Another index upstream is another link: its routers and
        prefixes are new.

        Args:
            now: The time.
            upstream: The upstream link; None while it is absent or down.
            downstream: The downstream links with MACs, by index.
        """

    def restore(self, now: float, prefixes: Mapping[Prefix, float | None]) -> None:
        """Take prefixes that a former process knew, before the first advertisement is heard.

        They are shared at once. A prefix that the routers no longer advertise is withdrawn
        downstream like any other (RFC 9096 section 3.5 asks for that after a restart, too).

        Args:
            now: The time.
            prefixes: The prefixes, with the end of the valid lifetime; None for no end.
        """

    def heard(self, now: float, ifindex: int, frame: bytes) -> list[Send]:
        """Take a frame that came by an interface of the share, and return the frames to send.

        Args:
            now: The time.
            ifindex: The interface.
            frame: The frame, untagged. Anything but a router advertisement or solicitation is
                ignored, and so are frames of this host itself.
        """
        return []

    def tick(self, now: float) -> list[Send]:
        """Return the frames that are due."""
        return []

    def next_tick(self, now: float) -> float | None:
        """Return when tick() is to be called next, at the earliest `now`; None for never.

        Each call of another method may change the answer.
        """
        return None

    def withdraw(self, now: float, ifindexes: Collection[int]) -> list[Send]:
        """Return advertisements with router lifetime 0, for links that leave the share (6.2.5).

        A daemon that only stops does not call this: another one follows it.
        """
        return []

    def prefixes(self, now: float) -> dict[Prefix, float | None]:
        """Return the on-link prefixes that routers advertise, with the end of the valid lifetime.

        The end is None for an infinite lifetime. A prefix whose lifetime is over is absent.
        """
        return {}

    def routers(self, now: float) -> list[KnownRouter]:
        """Return the routers whose advertisements were heard, in the order of their addresses."""
        return []
