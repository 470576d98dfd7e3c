"""Shares as text: the lines of `ndxdp status`, and words that the status page shows as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ndxdp.observe.hosts import Host, by_interface
from ndxdp.observe.shares import ShareStatus, problems
from ndxdp.observe.units import elapsed
from ndxdp.rules.address import address_text
from ndxdp.runtime.share_report import HeardRouter, SharedLink, SharedPrefix

HOSTS_MAX = 100
"""Lines of hosts. If there are more, their number is shown."""

_COUNTED = {
    "learned": "learned",
    "moved": "moved",
    "expired": "expired",
    "forgotten": "forgotten",
    "defended": "conflicts defended",
    "asked": "asked",
    "found": "found",
    "announced": "announced",
    "relayed": "advertisements relayed",
    "solicited": "solicitations of routers answered",
}
"""The words for the counters of a share, in their order."""


def share_text(share: ShareStatus, *, warn: bool = True) -> Iterator[str]:
    """Yield the lines of `ndxdp status` on one share; warn: its problems are among them."""
    report, counts = share.report, by_interface(share.hosts)
    yield f"share {report.upstream}  {headline(share)}"
    if warn:
        yield from problem_lines(share)
    for link in report.links:
        yield f"  link      {link.interface}: {link_text(link, counts[link.interface])}"
    for prefix in report.prefixes:
        yield f"  prefix    {prefix.prefix}, {validity(prefix, share.now)}"
    for router in report.routers:
        yield f"  router    {router.address}, {router_text(router, share.now)}"
    counted = counts_text({word: report.counters.get(key, 0) for key, word in _COUNTED.items()})
    if counted:
        yield f"  counts    {counted}"
    for word, reasons in (("refused", report.refused), ("ignored", report.ignored)):
        text = counts_text(reasons)
        if text:
            yield f"  {word}   {text}"
    for host in share.hosts[:HOSTS_MAX]:
        yield f"  host      {host_text(host, share.now)}"
    more = len(share.hosts) - HOSTS_MAX
    if more > 0:
        yield f"  host      and {more} more: see `ndxdp hosts`"


def problem_lines(share: ShareStatus) -> Iterator[str]:
    """Yield a line for each problem of a share."""
    return (f"  WARNING   {sentence}" for sentence in problems(share))


def headline(share: ShareStatus) -> str:
    """Describe a share: how full it is, and whether it relays router advertisements."""
    report = share.report
    learned = sum(each.learned for each in share.hosts)
    relayed = "relayed" if report.relay else "not relayed"
    return f"hosts {learned} of {report.max_hosts}, router advertisements are {relayed}"


def link_text(link: SharedLink, hosts: int) -> str:
    """Describe an interface of a share."""
    if link.kind == "upstream":
        return "upstream"
    if link.kind == "routes":
        return f"hosts {hosts}, those that the kernel has routes for: it has no MAC addresses"
    return f"hosts {hosts}"


def validity(prefix: SharedPrefix, now: float) -> str:
    """Describe how long a prefix is valid."""
    if prefix.until is None:
        return "valid without an end"
    if prefix.until <= now:
        return f"not valid any more since {elapsed(now - prefix.until)}"
    return f"valid for {elapsed(prefix.until - now)}"


def router_text(router: HeardRouter, now: float) -> str:
    """Describe a router that was heard."""
    heard = f"heard {elapsed(now - router.heard)} ago"
    if not router.lifetime:
        return f"{heard}, no default router"
    if router.heard + router.lifetime <= now:
        return f"{heard}, its lifetime has ended"
    return f"{heard}, with a lifetime of {elapsed(router.lifetime)}"


def host_text(host: Host, now: float) -> str:
    """Describe a host: `2001:db8::10 on lan0, 02:00:00:00:00:10, learned 3 h ago, seen 5 s ago`."""
    words = [f"{address_text(host.address)} on {host.interface}"]
    words += [host.mac] if host.mac else []
    words += [f"learned {elapsed(now - host.since)} ago"] if host.since is not None else []
    words += [f"seen {elapsed(now - host.seen)} ago"] if host.seen is not None else []
    return ", ".join(words)


def counts_text(counts: Mapping[str, int]) -> str:
    """Return the counts that are not 0, with their names; "" if all are."""
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)
