"""Shares in a proposal: hosts behind this one that have no prefix of their own. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ndxdp.doctor import share_case
from ndxdp.doctor.share_case import Case, LinkBehind
from ndxdp.proposal.facts import Host, Uplink
from ndxdp.proposal.relations import called_link

_NAMED_MAX = 4  # interfaces in a sentence


def cases(host: Host, usable: Iterable[Uplink]) -> dict[str, Case]:
    """Return the share of each uplink, by its name; an interface is behind one uplink only.

    Args:
        host: The host.
        usable: The uplinks on which ndxdp can answer.
    """
    found: dict[str, Case] = {}
    taken: set[str] = set()
    for uplink in usable:
        case = share_case.find(uplink.on_link, host.surroundings)
        if case is None:
            continue
        downstream = tuple(link for link in case.downstream if link.name not in taken)
        if downstream:
            both = tuple(link for link in case.both if link in downstream)
            found[uplink.name] = case._replace(downstream=downstream, both=both)
            taken |= {link.name for link in downstream}
    return found


def why(uplink: str, case: Case) -> str:
    """Return why a share is proposed."""
    prefixes = ", ".join(map(str, case.prefixes))
    places = " and ".join(called_link(link.name, link.kind) for link in case.downstream)
    verb = "has" if len(case.downstream) == 1 else "have"
    return (
        f"Hosts on {places}, which {verb} no prefix of {'its' if verb == 'has' else 'their'} own,"
        f" get addresses of {prefixes}, as on {uplink}: its router advertisements are relayed,"
        " and the hosts are learned."
    )


def notes(host: Host, found: Mapping[str, Case], usable: Iterable[Uplink]) -> Iterator[str]:
    """Yield notes on the shares, and on what speaks against one.

    Args:
        host: The host.
        found: The share of each uplink, by its name.
        usable: The uplinks on which ndxdp can answer.
    """
    for name, case in found.items():
        links = " and ".join(f"{link.name} ({link.about_hosts})" for link in case.downstream)
        yield (
            f"a share of {name} with {links}: name only links whose hosts are yours; to try it"
            f" without a file: ndxdp share {name} {' '.join(link.name for link in case.downstream)}"
        )
        for link in case.both:
            yield _both(name, case, link)
    for uplink in usable:
        if uplink.name not in found:
            yield from _possible(host, uplink)
        routed = share_case.delegated(uplink.on_link, host.surroundings)
        if uplink.name not in found and routed and _waits(host, uplink):
            yield (
                f"no share of {uplink.name}: {routed} is routed to this host; give the hosts behind"
                " it a part of that prefix, for which no responder is needed"
            )


def _possible(host: Host, uplink: Uplink) -> Iterator[str]:
    """Yield a note on interfaces whose hosts could use a share, if there are any."""
    names = [link.name for link in share_case.empty(uplink.on_link, host.surroundings)]
    if names and len(names) <= _NAMED_MAX:
        prefixes = ", ".join(map(str, uplink.on_link))
        yield (
            f"no host is known on {' and '.join(names)}; if hosts there are to use {prefixes} of"
            f" {uplink.name}: ndxdp share {uplink.name} {' '.join(names)}"
        )


def _both(uplink: str, case: Case, link: LinkBehind) -> str:
    prefix = next(each for each in case.prefixes if each in link.prefixes)
    return (
        f"{prefix} is on {uplink} and on {link.name}: the kernel has two routes to it and uses one."
        f" Make this host's address on {link.name} a /128; ndxdp doctor {uplink} has the command"
    )


def _waits(host: Host, uplink: Uplink) -> bool:
    """Return whether a share would be proposed without the prefix that is routed to this host."""
    alone = tuple(
        link
        for link in host.surroundings.links
        if share_case.delegated(uplink.on_link, share_case.Surroundings((link,))) is None
    )
    return share_case.find(uplink.on_link, share_case.Surroundings(alone)) is not None
