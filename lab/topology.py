"""The lab's network: a prefix that is on-link upstream, and a container behind a host.

    router ---- to-router [ br0, hypervisor ] to-host ---- host ---- container

Four network namespaces are joined by veth pairs. The hypervisor's bridge filters as hosting
companies do: from the host's port only sources of the container prefix pass.

`Lab` takes the names `router`, `hypervisor`, `host` and `container` in /run/netns for itself, so
run it in namespaces of its own: `lab.private`, or `unshare` with a tmpfs on /run/netns.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv6Address, IPv6Network
from typing import IO, Any, NamedTuple, Self

from lab.capture import Capture, packet_socket
from lab.commands import HANG, LabError, enter, run_command, stop
from lab.nodes import KERNEL_WITHIN
from lab.programs import build_xdp_pass

ROUTER, HYPERVISOR, HOST, CONTAINER = "router", "hypervisor", "host", "container"

UPLINK = "eth0"  # the router's, the host's and the container's way to their left or right
ROUTER_PORT, HOST_PORT = "to-router", "to-host"  # of the hypervisor's bridge
CONTAINER_LINK = "to-container"  # in the host

ON_LINK_PREFIX = IPv6Network("2001:db8:0:1::/64")
CONTAINER_PREFIX = IPv6Network("2001:db8:0:1:c::/80")

ROUTER_ADDRESS = IPv6Address("2001:db8:0:1::1")
ROUTER_LINK_LOCAL = IPv6Address("fe80::1")
INTERNET_ADDRESS = IPv6Address("2001:db8:ffff::1")  # on the router's loopback
HOST_ADDRESS = IPv6Address("2001:db8:0:1::2")
HOST_LINK_LOCAL = IPv6Address("fe80::2")
CONTAINER_ADDRESS = IPv6Address("2001:db8:0:1:c::10")
CONTAINER_GATEWAY = IPv6Address("fe80::1")  # the host, as the container sees it

ROUTER_MAC, HOST_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"

# Addresses are `nodad` and written out, and interfaces create no link-local address by themselves:
# no step waits, and every address in a capture is known.
_HYPERVISOR_LINKS = f"""
link add br0 type bridge mcast_snooping 0
link add {ROUTER_PORT} type veth peer name {UPLINK} address {ROUTER_MAC} netns {ROUTER}
link add {HOST_PORT} type veth peer name {UPLINK} address {HOST_MAC} netns {HOST}
link set {ROUTER_PORT} master br0 up
link set {HOST_PORT} master br0 up
link set br0 up
"""

# A packet that the router forwards has a source that is not on the link, so the router solicits
# from its link-local address. A ping from INTERNET_ADDRESS is such a packet.
_ROUTER_LINKS = f"""
link set lo up
link set {UPLINK} addrgenmode none
link set {UPLINK} up
address add {ROUTER_LINK_LOCAL}/64 dev {UPLINK} nodad
address add {ROUTER_ADDRESS}/{ON_LINK_PREFIX.prefixlen} dev {UPLINK} nodad
address add {INTERNET_ADDRESS}/128 dev lo nodad
"""

# The filter also drops the host's own solicitations, because their source is the host's address.
# Static entries for the gateway are the usual cure; they break when the gateway's MAC changes.
_HOST_LINKS = f"""
link set lo up
link add {CONTAINER_LINK} type veth peer name {UPLINK} netns {CONTAINER}
link set {UPLINK} addrgenmode none
link set {UPLINK} up
link set {CONTAINER_LINK} addrgenmode none
link set {CONTAINER_LINK} up
address add {HOST_LINK_LOCAL}/64 dev {UPLINK} nodad
address add {HOST_ADDRESS}/{ON_LINK_PREFIX.prefixlen} dev {UPLINK} nodad
address add {CONTAINER_GATEWAY}/64 dev {CONTAINER_LINK} nodad
neighbour add {ROUTER_LINK_LOCAL} lladdr {ROUTER_MAC} dev {UPLINK} nud permanent
neighbour add {ROUTER_ADDRESS} lladdr {ROUTER_MAC} dev {UPLINK} nud permanent
route add default via {ROUTER_LINK_LOCAL} dev {UPLINK}
route add {CONTAINER_PREFIX} dev {CONTAINER_LINK}
"""

_CONTAINER_LINKS = f"""
link set lo up
link set {UPLINK} addrgenmode none
link set {UPLINK} up
address add fe80::10/64 dev {UPLINK} nodad
address add {CONTAINER_ADDRESS}/{CONTAINER_PREFIX.prefixlen} dev {UPLINK} nodad
route add default via {CONTAINER_GATEWAY} dev {UPLINK}
"""

# Advertisements have a counter of their own: the host's kernel also sends MLD reports.
_FILTER = f"""
table bridge antispoof {{
    counter dropped_advertisements {{ }}
    counter dropped_others {{ }}
    chain spoofed {{
        icmpv6 type nd-neighbor-advert counter name dropped_advertisements drop
        counter name dropped_others drop
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{HOST_PORT}" ip6 saddr != {CONTAINER_PREFIX} jump spoofed
    }}
}}
"""

# A kernel solicits three times, by default a second apart, before it gives up.
_SOLICIT_EVERY_400_MS = f"net.ipv6.neigh.{UPLINK}.retrans_time_ms=400"

_BEFORE_LINKS = {
    ROUTER: ("net.ipv6.conf.all.forwarding=1",),
    HYPERVISOR: ("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"),
    HOST: ("net.ipv6.conf.all.forwarding=1",),
    CONTAINER: ("net.ipv6.conf.default.accept_ra=0",),
}


class Drops(NamedTuple):
    """Frames that the hypervisor's filter has dropped since the lab began."""

    advertisements: int
    others: int


class Neighbour(NamedTuple):
    """A kernel's entry for a neighbour; `state` is "" without an entry."""

    state: str
    lladdr: str


class Lab:
    """The four namespaces, from construction until `close` (or the end of `with`).

    With `peer_xdp` the host's bridge port runs a program that passes every frame; without one, veth
    silently drops the frames that native XDP on the host's eth0 sends by XDP_TX.
    Raises LabError after undoing a partial build.
    """

    def __init__(self, *, peer_xdp: bool = True) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._namespaces: list[str] = []
        try:
            for name, settings in _BEFORE_LINKS.items():
                run_command(["ip", "netns", "add", name])
                self._namespaces.append(name)
                self.run(name, "sysctl", "-qw", *settings)
            # The hypervisor makes the router's and the host's eth0, the host the container's.
            self._ip_batch(HYPERVISOR, _HYPERVISOR_LINKS)
            self._ip_batch(ROUTER, _ROUTER_LINKS)
            self.run(ROUTER, "sysctl", "-qw", _SOLICIT_EVERY_400_MS)
            self._ip_batch(HOST, _HOST_LINKS)
            self._ip_batch(CONTAINER, _CONTAINER_LINKS)
            self.run(HYPERVISOR, "nft", "-f", "-", stdin=_FILTER)
            if peer_xdp:
                program = str(build_xdp_pass())
                self.run(
                    HYPERVISOR,
                    *("ip", "link", "set", "dev", HOST_PORT, "xdp", "obj", program, "sec", "xdp"),
                )
            self._wait_for_links()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes of `popen`, then the namespaces. A second call does nothing."""
        while self._processes:
            stop(self._processes.pop())
        while self._namespaces:
            run_command(["ip", "netns", "delete", self._namespaces.pop()], check=False)

    # ---- processes ---------------------------------------------------------------------------

    def run(
        self,
        namespace: str,
        *args: str,
        check: bool = True,
        stdin: str = "",
        timeout: float = HANG,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a namespace to its end, and return its output.

        Raises LabError if it fails and `check` is set, or if it takes longer than `timeout` s.
        """
        return run_command(enter(namespace, args), check=check, stdin=stdin, timeout=timeout)

    def popen(
        self,
        namespace: str,
        *args: str,
        stdin: int | IO[str] | None = subprocess.DEVNULL,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command in a namespace and return its process; `close` ends it."""
        process = subprocess.Popen(
            enter(namespace, args), stdin=stdin, stdout=stdout, stderr=stderr, text=True
        )
        self._processes.append(process)
        return process

    def packet_socket(self, namespace: str, interface: str) -> socket.socket:
        """Open an AF_PACKET socket of this process on an interface of another namespace.

        The socket receives every frame of both directions, and sends raw frames.
        """
        return packet_socket(namespace, interface)

    # ---- queries -----------------------------------------------------------------------------

    def ping(
        self,
        namespace: str,
        address: IPv6Address | str,
        *,
        source: IPv6Address | str | None = None,
        count: int = 1,
    ) -> int:
        """Return how many of `count` echo requests are answered. `source`: address or interface.

        From ROUTER_ADDRESS the router solicits with that source; from INTERNET_ADDRESS with its
        link-local address.
        """
        origin = ("-I", str(source)) if source else ()
        options = ("-6", "-n", "-q", "-i", "0.2", "-W", "2", "-c", str(count))
        done = self.run(namespace, "ping", *options, *origin, str(address), check=False)
        received = re.search(r"(\d+) received", done.stdout)
        if not received:
            raise LabError(f"ping {address} in {namespace} says: {done.stderr.strip()}")
        return int(received[1])

    def capture(self) -> Capture:
        """Watch the solicitations to the host and its advertisements, until closed."""
        return Capture(packet_socket(HYPERVISOR, HOST_PORT), packet_socket(ROUTER, UPLINK))

    def dropped(self) -> Drops:
        """Return the counters of the hypervisor's filter."""
        listing = self.run(HYPERVISOR, "nft", "-j", "list", "counters").stdout
        objects: list[dict[str, Any]] = json.loads(listing)["nftables"]
        packets = {
            entry["counter"]["name"]: int(entry["counter"]["packets"])
            for entry in objects
            if "counter" in entry
        }
        return Drops(packets["dropped_advertisements"], packets["dropped_others"])

    def neighbour(
        self, namespace: str, address: IPv6Address | str, interface: str = UPLINK
    ) -> Neighbour:
        """Return a neighbour's entry in the kernel of a namespace."""
        shown = self.run(
            namespace, "ip", "-6", "-j", "neighbour", "show", str(address), "dev", interface
        ).stdout
        entries: list[dict[str, Any]] = json.loads(shown or "[]")
        if not entries:
            return Neighbour("", "")
        return Neighbour(" ".join(entries[0]["state"]), entries[0].get("lladdr", ""))

    def forget_neighbours(self) -> None:
        """Empty the router's neighbour cache, so that it must solicit again."""
        self.run(ROUTER, "ip", "-6", "neighbour", "flush", "dev", UPLINK)

    def probe_neighbour(self, address: IPv6Address | str) -> None:
        """Make the router check a known neighbour by a unicast NS (a NUD probe)."""
        lladdr = self.neighbour(ROUTER, address).lladdr
        if not lladdr:
            raise LabError(f"The router has no entry for {address} to probe.")
        entry = (str(address), "lladdr", lladdr, "dev", UPLINK)
        self.run(ROUTER, "ip", "-6", "neighbour", "change", *entry, "nud", "probe")

    # ---- building ---------------------------------------------------------------------------

    def _ip_batch(self, namespace: str, commands: str) -> None:
        self.run(namespace, "ip", "-6", "-batch", "-", stdin=commands)

    def _wait_for_links(self) -> None:
        """Wait until the kernel has brought all links up, which happens after `ip` has ended.

        Then a bridge's port forwards, and each link answers solicitations for its addresses.
        """
        give_up = time.monotonic() + KERNEL_WITHIN
        while not self._links_are_ready():
            if time.monotonic() > give_up:
                raise LabError("The links do not come up.")
            time.sleep(0.02)

    def _links_are_ready(self) -> bool:
        ports = json.loads(self.run(HYPERVISOR, "bridge", "-j", "link").stdout)
        if any(port["state"] != "forwarding" for port in ports):
            return False
        for namespace, link, *addresses in (
            (ROUTER, UPLINK, ROUTER_ADDRESS, ROUTER_LINK_LOCAL),
            (HOST, UPLINK, HOST_ADDRESS, HOST_LINK_LOCAL),
            (HOST, CONTAINER_LINK, CONTAINER_GATEWAY),
            (CONTAINER, UPLINK, CONTAINER_ADDRESS),
        ):
            shown = self.run(namespace, "ip", "-6", "-batch", "-", stdin=show(link)).stdout
            if not is_ready(shown, addresses):
                return False
        return True


def show(link: str) -> str:
    """Return the input of `ip -6 -batch` that prints what `is_ready` reads."""
    return f"link show dev {link}\nmaddress show dev {link}\n"


def is_ready(shown: str, addresses: Iterable[IPv6Address]) -> bool:
    """Return True if a link sends, and answers solicitations for its addresses.

    The kernel starts both in work queues, some time after `ip` has ended. Until then the link drops
    the frames to send, and is in no solicited-node group.

    Args:
        shown: The output of `ip` for `show`.
        addresses: The link's addresses.
    """
    members = {
        IPv6Address(group): int(count or 1)
        for group, count in re.findall(r"inet6 (\S+)(?: users (\d+))?", shown)
    }
    first = int(IPv6Address("ff02::1:ff00:0"))  # RFC 4291 2.7.1
    wanted = Counter(IPv6Address(first | int(address) & 0xFFFFFF) for address in addresses)
    return " state UP " in shown and all(members.get(g, 0) >= n for g, n in wanted.items())
