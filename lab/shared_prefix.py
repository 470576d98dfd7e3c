"""The lab's network for a share: one /64 that hosts on both sides of a Linux host use.

    internet ---- router ---- [ outer ] ---- eth0   host   lan0 ---- [ inner0 ] ---- clients
                                  |                        lan1 ---- [ inner1 ] ---- clients
                              neighbour                    br-guests --------------- guests
                                                           wg0 ~ ~ ~ ~ ~ ~ ~ ~ ~ ~ ~ a tunnel

A real radvd on the router advertises the /64 as on-link, every 3 to 4 seconds. The kernels of the
neighbour, the clients and the guests form their addresses from such advertisements, and check them
by DAD: nothing here gives an address to a client. `outer`, `inner0` and `inner1` are bridges in a
namespace of their own, `br-guests` is a bridge of the host, as Docker, libvirt and Incus make them.
`wg0` is a link without MACs, as WireGuard's: two tun interfaces, and a thread between them.

`SharedLab` takes the names of its namespaces in /run/netns for itself, so run it in namespaces of
its own: `lab.private`.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from functools import partial
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import NamedTuple

from lab.commands import enter, run_command
from lab.nodes import LINK, LabNetwork, Node, slaac_address, tunnel, wait_until
from lab.programs import build_xdp_pass

SWITCH, ROUTER, INTERNET, HOST = "switch", "router", "internet", "host"
NEIGHBOUR = "neighbour"

OUTER, LAN0, LAN1, GUESTS, TUNNEL = "outer", "lan0", "lan1", "br-guests", "wg0"
"""The links. All but the outer one have the name of the host's interface."""
_BRIDGES = {OUTER: "outer", LAN0: "inner0", LAN1: "inner1", GUESTS: GUESTS}

PREFIX = IPv6Network("2001:db8:1::/64")
OTHER_PREFIX = IPv6Network("2001:db8:2::/64")
"""The prefix that follows the first one when the network is renumbered."""
ULA = IPv6Network("fd00:db8:1::/64")
GATEWAY = IPv6Address("2001:db8:1::1")
GATEWAY_LINK_LOCAL = IPv6Address("fe80::1")
INTERNET_ADDRESS = IPv6Address("2001:db8:ffff::2")
_INTERNET_LINK = "2001:db8:ffff::1/64"

MACS = {
    ROUTER: "02:00:00:00:00:01",
    HOST: "02:00:00:00:00:02",
    NEIGHBOUR: "02:00:00:00:00:03",
    LAN0: "02:00:00:00:00:10",
    LAN1: "02:00:00:00:00:11",
    GUESTS: "02:00:00:00:00:12",
}
"""The MACs of nodes on the outer link, and of the host's downstream interfaces."""

# The switch has no address: it is no node of any link. The kernels of router and host need no DAD.
_NAMESPACES = {
    SWITCH: ("all.disable_ipv6=1", "default.disable_ipv6=1"),
    ROUTER: ("all.forwarding=1", "all.accept_dad=0", "default.accept_dad=0"),
    INTERNET: ("all.accept_dad=0", "default.accept_dad=0", "default.accept_ra=0"),
    HOST: ("all.forwarding=1", "all.accept_dad=0", "default.accept_dad=0"),
}

_SWITCH_LINKS = f"""
link add outer type bridge
link add inner0 type bridge
link add inner1 type bridge
link add to-router type veth peer name {LINK} address {MACS[ROUTER]} netns {ROUTER}
link add to-host type veth peer name {LINK} address {MACS[HOST]} netns {HOST}
link add to-lan0 type veth peer name {LAN0} address {MACS[LAN0]} netns {HOST}
link add to-lan1 type veth peer name {LAN1} address {MACS[LAN1]} netns {HOST}
link set to-router master outer up
link set to-host master outer up
link set to-lan0 master inner0 up
link set to-lan1 master inner1 up
link set outer up
link set inner0 up
link set inner1 up
"""
_HOST_PORTS = ("to-host", "to-lan0", "to-lan1")

_ROUTER_LINKS = f"""
link set lo up
link add eth1 type veth peer name {LINK} netns {INTERNET}
link set {LINK} addrgenmode none
link set {LINK} up
link set eth1 up
address add {GATEWAY_LINK_LOCAL}/64 dev {LINK}
address add {GATEWAY}/64 dev {LINK}
address add {_INTERNET_LINK} dev eth1
"""

_INTERNET_LINKS = f"""
link set lo up
link set {LINK} up
address add {INTERNET_ADDRESS}/64 dev {LINK}
route add default via {_INTERNET_LINK.partition("/")[0]}
"""

_HOST_LINKS = f"""
link set lo up
link add {GUESTS} address {MACS[GUESTS]} type bridge
link set {LINK} up
link set {LAN0} up
link set {LAN1} up
link set {GUESTS} up
"""


class Prefix(NamedTuple):
    """A prefix that radvd advertises; lifetimes in seconds."""

    network: IPv6Network
    valid: int = 3600
    preferred: int = 1800


class SharedLab(LabNetwork):
    """The network, from construction until `close` (or the end of `with`).

    Raises LabError after undoing a partial build.

    Attributes:
        host, router, internet, neighbour: Its nodes; the host is the one where ndxdp is to run.
        clients: The nodes that `client` and `tunnel_client` have made, by name.
    """

    def __init__(self, *prefixes: Prefix) -> None:
        super().__init__()
        self.clients: dict[str, Node] = {}
        self._bridges = dict(_BRIDGES)
        self._ports: dict[str, tuple[str, str]] = {}
        self._next_mac = 0x100
        try:
            self._folder = Path(self._exits.enter_context(tempfile.TemporaryDirectory()))
            for name, settings in _NAMESPACES.items():
                self._node(name).sysctl(*settings)
            switch = Node(SWITCH)
            switch.ip(_SWITCH_LINKS)
            # Without a program at the peer, veth drops what native XDP sends.
            for port in _HOST_PORTS:
                program = ("xdp", "obj", str(build_xdp_pass()), "sec", "xdp")
                switch.run("ip", "link", "set", "dev", port, *program)
            self.router = Node(ROUTER, MACS[ROUTER])
            self.router.ip(_ROUTER_LINKS)
            self.internet = Node(INTERNET)
            self.internet.ip(_INTERNET_LINKS)
            self.host = Node(HOST, MACS[HOST])
            self.host.sysctl(f"{LINK}.accept_ra=2")
            self.host.ip(_HOST_LINKS)
            self._radvd: subprocess.Popen[bytes] | None = None
            self.advertise(*(prefixes or (Prefix(PREFIX),)))
            self.neighbour = self.client(NEIGHBOUR, OUTER, mac=MACS[NEIGHBOUR])
            first = (prefixes or (Prefix(PREFIX),))[0].network
            wait_until(lambda: self.host.addresses(first), "the host has no address", 10)
            wait_until(lambda: self.neighbour.addresses(first), "the neighbour has no address", 10)
        except BaseException:
            self.close()
            raise

    def _node(self, name: str, mac: str = "") -> Node:
        self._add_namespace(name)
        return Node(name, mac)

    # ---- the router --------------------------------------------------------------------------

    def advertise(
        self, *prefixes: Prefix, intervals: tuple[int, int] = (3, 4), options: str = ""
    ) -> None:
        """Let radvd advertise these prefixes, and no others; the first time, start it.

        Args:
            prefixes: The prefixes; a router's address in each is added.
            intervals: The least and the most seconds between two advertisements.
            options: More lines of radvd.conf, for the interface.
        """
        lines = "".join(
            f"prefix {each.network} {{ AdvOnLink on; AdvAutonomous on; "
            f"AdvValidLifetime {each.valid}; AdvPreferredLifetime {each.preferred}; "
            "DeprecatePrefix on; };\n"
            for each in prefixes
        )
        (self._folder / "radvd.conf").write_text(
            f"interface {LINK} {{ AdvSendAdvert on;\n"
            f"MinRtrAdvInterval {intervals[0]}; MaxRtrAdvInterval {intervals[1]};\n"
            f"{options}\n{lines}}};\n"
        )
        for each in prefixes:
            self.router.run("ip", "address", "replace", f"{each.network[1]}/64", "dev", LINK)
        if self._radvd:
            self._radvd.send_signal(1)
            return
        self.start_radvd()

    def start_radvd(self) -> None:
        """Start radvd with its last configuration."""
        # A helper of a radvd that was killed keeps the lock on its file a little longer.
        pid_file = self._folder / f"radvd-{time.monotonic_ns()}.pid"
        files = ("-C", str(self._folder / "radvd.conf"), "-p", str(pid_file))
        log = (self._folder / "radvd.log").open("a")
        with log:
            self._radvd = subprocess.Popen(
                enter(ROUTER, ("radvd", "--nodaemon", "-m", "stderr", *files)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._exits.callback(self.stop_radvd)

    def stop_radvd(self, *, silently: bool = False) -> None:
        """End radvd; unless `silently`, it advertises that it is no router any more."""
        if self._radvd:
            self._radvd.send_signal(9 if silently else 15)
            self._radvd.wait(10)
            self._radvd = None

    # ---- clients -----------------------------------------------------------------------------

    def client(
        self, name: str, link: str, *, mac: str = "", privacy: bool = False, up: bool = True
    ) -> Node:
        """Make a node on a link, whose kernel forms its addresses.

        Args:
            name: Of its namespace.
            link: OUTER, LAN0, LAN1, GUESTS, or a bridge of `add_bridge`.
            mac: Of its interface; "" for one of its own.
            privacy: It also has temporary addresses (RFC 8981).
            up: Its interface is up.
        """
        if not mac:
            self._next_mac += 1
            mac = f"02:00:00:01:{self._next_mac >> 8:02x}:{self._next_mac & 0xFF:02x}"
        node = self._node(name, mac)
        if privacy:
            node.sysctl("all.use_tempaddr=2", "default.use_tempaddr=2")
        owner = SWITCH if link in (OUTER, LAN0, LAN1) else HOST
        port = f"v-{name}"
        Node(owner).ip(
            f"link add {port} type veth peer name {LINK} address {mac} netns {name}\n"
            f"link set {port} addrgenmode none\n"
            f"link set {port} master {self._bridges[link]} up"
        )
        self._ports[name] = (owner, port)
        node.ip(f"link set lo up\n{f'link set {LINK} up' if up else ''}")
        if name != NEIGHBOUR:
            self.clients[name] = node
        return node

    def add_bridge(self, name: str) -> None:
        """Make one more bridge of the host, a downstream link for clients."""
        self.host.ip(f"link add {name} type bridge\nlink set {name} up")
        self._bridges[name] = name

    def move(self, node: Node, link: str) -> None:
        """Move a client from LAN0 to LAN1 or back; its own kernel notices nothing of it."""
        owner, port = self._ports[node.name]
        Node(owner).run("ip", "link", "set", port, "master", self._bridges[link])

    def link_local(self, link: str) -> IPv6Address:
        """Return the host's link-local address on one of its downstream links."""
        return slaac_address(IPv6Network("fe80::/64"), MACS[link])

    def remove(self, node: Node) -> None:
        """Remove a client: it vanishes without a word."""
        owner, port = self._ports.pop(node.name, ("", ""))
        if port:  # otherwise it would go some time after the namespace
            Node(owner).run("ip", "link", "delete", port)
        run_command(["ip", "netns", "delete", node.name])
        self.clients.pop(node.name, None)

    def tunnel_client(self, name: str, address: IPv6Address | str) -> Node:
        """Make TUNNEL, and a node behind it with an address and a default route through it.

        The host has a route to the address, as wg-quick would make it.
        """
        node = self._node(name)
        self._exits.enter_context(tunnel((HOST, TUNNEL), (name, LINK)))
        self.host.ip(f"link set {TUNNEL} up\nroute add {address}/128 dev {TUNNEL}")
        node.ip(
            f"link set lo up\nlink set {LINK} up\naddress add {address}/128 dev {LINK}\n"
            f"route add default dev {LINK}"
        )
        self.clients[name] = node
        return node

    def forget_neighbours(self) -> None:
        """Empty the neighbour caches of all nodes."""
        nodes = (self.router, self.internet, self.host, self.neighbour, *self.clients.values())
        for node in nodes:
            node.forget_neighbours()

    def wait_for_addresses(self, *nodes: Node, network: IPv6Network = PREFIX) -> None:
        """Wait until each node has formed its addresses from a prefix, and checked them by DAD."""
        for node in nodes:
            problem = f"{node.name} has no address"
            wait_until(partial(node.has_settled, network), problem, 15, node.address_objects)
