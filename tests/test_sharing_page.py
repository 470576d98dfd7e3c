"""The claims of docs/sharing.md: its commands, its recipes, and its limits."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
import tomllib
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from lab.nodes import LINK, Node, wait_until
from lab.shared_prefix import GUESTS, INTERNET_ADDRESS, LAN0, OUTER, PREFIX, SWITCH
from tests.fixtures.network import NDXDP, REPOSITORY, Running, eventually
from tests.fixtures.shared_link import AT_HOST, SharedHost, shared_link

PAGE = (REPOSITORY / "docs" / "sharing.md").read_text()

CONTAINER = IPv6Address("2001:db8:1:0:d::10")
DOCKER_BRIDGE = "br-0123456789ab"
PHONE = IPv6Address("2001:db8:1::30")


def section(title: str) -> str:
    return re.split(r"^##+ ", PAGE.partition(f"# {title}\n")[2], maxsplit=1, flags=re.M)[0]


def commands(title: str, language: str = "sh") -> list[str]:
    """Return the commands of a section, without their comments."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", section(title), re.M | re.S)
    lines = [line.partition("  #")[0].strip() for block in found for line in block.splitlines()]
    assert lines
    return lines


@pytest.fixture
def site(privacy: None, tmp_path: Path) -> Iterator[SharedHost]:
    with shared_link(tmp_path) as made:
        yield made


def doctor(site: SharedHost, interface: str = LINK) -> list[str]:
    """Return doctor's warnings and failures, without those about the machine.

    A daemon that has just started has heard no advertisement yet.
    """
    eventually(lambda: not site.report() or site.report()["prefixes"])
    data = json.loads(site.ndxdp("doctor", interface, "--json").out)
    return [
        each["what"]
        for each in data["interfaces"][0]["findings"]
        if each["level"] in ("warning", "failure") and "neighbour table" not in each["what"]
    ]


def test_the_first_try(site: SharedHost) -> None:
    """Follow the page on a host that forwards nothing yet, then by a file."""
    lab = site.lab
    lab.host.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0")
    lab.host.sysctl(f"{LINK}.accept_ra=1")
    sysctls, share = commands("Try it")
    lab.host.run("sh", "-c", sysctls)
    assert lab.host.run("ip", "-6", "route", "show", "default").stdout.startswith("default via")
    assert share.split()[:2] == ["ndxdp", "share"]
    client = lab.client("a0", LAN0)
    # Running inserts `run`; this command has its own name.
    running = Running((), ["sh", "-c", f"exec {shlex.join([*AT_HOST, *NDXDP])} {share[6:]}"])
    try:
        lab.wait_for_addresses(client)
        address = client.slaac(PREFIX)
        site.await_routes({address: LAN0})
        assert lab.internet.ping(address) == 1
        assert client.ping(INTERNET_ADDRESS) == 1
        listed = site.ndxdp("hosts").out.splitlines()
        shown = re.findall(r"^```text\n(.*?)\n", section("Try it"), re.M)
        assert listed[0].split() == shown[0].split()
        assert listed[1].split()[:3] == [str(address), LAN0, client.mac]
        assert [doctor(site), doctor(site, LAN0)] == [[], []]
    finally:
        ended = running.end(signal.SIGINT)
    assert ended.code == 0
    assert site.routes() == {}
    proposed = tomllib.loads(site.ndxdp("init", "-o", "-").out)
    assert proposed["share"] == [{"upstream": LINK, "downstream": [LAN0]}]


def test_the_file_of_the_page_serves_this_network(site: SharedHost) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```$", section("Keep it"), re.M | re.S)
    (keys,) = tomllib.loads(text)["share"]
    lab = site.lab
    clients = [lab.client(f"c-{link}", link) for link in (LAN0, GUESTS)]
    site.start(**keys)
    lab.wait_for_addresses(*clients)
    for client in clients:
        assert site.reaches(lab.internet, client.slaac(PREFIX))
    assert doctor(site) == []
    assert site.ndxdp("check", str(site.configure(**keys))).code == 0


CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 80), timeout=2)"
LISTEN = "import socket; socket.create_server(('::', 80), family=socket.AF_INET6).accept()"


def listens(node: Node) -> bool:
    return ":80 " in node.run("ss", "-ltn").stdout


def test_the_firewall_of_the_page(site: SharedHost) -> None:
    lab = site.lab
    client = lab.client("a0", LAN0)
    site.start()
    lab.wait_for_addresses(client)
    address = str(client.slaac(PREFIX))
    for command in commands("What it does not do"):
        lab.host.run("sh", "-c", command)
    assert client.ping(INTERNET_ADDRESS) == 1
    assert lab.internet.ping(address) == 1  # echo-request is accepted
    assert doctor(site) == []
    for node, peer, target, accepted in (
        (client, lab.internet, address, False),
        (lab.internet, client, INTERNET_ADDRESS, True),
    ):
        server = f"{shlex.join([sys.executable, '-c', LISTEN])} >/dev/null 2>&1 & echo $!"
        pid = node.run("sh", "-c", server).stdout.strip()
        eventually(lambda node=node: listens(node))  # type: ignore[misc]
        done = peer.run(sys.executable, "-c", CONNECT, str(target), check=False)
        assert (done.returncode == 0) is accepted, (node.name, done.stderr)
        node.run("kill", pid, check=False)


def container(site: SharedHost) -> Node:
    """Make a Docker network with a part of the prefix, and a container, as Docker does it."""
    lab = site.lab
    lab.host.ip(
        f"link add {DOCKER_BRIDGE} type bridge\nlink set {DOCKER_BRIDGE} up\n"
        f"address add 2001:db8:1:0:d::1/80 dev {DOCKER_BRIDGE} nodad"
    )
    node = lab._node("container")
    lab.host.ip(
        f"link add v-container type veth peer name {LINK} netns container\n"
        f"link set v-container master {DOCKER_BRIDGE} up"
    )
    node.sysctl(f"{LINK}.accept_ra=0")
    node.ip(
        f"link set lo up\nlink set {LINK} up\naddress add {CONTAINER}/80 dev {LINK} nodad\n"
        "route add default via 2001:db8:1:0:d::1"
    )
    return node


def test_a_docker_network_with_a_part_of_the_prefix(site: SharedHost) -> None:
    inside = container(site)
    lab = site.lab
    site.start(downstream=["br-*"])
    assert lab.internet.ping(CONTAINER, wait=3) == 1
    assert inside.ping(INTERNET_ADDRESS) == 1
    assert lab.neighbour.ping(CONTAINER) == 1
    assert doctor(site) == []


def test_the_whole_prefix_on_a_second_interface(site: SharedHost) -> None:
    container(site)
    site.start(downstream=["br-*"])
    site.lab.host.ip(f"address add 2001:db8:1::5/64 dev {DOCKER_BRIDGE} nodad")
    (found,) = doctor(site)
    assert found.startswith(f"{PREFIX} is on-link on {LINK} and on {DOCKER_BRIDGE}: two routes")


def test_both_interfaces_in_one_switch(site: SharedHost) -> None:
    """The host's own advertisements come back, and its kernel takes itself as a router."""
    Node(SWITCH).run("ip", "link", "set", "to-lan0", "master", OUTER)
    site.start(downstream=["lan*"])
    itself = f"via {site.lab.link_local(LAN0)}"
    wait_until(
        lambda: itself in site.lab.host.run("ip", "-6", "route", "show", "default").stdout,
        "the host does not believe itself",
        15,
    )
    (found,) = doctor(site)
    assert found.endswith("which is this host itself, on lan0: the two interfaces are one link")


def test_wireguard(site: SharedHost) -> None:
    lab = site.lab
    phone = lab.tunnel_client("phone", PHONE)
    client = lab.client("a0", LAN0)
    site.start(downstream=["lan0", "wg*"])
    lab.wait_for_addresses(client)
    for node in (lab.internet, lab.neighbour, client):
        assert site.reaches(node, PHONE), node.name
    assert phone.ping(lab.neighbour.slaac(PREFIX)) == 1
    assert phone.ping(client.slaac(PREFIX)) == 1
    assert "those that the kernel has routes for" in site.ndxdp("status").out
    assert doctor(site) == []


def learned(site: SharedHost) -> IPv6Address:
    """Start the daemon; return the address of a client that it has learned, and that is reached."""
    lab = site.lab
    client = lab.client("a0", LAN0)
    site.start()
    lab.wait_for_addresses(client)
    address = client.slaac(PREFIX)
    site.await_routes({address: LAN0})
    assert lab.internet.ping(address) == 1
    return address


def test_the_daemon_stops(site: SharedHost) -> None:
    """Known neighbours are answered for; a new host, and a forgotten one, wait for the daemon."""
    lab = site.lab
    address = learned(site)
    site.stop()
    lab.router.forget_neighbours()
    assert lab.internet.ping(address) == 1
    lab.host.forget_neighbours()
    lab.router.forget_neighbours()
    assert lab.internet.ping(address) == 0
    site.start_again()
    assert site.routes() == {address: LAN0}
    wait_until(lambda: lab.internet.ping(address, wait=1), "the client is not reached", 10)


@pytest.mark.parametrize("router_forgets", [True, False])
def test_after_a_reboot(site: SharedHost, router_forgets: bool) -> None:
    """The routes no longer exist. A router that still has this host's MAC solicits nobody."""
    lab = site.lab
    address = learned(site)
    site.stop()
    lab.host.run("ip", "-6", "route", "flush", "proto", "158")
    if router_forgets:
        lab.router.forget_neighbours()
    site.start_again()
    wait_until(lambda: lab.internet.ping(address, wait=1), "the client is not reached", 15)
    assert site.routes() == {address: LAN0}
