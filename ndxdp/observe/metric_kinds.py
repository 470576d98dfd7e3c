"""Names, HELP texts and labels of the metrics. Pure."""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """HELP text and labels of a metric. The name of a counter ends in _total."""

    help: str
    labels: tuple[str, ...] = ()


_I = ("interface",)
_U = ("upstream",)
_L = ("upstream", "interface")
_R = ("upstream", "reason")
_S = ("segment",)

KINDS = {
    "ndxdp_build_info": Kind("The version of the exporter, and its ABI.", ("version", "abi")),
    "ndxdp_pins_readable": Kind("1 if the directories of pins and files could be read."),
    "ndxdp_readable": Kind("1 if the interface's pins or files could be read.", _I),
    "ndxdp_attached": Kind("1 while a program or a process answers on the interface.", _I),
    "ndxdp_interface_in_step": Kind("0 while the daemon reports a problem there.", _I),
    "ndxdp_mode": Kind("1 for the mode in which the interface is attached.", (*_I, "mode")),
    "ndxdp_fallback_steps": Kind("Better modes that are not available.", _I),
    "ndxdp_programs_before": Kind(
        "Programs of others that see frames before ndxdp does.", (*_I, "hook")
    ),
    "ndxdp_paused": Kind("1 while answering is paused.", _I),
    "ndxdp_paused_rules": Kind("Rule classes and prefixes that are paused.", _I),
    "ndxdp_solicitations_total": Kind("Solicitations, by reason.", (*_I, "reason")),
    "ndxdp_advertisements_total": Kind("Answers, by the path that sent them.", (*_I, "path")),
    "ndxdp_group_solicitations_total": Kind(
        "Solicitations that matched a rule of the class.", (*_I, "source", "label")
    ),
    "ndxdp_group_advertisements_total": Kind(
        "Solicitations that matched a rule of the class and were answered.",
        (*_I, "source", "label"),
    ),
    "ndxdp_group_last_answer_timestamp_seconds": Kind(
        "Time of the class's last answer, to within a second.", (*_I, "source", "label")
    ),
    "ndxdp_group_others": Kind(
        "Rule classes with rules that have no series of their own, but are counted together.", _I
    ),
    "ndxdp_rules": Kind("Rules, by origin.", (*_I, "source")),
    "ndxdp_map_entries": Kind("Entries of a map.", (*_I, "map")),
    "ndxdp_map_max_entries": Kind("Capacity of a map.", (*_I, "map")),
    "ndxdp_limiter_sources": Kind("Soliciting MACs that the rate limit remembers.", _I),
    "ndxdp_limiter_max_sources": Kind(
        "Soliciting MACs that the rate limit can remember; it forgets the least recent.", _I
    ),
    "ndxdp_rate_limited_sources": Kind("Soliciting MACs that exceed their rate now.", _I),
    "ndxdp_resolver_searches_total": Kind("Neighbours that the kernel was asked to find.", _I),
    "ndxdp_resolver_failed_total": Kind("Neighbours that the kernel did not find.", _I),
    "ndxdp_resolver_advertisements_total": Kind(
        "Answers that the daemon sent after the kernel had found the neighbour.", _I
    ),
    "ndxdp_resolver_refused_total": Kind(
        "Requests that were refused because of too many searches at once, or a full neighbour"
        " table.",
        _I,
    ),
    "ndxdp_neighbour_table_entries": Kind(
        "Entries of the kernel's table of IPv6 neighbours, of all network namespaces."
    ),
    "ndxdp_neighbour_table_max_entries": Kind(
        "Entries for which the kernel's table of IPv6 neighbours has room (gc_thresh3)."
    ),
    "ndxdp_neighbour_table_overflows_total": Kind(
        "How often the kernel's table of IPv6 neighbours had no room for an entry."
    ),
    "ndxdp_heartbeat_age_seconds": Kind("Time since the daemon's last heartbeat.", _I),
    "ndxdp_heartbeat_timeout_seconds": Kind(
        "Age of the heartbeat at which the rules of containers expire.", _I
    ),
    "ndxdp_socket_overflows_total": Kind(
        "Solicitations for which the socket of userspace mode had no room.", _I
    ),
    "ndxdp_socket_errors_total": Kind("Errors of the socket of userspace mode.", _I),
    "ndxdp_link_transmit_errors_total": Kind(
        "Frames of any kind that the interface failed to send.", _I
    ),
    "ndxdp_link_transmit_drops_total": Kind(
        "Frames of any kind that the interface dropped on transmit.", _I
    ),
    "ndxdp_driver_transmit_failures_total": Kind(
        "Answers of XDP programs that the driver did not send.", _I
    ),
    "ndxdp_program_run_seconds_total": Kind("Time spent in the program.", _I),
    "ndxdp_program_runs_total": Kind("Frames that the program examined.", _I),
    "ndxdp_share_running": Kind("1 while the daemon of the share runs.", _U),
    "ndxdp_share_link_working": Kind("1 while the share works on the interface.", (*_L, "kind")),
    "ndxdp_share_hosts": Kind("Learned hosts.", _L),
    "ndxdp_share_hosts_limit": Kind("Hosts for which the share has room (max_hosts).", _U),
    "ndxdp_share_routers": Kind(
        "Routers on the upstream link whose last advertisement is still valid.", _U
    ),
    "ndxdp_share_prefixes": Kind("Prefixes that are shared.", _U),
    "ndxdp_share_learned_total": Kind("Addresses that were learned.", _U),
    "ndxdp_share_moved_total": Kind("Addresses that moved to another interface.", _U),
    "ndxdp_share_expired_total": Kind("Addresses that were forgotten without a sign of life.", _U),
    "ndxdp_share_forgotten_total": Kind(
        "Addresses whose route another program removed, or whose prefix or link went away.", _U
    ),
    "ndxdp_share_conflicts_defended_total": Kind(
        "Attempts to take an address that lives on another link, which were answered.", _U
    ),
    "ndxdp_share_asked_total": Kind(
        "Solicitations that were sent to find, check or verify an address.", _U
    ),
    "ndxdp_share_found_total": Kind(
        "Solicitations that the daemon answered once their target was found.", _U
    ),
    "ndxdp_share_announced_total": Kind(
        "Unsolicited advertisements of learned hosts that were sent upstream.", _U
    ),
    "ndxdp_share_advertisements_relayed_total": Kind(
        "Router advertisements that were relayed.", _U
    ),
    "ndxdp_share_router_solicitations_answered_total": Kind(
        "Router solicitations from downstream that were answered.", _U
    ),
    "ndxdp_share_refused_total": Kind("Claims of addresses that were refused, by reason.", _R),
    "ndxdp_share_advertisements_ignored_total": Kind(
        "Router messages, or prefixes in them, that were ignored, by reason.", _R
    ),
    "ndxdp_config_reload_success": Kind("1 if the last reload of the configuration succeeded."),
    "ndxdp_config_reload_timestamp_seconds": Kind("Time when the configuration in force was read."),
    "ndxdp_docker_connected": Kind("1 while the daemon is connected to the container engine."),
    "ndxdp_etcd_connected": Kind("1 while the daemon follows this host's keys in etcd."),
    "ndxdp_etcd_rules": Kind("Rules that this host's keys in etcd make."),
    "ndxdp_etcd_refused_values": Kind("Keys of this host in etcd whose values are refused."),
    "ndxdp_etcd_last_change_timestamp_seconds": Kind(
        "Time when the last change of a key of this host arrived."
    ),
    "ndxdp_etcd_confirmed_timestamp_seconds": Kind(
        "Time when a majority of etcd's members last confirmed the number of this host's keys."
    ),
    "ndxdp_fleet_connected": Kind("1 while the daemon follows the shared addresses in etcd."),
    "ndxdp_fleet_lease_seconds": Kind("The length of this host's lease in etcd."),
    "ndxdp_fleet_lease_remaining_seconds": Kind(
        "Time until this host's lease lapses unless it is renewed; negative after that."
    ),
    "ndxdp_fleet_renewal_lag_seconds": Kind("Time from the last renewal's request to its answer."),
    "ndxdp_fleet_drained": Kind("1 while this host gives up all shared addresses."),
    "ndxdp_fleet_refused_values": Kind("Shared addresses whose values are refused."),
    "ndxdp_fleet_rivals_total": Kind(
        "Advertisements of other MACs for shared addresses that this host answers for."
    ),
    "ndxdp_fleet_answering": Kind("1 while the daemon answers on an interface of the segment.", _S),
    "ndxdp_fleet_joined": Kind("1 while this host is a member of the segment.", _S),
    "ndxdp_fleet_members": Kind("Hosts that are members of the segment.", _S),
    "ndxdp_fleet_shared_addresses": Kind("Shared addresses of the segment.", _S),
    "ndxdp_fleet_held_addresses": Kind("Shared addresses that this host answers for.", _S),
    "ndxdp_fleet_unheld_addresses": Kind("Shared addresses that no host answers for.", _S),
    "ndxdp_fleet_taken_total": Kind("Times that this host acquired a shared address.", _S),
    "ndxdp_fleet_given_up_total": Kind(
        "Times that this host released a shared address, or lost it with its lease.", _S
    ),
    "ndxdp_announcements_total": Kind("Frames that announced addresses to the upstream.", _I),
    "ndxdp_announcement_failures_total": Kind("Announcements that the interface did not take.", _I),
    "ndxdp_announced_neighbours": Kind(
        "Neighbours behind the host that are announced when they appear or move.", _I
    ),
    "ndxdp_announced_arrivals_total": Kind(
        "Times that a neighbour behind the host appeared or moved, and was announced.", _I
    ),
    "ndxdp_gateway_answering": Kind("1 if all gateways answered their last solicitation.", _I),
    "ndxdp_gateway_last_answer_timestamp_seconds": Kind(
        "Time of the gateway's last answer; with several gateways, the oldest of these times.", _I
    ),
    "ndxdp_multicast_join": Kind("1 for the policy by which groups are joined.", (*_I, "join")),
    "ndxdp_multicast_groups": Kind(
        "Solicited-node groups of exact addresses, joined or left out.", (*_I, "state")
    ),
    "ndxdp_mld_querier": Kind("1 while an MLD querier is heard on the link.", _I),
    "ndxdp_scrape_duration_seconds": Kind("Duration of the scrape."),
}
"""All metrics except `process_*`, in the order in which they are served."""
