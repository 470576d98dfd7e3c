"""A router and this host on the two ports of a switch, as a hosting company has them.

    [this namespace] up0 ---- to-host [ br0, netns switch ] to-router ---- eth0 [netns router]

Names, MACs and addresses are those of tests.network.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

from lab import private
from lab.capture import packet_socket
from ndxdp.policy import parse_address, parse_mac
from tests.network import (
    BEHIND,
    GATEWAY,
    HOST,
    HOST_LINK_LOCAL,
    HOST_MAC,
    ROUTER,
    ROUTER_LINK,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    UPLINK,
    Done,
    call,
    eventually,
    sh,
    wait_for_link,
)

SWITCH, BRIDGE = "switch", "br0"
HOST_PORT, ROUTER_PORT = "to-host", "to-router"
BEHIND_LINK = "behind0"
"""A link of this host that leads nowhere, for what is behind it."""

_FORWARDING = "net.ipv6.conf.all.forwarding"

HOST_MAC_BYTES, ROUTER_MAC_BYTES = parse_mac(HOST_MAC), parse_mac(ROUTER_MAC)
GATEWAY_BYTES = parse_address(GATEWAY)
ROUTER_LINK_LOCAL_BYTES = parse_address(ROUTER_LINK_LOCAL)


def at(namespace: str, *command: str, stdin: str = "") -> Done:
    """Run a command in a namespace; it has to succeed."""
    done = call("nsenter", f"--net=/run/netns/{namespace}", *command, stdin=stdin)
    assert done.code == 0, f"{' '.join(command)}: {done.err.strip()}"
    return done


def ip(namespace: str, commands: str) -> None:
    at(namespace, "ip", "-6", "-batch", "-", stdin=commands)


class Segment:
    """The segment; its ends."""

    def ifindex(self) -> int:
        return socket.if_nametoindex(UPLINK)

    def at_switch(self) -> socket.socket:
        """What comes and goes at the host's port."""
        return packet_socket(SWITCH, HOST_PORT)

    def ping(self, target: str, *, count: int = 1, wait: float = 0.5) -> int:
        """How many echo requests of the router were answered."""
        options = f"-6 -n -q -i 0.1 -c {count} -W {wait} {target}"
        said = call("nsenter", f"--net=/run/netns/{ROUTER}", "ping", *options.split()).out
        return int(said.partition(" received")[0].rpartition(" ")[2])

    def behind(self, address: str) -> None:
        """Let an address live behind this host, and answer."""
        sh("ip", "-6", "address", "add", f"{address}/128", "dev", BEHIND_LINK, "nodad")

    def static_neighbour(self, address: str) -> None:
        ip(ROUTER, f"neighbour replace {address} lladdr {HOST_MAC} dev {ROUTER_LINK}")

    def entry(self, address: str = GATEWAY) -> tuple[str, str]:
        """State and MAC of this host's neighbour entry; empty without one."""
        shown = sh("ip", "-j", "-6", "neighbour", "show", address, "dev", UPLINK)
        found: list[dict[str, Any]] = json.loads(shown or "[]")
        if not found:
            return "", ""
        return found[0]["state"][0], found[0].get("lladdr", "")


@contextlib.contextmanager
def segment(*, snooping: bool = False, reachable_ms: int | None = None) -> Iterator[Segment]:
    """reachable_ms: the base reachable time of both ends; the kernel's if not given."""
    assert private.inside(), "these tests need namespaces of their own: run `make test`"
    names = (SWITCH, ROUTER)
    forwarding = sh("sysctl", "-n", _FORWARDING).strip()
    try:
        for name in names:
            sh("ip", "netns", "add", name)
        for family in ("all", "default"):
            at(SWITCH, "sysctl", "-qw", f"net.ipv6.conf.{family}.disable_ipv6=1")
        _build(snooping)
        sh("sysctl", "-qw", f"{_FORWARDING}=1")
        at(ROUTER, "sysctl", "-qw", f"{_FORWARDING}=1")
        if reachable_ms is not None:
            for key, value in (
                ("base_reachable_time_ms", reachable_ms),
                ("delay_first_probe_time", 1),
                ("retrans_time_ms", 200),
            ):
                sh("sysctl", "-qw", f"net.ipv6.neigh.{UPLINK}.{key}={value}")
        _wait_for_links()
        yield Segment()
    finally:
        sh("sysctl", "-qw", f"{_FORWARDING}={forwarding}")
        call("ip", "link", "delete", BEHIND_LINK)
        call("ip", "link", "delete", UPLINK)
        for name in names:
            call("ip", "netns", "delete", name)


def _wait_for_links() -> None:
    """Wait until the router and this host reach each other through the switch."""
    wait_for_link(UPLINK, HOST_LINK_LOCAL, HOST)
    wait_for_link(ROUTER_LINK, ROUTER_LINK_LOCAL, GATEWAY, namespace=ROUTER)
    eventually(
        lambda: (
            [port["state"] for port in json.loads(at(SWITCH, "bridge", "-j", "link").out)]
            == ["forwarding", "forwarding"]
        )
    )


def _build(snooping: bool) -> None:
    # It filters once it is the querier, which takes a response interval (in 1/100 s), and asks
    # from an address of its own.
    querier = "mcast_snooping 1 mcast_query_response_interval 100 "
    querier += "mcast_last_member_interval 10"
    bridge = f"{querier if snooping else 'mcast_snooping 0'} stp_state 0"
    ip(
        SWITCH,
        f"""
        link add {BRIDGE} type bridge {bridge} forward_delay 0
        link add {ROUTER_PORT} type veth peer name {ROUTER_LINK} address {ROUTER_MAC} netns {ROUTER}
        link set {ROUTER_PORT} master {BRIDGE} up
        """,
    )
    far_end = f"peer name {HOST_PORT} netns {SWITCH}"
    sh("ip", *f"link add {UPLINK} address {HOST_MAC} type veth {far_end}".split())
    ip(SWITCH, f"link set {HOST_PORT} master {BRIDGE} up\nlink set {BRIDGE} up")
    if snooping:
        at(SWITCH, "sysctl", "-qw", f"net.ipv6.conf.{BRIDGE}.disable_ipv6=0")
        ip(SWITCH, f"address add fe80::5/64 dev {BRIDGE} nodad")
        at(SWITCH, "ip", "link", "set", BRIDGE, "type", "bridge", "mcast_querier", "1")
    ip(
        ROUTER,
        f"""
        link set lo up
        link set {ROUTER_LINK} addrgenmode none
        link set {ROUTER_LINK} up
        address add {ROUTER_LINK_LOCAL}/64 dev {ROUTER_LINK} nodad
        address add {GATEWAY}/64 dev {ROUTER_LINK} nodad
        address add 2001:db8:ffff::1/128 dev lo nodad
        """,
    )
    near = f"""
        link set lo up
        link add {BEHIND_LINK} type veth peer name {BEHIND_LINK}-end
        link set {BEHIND_LINK} addrgenmode none
        link set {BEHIND_LINK}-end addrgenmode none
        link set {BEHIND_LINK} up
        link set {BEHIND_LINK}-end up
        link set {UPLINK} addrgenmode none
        link set {UPLINK} up
        address add {HOST_LINK_LOCAL}/64 dev {UPLINK} nodad
        address add {HOST}/64 dev {UPLINK} nodad
        route add default via {GATEWAY} dev {UPLINK}
        route add {BEHIND} dev {BEHIND_LINK}
    """
    sh("ip", "-6", "-batch", "-", stdin=near)
