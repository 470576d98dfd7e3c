"""The lab's network for addresses that move: two hosts on one outer link.

    router ---- [ outer ] ---- up-a   host-a   br-a ---- guest
                    |
                    +--------- up-b   host-b   br-b ---- (where the guest moves to)

For the router, 2001:db8:1::/64 is on-link. Behind both hosts is the same prefix,
2001:db8:1:0:c::/80, and both bridges have the same gateway address and MAC, as on hypervisors
between which guests move. A guest's own kernel keeps its address and its routes when its port
moves. Each bridge has another port that stays, so that the host left behind keeps its neighbour
entries, as in real life.

`TwoHosts` takes the names of its namespaces in /run/netns for itself, so run it in namespaces of
its own: `lab.private`.
"""

from __future__ import annotations

import json
import time
from ipaddress import IPv6Address, IPv6Network

from lab.nodes import KERNEL_WITHIN, LINK, LabNetwork, Node, wait_until

SWITCH, ROUTER, GUEST = "switch", "router", "guest"

PREFIX = IPv6Network("2001:db8:1::/64")
BEHIND = IPv6Network("2001:db8:1:0:c::/80")
GATEWAY = IPv6Address("2001:db8:1::1")
GUEST_ADDRESS = IPv6Address("2001:db8:1:0:c::10")

ROUTER_MAC, GUEST_MAC = "02:00:00:00:00:01", "02:00:00:00:01:10"
_BRIDGE_MAC = "02:00:00:00:00:99"

_ANNOUNCEMENTS, _ANNOUNCEMENT_PAUSE = 5, 0.1
"""How often a guest announces itself after a migration, and the seconds in between: as QEMU has it
(announce-rounds, announce-step)."""

_SLOW = ("delay_first_probe_time=600", "base_reachable_time_ms=600000", "gc_stale_time=600")


class Host(Node):
    """A host of the two.

    Attributes:
        letter: `a` or `b`.
        uplink: The interface on the outer link.
        bridge: The bridge that guests are on.
        address: Its own address on the outer link.
    """

    def __init__(self, letter: str) -> None:
        super().__init__(f"host-{letter}", f"02:00:00:00:00:0{letter}")
        self.letter = letter
        self.uplink, self.bridge = f"up-{letter}", f"br-{letter}"
        self.address = PREFIX[int(letter, 16)]


class TwoHosts(LabNetwork):
    """The network, from construction until `close` (or the end of `with`).

    Raises LabError after undoing a partial build.

    Attributes:
        router, guest: Its nodes.
        hosts: The two hosts.
    """

    def __init__(self, *, routed: bool = True) -> None:
        """Build the network.

        Args:
            routed: The hosts have a route to the prefix behind them. Without it, a share adds a
                route for each guest.
        """
        super().__init__()
        self._routed = routed
        self.router, self.guest = Node(ROUTER, ROUTER_MAC), Node(GUEST, GUEST_MAC)
        self.hosts = (Host("a"), Host("b"))
        try:
            for name in (SWITCH, ROUTER, GUEST, *(host.name for host in self.hosts)):
                self._add_namespace(name)
                quiet = ("all.accept_dad=0", "default.accept_dad=0")
                Node(name).sysctl(*quiet, "default.accept_ra=0")
            switch = Node(SWITCH)
            switch.sysctl("all.disable_ipv6=1", "default.disable_ipv6=1")
            switch.ip(
                "link add outer type bridge\n"
                f"link add to-router type veth peer name {LINK} address {ROUTER_MAC}"
                f" netns {ROUTER}\n"
                "link set to-router master outer up\nlink set outer up"
            )
            self.router.ip(
                f"link set lo up\nlink set {LINK} up\naddress add {GATEWAY}/64 dev {LINK}"
            )
            for host in self.hosts:
                self._connect(host)
            self.hosts[0].ip(
                f"link add v-guest type veth peer name {LINK} address {GUEST_MAC} netns {GUEST}\n"
                f"link set v-guest addrgenmode none\nlink set v-guest master {host_bridge('a')} up"
            )
            self.guest.sysctl("all.ndisc_notify=1")
            self.guest.ip(
                f"link set lo up\nlink set {LINK} up\naddress add {GUEST_ADDRESS}/128 dev {LINK}\n"
                f"route add default via fe80::1 dev {LINK}"
            )
            self._wait_for_carrier(self.guest, LINK)
            self._wait_for_carrier(self.router, LINK)
            for host in self.hosts:
                self._wait_for_carrier(host, host.uplink)
                self._wait_for_carrier(host, host.bridge)
        except BaseException:
            self.close()
            raise

    def _wait_for_carrier(self, node: Node, link: str) -> None:
        """Wait until an interface sends: after a change the kernel may take a second."""

        def sends() -> bool:
            shown = json.loads(node.run("ip", "-j", "link", "show", link).stdout)
            return bool(shown[0]["operstate"] == "UP")

        wait_until(sends, f"{link} in {node.name} has no carrier", KERNEL_WITHIN)

    def _connect(self, host: Host) -> None:
        Node(SWITCH).ip(
            f"link add to-{host.letter} type veth peer name {host.uplink} address {host.mac}"
            f" netns {host.name}\nlink set to-{host.letter} master outer up"
        )
        host.sysctl("all.forwarding=1")
        host.sysctl("default.accept_untracked_na=1")
        host.ip(
            f"""
            link set lo up
            link set {host.uplink} up
            address add {host.address}/64 dev {host.uplink}
            route add default via {GATEWAY}
            link add {host.bridge} address {_BRIDGE_MAC} type bridge
            link set {host.bridge} addrgenmode none
            link set {host.bridge} up
            link add stays type veth peer name stays-peer
            link set stays addrgenmode none
            link set stays-peer addrgenmode none
            link set stays-peer up
            link set stays master {host.bridge} up
            address add fe80::1/64 dev {host.bridge}
            """
        )
        if self._routed:
            host.run("ip", "route", "add", str(BEHIND), "dev", host.bridge)

    def move(self, source: Host, target: Host, *, announces: bool = True) -> None:
        """Move the guest's port from one host's bridge to the other's, at once.

        The guest announces itself there, as the kernel of a virtual machine with virtio-net does
        after a live migration (VIRTIO_NET_F_GUEST_ANNOUNCE): by unsolicited advertisements, as one
        may be lost. Its neighbour entries stay, so that it sends nothing else by itself.
        """
        source.run("ip", "link", "set", "v-guest", "netns", target.name)
        target.ip(f"link set v-guest addrgenmode none\nlink set v-guest master {target.bridge} up")
        self._wait_for_carrier(self.guest, LINK)

        def forwards() -> bool:
            shown = json.loads(target.run("ip", "-j", "-d", "link", "show", "v-guest").stdout)
            return bool(shown[0]["linkinfo"]["info_slave_data"]["state"] == "forwarding")

        wait_until(forwards, f"the port in {target.name} does not forward", 10)
        if not announces:
            return
        # The same MAC again: with ndisc_notify, the kernel sends the same as in a migration.
        for _ in range(_ANNOUNCEMENTS):
            self.guest.run("ip", "link", "set", LINK, "address", GUEST_MAC)
            time.sleep(_ANNOUNCEMENT_PAUSE)

    def slow_down(self) -> None:
        """Let all kernels keep their neighbour entries for ten minutes, dead or alive."""
        links = [(self.router, LINK)]
        links += [(host, link) for host in self.hosts for link in (host.uplink, host.bridge)]
        for node, link in links:
            keys = (f"net.ipv6.neigh.{link}.{setting}" for setting in _SLOW)
            node.run("sysctl", "-qw", *keys)

    def mac_at_router(self, address: IPv6Address = GUEST_ADDRESS) -> str:
        """Return the MAC that the router has for an address; "" if it has none."""
        return self.router.neighbour(address)[1]


def host_bridge(letter: str) -> str:
    """Return the name of a host's bridge."""
    return f"br-{letter}"
