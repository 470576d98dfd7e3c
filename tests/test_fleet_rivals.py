"""Rivals in the lab: none in takeovers of any kind, and a host that has an address by itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab.fleet import Fleet, shared_address, shared_name
from lab.fleet_host import FleetHost
from lab.nodes import LINK, wait_until
from ndxdp.fleet.rival_probes import FIRST
from tests.fixtures.network import NDXDP

COUNT = 12
LEASE = 3


@pytest.fixture(scope="module")
def lan(privacy: None) -> Iterator[Fleet]:
    """Start three hosts that share addresses, and one member of etcd."""
    with Fleet(NDXDP, hosts=3, members=1) as made:
        made.configure(lease=LEASE)
        for number in range(1, COUNT + 1):
            made.share(number)
        made.start()
        made.settle()
        yield made


def part(host: FleetHost) -> dict[str, Any]:
    """Return a host's part in shared addresses."""
    (daemon,) = json.loads(host.ndxdp("status", "--json").stdout)["daemons"]
    found: dict[str, Any] = daemon["fleet"]
    return found


def doctor(host: FleetHost) -> list[str]:
    """Return what doctor finds about shared addresses at a host, except for notes."""
    found = json.loads(host.ndxdp("doctor", LINK, "--json", check=False).stdout)
    return [
        each["what"]
        for interface in found["interfaces"]
        for each in interface["findings"]
        if each["check"] == "fleet" and each["level"] != "note"
    ]


def test_no_takeover_looks_like_a_rival(lan: Fleet) -> None:
    """Release, lapse and restart: the probes of the next holder are answered by nobody."""
    one, two, three = lan.hosts
    one.drain()
    lan.await_holders(lambda found: "h1" not in found.values(), "h1 does not give up")
    one.undrain()
    for number in range(1, COUNT + 1):
        lan.move(number, one, via=two)
    held = {shared_name(number): "h1" for number in range(1, COUNT + 1)}
    assert lan.holders() == held
    one.suspend()  # its lease lapses, and the others' announcements wait for it
    lan.await_holders(
        lambda found: len(found) == COUNT and "h1" not in found.values(), "no takeover"
    )
    time.sleep(FIRST + 1)  # the new holders' probes
    one.resume()
    lan.settle()
    two.kill()
    lan.await_holders(
        lambda found: len(found) == COUNT and "h2" not in found.values(), "no takeover"
    )
    two.start()
    three.cut_from_etcd()
    lan.await_holders(
        lambda found: len(found) == COUNT and "h3" not in found.values(), "no takeover"
    )
    time.sleep(FIRST + 1)
    three.join_etcd()
    one.cut_from_segment()
    lan.await_holders(
        lambda found: len(found) == COUNT and "h1" not in found.values(), "no takeover"
    )
    one.join_segment()
    lan.settle()
    time.sleep(FIRST + 1)
    for host in lan.hosts:
        assert (part(host)["rivals"], part(host)["rivals_seen"]) == (0, []), host.name
        assert " answers for " not in host.log()
        assert doctor(host) == []


def test_a_host_that_has_an_address_by_itself(lan: Fleet) -> None:
    one, two, _ = lan.hosts
    address = shared_address(1)
    lan.move(1, two, via=one)
    two.run("ip", "address", "add", f"{address}/128", "dev", LINK, "nodad")
    try:
        wait_until(lambda: doctor(two), "doctor does not see the address", 10)
        assert doctor(two) == [f"{LINK} has {address} itself, of the shared {address}"]
        lan.move(1, one, via=one)
        seen = [{"address": address, "mac": two.mac}]
        wait_until(lambda: part(one)["rivals_seen"] == seen, "no rival", 20, lambda: part(one))
        assert doctor(one) == [f"{two.mac} has advertised {address}, which this host answers for"]
        assert part(two)["rivals"] == 0
        text = lan.hosts[2].ndxdp("status").stdout
        assert two.mac not in text
    finally:
        two.run("ip", "address", "del", f"{address}/128", "dev", LINK)
