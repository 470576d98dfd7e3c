"""The part of the status page on shares. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from ndxdp.observe.hosts import Host, by_interface
from ndxdp.observe.page_parts import facts, number, paragraph, part_of, table
from ndxdp.observe.share_text import HOSTS_MAX, link_text, router_text, validity
from ndxdp.observe.shares import ShareStatus, problems
from ndxdp.observe.units import elapsed
from ndxdp.rules.address import address_text
from ndxdp.runtime.share_report import COUNTERS, IGNORED, REFUSALS

_NOTHING = "\N{EN DASH}"


def shares(every: Sequence[ShareStatus]) -> Iterator[str]:
    """Yield the section of each share."""
    for share in every:
        name = escape(share.report.upstream)
        yield f'<section><h2 id="share-{name}">Share of {name}</h2><div class="panel">'
        yield from _share(share)
        yield "</div></section>"


def _share(share: ShareStatus) -> Iterator[str]:
    report = share.report
    for sentence in problems(share):
        yield paragraph(sentence, "bad")
    yield from facts(_facts(share))
    counts = (
        *((COUNTERS[key], report.counters.get(key, 0)) for key in COUNTERS),
        *((f"claims refused: {REFUSALS[key]}", report.refused.get(key, 0)) for key in REFUSALS),
        *((f"messages ignored: {IGNORED[key]}", report.ignored.get(key, 0)) for key in IGNORED),
    )
    yield from table(
        "Counts since the start of the daemon",
        ("event", "total"),
        ((text, number(count)) for text, count in counts if count),
    )
    hosts = share.hosts
    several = len(hosts) > HOSTS_MAX
    yield from table(
        f"The first {HOSTS_MAX} hosts of {number(len(hosts))}" if several else "Hosts",
        ("host", "interface", "learned", "last seen"),
        (_row(each, share.now) for each in hosts[:HOSTS_MAX]),
    )


def _facts(share: ShareStatus) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each fact about a share."""
    report, counts = share.report, by_interface(share.hosts)
    yield "Hosts", part_of(sum(each.learned for each in share.hosts), report.max_hosts, "host")
    for link in report.links[1:]:
        yield f"On {link.interface}", link_text(link, counts[link.interface])
    for prefix in report.prefixes:
        yield "Prefix", f"{prefix.prefix}, {validity(prefix, share.now)}"
    for router in report.routers:
        yield "Router", f"{router.address}, {router_text(router, share.now)}"
    yield "Advertisements", "relayed" if report.relay else "not relayed"


def _row(host: Host, now: float) -> tuple[str, ...]:
    return (
        address_text(host.address) + (f", {host.mac}" if host.mac else ""),
        host.interface,
        _NOTHING if host.since is None else f"{elapsed(now - host.since)} ago",
        _NOTHING if host.seen is None else f"{elapsed(now - host.seen)} ago",
    )
