"""A prefix on both sides of a host: kernels reach each other through ndxdp's share.

The network is that of lab/shared_prefix.py: radvd advertises a /64, and kernels form addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from lab.nodes import LINK, Node
from lab.shared_prefix import GATEWAY, GUESTS, INTERNET_ADDRESS, LAN0, LAN1, PREFIX, TUNNEL
from tests.fixtures.network import eventually
from tests.fixtures.shared_link import SharedHost, one_test, shared_link


@pytest.fixture(scope="module")
def network(privacy: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedHost]:
    with shared_link(Path(tmp_path_factory.mktemp("share"))) as made:
        yield made


@pytest.fixture
def site(network: SharedHost) -> Iterator[SharedHost]:
    """Return the network without a daemon and without clients."""
    with one_test(network) as lent:
        yield lent


def make_clients(site: SharedHost) -> dict[str, list[Node]]:
    """Make clients on each link: one, and on lan0 another one with privacy addresses."""
    lab = site.lab
    return {
        LAN0: [lab.client("a0", LAN0), lab.client("p0", LAN0, privacy=True)],
        LAN1: [lab.client("a1", LAN1)],
        GUESTS: [lab.client("g0", GUESTS)],
    }


# ---- everybody reaches everybody -----------------------------------------------------------------


@pytest.mark.parametrize("mode", ["native", "tc", "userspace"])
def test_everybody_reaches_everybody(site: SharedHost, mode: str) -> None:
    """The first packet is answered, by whichever link it leaves and arrives."""
    lab = site.lab
    site.start(mode)
    made = make_clients(site)
    clients = [client for link in made for client in made[link]]
    lab.wait_for_addresses(*clients)
    wanted = {
        address: link
        for link in made
        for client in made[link]
        for address in client.addresses(PREFIX)
    }
    assert len(wanted) == 5, "one of the clients has a privacy address, too"
    site.await_routes(wanted)
    neighbour = lab.neighbour.slaac(PREFIX)
    others: list[IPv6Address] = [INTERNET_ADDRESS, neighbour, GATEWAY, lab.host.slaac(PREFIX)]
    for client in clients:
        for target in others:
            assert site.reaches(client, target), (client.name, target)
    for address in wanted:
        for node in (lab.internet, lab.router, lab.neighbour, lab.host, *clients):
            assert site.reaches(node, address), (node.name, address)
    eventually(lambda: site.state().hosts == wanted)


def test_a_client_that_starts_is_reached_at_once(site: SharedHost) -> None:
    """The router's first ping to a new client's address is answered, by SLAAC alone.

    The ping goes out in the moment in which the client's kernel has the address.
    """
    lab = site.lab
    site.start()
    client = lab.client("new", LAN0)
    address = client.slaac(PREFIX)
    lab.wait_for_addresses(client)
    assert lab.router.ping(address, count=1, wait=2) == 1
    assert client.routes("default")[0]["gateway"] == str(lab.link_local(LAN0))


def test_a_silent_host_is_found(site: SharedHost) -> None:
    """A host that nobody has heard of, and that has lost its route, is found by asking for it."""
    lab = site.lab
    site.start()
    client = lab.client("quiet", LAN1)
    lab.wait_for_addresses(client)
    silent = PREFIX[0x5117]
    client.ip(f"address add {silent}/64 dev {LINK} nodad")
    assert silent not in site.routes()
    assert lab.internet.ping(silent, count=1, wait=2) == 1
    site.await_routes({silent: LAN1})
    site.await_count("counters", "found")


def test_the_end_of_a_client(site: SharedHost) -> None:
    """A route that is deleted by hand forgets the host; one that comes back is learned again."""
    lab = site.lab
    site.start()
    client = lab.client("c", LAN0)
    lab.wait_for_addresses(client)
    address = client.slaac(PREFIX)
    site.await_routes({address: LAN0})
    lab.host.run("ip", "-6", "route", "delete", f"{address}/128", "dev", LAN0)
    site.await_count("counters", "forgotten")
    assert site.reaches(lab.internet, address), "it is asked for, and learned"
    site.await_routes({address: LAN0})


# ---- links without MACs --------------------------------------------------------------------------


def test_a_link_without_macs(site: SharedHost) -> None:
    """A tunnel's client is reached by the route that the kernel has; nothing is sent to it."""
    lab = site.lab
    address = PREFIX[0x77]
    road = lab.tunnel_client("road", address)
    client = lab.client("a0", LAN0)
    site.start()
    lab.wait_for_addresses(client)
    for node in (lab.internet, lab.router, lab.neighbour, client):
        assert site.reaches(node, address), node.name
    assert site.reaches(road, INTERNET_ADDRESS)
    assert site.reaches(road, client.slaac(PREFIX))
    (link,) = (each for each in site.report()["links"] if each["interface"] == TUNNEL)
    assert link["kind"] == "routes"
    assert "those that the kernel has routes for" in site.ndxdp("status").out
    assert discovery_messages(road) == {}
    assert road.routes("proto", "ra") == []


def discovery_messages(node: Node) -> dict[str, int]:
    """Return how many messages of Neighbor Discovery a node has received, by their name."""
    shown = node.run("cat", "/proc/net/snmp6").stdout
    return {
        name: int(count)
        for name, count in re.findall(r"Icmp6In(Router\w+|Neighbor\w+)\s+(\d+)", shown)
        if int(count)
    }
