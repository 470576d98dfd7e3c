"""Duplicate Address Detection across the links of a share, by the kernels of all sides."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from lab.capture import packet_socket
from lab.nodes import LINK, Node
from lab.shared_prefix import GATEWAY, GUESTS, HOST, LAN0, LAN1, MACS, PREFIX, ROUTER
from ndxdp.ndp.decision import validate
from ndxdp.ndp.message import Solicitation
from ndxdp.sharing import announcements
from tests.fixtures.network import eventually
from tests.fixtures.shared_link import SharedHost, shared_link


@pytest.fixture(scope="module")
def site(privacy: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedHost]:
    """Return the network with a daemon, a client on lan0 and one on lan1."""
    with shared_link(Path(tmp_path_factory.mktemp("share"))) as made:
        made.start()
        made.lab.wait_for_addresses(made.lab.client("a", LAN0), made.lab.client("b", LAN1))
        made.await_routes({client_address(made, "a"): LAN0, client_address(made, "b"): LAN1})
        # An announcement of a client is an answer to DAD, too, and would be the first one.
        made.await_count("counters", "announced", 2 * announcements.TIMES)
        yield made
        made.stop()


def client_address(site: SharedHost, name: str) -> IPv6Address:
    return site.lab.clients[name].slaac(PREFIX)


def claim(node: Node, address: IPv6Address) -> str:
    """Add an address, and return what DAD has made of it: `valid` or `failed`."""
    node.ip(f"address add {address}/64 dev {LINK}")
    return verdict(node, address)


def verdict(node: Node, address: IPv6Address) -> str:
    """Wait for the end of DAD, and return its result."""
    eventually(lambda: node.dad(address) in ("valid", "failed"), within=5)
    return node.dad(address)


def give_up(node: Node, address: IPv6Address) -> None:
    node.ip(f"address delete {address}/64 dev {LINK}")


def is_intact(site: SharedHost, name: str, link: str) -> bool:
    """Return True if a client still has its address, and the route leads to it."""
    address = client_address(site, name)
    return (site.lab.clients[name].dad(address), site.routes().get(address)) == ("valid", link)


def test_upstream_claims_an_address_of_lan0(site: SharedHost) -> None:
    address = client_address(site, "a")
    assert claim(site.lab.neighbour, address) == "failed"
    give_up(site.lab.neighbour, address)
    assert is_intact(site, "a", LAN0)
    site.await_count("counters", "defended")


def test_lan0_claims_an_address_of_upstream(site: SharedHost) -> None:
    """Another node's, the router's, and this host's own."""
    lab = site.lab
    for address in (lab.neighbour.slaac(PREFIX), GATEWAY, lab.host.slaac(PREFIX)):
        assert claim(lab.clients["a"], address) == "failed", address
        give_up(lab.clients["a"], address)
        assert address not in site.routes()
    assert lab.neighbour.dad(lab.neighbour.slaac(PREFIX)) == "valid"


def test_claims_are_checked_upstream_by_dad(site: SharedHost) -> None:
    """The program of another host's share ignores DAD, and its daemon asks the host first."""
    address = PREFIX[0xDAD]
    with packet_socket(ROUTER, LINK) as router:
        router.setblocking(False)
        for node in site.lab.clients.values():
            assert claim(node, address) == "valid"
            eventually(lambda: address in site.routes())
            give_up(node, address)
            site.lab.host.run("ip", "-6", "route", "delete", f"{address}/128")
        heard = list(solicitations(router, address))
    assert {ns.eth_source.hex(":") for ns in heard} == {MACS[HOST]}
    assert [ns.dad for ns in heard].count(True) == 2 * 2  # two rounds for each claim


def solicitations(opened: socket.socket, address: IPv6Address) -> Iterator[Solicitation]:
    """Yield the valid solicitations for an address that have arrived."""
    while True:
        try:
            ns = validate(opened.recv(2048), bytes(6), lambda target: None)
        except BlockingIOError:
            return
        if isinstance(ns, Solicitation) and ns.target == address.packed:
            yield ns


def test_one_inner_link_claims_an_address_of_the_other(site: SharedHost) -> None:
    for one, other, link in (("a", "b", LAN1), ("b", "a", LAN0)):
        address = client_address(site, other)
        assert claim(site.lab.clients[one], address) == "failed"
        give_up(site.lab.clients[one], address)
        assert is_intact(site, other, link)


@pytest.mark.parametrize("number", range(3))
def test_two_claim_at_the_same_time(site: SharedHost, number: int) -> None:
    """At most one of two nodes may keep an address that both claim within the same second."""
    nodes = [site.lab.clients["a"], site.lab.clients["b"]]
    address = PREFIX[0xD00 + number]
    for node in nodes:
        node.ip(f"address add {address}/64 dev {LINK}")
    verdicts = [verdict(node, address) for node in nodes]
    assert "failed" in verdicts
    for node in nodes:
        give_up(node, address)


def test_a_free_address_can_be_taken(site: SharedHost) -> None:
    """An address that its former node has given up, without a word, is free on the other link."""
    one, other = site.lab.clients["a"], site.lab.clients["b"]
    address = PREFIX[0xF4EE]
    assert claim(one, address) == "valid"
    site.await_routes({address: LAN0})
    give_up(one, address)
    assert claim(other, address) == "valid"
    site.await_routes({address: LAN1})
    give_up(other, address)


def test_many_clients_start_at_once(site: SharedHost) -> None:
    """SLAAC fails for no free address."""
    lab = site.lab
    links = (LAN0, LAN1, GUESTS)
    nodes = {lab.client(f"n{n}", links[n % 3], privacy=n % 2 == 0): links[n % 3] for n in range(20)}
    lab.wait_for_addresses(*nodes)
    for node in nodes:
        assert [entry for entry in node.address_objects() if entry.get("dadfailed")] == []
    site.await_routes(
        {address: link for node, link in nodes.items() for address in node.addresses(PREFIX)}
    )
    for node in nodes:
        lab.remove(node)
