"""The metrics of shared addresses: which exist when, and how many."""

from __future__ import annotations

import time

from ndxdp.observe import fleet_metrics
from ndxdp.observe.metric_kinds import KINDS
from ndxdp.observe.metrics import Exposition
from ndxdp.runtime.daemon_status import DaemonStatus, FleetStatus, SegmentStatus
from ndxdp.store.directories import Trees
from tests.fixtures.prometheus import parsed

SEGMENT = SegmentStatus("vlan7", True, "", ["h1", "h2"], 5, 2, 1, 7, 3, answering=True)
AT_FIRST = FleetStatus(False, "etcd is out of reach", None, False, [SEGMENT], 0, [], 0, None)


def samples(fleet: FleetStatus) -> dict[str, float]:
    """Return the samples by name, without those of segments."""
    found = fleet_metrics.samples(fleet)
    return {each.name.removeprefix("ndxdp_fleet_"): each.value for each in found if not each.labels}


def test_what_is_unknown_has_no_series() -> None:
    assert samples(AT_FIRST) == {
        "connected": 0,
        "drained": 0,
        "refused_values": 0,
        "rivals_total": 0,
    }


def test_the_lease() -> None:
    now = time.time()
    with_lease = AT_FIRST._replace(connected=True, expires=now + 100, lag=0.02, lease=300)
    found = samples(with_lease)
    assert 99 < found["lease_remaining_seconds"] <= 100
    assert (found["lease_seconds"], found["renewal_lag_seconds"]) == (300, 0.02)
    lapsed = samples(with_lease._replace(expires=now - 100))
    assert -101 < lapsed["lease_remaining_seconds"] <= -100


def test_the_daemon_serves_them() -> None:
    fleet = AT_FIRST._replace(expires=time.time() + 9, lag=0.5, lease=9, rivals=4, refused=2)
    served = parsed(Exposition(Trees(), DaemonStatus(fleet=lambda: fleet)).text().decode())
    ours = {name: values for name, values in served.items() if name.startswith("ndxdp_fleet_")}
    assert set(ours) == {name for name in KINDS if name.startswith("ndxdp_fleet_")}
    assert ours["ndxdp_fleet_rivals_total"] == {(): 4}
    of_segment = {name: values[("vlan7",)] for name, values in ours.items() if ("vlan7",) in values}
    assert of_segment == {
        "ndxdp_fleet_answering": 1,
        "ndxdp_fleet_joined": 1,
        "ndxdp_fleet_members": 2,
        "ndxdp_fleet_shared_addresses": 5,
        "ndxdp_fleet_held_addresses": 2,
        "ndxdp_fleet_unheld_addresses": 1,
        "ndxdp_fleet_taken_total": 7,
        "ndxdp_fleet_given_up_total": 3,
    }
    served = parsed(Exposition(Trees(), DaemonStatus()).text().decode())
    assert not [name for name in served if name.startswith("ndxdp_fleet_")]


def test_the_series_do_not_grow_with_hosts_and_addresses() -> None:
    big = SEGMENT._replace(members=[f"h{number}" for number in range(1000)], shared=100_000)
    assert len(list(fleet_metrics.samples(AT_FIRST._replace(segments=[big])))) == 4 + 8
