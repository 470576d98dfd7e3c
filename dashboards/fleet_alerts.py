"""Alerts about shared addresses, which exactly one of several hosts answers for."""

from __future__ import annotations

from dashboards.alert import Alert
from dashboards.config import Config

_HOST = "{{ $labels.instance }}"
_SEGMENT = "{{ $labels.segment }}"


def fleet_alerts(config: Config) -> list[Alert]:
    """Return the alerts about shared addresses.

    A daemon that may not read them, as its role in etcd allows its own keys only, fires none. An
    alert about a segment fires once, not for each of its hosts.
    """
    ours = config.selector
    knows_some = f"max_over_time(ndxdp_fleet_shared_addresses{{{ours}}}[1d])"
    connected = f"and on (job, instance) ndxdp_fleet_connected{{{ours}}} == 1"
    return [
        Alert(
            "NdxdpFleetDisconnected",
            f"ndxdp_fleet_connected{{{ours}}}",
            f"== 0 and on (job, instance) sum by (job, instance) ({knows_some}) > 0",
            "1m",
            "critical",
            f"ndxdp on {_HOST} does not reach the shared addresses in etcd",
            "Its lease lapses, and it answers for no shared address. Other hosts that reach etcd"
            " take the addresses; without any, nobody answers for them.",
        ),
        Alert(
            "NdxdpFleetLeaseShort",
            f"ndxdp_fleet_lease_remaining_seconds{{{ours}}} / ndxdp_fleet_lease_seconds{{{ours}}}",
            f"< {config.lease_left}",
            "1m",
            "warning",
            f"The lease of {_HOST} for its shared addresses is about to lapse",
            "A third of the lease passes between two renewals, and renewals are late or fail. Once"
            " the lease has lapsed, the host answers for no shared address.",
        ),
        Alert(
            "NdxdpFleetAddressUnheld",
            f"max by (job, segment) (ndxdp_fleet_unheld_addresses{{{ours}}} {connected})",
            "> 0",
            "1m",
            "critical",
            f"Nobody answers for {{{{ $value }}}} shared addresses of {_SEGMENT}",
            "No member of the segment has acquired them. `ndxdp fleet status` names the addresses"
            " and the members.",
        ),
        Alert(
            "NdxdpFleetRival",
            f"increase(ndxdp_fleet_rivals_total{{{ours}}}[{config.rival_window}])",
            "> 0",
            "0m",
            "critical",
            f"A second host answers for a shared address of {_HOST}",
            "Another MAC on the link advertises an address that this host answers for. The daemon's"
            " log names the address and the MAC.",
        ),
        Alert(
            "NdxdpFleetDrained",
            f"ndxdp_fleet_drained{{{ours}}}",
            "== 1",
            "1d",
            "info",
            f"{_HOST} has been drained for a day",
            "The host takes no shared address, also if another host fails. `ndxdp fleet undrain`"
            " ends this.",
        ),
        Alert(
            "NdxdpFleetValuesRefused",
            f"max by (job) (ndxdp_fleet_refused_values{{{ours}}})",
            "> 0",
            "10m",
            "warning",
            "The values of {{ $value }} shared addresses are refused",
            "Nobody answers for them. `ndxdp status` on a host of the segment names the keys and"
            " the reasons.",
        ),
        Alert(
            "NdxdpFleetNotJoined",
            f"ndxdp_fleet_joined{{{ours}}}",
            f"== 0 and on (job, instance, segment) ndxdp_fleet_answering{{{ours}}} == 1"
            f" and on (job, instance, segment) {knows_some} > 0"
            f" unless on (job, instance) ndxdp_fleet_drained{{{ours}}} == 1",
            "2m",
            "warning",
            f"{_HOST} is no member of the segment {_SEGMENT}",
            "The host answers on an interface of the segment, and yet takes none of its shared"
            " addresses. `ndxdp status` shows the reason.",
        ),
    ]
