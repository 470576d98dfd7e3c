"""The row about shares on the overview."""

from __future__ import annotations

from grafana_foundation_sdk.models import units

from dashboards.config import CONFIG
from dashboards.panels import HOST, YES, Column, filling, graph, listing

_BY_SHARE = "instance, upstream"


def _rate(metric: str, by: str = "") -> str:
    """Return the rate of a counter of shares, in all or by some labels."""
    inner = f"rate({metric}{{{HOST}}}[$__rate_interval])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def _of_share(metric: str, function: str = "min") -> str:
    return f"{function} by ({_BY_SHARE}) ({metric}{{{HOST}}})"


_LEARNED = (
    f"sum by ({_BY_SHARE}) (ndxdp_share_hosts{{{HOST}}} and on (instance, upstream, interface)"
    f' ndxdp_share_link_working{{{HOST},kind="neighbors"}})'
)

SHARES = (
    listing(
        "Shares",
        "A line for each share, by its upstream interface. NdxdpShareNearlyFull fires where a bar"
        " is red.",
        ("instance", "upstream"),
        (
            Column("daemon runs", _of_share("ndxdp_share_running"), mappings=YES),
            Column("all links work", _of_share("ndxdp_share_link_working"), mappings=YES),
            Column("routers", _of_share("ndxdp_share_routers", "max")),
            Column("prefixes", _of_share("ndxdp_share_prefixes", "max")),
            Column("hosts", _LEARNED),
            Column(
                "fill",
                f"{_LEARNED} / {_of_share('ndxdp_share_hosts_limit')}",
                units.PercentUnit,
                steps=filling(CONFIG.share_fill),
            ),
        ),
        sort_by="fill",
        width=16,
    ),
    graph(
        "Hosts behind",
        "Learned hosts on each downstream interface; on links without MACs, the addresses that the"
        " kernel has routes for.",
        units.Short,
        (
            f"sum by ({_BY_SHARE}, interface) (ndxdp_share_hosts{{{HOST}}})",
            "{{interface}} of {{upstream}} {{instance}}",
        ),
        stacked=True,
    ),
    graph(
        "Changes of hosts",
        "Addresses per second that were learned, moved to another interface, expired, or lost their"
        " route.",
        units.RequestsPerSecond,
        (_rate("ndxdp_share_learned_total"), "learned"),
        (_rate("ndxdp_share_moved_total"), "moved"),
        (_rate("ndxdp_share_expired_total"), "expired"),
        (_rate("ndxdp_share_forgotten_total"), "forgotten"),
    ),
    graph(
        "Refused claims",
        "Claims of addresses per second that were refused, by reason, and attempts to take an"
        " address that lives on another link. docs/monitoring.md explains each reason.",
        units.RequestsPerSecond,
        (_rate("ndxdp_share_refused_total", "reason"), "{{reason}}"),
        (_rate("ndxdp_share_conflicts_defended_total"), "conflict defended"),
    ),
    graph(
        "Solicitations and router advertisements",
        "What the daemon sends per second: solicitations to find an address, answers once it was"
        " found, announcements of learned hosts, relayed router advertisements, and answers to"
        " router solicitations.",
        units.RequestsPerSecond,
        (_rate("ndxdp_share_asked_total"), "asked"),
        (_rate("ndxdp_share_found_total"), "found"),
        (_rate("ndxdp_share_announced_total"), "announced"),
        (_rate("ndxdp_share_advertisements_relayed_total"), "advertisements relayed"),
        (_rate("ndxdp_share_router_solicitations_answered_total"), "solicitations answered"),
    ),
    graph(
        "Ignored router advertisements",
        "Router messages per second, or prefixes in them, that were not relayed, by reason."
        " `downstream` is a forged or misconfigured router behind this host.",
        units.RequestsPerSecond,
        (_rate("ndxdp_share_advertisements_ignored_total", "reason"), "{{reason}}"),
    ),
)
"""The panels."""
