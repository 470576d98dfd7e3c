"""A daemon with shared addresses: what metrics, status, log and doctor show of its troubles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import etcd
from tests.fixtures.doctor import findings
from tests.fixtures.etcd import Cluster
from tests.fixtures.network import (
    ROUTER_LINK,
    ROUTER_MAC,
    UPLINK,
    Network,
    Running,
    eventually,
    ndxdp,
)
from tests.fixtures.prometheus import get, parsed

ADDRESS, OTHER = "2001:db8::c:0:0:20", "2001:db8::c:0:0:21"
ROOT = "/ndxdp/v1/"
PORT = 9878


class Host:
    """The host h1, with a member of etcd."""

    def __init__(self, net: Network, cluster: Cluster, file: Path) -> None:
        self.net, self.etcd, self.file = net, cluster, file
        file.write_text(
            f'[metrics]\nlisten = "[::1]:{PORT}"\n'
            f'[etcd]\nendpoints = ["{cluster.members[0].url}"]\nhost = "h1"\nlease = 2\n'
            f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\non_stop = "detach"\n'
            '[[interface.etcd]]\nsegment = "vlan7"\n'
        )
        self.share("web", ADDRESS)
        self.running: Running | None = None

    def run(self) -> Running:
        self.running = self.net.run("-c", str(self.file))
        return self.running

    def share(self, name: str, prefix: str, **more: Any) -> None:
        self.etcd.put(name, {"prefix": prefix, **more}, f"{ROOT}shared/vlan7/")

    def metric(self, name: str) -> float | None:
        """Return the value of a metric of the daemon; None if it has none."""
        samples = parsed(get(f"http://[::1]:{PORT}/metrics")).get(f"ndxdp_fleet_{name}", {})
        return next(iter(samples.values()), None)

    def becomes(self, within: float = 10, **wanted: float) -> None:
        """Wait until metrics have some values."""
        for name, value in wanted.items():
            eventually(lambda name=name, value=value: self.metric(name) == value, within=within)  # type: ignore[misc]

    def fleet(self) -> dict[str, Any]:
        """Return the daemon's part in `status --json`."""
        (daemon,) = json.loads(ndxdp("status", "--json").out)["daemons"]
        found: dict[str, Any] = daemon["fleet"]
        return found


@pytest.fixture
def host(net: Network, tmp_path: Path) -> Iterator[Host]:
    with etcd.cluster(tmp_path / "etcd") as cluster:
        made = Host(net, cluster, tmp_path / "ndxdp.toml")
        yield made
        if made.running is not None and made.running.process.poll() is None:
            made.running.end_cleanly()


def doctor(level: str = "") -> list[str]:
    """Return what doctor finds about shared addresses."""
    return [
        each["what"]
        for each in findings()
        if each["check"] == "fleet" and level in ("", each["level"])
    ]


def test_a_host_that_answers_for_shared_addresses(host: Host) -> None:
    host.share("db", OTHER, hosts=["h9"])
    host.share("bad", "what?")
    host.run()
    host.becomes(held_addresses=1, unheld_addresses=1, joined=1, answering=1, members=1)
    host.becomes(connected=1, refused_values=1, taken_total=1, lease_seconds=2, drained=0)
    left = host.metric("lease_remaining_seconds")
    assert left is not None
    assert 0 < left <= 2
    lag = host.metric("renewal_lag_seconds")
    assert lag is not None
    assert 0 < lag < 2
    what = f"nobody answers for {OTHER} (vlan7/db): "
    eventually(lambda: any(each.startswith(what) for each in doctor("failure")))
    reasons = dict(each.split(": ", 1) for each in doctor("failure"))
    assert "h9" in reasons.pop(what.removesuffix(": "))
    assert "is not an IPv6 address" in reasons.pop("nobody answers for vlan7/bad")
    assert reasons == {}
    # A drained host gives up its addresses.
    host.etcd.put("h1", {}, f"{ROOT}drained/")
    host.becomes(drained=1, held_addresses=0, given_up_total=1)
    drained = "this host is drained: it answers for no shared address, and takes none"
    eventually(lambda: drained in doctor("note"))


def test_a_rival_on_the_link(host: Host) -> None:
    """A node has the address by its own configuration, and announces nothing."""
    running = host.run()
    host.becomes(held_addresses=1)
    assert host.metric("rivals_total") == 0
    net = host.net
    added = net.at_router("ip", "address", "add", f"{ADDRESS}/128", "dev", ROUTER_LINK, "nodad")
    assert added.code == 0
    try:
        eventually(lambda: host.metric("rivals_total"), within=20)
    finally:
        net.at_router("ip", "address", "del", f"{ADDRESS}/128", "dev", ROUTER_LINK)
    seen = [{"address": ADDRESS, "mac": ROUTER_MAC}]
    eventually(lambda: host.fleet()["rivals_seen"] == seen)
    assert f"{ROUTER_MAC} has advertised {ADDRESS}, which this host answers for" in doctor(
        "failure"
    )
    assert f"{ROUTER_MAC} answers for {ADDRESS}, too" in running.end_cleanly()


def test_two_hosts_with_one_name(host: Host) -> None:
    other = {"version": "1", "since": 1.0, "identity": "another"}
    host.etcd.put("h1", other, f"{ROOT}members/vlan7/")
    host.run()
    host.becomes(answering=1, joined=0, held_addresses=0)
    what = "this host is no member of the segment vlan7: another host has the name h1"
    eventually(lambda: any(each.startswith(what) for each in doctor("warning")))


def test_etcd_is_out_of_reach(host: Host) -> None:
    host.run()
    host.becomes(held_addresses=1)
    host.etcd.kill()
    host.becomes(connected=0, held_addresses=0)
    left = host.metric("lease_remaining_seconds")
    assert left is None or left <= 0
    what = "this host answers for no shared address: "
    eventually(lambda: any(each.startswith(what) for each in doctor("failure")))
    host.etcd.start()
    host.becomes(within=30, connected=1, held_addresses=1)
    eventually(lambda: doctor("failure") == [])


def with_user(host: Host, keys_of: str) -> None:
    """Enable users in etcd, and let the daemon be one who may only read some keys."""
    host.etcd.add_user("ndxdp", "secret", keys_of)
    (host.file.parent / "password").write_text("secret\n")
    text = host.file.read_text()
    host.file.write_text(
        text.replace("lease = 2", 'lease = 2\nuser = "ndxdp"\npassword_file = "password"')
    )


def test_a_user_who_may_read_the_keys_of_its_host_only(host: Host) -> None:
    """No alert fires, as there is no shared address that the host knows of."""
    with_user(host, f"{ROOT}hosts/h1/")
    host.run()
    host.becomes(connected=0, joined=0, shared_addresses=0)
    what = "this host takes no part in shared addresses: "
    eventually(lambda: any(each.startswith(what) for each in doctor("note")))
    assert doctor("failure") == doctor("warning") == []
    answer = json.loads(ndxdp("status", "--json").out)
    assert answer["daemons"][0]["etcd"]["connected"] is True
