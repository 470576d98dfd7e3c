"""Links that are interrupted: carriers that flap, ports that change, machines that were suspended.

The upstream may have forgotten this host then, so all addresses are announced again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.capture import packet_socket
from ndxdp.config.model import Announce
from ndxdp.daemon import upstream_tasks
from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.daemon.upstream_tasks import UpstreamTasks
from ndxdp.ndp.frame import flags_of
from ndxdp.ndp.profile import DEFAULT_PROFILE
from ndxdp.netlink import links
from ndxdp.netlink.link_monitor import Interruptions, LinkMonitor
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.ruleset import Rules
from ndxdp.session.request import AttachOptions
from ndxdp.upstream.announce import Kind
from ndxdp.upstream.gateways import NO_KEEPALIVE
from tests.fixtures.announcing import ADDRESS, ADDRESS_BYTES, Seen, named
from tests.fixtures.auto import needs
from tests.fixtures.network import (
    GATEWAY,
    HOST_MAC,
    ROUTER,
    ROUTER_LINK,
    UPLINK,
    Running,
    call,
    done,
    eventually,
    link_state,
    ndxdp,
    sh,
)
from tests.fixtures.segment import HOST_PORT, SWITCH, Segment, ip

ANNOUNCE = "[interface.announce]\nsolicit_gateway = true\nadvertise = true"


class Listener:
    """The frames about ADDRESS on the router's link, counted by kind."""

    def __init__(self, wire: socket.socket) -> None:
        self._seen = Seen(wire)
        self.counts = dict.fromkeys(Kind, 0)

    def count(self, kind: Kind = Kind.ADVERTISE) -> int:
        for frame in self._seen.frames():
            seen, address = named(frame)
            is_answer = seen is Kind.ADVERTISE and flags_of(frame) & 0x40  # to the router's NUD
            self.counts[seen] += address == ADDRESS_BYTES and not is_answer
        return self.counts[kind]

    def forget(self) -> None:
        self.count()
        self.counts = dict.fromkeys(Kind, 0)


@contextlib.contextmanager
def daemon(
    tmp_path: Path, keys: str = ANNOUNCE, *, interface: str = UPLINK, head: str = ""
) -> Iterator[tuple[Running, Listener]]:
    """Run a daemon that answers for ADDRESS and has announced it."""
    file = tmp_path / "ndxdp.toml"
    rule = f'[[interface.prefix]]\nprefix = "{ADDRESS}"\n'
    file.write_text(f'[[interface]]\nname = "{interface}"\n{head}\n{rule}{keys}\n')
    with packet_socket(ROUTER, ROUTER_LINK) as wire:
        listener = Listener(wire)
        run = Running(("-c", str(file)))
        try:
            yield run, listener
            assert run.end()[0] == 0
        finally:
            run.close()
            ndxdp("-q", "detach", interface)


def announced(listener: Listener) -> None:
    """Wait for a series of three announcements, and reset the listener."""
    eventually(lambda: listener.count() == 3)
    listener.forget()


# ---- the carrier ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_carrier_comes_back(wired: Segment, tmp_path: Path, mode: str) -> None:
    """Announce again when the far end of the cable was pulled, though the interface stayed up."""
    with daemon(tmp_path, head=f'mode = "{mode}"') as (_, listener):
        announced(listener)
        ip(SWITCH, f"link set {HOST_PORT} down")
        eventually(lambda: not netlink_operational())
        assert "UP" in sh("ip", "-br", "link", "show", "dev", UPLINK)
        time.sleep(0.2)
        ip(SWITCH, f"link set {HOST_PORT} up")
        announced(listener)
        time.sleep(0.3)
        assert listener.count() == 0, "three, and no more"


def netlink_operational() -> bool:
    link = links.find_link(UPLINK)
    return link is not None and link.operational


def test_carrier_flaps_within_a_burst(wired: Segment, tmp_path: Path) -> None:
    """Announce again after a flap so short that the link looks unchanged."""
    with daemon(tmp_path) as (_, listener):
        announced(listener)
        before = links.find_link(UPLINK)
        ip(SWITCH, f"link set {HOST_PORT} down\nlink set {HOST_PORT} up")
        announced(listener)
        after = links.find_link(UPLINK)
        assert before is not None
        assert after is not None
        assert before.carrier_ups < after.carrier_ups


def test_administrator_takes_it_down_and_up(wired: Segment, tmp_path: Path) -> None:
    with daemon(tmp_path) as (_, listener):
        announced(listener)
        flap = f"link set {UPLINK} down\nlink set {UPLINK} up"
        sh("ip", "-6", "-batch", "-", stdin=flap)
        eventually(lambda: listener.count() >= 3)


def test_nothing_is_sent_without_carrier(wired: Segment, tmp_path: Path) -> None:
    """Wait without a carrier, and count no failure."""
    other = "2001:db8::c:0:0:98"
    with daemon(tmp_path) as (_, listener):
        announced(listener)
        ip(SWITCH, f"link set {HOST_PORT} down")
        eventually(lambda: not netlink_operational())
        done("prefix", "add", other)
        time.sleep(0.5)
        ip(SWITCH, f"link set {HOST_PORT} up")
        announced(listener)


def test_gateway_is_solicited_when_the_carrier_comes_back(wired: Segment, tmp_path: Path) -> None:
    keys = f'[interface.gateway]\nsource = "{ADDRESS}"\ninterval = 3600'
    with daemon(tmp_path, keys) as (_, listener):
        eventually(lambda: listener.count(Kind.SOLICIT) == 1)
        ip(SWITCH, f"link set {HOST_PORT} down")
        time.sleep(4)  # the kernel drops the entry, and fails three times to restore it
        listener.forget()
        ip(SWITCH, f"link set {HOST_PORT} up")
        eventually(lambda: listener.count(Kind.SOLICIT) >= 1)


def test_port_of_a_bridge(wired: Segment, tmp_path: Path) -> None:
    """Announce when the uplink's carrier returns, though another port kept the bridge's."""
    bridge, above = "vmbr0", "above0"  # not a veth, as the ports of guests are
    build = f"""
        address flush dev {UPLINK}
        link add link {UPLINK} name {above} type macvlan mode passthru
        link add {bridge} address {HOST_MAC} type bridge mcast_snooping 0 forward_delay 0
        link set {bridge} addrgenmode none
        link set {bridge} up
        link set {above} master {bridge} up
        link add guest0 up type veth peer name guest0-end
        link set guest0-end up
        link set guest0 master {bridge}
        address add 2001:db8::2/64 dev {bridge} nodad
        route replace default via {GATEWAY} dev {bridge}
    """
    sh("ip", "-6", "-batch", "-", stdin=build)
    try:
        with daemon(tmp_path, interface=bridge) as (_, listener):
            announced(listener)
            # The macvlan follows a little later; it does not notice shorter losses.
            ip(SWITCH, f"link set {HOST_PORT} down")
            eventually(lambda: "LOWER_UP" not in link_state(above)["flags"])
            time.sleep(2.5)  # the loss is announced, too, without effect
            listener.forget()
            ip(SWITCH, f"link set {HOST_PORT} up")
            eventually(lambda: listener.count() >= 3)
            link = links.find_link(bridge)
            assert link is not None
            assert link.carrier_ups == 1, "the bridge itself never lost it"
            time.sleep(2.2)
            listener.forget()
            sh("ip", "link", "set", "guest0-end", "down")
            sh("ip", "link", "set", "guest0-end", "up")
            time.sleep(0.5)
            assert listener.count() == 0, "a guest is not the upstream"
    finally:
        call("ip", "link", "delete", bridge)
        call("ip", "link", "delete", "guest0")


def test_bond_takes_its_other_port(wired: Segment, tmp_path: Path) -> None:
    """Announce when a bond changes its port; its own carrier stays. Needs bonds: `make test-vm`."""
    bond, second, far = "bond7", "up9", "to-second"
    needs("type", "bond")
    sh("ip", *f"link add {second} type veth peer name {far} netns {SWITCH}".split())
    ip(SWITCH, f"link set {far} master br0 up")
    build = f"""
        link set {UPLINK} down
        link add {bond} address {HOST_MAC} type bond mode active-backup miimon 10
        link set {UPLINK} master {bond}
        link set {second} master {bond}
        link set {bond} addrgenmode none
        link set {bond} up
        address add 2001:db8::2/64 dev {bond} nodad
        route replace default via {GATEWAY} dev {bond}
    """
    try:
        sh("ip", "-6", "-batch", "-", stdin=build)
        eventually(lambda: "LOWER_UP" in link_state(bond)["flags"])
        with daemon(tmp_path, interface=bond) as (_, listener):
            announced(listener)
            before = links.find_link(bond)
            ip(SWITCH, f"link set {HOST_PORT} down")
            eventually(lambda: listener.count() >= 3)
            after = links.find_link(bond)
            assert before is not None
            assert after is not None
            assert before.carrier_ups == after.carrier_ups
    finally:
        call("ip", "link", "delete", bond)
        call("ip", "link", "delete", second)


def test_interface_on_top_of_another(wired: Segment, tmp_path: Path) -> None:
    """Announce when the lower interface lost its carrier too briefly for the upper one."""
    above = "above0"
    build = f"""
        address flush dev {UPLINK}
        link add link {UPLINK} name {above} type macvlan mode passthru
        link set {above} addrgenmode none
        link set {above} up
        address add 2001:db8::2/64 dev {above} nodad
        route replace default via {GATEWAY} dev {above}
    """
    sh("ip", "-6", "-batch", "-", stdin=build)
    try:
        with daemon(tmp_path, interface=above) as (_, listener):
            announced(listener)
            for _ in range(3):
                ip(SWITCH, f"link set {HOST_PORT} down\nlink set {HOST_PORT} up")
                announced(listener)
    finally:
        call("ip", "link", "delete", above)


# ---- facts that only a message has --------------------------------------------------------------

UP, LOWER_UP = 0x1, 0x10000
BRIDGE, BOND = 7, 8


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def message(
    index: int,
    *attributes: bytes,
    flags: int = UP | LOWER_UP,
    operstate: int = 6,
    family: int = 0,
    kind: int = 16,
) -> bytes:
    """Return an RTM_NEWLINK in the kernel's format."""
    body = struct.pack("=BxHiII", family, 1, index, flags, 0)
    body += attribute(16, bytes((operstate,))) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def info(own: bytes = b"", of_port: bytes = b"") -> bytes:
    kinds = [attribute(1, own + b"\0")] if own else []
    kinds += [attribute(4, of_port + b"\0")] if of_port else []
    return attribute(18, b"".join(kinds))


def port(index: int, ups: int, kind: bytes = b"", **fields: int) -> bytes:
    return message(index, number(10, BRIDGE), info(kind, b"bridge"), number(47, ups), **fields)


@pytest.mark.parametrize("event", [3, 4], ids=["BONDING_FAILOVER", "NOTIFY_PEERS"])
def test_the_kernel_asks_for_announcements(event: int) -> None:
    found = Interruptions()
    assert found.of(message(BOND, number(44, event))) == {BOND}
    bond_in_bridge = message(BOND, number(10, BRIDGE), info(b"bond", b"bridge"), number(44, event))
    assert found.of(bond_in_bridge) == {BOND, BRIDGE}
    assert found.of(message(BOND, number(44, 2))) == set(), "other features: no such event"
    assert found.of(message(BOND)) == set()


@pytest.mark.parametrize(
    ("flags", "operstate", "interrupted"),
    [
        (UP | LOWER_UP, 6, False),
        (UP | LOWER_UP, 0, False),  # a driver without carrier detection
        (UP, 2, True),
        (UP | LOWER_UP, 5, True),  # dormant: 802.1X
        (UP | LOWER_UP, 3, True),
        (0, 2, True),
    ],
)
def test_operational_state(flags: int, operstate: int, interrupted: bool) -> None:
    sent = message(3, flags=flags, operstate=operstate)
    assert Interruptions().of(sent) == ({3} if interrupted else set())


def test_ports_of_a_bridge() -> None:
    found = Interruptions()
    found.of(port(3, 1))
    assert found.of(port(3, 1)) == set(), "nothing has changed"
    assert found.of(port(3, 2)) == {BRIDGE}, "it was gone for less than a message"
    assert found.of(port(3, 2, flags=UP, operstate=2)) == {3, BRIDGE}
    assert found.of(port(3, 3)) == {BRIDGE}
    for kind in (b"veth", b"tun"):
        assert found.of(port(4, 1, kind)) == set()
        assert found.of(port(4, 2, kind)) == set()
    member = message(5, number(10, BOND), info(b"", b"bond"), number(47, 1))
    assert found.of(member) == set(), "a bond says by an event what matters"
    assert found.of(message(3, number(10, BRIDGE), kind=17)) == set(), "deleted"
    assert found.of(port(3, 3)) == {BRIDGE}, "another one of that number"
    assert found.of(port(3, 9, family=socket.AF_BRIDGE)) == set()


@pytest.mark.parametrize("cut", [0, 16, 31, 33, 40])
def test_short_messages(cut: int) -> None:
    Interruptions().of(port(3, 1)[:cut])
    Interruptions().of(message(3) + struct.pack("=HH", 2, 10) + bytes(20))
    Interruptions().of(message(3, attribute(10, b"\7"), attribute(44, b"")))


def test_real_messages(wired: Segment) -> None:
    """Read the kernel's own messages."""
    with contextlib.closing(LinkMonitor()) as monitor:
        here = socket.if_nametoindex(UPLINK)
        sh("ip", "link", "set", UPLINK, "mtu", "1400")
        eventually(lambda: monitor.drain().concern(frozenset({here})))
        assert monitor.interrupted() == set()
        ip(SWITCH, f"link set {HOST_PORT} down")
        eventually(lambda: monitor.drain().concern(frozenset({here})))
        assert monitor.interrupted() == {here}
        assert monitor.interrupted() == set()


# ---- a machine that was suspended ----------------------------------------------------------------


def test_after_a_suspend(wired: Segment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(upstream_tasks, "_SUSPEND_PERIOD", 0.05)
    asleep = 100.0
    spec = InterfaceSpec(
        UPLINK, AttachOptions(), Rules(), announce=Announce(advertise=True, rate=1000)
    )
    link = links.find_link(UPLINK)
    assert link
    targets = {DEFAULT_PROFILE: AddressSet.of([ADDRESS_BYTES])}

    async def main() -> None:
        nonlocal asleep
        looks = 0

        def look() -> None:
            nonlocal looks
            looks += 1
            tasks.follow(link, frozenset(), targets, NO_KEEPALIVE)

        tasks = UpstreamTasks(spec, link, tmp_path, look, lambda: asleep)
        tasks.follow(link, frozenset(), targets, NO_KEEPALIVE)
        try:
            assert tasks.announced
            while tasks.announced().sent < 3:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)
            assert (looks, tasks.announced().sent) == (0, 3)
            asleep += 3600
            while tasks.announced().sent < 6:
                await asyncio.sleep(0.05)
            assert looks == 1
        finally:
            await tasks.end()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_clocks_show_suspends() -> None:
    assert 0 <= upstream_tasks.suspended_time() + 0.1 < 1e9
