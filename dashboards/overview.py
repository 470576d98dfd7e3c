"""The overview of all hosts and interfaces."""

from __future__ import annotations

from functools import cache

from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.config import CONFIG
from dashboards.fleet import FLEET
from dashboards.panels import (
    ANY_IS_BAD,
    BY_INTERFACE,
    HOST,
    INTERFACE,
    MODE,
    YES,
    Column,
    add_row,
    alert_list,
    fill,
    filling,
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
from dashboards.shares import SHARES

# The variables of this dashboard, with another instance and interface.
_LINK = (
    "/d/ndxdp-interface?${datasource:queryparam}&${job:queryparam}"
    "&var-instance=${__data.fields.instance:percentencode}"
    "&var-interface=${__data.fields.interface:percentencode}"
    "&${__url_time_range}"
)

_SUMMARY = (
    number(
        "Alerts that fire",
        "The number of alerts that fire in Prometheus.",
        units.Short,
        (
            f'count(ALERTS{{{HOST},alertname=~"Ndxdp.+",alertstate="firing"}}) or vector(0)',
            "alerts",
        ),
        steps=ANY_IS_BAD,
    ),
    number(
        "Interfaces without answers",
        "Interfaces on which neither a program nor a process answers.",
        units.Short,
        (f"count(ndxdp_attached{{{INTERFACE}}} == 0) or vector(0)", "interfaces"),
        steps=ANY_IS_BAD,
    ),
    number(
        "Solicitations",
        "Solicitations received per second on all interfaces.",
        units.RequestsPerSecond,
        (rate("ndxdp_solicitations_total"), "solicitations"),
    ),
    number(
        "Answers",
        "Advertisements sent per second on all interfaces.",
        units.RequestsPerSecond,
        (rate("ndxdp_advertisements_total"), "answers"),
    ),
    number(
        "Answered",
        "Share of the solicitations that were answered. The others are for addresses of others,"
        " mostly.",
        units.PercentUnit,
        (f"{rate('ndxdp_advertisements_total')} / {rate('ndxdp_solicitations_total')}", "share"),
    ),
    number(
        "Time per frame",
        "CPU time of the program for each frame of any kind. The kernel measures it while"
        " kernel.bpf_stats_enabled is 1.",
        units.Seconds,
        (
            f"{rate('ndxdp_program_run_seconds_total')} / {rate('ndxdp_program_runs_total')}",
            "time",
        ),
        if_none="not measured",
    ),
)

_INTERFACES = listing(
    "Interfaces",
    "A line for each interface. The name of an interface leads to its dashboard.",
    ("instance", "interface"),
    (
        Column(
            "attached",
            f"min by ({BY_INTERFACE}) (ndxdp_attached{{{INTERFACE}}})",
            mappings=YES,
        ),
        Column(
            "in step",
            f"min by ({BY_INTERFACE}) (ndxdp_interface_in_step{{{INTERFACE}}})",
            mappings=YES,
        ),
        Column("mode", mode_number(), mappings=MODE),
        Column(
            "solicitations",
            rate("ndxdp_solicitations_total", BY_INTERFACE),
            units.RequestsPerSecond,
        ),
        Column(
            "answers", rate("ndxdp_advertisements_total", BY_INTERFACE), units.RequestsPerSecond
        ),
        Column("rules", f"sum by ({BY_INTERFACE}) (ndxdp_rules{{{INTERFACE}}})"),
        Column(
            "fullest map",
            f"max by ({BY_INTERFACE}) ({fill()})",
            units.PercentUnit,
            steps=filling(CONFIG.map_fill),
        ),
    ),
    links={"interface": ("Show ${__value.text}", _LINK)},
    width=16,
)

_TRAFFIC = (
    graph(
        "Answers by path",
        "Advertisements per second, by the path that sent them.",
        units.RequestsPerSecond,
        (rate("ndxdp_advertisements_total", "path"), "{{path}}"),
        stacked=True,
    ),
    graph(
        "Solicitations by reason",
        "Solicitations per second, by reason. docs/wire.md explains each reason.",
        units.RequestsPerSecond,
        (rate("ndxdp_solicitations_total", "reason"), "{{reason}}"),
        stacked=True,
    ),
    graph(
        "Busiest interfaces",
        "Solicitations per second on the ten busiest interfaces. NdxdpFlood fires at the line.",
        units.RequestsPerSecond,
        (
            f"topk(10, {rate('ndxdp_solicitations_total', BY_INTERFACE)})",
            "{{interface}} {{instance}}",
        ),
        steps=((None, "transparent"), (CONFIG.flood, "red")),
    ),
    graph(
        "Busiest prefixes",
        "Solicitations per second for the ten busiest configured prefixes, lists and networks.",
        units.RequestsPerSecond,
        (
            f"topk(10, {rate('ndxdp_group_solicitations_total', 'source, label')})",
            "{{label}} ({{source}})",
        ),
    ),
    states(
        "Mode",
        "Mode in which each interface answers, in the course of time.",
        (mode_number(), "{{interface}} {{instance}}"),
        MODE,
    ),
    states(
        "Attached",
        "Whether a program or a process answers on each interface, in the course of time.",
        (
            f"min by ({BY_INTERFACE}) (ndxdp_attached{{{INTERFACE}}})",
            "{{interface}} {{instance}}",
        ),
        YES,
    ),
)

_LIMITS = (
    listing(
        "Maps",
        "Entries of each map, and the entries that it has room for. A full map takes no new"
        " entries; NdxdpMapNearlyFull fires where a bar is red.",
        ("instance", "interface", "map"),
        map_columns(f"{BY_INTERFACE}, map"),
        links={"interface": ("Show ${__value.text}", _LINK)},
        sort_by="fill",
        width=16,
    ),
    graph(
        "Neighbour table",
        "Entries of the kernel's table of IPv6 neighbours, of all network namespaces of a host, and"
        " the entries that it has room for.",
        units.Short,
        (f"ndxdp_neighbour_table_entries{{{HOST}}}", "{{instance}}"),
        (f"min(ndxdp_neighbour_table_max_entries{{{HOST}}})", "smallest room"),
        bounds=("smallest room",),
    ),
    graph(
        "Multicast groups left out",
        "Groups of exact addresses that should be joined and are not. While an MLD querier is on"
        " the link, a switch that snoops MLD does not forward their solicitations.",
        units.Short,
        (
            f"topk(10, sum by ({BY_INTERFACE})"
            f' (ndxdp_multicast_groups{{{INTERFACE},state="left_out"}}))',
            "{{interface}} {{instance}}",
        ),
    ),
    graph(
        "Requests without room",
        "Requests per second that the resolver refused, for too many searches at once or a full"
        " neighbour table, and neighbours that the kernel's table had no room for.",
        units.RequestsPerSecond,
        (rate("ndxdp_resolver_refused_total"), "refused by the resolver"),
        (
            f"sum(rate(ndxdp_neighbour_table_overflows_total{{{HOST}}}[$__rate_interval]))",
            "overflows of the neighbour table",
        ),
    ),
    graph(
        "File descriptors",
        "Share of the file descriptors that the daemon or exporter has opened. It needs some for"
        " each interface. NdxdpDescriptorsNearlyUsed fires at the line.",
        units.PercentUnit,
        (f"process_open_fds{{{HOST}}} / process_max_fds{{{HOST}}}", "{{instance}}"),
        steps=((None, "transparent"), (CONFIG.descriptors, "red")),
    ),
)

_HOSTS = (
    listing(
        "Hosts",
        "A line for each daemon or exporter. An exporter without a daemon has no configuration.",
        ("instance", "version", "abi"),
        (
            Column(
                "",
                f"max by (instance, version, abi) (ndxdp_build_info{{{HOST}}})",
                is_hidden=True,
            ),
            Column(
                "configuration in force",
                f"min by (instance) (ndxdp_config_reload_success{{{HOST}}})",
                mappings=YES,
            ),
            Column(
                "read",
                f"max by (instance) (ndxdp_config_reload_timestamp_seconds{{{HOST}}}) * 1000",
                units.DateTimeFromNow,
            ),
            Column(
                "container engine",
                f"min by (instance) (ndxdp_docker_connected{{{HOST}}})",
                mappings=YES,
            ),
            Column(
                "etcd",
                f"min by (instance) (ndxdp_etcd_connected{{{HOST}}})",
                mappings=YES,
            ),
            Column(
                "memory",
                f"max by (instance) (process_resident_memory_bytes{{{HOST}}})",
                units.BytesIEC,
            ),
        ),
        width=24,
    ),
    graph(
        "Memory",
        "Resident memory of the daemon or exporter.",
        units.BytesIEC,
        (f"process_resident_memory_bytes{{{HOST}}}", "{{instance}}"),
    ),
    graph(
        "CPU",
        "CPU time of the daemon or exporter, in seconds per second. In userspace mode this includes"
        " answering.",
        units.PercentUnit,
        (f"rate(process_cpu_seconds_total{{{HOST}}}[$__rate_interval])", "{{instance}}"),
    ),
    graph(
        "Scrape",
        "Duration of a scrape.",
        units.Seconds,
        (f"ndxdp_scrape_duration_seconds{{{HOST}}}", "{{instance}}"),
    ),
)


@cache
def overview() -> Dashboard:
    """Return the dashboard of all interfaces."""
    made = page(
        "ndxdp",
        "ndxdp",
        "IPv6 Neighbor Discovery responder",
        ("One interface", "ndxdp-interface"),
        several=True,
    )
    for panel in _SUMMARY:
        made.with_panel(panel)
    made.with_panel(
        alert_list(
            "Alerts of the chosen hosts that fire or are about to. Each links to its runbook."
        )
    )
    made.with_panel(_INTERFACES)
    add_row(made, "Traffic", *_TRAFFIC)
    add_row(made, "Shares", *SHARES)
    add_row(made, "Shared addresses", *FLEET)
    add_row(made, "Limits", *_LIMITS)
    add_row(made, "Hosts", *_HOSTS)
    return model(made)
