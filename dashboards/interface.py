"""The dashboard of one interface."""

from __future__ import annotations

from functools import cache

from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.config import CONFIG
from dashboards.panels import (
    INTERFACE,
    MODE,
    PAUSED,
    YES,
    add_row,
    alert_list,
    fill,
    graph,
    listing,
    map_columns,
    mode_number,
    model,
    number,
    page,
    rate,
    states,
)

_GATEWAY = (
    f"time() - min(ndxdp_gateway_last_answer_timestamp_seconds{{{INTERFACE}}})",
    "since the last answer",
)

_SUMMARY = (
    number(
        "Attached",
        "Whether a program or a process answers.",
        units.Short,
        (f"min(ndxdp_attached{{{INTERFACE}}})", "attached"),
        mappings=YES,
    ),
    number(
        "In step",
        "Whether the interface is as the configuration requires. `ndxdp status` shows what is not.",
        units.Short,
        (f"min(ndxdp_interface_in_step{{{INTERFACE}}})", "in step"),
        mappings=YES,
        if_none="no daemon",
    ),
    number(
        "Mode",
        "Mode in which the interface answers.",
        units.Short,
        (mode_number(), "mode"),
        mappings=MODE,
    ),
    number(
        "Paused",
        "Whether answering is paused.",
        units.Short,
        (f"max(ndxdp_paused{{{INTERFACE}}})", "paused"),
        mappings=PAUSED,
    ),
    number(
        "Answers",
        "Advertisements sent per second.",
        units.RequestsPerSecond,
        (rate("ndxdp_advertisements_total"), "answers"),
    ),
    number(
        "Last answer of the gateway",
        "Time since the gateway's last answer; with several gateways, the longest time.",
        units.Seconds,
        _GATEWAY,
        if_none="not asked",
    ),
)

_TRAFFIC = (
    graph(
        "Solicitations and answers",
        "Solicitations and answers per second. The resolver answers when the kernel has found the"
        " neighbour.",
        units.RequestsPerSecond,
        (rate("ndxdp_solicitations_total"), "solicitations"),
        (rate("ndxdp_advertisements_total"), "answers"),
        (rate("ndxdp_resolver_advertisements_total"), "answers of the resolver"),
        steps=((None, "transparent"), (CONFIG.flood, "red")),
    ),
    graph(
        "Not answered, by reason",
        "Unanswered solicitations per second. docs/wire.md explains each reason.",
        units.RequestsPerSecond,
        (rate("ndxdp_solicitations_total", "reason", ',reason!~"answered.*"'), "{{reason}}"),
        stacked=True,
    ),
    graph(
        "Prefixes",
        "Solicitations per second for each configured prefix, list or network.",
        units.RequestsPerSecond,
        (rate("ndxdp_group_solicitations_total", "source, label"), "{{label}} ({{source}})"),
    ),
    graph(
        "Last answer",
        "Time since the last answer for each configured prefix, list or network.",
        units.Seconds,
        (
            "time() - max by (source, label)"
            f" (ndxdp_group_last_answer_timestamp_seconds{{{INTERFACE}}})",
            "{{label}} ({{source}})",
        ),
    ),
    graph(
        "Frames not sent",
        "Frames per second of any kind that the interface did not send, and answers of XDP programs"
        " that the driver did not send.",
        units.PacketsPerSecond,
        (rate("ndxdp_link_transmit_errors_total"), "errors"),
        (rate("ndxdp_link_transmit_drops_total"), "drops"),
        (rate("ndxdp_driver_transmit_failures_total"), "answers of XDP"),
    ),
    states(
        "Mode in the course of time",
        "Mode in which the interface answers.",
        (mode_number(), "mode"),
        MODE,
    ),
)

_LIMITS = (
    listing(
        "Maps",
        "Entries of each map, and the entries that it has room for.",
        ("map",),
        map_columns("map"),
        sort_by="fill",
        width=8,
    ),
    graph(
        "Fill of the maps",
        "Share of each map that is used. A full map takes no new entries; NdxdpMapNearlyFull fires"
        " at the line.",
        units.PercentUnit,
        (f"max by (map) ({fill()})", "{{map}}"),
        steps=((None, "transparent"), (CONFIG.map_fill, "red")),
    ),
    graph(
        "Rules",
        "Rules, by origin.",
        units.Short,
        (f"sum by (source) (ndxdp_rules{{{INTERFACE}}})", "{{source}}"),
        stacked=True,
    ),
    graph(
        "Multicast groups",
        "Groups of exact addresses that are joined, and that should be and are not. While an MLD"
        " querier is on the link, a switch that snoops MLD does not forward the solicitations of"
        " the latter.",
        units.Short,
        (f"sum by (state) (ndxdp_multicast_groups{{{INTERFACE}}})", "{{state}}"),
    ),
    graph(
        "Soliciting MACs",
        "Soliciting MACs that the rate limit remembers and can remember, and those that exceed"
        " their rate now. The limit forgets the least recent.",
        units.Short,
        (f"sum(ndxdp_limiter_sources{{{INTERFACE}}})", "remembered"),
        (f"sum(ndxdp_limiter_max_sources{{{INTERFACE}}})", "room"),
        (f"sum(ndxdp_rate_limited_sources{{{INTERFACE}}})", "over their rate"),
        bounds=("room",),
    ),
    graph(
        "Rate limit",
        "Solicitations per second that the limit affects.",
        units.RequestsPerSecond,
        (rate("ndxdp_solicitations_total", "", ',reason="rate_limited"'), "dropped"),
        (
            rate("ndxdp_solicitations_total", "", ',reason="gateway_limited"'),
            "of gateways, not answered",
        ),
    ),
)

_DAEMON = (
    graph(
        "Resolver",
        "Neighbours per second that the kernel was asked to find, that it did not find, and that"
        " were refused because of too many searches at once.",
        units.RequestsPerSecond,
        (rate("ndxdp_resolver_searches_total"), "searches"),
        (rate("ndxdp_resolver_failed_total"), "not found"),
        (rate("ndxdp_resolver_refused_total"), "refused"),
    ),
    graph(
        "Userspace socket",
        "Solicitations per second for which the socket had no room, and its errors. Only in"
        " userspace mode.",
        units.RequestsPerSecond,
        (rate("ndxdp_socket_overflows_total"), "overflows"),
        (rate("ndxdp_socket_errors_total"), "errors"),
    ),
    graph(
        "Announcements",
        "Frames per second that announce addresses to the upstream.",
        units.PacketsPerSecond,
        (rate("ndxdp_announcements_total"), "sent"),
        (rate("ndxdp_announcement_failures_total"), "failed"),
    ),
    graph(
        "Heartbeat",
        "Age of the daemon's last heartbeat. The rules of containers expire at the timeout.",
        units.Seconds,
        (f"max(ndxdp_heartbeat_age_seconds{{{INTERFACE}}})", "age"),
        (f"max(ndxdp_heartbeat_timeout_seconds{{{INTERFACE}}})", "timeout"),
        bounds=("timeout",),
    ),
    graph(
        "Gateway",
        "Time since the gateway's last answer; with several gateways, the longest time.",
        units.Seconds,
        _GATEWAY,
    ),
    alert_list(
        "Alerts of the interface that fire or are about to. Each links to its runbook.",
        ',interface=~"${interface:regex}"',
    ),
)


@cache
def interface() -> Dashboard:
    """Return the dashboard of one interface."""
    made = page(
        "ndxdp interface",
        "ndxdp-interface",
        "One interface of ndxdp",
        ("All interfaces", "ndxdp"),
        several=False,
    )
    for panel in _SUMMARY:
        made.with_panel(panel)
    add_row(made, "Traffic", *_TRAFFIC)
    add_row(made, "Limits", *_LIMITS)
    add_row(made, "Daemon", *_DAEMON)
    return model(made)
