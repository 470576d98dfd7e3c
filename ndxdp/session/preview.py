"""The state of an interface before and after a change that is not made.

Previews take no lock and write nothing. attach_preview.py and detach_preview.py make them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ndxdp.kernel.abi import Mode
from ndxdp.kernel.loader import Loader
from ndxdp.netlink.qdisc import has_clsact
from ndxdp.rules.address import address_text, mac_text
from ndxdp.rules.capacity import Capacity
from ndxdp.rules.difference import difference
from ndxdp.rules.ruleset import Rules
from ndxdp.session.modes import ModeRefusal
from ndxdp.store.records import Settings

if TYPE_CHECKING:
    from ndxdp.netlink.links import Link

_ANSWERING = (
    "mode",
    "loader",
    "mac",
    "link_local",
    "paused",
    "rate",
    "burst",
    "interface_rate",
    "gateway_rate",
    "max_addresses",
)


@dataclass(frozen=True, slots=True)
class Preview:
    """The state of an interface before and after a change.

    Attributes:
        interface: The interface's name.
        before: The state before, by the names that state() has; None where there is none.
        after: The state after, by the same names.
        actual: The rules before.
        desired: The rules after.
        modes: The modes that are tried, in their order: a driver may refuse the first one.
        refusals: The better modes that are not available.
        notes: Sentences on what else happens.
    """

    interface: str
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    actual: Rules = field(default_factory=Rules)
    desired: Rules = field(default_factory=Rules)
    modes: tuple[Mode, ...] = ()
    refusals: tuple[ModeRefusal, ...] = ()
    notes: tuple[str, ...] = ()


def state(
    settings: Settings | None, max_addresses: int | None, link: Link | None
) -> dict[str, Any]:
    """Return how ndxdp answers on an interface, and what it changes of the interface.

    Args:
        settings: The settings by which ndxdp answers; None where it does not.
        max_addresses: The size of the table of addresses.
        link: The interface; None if it is absent.
    """
    shown: dict[str, Any] = dict.fromkeys(_ANSWERING)
    if settings is not None:
        limits = settings.limits
        loader = (Loader.BCC if settings.bcc else Loader.PREBUILT).value
        shown |= {
            "mode": settings.mode.label,
            "loader": None if settings.mode is Mode.USERSPACE else loader,
            "mac": mac_text(settings.mac),
            "link_local": address_text(settings.link_local),
            "paused": settings.paused,
            "rate": limits.each.per_second,
            "burst": settings.burst,
            "interface_rate": limits.total.per_second,
            "gateway_rate": limits.gateway.per_second,
            "max_addresses": max_addresses,
        }
    return shown | {
        "allmulti": link.allmulti if link else None,
        "mcast_router": (link.mcast_router or None) if link else None,
        "clsact": has_clsact(link.ifindex) if link else None,
    }


def refuse_without_room(desired: Rules, actual: Rules, max_addresses: int) -> None:
    """Raise NoRoom if rules do not fit, as writing them does.

    Args:
        desired: The rules after the change.
        actual: The rules before.
        max_addresses: The size of the table of addresses.
    """
    change, capacity = difference(desired, actual), Capacity(max_addresses)
    lack = capacity.shortage(change.write, actual)
    if lack and change.remove:
        lack = capacity.shortage(change.write, actual.without(change.remove))
    if lack:
        raise lack.error()
