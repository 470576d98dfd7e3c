"""The relay between a real radvd and a kernel as the host downstream.

    [router] eth0 ---- up0 [ this namespace: Relay ] down0 ---- eth0 [client]

Here packet sockets and a loop stand for the daemon.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from lab.commands import enter
from lab.nodes import LINK, Node
from ndxdp.ndp.router_message import (
    RouterAdvertisement,
    parse_router_advertisement,
    router_message_type,
)
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.sharing.relay import Relay, RelayLink, Send
from tests.fixtures.network import PATIENCE, call, sh

ROUTER, CLIENT = "router", "client"
UP, DOWN = "up0", "down0"
MACS = {
    ROUTER: "02:00:00:00:00:01",
    UP: "02:00:00:00:00:02",
    DOWN: "02:00:00:00:00:03",
    CLIENT: "02:00:00:00:00:0c",
}
HOST = "fe80::3"
"""The address of this host on the downstream link."""

OLD, NEW = IPv6Network("2001:db8:1::/64"), IPv6Network("2001:db8:2::/64")
ROUTE = IPv6Network("2001:db8:ff::/48")

RADVD = """
interface eth0 {{
    AdvSendAdvert on;
    MinRtrAdvInterval 3;
    MaxRtrAdvInterval 4;
    AdvOtherConfigFlag on;
    AdvHomeAgentFlag on;
    AdvHomeAgentInfo on;
    HomeAgentPreference 10;
    AdvIntervalOpt on;
    AdvCurHopLimit 61;
    AdvReachableTime 40000;
    AdvRetransTimer 2000;
    AdvLinkMTU 1400;
    AdvDefaultLifetime 1800;
    AdvDefaultPreference high;
    prefix {prefix} {{ AdvValidLifetime 90000; AdvPreferredLifetime 80000; }};
    prefix 2001:db8:3::/65 {{ AdvValidLifetime infinity; AdvPreferredLifetime infinity; }};
    route 2001:db8:ff::/48 {{ AdvRoutePreference low; AdvRouteLifetime 700; }};
    RDNSS 2001:db8:1::53 2001:db8:1::54 {{ AdvRDNSSLifetime 600; }};
    DNSSL example.org example.com {{ AdvDNSSLLifetime 500; }};
}};
"""
"""Each option that this radvd has; the Mobile IPv6 ones are unknown to ndxdp."""

LINKS = f"""
link add {UP} type veth peer name {LINK} address {MACS[ROUTER]} netns {ROUTER}
link add {DOWN} type veth peer name {LINK} address {MACS[CLIENT]} netns {CLIENT}
link set {UP} address {MACS[UP]} addrgenmode none up
link set {DOWN} address {MACS[DOWN]} addrgenmode none up
address add fe80::2/64 dev {UP} nodad
address add {HOST}/64 dev {DOWN} nodad
"""


class Between:
    """This host: a relay, and a socket on each link.

    Attributes:
        relay: The relay.
        heard: The frames of the router that were heard, with the frames that they caused.
        upstream: The upstream link.
        downstream: The downstream link, by its index.
    """

    upstream: RelayLink
    downstream: Mapping[int, RelayLink]

    def __init__(self) -> None:
        self.relay = Relay()
        self.heard: list[tuple[bytes, list[bytes]]] = []
        self._sockets: dict[int, socket.socket] = {}

    def open(self) -> None:
        for name in (UP, DOWN):
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            opened.bind((name, 0x86DD))
            self._sockets[socket.if_nametoindex(name)] = opened
        up, down = self._sockets
        self.upstream = RelayLink(up, parse_mac(MACS[UP]), parse_address("fe80::2"), 1500)
        self.downstream = {down: RelayLink(down, parse_mac(MACS[DOWN]), parse_address(HOST), 1500)}
        self.relay.set_links(time.monotonic(), self.upstream, self.downstream)

    def close(self) -> None:
        for opened in self._sockets.values():
            opened.close()

    def until(self, probe: Callable[[], object], within: float = 30) -> None:
        """Serve until `probe` is true."""
        give_up = time.monotonic() + within * PATIENCE
        while not probe():
            assert time.monotonic() < give_up, f"not within {within} s"
            self._serve(0.1)

    def _serve(self, wait: float) -> None:
        now = time.monotonic()
        due = self.relay.next_tick(now)
        wait = wait if due is None else min(wait, due - now)
        by_socket = {opened: ifindex for ifindex, opened in self._sockets.items()}
        for opened in select.select(list(by_socket), [], [], wait)[0]:
            frame, address = opened.recvfrom(1600)
            if address[2] == socket.PACKET_OUTGOING or not router_message_type(frame):
                continue
            sends = self.relay.heard(time.monotonic(), by_socket[opened], frame)
            if sends:
                self.heard.append((frame, [send.frame for send in sends]))
            self._send(sends)
        self._send(self.relay.tick(time.monotonic()))

    def _send(self, sends: list[Send]) -> None:
        for send in sends:
            self._sockets[send.ifindex].send(send.frame)


class Site:
    """The network of this file."""

    def __init__(self, folder: Path) -> None:
        self.router, self.client = Node(ROUTER, MACS[ROUTER]), Node(CLIENT, MACS[CLIENT])
        self.host = Between()
        self._folder = folder

    @contextlib.contextmanager
    def radvd(self, prefix: IPv6Network) -> Iterator[subprocess.Popen[bytes]]:
        """Run radvd during the block; it is killed without a last advertisement."""
        # A helper of a killed radvd has the lock on its file for the process id a little longer.
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        file = folder / "radvd.conf"
        file.write_text(RADVD.format(prefix=prefix))
        command = ("radvd", "-n", "-C", str(file), "-p", str(folder / "pid"), "-m", "stderr")
        process = subprocess.Popen(enter(ROUTER, command), stderr=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def default(self) -> list[dict[str, Any]]:
        """Return the client's default routes."""
        return self.client.routes("default", "dev", LINK)

    def address(self, network: IPv6Network) -> dict[str, Any]:
        """Return the client's address of a prefix; {} while it has none or DAD runs."""
        for each in self.client.address_objects():
            if IPv6Address(each["local"]) in network and not each.get("tentative"):
                return each
        return {}


@pytest.fixture
def site(privacy: None, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        for name in (ROUTER, CLIENT):
            sh("ip", "netns", "add", name)
        sh("ip", "-6", "-batch", "-", stdin=LINKS)
        made.router.sysctl("all.forwarding=1")
        made.client.sysctl(f"{LINK}.accept_ra=1", f"{LINK}.accept_ra_rt_info_max_plen=64")
        for node in (made.router, made.client):
            node.ip(f"link set {LINK} addrgenmode eui64 up")
        made.host.open()
        yield made
    finally:
        made.host.close()
        for name in (UP, DOWN):
            call("ip", "link", "delete", name)
        for name in (ROUTER, CLIENT):
            call("ip", "netns", "delete", name)


def test_a_kernel_takes_what_radvd_advertises(site: Site) -> None:
    with site.radvd(OLD):
        site.host.until(lambda: site.address(OLD) and site.default())
        address = site.address(OLD)
        assert IPv6Address(address["local"]) == site.client.slaac(OLD)
        assert 89_900 < address["valid_life_time"] <= 90_000
        assert 79_900 < address["preferred_life_time"] <= 80_000
        (default,) = site.default()
        assert (default["gateway"], default["protocol"], default["pref"]) == (HOST, "ra", "high")
        assert 1700 < default["expires"] <= 1800
        (route,) = site.client.routes(str(ROUTE))
        assert (route["gateway"], route["pref"]) == (HOST, "low")
        assert 600 < route["expires"] <= 700
        (on_link,) = site.client.routes("2001:db8:3::/65")
        assert (on_link.get("gateway"), on_link.get("expires")) == (None, None)
        of_kernel = {
            f"net.ipv6.conf.{LINK}.mtu": "1400",
            f"net.ipv6.conf.{LINK}.hop_limit": "61",
            f"net.ipv6.neigh.{LINK}.base_reachable_time_ms": "40000",
            f"net.ipv6.neigh.{LINK}.retrans_time_ms": "2000",
        }
        for name, value in of_kernel.items():
            assert site.client.run("sysctl", "-n", name).stdout.strip() == value, name
        assert site.client.neighbour(HOST)[1] == MACS[DOWN]  # by the option in the advertisement
        shared = {str(each) for each in site.host.relay.prefixes(time.monotonic())}
        assert shared == {"2001:db8:1::/64", "2001:db8:3::/65"}
        assert not any(site.host.relay.ignored.values())
    for frame, sent in site.host.heard:
        (relayed,) = sent
        old, new = parse_router_advertisement(frame), parse_router_advertisement(relayed)
        assert isinstance(old, RouterAdvertisement)
        assert isinstance(new, RouterAdvertisement)
        assert new.parameters == old.parameters._replace(flags=old.parameters.flags | 4)
        kinds = [option[0] for option in old.options]
        assert sorted(kinds) == [1, 3, 3, 5, 7, 8, 24, 25, 31]
        assert [option for option in new.options if option[0] != 1] == [
            option for option in old.options if option[0] != 1
        ]


def test_a_client_that_solicits(site: Site) -> None:
    """Let rdisc6 show what the answer to its solicitation says."""
    with site.radvd(OLD):
        site.host.until(lambda: site.host.relay.relayed)
        command = enter(CLIENT, ("rdisc6", "-1", "-w", "4000", LINK))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asking:
            site.host.until(lambda: asking.poll() is not None)
            assert asking.stdout is not None
            shown = asking.stdout.read()
    assert site.host.relay.solicited >= 1
    for line in (
        f"from {HOST}",
        f"Source link-layer address: {MACS[DOWN].upper()}",
        "Prefix                   : 2001:db8:1::/64",
        "Prefix                   : 2001:db8:3::/65",
        "Recursive DNS server     : 2001:db8:1::53",
        "DNS search list          : example.org example.com",
        "Route                    : 2001:db8:ff::/48",
        "Neighbor discovery proxy  :          Yes",
        "MTU                      :         1400 bytes",
        "Stateful other conf.      :          Yes",
    ):
        assert line in shown, shown


def test_a_router_that_ends(site: Site) -> None:
    """Let radvd end: the client loses its default route at once, and keeps its address."""
    with site.radvd(OLD) as radvd:
        site.host.until(lambda: site.default() and site.address(OLD))
        radvd.terminate()
        site.host.until(lambda: not site.default())
    assert site.address(OLD)["preferred_life_time"] > 0


def test_an_upstream_link_that_fails(site: Site) -> None:
    with site.radvd(OLD):
        site.host.until(lambda: site.default() and site.address(OLD))
    site.host.relay.set_links(time.monotonic(), None, site.host.downstream)
    site.host.until(lambda: not site.default())
    assert site.address(OLD)["preferred_life_time"] > 0


def test_renumbering(site: Site) -> None:
    """Restart the router with another prefix, without a last advertisement of the old one.

    The client's old address is deprecated after two advertisements, and it forms a new one.
    """
    with site.radvd(OLD):
        site.host.until(lambda: site.default() and site.address(OLD))
    with site.radvd(NEW):
        site.host.until(lambda: site.address(NEW) and site.address(OLD).get("deprecated"))
    old, new = site.address(OLD), site.address(NEW)
    assert old["preferred_life_time"] == 0
    assert 7000 < old["valid_life_time"] <= 7200
    assert new["preferred_life_time"] > 0
    chosen = site.client.run("ip", "-j", "-6", "route", "get", "2001:db8:ffff::1").stdout
    assert IPv6Address(json.loads(chosen)[0]["prefsrc"]) == site.client.slaac(NEW)
