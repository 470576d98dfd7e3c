"""Alerts and recording rules of Prometheus."""

from __future__ import annotations

from dashboards.alert import Alert
from dashboards.config import CONFIG, Config
from dashboards.fleet_alerts import fleet_alerts

_WHERE = "{{ $labels.interface }} of {{ $labels.instance }}"
_INTERFACE = "sum by (job, instance, interface)"
_SHARE = "{{ $labels.upstream }} of {{ $labels.instance }}"
_OF_SHARE = "(job, instance, upstream)"


def alerts(config: Config = CONFIG) -> list[Alert]:
    """Return all alerts; docs/runbook.md has a section on each."""
    ours = config.selector
    window = config.unanswered_window
    return [
        Alert(
            "NdxdpExporterDown",
            f"up{{{ours}}}",
            "== 0",
            "5m",
            "warning",
            "Prometheus cannot scrape ndxdp on {{ $labels.instance }}",
            "The other alerts of this instance cannot fire. ndxdp may answer nevertheless.",
        ),
        Alert(
            "NdxdpUnreadable",
            f'min by (job, instance) ({{__name__=~"ndxdp_readable|ndxdp_pins_readable",{ours}}})',
            "== 0",
            "5m",
            "warning",
            "The exporter on {{ $labels.instance }} cannot read ndxdp's pins",
            "The exporter has no permission, or the pins are damaged. The other alerts of the"
            " interface cannot fire.",
        ),
        Alert(
            "NdxdpNotAttached",
            f"ndxdp_attached{{{ours}}}",
            "== 0",
            "2m",
            "critical",
            f"Nothing answers on {_WHERE}",
            "The interface has no program and no process that answers: the addresses behind the"
            " host are unreachable.",
        ),
        Alert(
            "NdxdpNotInStep",
            f"ndxdp_interface_in_step{{{ours}}}",
            "== 0",
            "10m",
            "warning",
            f"{_WHERE} is not as its configuration requires",
            "The daemon could not apply its configuration, or a change of the network."
            " `ndxdp status` shows the reason.",
        ),
        Alert(
            "NdxdpFallbackActive",
            f"ndxdp_fallback_steps{{{ours}}}",
            "> 0",
            "15m",
            "info",
            f"{_WHERE} answers in a slower mode",
            "{{ $value }} better mode(s) are not available. `ndxdp status` shows the reasons.",
        ),
        Alert(
            "NdxdpProgramBefore",
            f'{_INTERFACE} (ndxdp_programs_before{{{ours},hook!="xdp"}})',
            "> 0",
            "5m",
            "warning",
            f"Another program sees the frames of {_WHERE} before ndxdp",
            "{{ $value }} program(s) at tc may take solicitations before ndxdp sees them. `ndxdp"
            " status` names them.",
        ),
        Alert(
            "NdxdpHeartbeatStale",
            f"ndxdp_heartbeat_age_seconds{{{ours}}} / ndxdp_heartbeat_timeout_seconds{{{ours}}}",
            "> 1",
            "1m",
            "critical",
            f"The daemon of {_WHERE} writes no heartbeat",
            "ndxdp does not answer for containers any more, only for the configured prefixes.",
        ),
        Alert(
            "NdxdpMapNearlyFull",
            f"ndxdp_map_entries{{{ours}}} / ndxdp_map_max_entries{{{ours}}}",
            f"> {config.map_fill}",
            "10m",
            "warning",
            f"The map {{{{ $labels.map }}}} on {_WHERE} is nearly full",
            "The map is at {{ $value | humanizePercentage }}. A full map takes no new entries.",
        ),
        Alert(
            "NdxdpNeighbourTableNearlyFull",
            f"ndxdp_neighbour_table_entries{{{ours}}}"
            f" / ndxdp_neighbour_table_max_entries{{{ours}}}",
            f"> {config.neighbour_fill}",
            "10m",
            "warning",
            "The kernel's IPv6 neighbour table on {{ $labels.instance }} is nearly full",
            "The table is at {{ $value | humanizePercentage }}. Addresses without an entry are"
            " unreachable, and `neighbour` rules do not answer for them.",
        ),
        Alert(
            "NdxdpMulticastGroupsLeftOut",
            f'ndxdp_multicast_groups{{{ours},state="left_out"}}'
            f" * on (job, instance, interface) ndxdp_mld_querier{{{ours}}}",
            "> 0 unless on (job, instance, interface)"
            f' ndxdp_multicast_join{{{ours},join="never"}} == 1',
            "10m",
            "warning",
            f"{{{{ $value }}}} multicast groups of {_WHERE} are not joined",
            "An MLD querier is on the link: a switch that snoops MLD does not forward the"
            " solicitations for the exact addresses of these groups.",
        ),
        Alert(
            "NdxdpDescriptorsNearlyUsed",
            f"process_open_fds{{{ours}}} / process_max_fds{{{ours}}}",
            f"> {config.descriptors}",
            "10m",
            "warning",
            "ndxdp on {{ $labels.instance }} has nearly used up its file descriptors",
            "{{ $value | humanizePercentage }} of the descriptors are open. Without a free one, the"
            " daemon cannot attach to another interface.",
        ),
        Alert(
            "NdxdpReloadFailed",
            f"ndxdp_config_reload_success{{{ours}}}",
            "== 0",
            "1m",
            "warning",
            "ndxdp on {{ $labels.instance }} runs with an old configuration",
            "The daemon refused the changed file on reload. The next start would fail.",
        ),
        Alert(
            "NdxdpDockerDisconnected",
            f"ndxdp_docker_connected{{{ours}}}",
            "== 0",
            "5m",
            "warning",
            "ndxdp on {{ $labels.instance }} is disconnected from the container engine",
            "ndxdp does not answer for new containers.",
        ),
        Alert(
            "NdxdpEtcdDisconnected",
            f"ndxdp_etcd_connected{{{ours}}}",
            "== 0",
            "5m",
            "warning",
            "ndxdp on {{ $labels.instance }} is disconnected from etcd",
            "ndxdp answers by the rules that it knew. Changes in etcd have no effect on this host.",
        ),
        Alert(
            "NdxdpEtcdValuesRefused",
            f"ndxdp_etcd_refused_values{{{ours}}}",
            "> 0",
            "10m",
            "warning",
            "ndxdp on {{ $labels.instance }} refuses {{ $value }} values in etcd",
            "ndxdp does not answer for what these keys should say. The other keys are in force.",
        ),
        Alert(
            "NdxdpNoneAnswered",
            f"{_INTERFACE} (rate(ndxdp_advertisements_total{{{ours}}}[{window}]))"
            f" / {_INTERFACE} (rate(ndxdp_solicitations_total{{{ours},"
            f'reason!~"{config.unanswered_ignored}"}}[{window}]))',
            "== 0",
            "10m",
            "warning",
            f"{_WHERE} receives solicitations and answers none",
            f"There was no answer for {window}. The reasons show why: no_rule indicates a prefix"
            " that is missing or mistyped.",
        ),
        Alert(
            "NdxdpFlood",
            f"{_INTERFACE} (rate(ndxdp_solicitations_total{{{ours}}}[5m]))",
            f"> {config.flood}",
            "5m",
            "warning",
            f"{_WHERE} receives {{{{ $value | humanize }}}} solicitations per second",
            "A host scans the prefix, or a router has lost its neighbour entries.",
        ),
        Alert(
            "NdxdpGatewayUnreachable",
            f"ndxdp_gateway_answering{{{ours}}}",
            "== 0",
            "2m",
            "critical",
            f"A gateway of {_WHERE} does not answer",
            "The gateway did not answer its last solicitation. When the kernel drops its entry, the"
            " host can send nothing through it.",
        ),
        *_of_shares(ours, config),
        *fleet_alerts(config),
    ]


def _of_shares(ours: str, config: Config) -> list[Alert]:
    """Return the alerts about shares; ours: the selector of ndxdp's series."""
    running = f"and on {_OF_SHARE} ndxdp_share_running{{{ours}}} == 1"
    hosts = (
        f"sum by {_OF_SHARE} (ndxdp_share_hosts{{{ours}}}"
        " and on (job, instance, upstream, interface)"
        f' ndxdp_share_link_working{{{ours},kind="neighbors"}})'
    )
    fill = f"{hosts} / on {_OF_SHARE} ndxdp_share_hosts_limit{{{ours}}}"
    return [
        Alert(
            "NdxdpShareNotRunning",
            f"ndxdp_share_running{{{ours}}}",
            "== 0",
            "5m",
            "critical",
            f"No daemon runs for the share of {_SHARE}",
            "No host is learned or forgotten, and no router advertisement is relayed. Learned hosts"
            " stay reachable.",
        ),
        Alert(
            "NdxdpShareLinkFailed",
            f"ndxdp_share_link_working{{{ours}}}",
            f"== 0 {running}",
            "5m",
            "critical",
            f"The share of {_SHARE} does not work on {{{{ $labels.interface }}}}",
            "`ndxdp status` shows the reason. If the interface is the upstream one, no host of the"
            " share is reached.",
        ),
        Alert(
            "NdxdpShareNoPrefix",
            f"ndxdp_share_prefixes{{{ours}}}",
            f"== 0 {running}",
            "10m",
            "warning",
            f"The share of {_SHARE} has no prefix",
            "No router on the upstream link has advertised an on-link prefix, so no host is"
            " learned.",
        ),
        Alert(
            "NdxdpShareNoRouter",
            f"ndxdp_share_routers{{{ours}}}",
            f"== 0 and max_over_time(ndxdp_share_routers{{{ours}}}[1d]) > 0 {running}",
            "5m",
            "critical",
            f"No router is left on the upstream link of the share of {_SHARE}",
            "The last router advertisement has expired, or the router has ended its service. The"
            " hosts behind lose their default route.",
        ),
        Alert(
            "NdxdpShareNearlyFull",
            fill,
            f"> {config.share_fill} < 1",
            "10m",
            "warning",
            f"The share of {_SHARE} is nearly full",
            "The share is at {{ $value | humanizePercentage }} of max_hosts.",
        ),
        Alert(
            "NdxdpShareFull",
            fill,
            ">= 1",
            "2m",
            "critical",
            f"The share of {_SHARE} is full",
            "There are as many hosts as max_hosts allows. New hosts are refused, and are"
            " unreachable.",
        ),
    ]


def recordings(config: Config = CONFIG) -> list[tuple[str, str]]:
    """Return the name and expression of each recording rule."""
    ours = config.selector
    return [
        (
            "interface:ndxdp_solicitations:rate5m",
            f"{_INTERFACE} (rate(ndxdp_solicitations_total{{{ours}}}[5m]))",
        ),
        (
            "interface_reason:ndxdp_solicitations:rate5m",
            "sum by (job, instance, interface, reason)"
            f" (rate(ndxdp_solicitations_total{{{ours}}}[5m]))",
        ),
        (
            "interface_path:ndxdp_advertisements:rate5m",
            "sum by (job, instance, interface, path)"
            f" (rate(ndxdp_advertisements_total{{{ours}}}[5m]))",
        ),
        (
            "interface_map:ndxdp_map_fill:ratio",
            f"ndxdp_map_entries{{{ours}}} / ndxdp_map_max_entries{{{ours}}}",
        ),
        (
            "interface:ndxdp_program_seconds_per_frame:rate5m",
            f"{_INTERFACE} (rate(ndxdp_program_run_seconds_total{{{ours}}}[5m]))"
            f" / {_INTERFACE} (rate(ndxdp_program_runs_total{{{ours}}}[5m]))",
        ),
    ]
