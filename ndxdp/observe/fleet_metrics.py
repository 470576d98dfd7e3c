"""Metrics of shared addresses, from the status of the daemon."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ndxdp.observe.share_metrics import Sample
from ndxdp.runtime.daemon_status import FleetStatus, SegmentStatus


def samples(fleet: FleetStatus) -> Iterator[Sample]:
    """Yield the metrics of a host's part in shared addresses: eight series for each segment."""
    for name, value in (
        ("connected", fleet.connected),
        ("drained", fleet.drained),
        ("refused_values", fleet.refused),
        ("rivals_total", fleet.rivals),
    ):
        yield Sample(f"ndxdp_fleet_{name}", value, ())
    if fleet.lease:
        yield Sample("ndxdp_fleet_lease_seconds", fleet.lease, ())
    if fleet.expires is not None:
        left = fleet.expires - time.time()
        yield Sample("ndxdp_fleet_lease_remaining_seconds", left, ())
    if fleet.lag is not None:
        yield Sample("ndxdp_fleet_renewal_lag_seconds", fleet.lag, ())
    for segment in fleet.segments:
        yield from _segment(segment)


def _segment(segment: SegmentStatus) -> Iterator[Sample]:
    for name, value in (
        ("answering", segment.answering),
        ("joined", segment.joined),
        ("members", len(segment.members)),
        ("shared_addresses", segment.shared),
        ("held_addresses", segment.held),
        ("unheld_addresses", segment.unheld),
        ("taken_total", segment.taken),
        ("given_up_total", segment.given_up),
    ):
        yield Sample(f"ndxdp_fleet_{name}", value, (segment.segment,))
