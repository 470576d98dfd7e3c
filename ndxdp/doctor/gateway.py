"""Default gateways, and their state in the kernel's neighbour table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ndxdp.doctor import probe
from ndxdp.doctor.finding import Finding, failure, note, warning
from ndxdp.ndp.address import is_link_local
from ndxdp.netlink import neighbours
from ndxdp.netlink.addresses import OwnAddress
from ndxdp.netlink.fib import DefaultRoute, NudState
from ndxdp.netlink.neighbours import NeighbourEntry
from ndxdp.rules.address import address_text
from ndxdp.rules.prefix import Prefix
from ndxdp.runtime import publications
from ndxdp.runtime.daemon_status import CareStatus, NoSource


class Gateway(NamedTuple):
    """Default gateway. address: 16 bytes. within: a prefix of the interface contains it."""

    address: bytes
    neighbour: NeighbourEntry
    within: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """Default gateways of an interface, and the daemon's gateway care.

    Attributes:
        interface: The interface that has the addresses: the bridge of a port.
        gateways: The gateways.
        probed: The result of solicitations; None if none were sent.
        answering: The interface on which ndxdp answers.
        care: The daemon's report on its gateway care there; None without such care.
    """

    interface: str
    gateways: tuple[Gateway, ...]
    probed: probe.Facts | None = None
    answering: str = ""
    care: CareStatus | None = None


def gather(
    interface: str,
    ifindex: int,
    routes: list[DefaultRoute],
    addresses: list[OwnAddress],
    probed: probe.Facts | None,
    answering: str,
) -> Facts:
    """Collect the gateways and their neighbour entries.

    Args:
        interface: The interface that has the addresses: the bridge of a port.
        ifindex: Its index.
        routes: The default routes by that interface.
        addresses: The addresses of that interface.
        probed: The result of solicitations; None if none were sent.
        answering: The interface on which ndxdp answers.
    """
    prefixes = [Prefix.around(own.address, own.length) for own in addresses]
    found = tuple(
        Gateway(
            address,
            neighbours.neighbour(ifindex, address),
            any(Prefix.around(address, prefix.length) == prefix for prefix in prefixes),
        )
        for address in sorted({route.gateway for route in routes if route.gateway})
    )
    return Facts(interface, found, probed, answering, publications.care(answering))


def judge(facts: Facts) -> list[Finding]:
    """Return a finding about each gateway, and one about the daemon's gateway care."""
    found = [_judge_one(facts, gateway) for gateway in facts.gateways]
    if facts.care and facts.gateways:
        found.append(_judge_care(facts.care, facts.answering))
    return found


def _judge_care(care: CareStatus, name: str) -> Finding:
    source = address_text(care.source) if care.source else ""
    if care.why is None:
        return note(f"ndxdp solicits the gateway from {source}")
    what = f"ndxdp does not solicit the gateway on {name}, as the configuration requires"
    because = care.explain(name)
    match care.why:
        case NoSource.PAUSED:
            return warning(what, because, f"ndxdp resume {name}")
        case NoSource.UNCOVERED:
            why = (
                f"{because}: the address may be another host's; configure another source, or add a"
                " rule for it"
            )
            return warning(what, why, f"ndxdp prefix add {name} {source}")
        case NoSource.OTHER_MAC:
            why = f"{because}: configure another source in [interface.gateway]"
            return warning(what, why, "ndxdp prefix list")
    why = f"{because}: give {name} an address, or add a rule for an exact address"
    return warning(what, why, f"ip -6 address show dev {name}")


def _judge_one(facts: Facts, gateway: Gateway) -> Finding:
    text = address_text(gateway.address)
    state, mac = gateway.neighbour
    if state is NudState.FAILED:
        return _failed(facts, gateway.address)
    if state is NudState.PERMANENT:
        return warning(
            f"the neighbour entry of the gateway {text} is permanent",
            "when the gateway's MAC changes, as at a failover, this host loses its connection",
            f"ip -6 neighbour change {text} dev {facts.interface} nud stale",
        )
    known = f", {mac.hex(':')}" if mac else ""
    is_global = not is_link_local(gateway.address)
    outside = ", outside of the interface's prefixes" if is_global and not gateway.within else ""
    words = "not solicited yet" if state is NudState.NONE else state.name.lower()
    return note(f"gateway {text}: {words}{known}{outside}")


def _failed(facts: Facts, address: bytes) -> Finding:
    """Return a finding about a gateway whose neighbour entry is FAILED.

    The kernel solicits the gateway again for the next packet. A probe shows other cures.
    """
    text, name, probed = address_text(address), facts.interface, facts.probed
    what = f"the gateway {text} does not answer on {name}"
    if probed and address in probed.selective:
        source, mac = probed.selective[address]
        return failure(
            what,
            f"the gateway answers {address_text(source)}, but ignores the address from which the"
            " kernel solicits. To repair this permanently, let ndxdp solicit it:"
            f' [interface.gateway] with source = "{address_text(source)}"',
            f"ip -6 neighbour replace {text} lladdr {mac.hex(':')} dev {name} nud reachable",
        )
    if probed and probed.answered.get(address):
        return failure(
            what,
            "the gateway answered the probe: it was down before, or the kernel solicits it from an"
            " address that it ignores; against the latter, configure [interface.gateway]",
            f"ip -6 neighbour replace {text} lladdr {probed.answered[address]} dev {name}"
            " nud reachable",
        )
    others = [router.address for router in probed.routers if router.lifetime] if probed else []
    if others and text not in others:
        return failure(
            what,
            f"another router advertises itself as a default router: {others[0]}",
            f"ip -6 route replace default via {others[0]} dev {name}",
        )
    if probed:
        return failure(
            what,
            "the gateway answers no address of this host, and there is no other router: compare"
            " the gateway and the link with your provider's instructions",
            f"ip -6 route replace default via fe80::1 dev {name}",
        )
    return failure(
        what,
        "the gateway was down, and the kernel solicits it again for the next packet; or it ignores"
        " the address from which the kernel solicits, which --probe finds out",
        f"ping -6 -c 3 -I {name} {text}",
    )
