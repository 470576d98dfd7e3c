"""The row about shared addresses on the overview."""

from __future__ import annotations

from grafana_foundation_sdk.models import units

from dashboards.config import CONFIG
from dashboards.panels import ANY_IS_BAD, HOST, PAUSED, YES, Column, graph, listing, number

_BY_SEGMENT = "instance, segment"


def _rate(metric: str, by: str) -> str:
    """Return the rate of a counter by some labels."""
    return f"sum by ({by}) (rate({metric}{{{HOST}}}[$__rate_interval]))"


def _of_segment(metric: str, function: str = "max") -> str:
    return f"{function} by ({_BY_SEGMENT}) ({metric}{{{HOST}}})"


_LEFT = f"ndxdp_fleet_lease_remaining_seconds{{{HOST}}} / ndxdp_fleet_lease_seconds{{{HOST}}}"

FLEET = (
    number(
        "Addresses without a holder",
        "Shared addresses that nobody answers for, in all segments, as the hosts that reach etcd"
        " see them. NdxdpFleetAddressUnheld fires after a minute.",
        units.Short,
        (
            f"sum(max by (segment) (ndxdp_fleet_unheld_addresses{{{HOST}}}"
            f" and on (job, instance) ndxdp_fleet_connected{{{HOST}}} == 1)) or vector(0)",
            "addresses",
        ),
        steps=ANY_IS_BAD,
    ),
    number(
        "Rivals",
        "Advertisements per second of other MACs for shared addresses that a host answers for."
        " NdxdpFleetRival fires for each of them.",
        units.RequestsPerSecond,
        (f"sum(rate(ndxdp_fleet_rivals_total{{{HOST}}}[$__rate_interval])) or vector(0)", "rivals"),
        steps=((None, "green"), (1e-9, "red")),
    ),
    listing(
        "Segments",
        "A line for each segment of a host: whether the host is a member, and the shared addresses"
        " that it answers for.",
        ("instance", "segment"),
        (
            Column("answers", _of_segment("ndxdp_fleet_answering", "min"), mappings=YES),
            Column("member", _of_segment("ndxdp_fleet_joined", "min"), mappings=YES),
            Column("members", _of_segment("ndxdp_fleet_members")),
            Column("addresses", _of_segment("ndxdp_fleet_shared_addresses")),
            Column("held here", _of_segment("ndxdp_fleet_held_addresses")),
            Column("held by nobody", _of_segment("ndxdp_fleet_unheld_addresses")),
        ),
        sort_by="held here",
        width=16,
    ),
    listing(
        "Leases",
        "A line for each host: whether it follows the shared addresses in etcd, whether it is"
        " drained, and its refused values.",
        ("instance",),
        (
            Column(
                "connected", f"min by (instance) (ndxdp_fleet_connected{{{HOST}}})", mappings=YES
            ),
            Column(
                "drained", f"max by (instance) (ndxdp_fleet_drained{{{HOST}}})", mappings=PAUSED
            ),
            Column("refused", f"max by (instance) (ndxdp_fleet_refused_values{{{HOST}}})"),
        ),
        width=8,
    ),
    graph(
        "Takeovers",
        "Shared addresses per second that hosts acquired, and that they released or lost.",
        units.RequestsPerSecond,
        (_rate("ndxdp_fleet_taken_total", "segment"), "{{segment}} acquired"),
        (_rate("ndxdp_fleet_given_up_total", "segment"), "{{segment}} given up"),
    ),
    graph(
        "Lease remaining",
        "Part of each host's lease that is left. A renewal is due at two thirds; at zero the host"
        " answers for no shared address. NdxdpFleetLeaseShort fires below the line.",
        units.PercentUnit,
        (_LEFT, "{{instance}}"),
        steps=((None, "red"), (CONFIG.lease_left, "transparent")),
    ),
    graph(
        "Renewal of leases",
        "Time from the request of the last renewal to etcd's answer.",
        units.Seconds,
        (f"ndxdp_fleet_renewal_lag_seconds{{{HOST}}}", "{{instance}}"),
    ),
)
"""The panels."""
