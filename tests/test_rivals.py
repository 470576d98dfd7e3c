"""Rivals: other MACs that advertise an address which this host answers for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.capture import packet_socket
from ndxdp.daemon import rival_watch
from ndxdp.daemon.rival_watch import RivalWatch
from ndxdp.fleet.rival_probes import FIRST, PERIOD, RivalProbes
from ndxdp.fleet.rivals import GRACE, LOG_PERIOD, PAIRS_MAX, Rivals
from ndxdp.ndp.frame import TYPE_NA, TYPE_NS, icmpv6_type_of, source_of, target_of
from ndxdp.ndp.message import Host, Solicitation, advertise, unsolicited
from ndxdp.rules.prefix import Prefix, parse_prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules
from tests.fixtures.network import (
    HOST_MAC,
    PATIENCE,
    ROUTER,
    ROUTER_LINK,
    ROUTER_MAC,
    UPLINK,
    Network,
    done,
    remove_instance,
)

OWN, OTHER = bytes.fromhex(HOST_MAC.replace(":", "")), b"\2\0\0\0\0\x77"
SHARED, WIDE = parse_prefix("2001:db8::20"), parse_prefix("2001:db8:0:5::/64")
ADDRESS = SHARED.address


def inside(number: int) -> bytes:
    """Return an address of the wide prefix."""
    return WIDE.address[:8] + number.to_bytes(8, "big")


def rules(*prefixes: Prefix) -> Rules:
    """Return leased rules, some of them alike."""
    made = {prefix: Rule(leased=True, label=str(prefix.length)) for prefix in prefixes}
    return Rules.of(made)


# ---- which advertisements are those of a rival ---------------------------------------------------


class World:
    """A clock, and what it does to Rivals that hold the shared prefixes since a long time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rivals = Rivals(lambda: self.now)
        self.rivals.hold(rules(SHARED, WIDE))
        self.now += GRACE

    def sees(self, frame: bytes) -> bool:
        return self.rivals.see(frame, OWN) is not None

    def logs(self, target: bytes = ADDRESS, mac: bytes = OTHER) -> bool:
        found = self.rivals.see(unsolicited(mac, target), OWN)
        assert found
        return found[1]


def answer(target: bytes, mac: bytes, to: bytes = OWN) -> bytes:
    """Return a solicited advertisement, which goes to one node only."""
    host = Host(mac, b"\xfe\x80" + bytes(13) + b"\7")
    return advertise(Solicitation(b"\xfe\x80" + bytes(13) + b"\1", target, to, to), host)


BROKEN = unsolicited(OTHER, ADDRESS)
CASES: dict[str, tuple[bytes, bool]] = {
    "another host announces it": (unsolicited(OTHER, ADDRESS), True),
    "another host answers this one": (answer(ADDRESS, OTHER), True),
    "an address of a wide prefix": (unsolicited(OTHER, inside(9)), True),
    "another MAC in the option, too": (
        unsolicited(OTHER, ADDRESS, lladdr=ROUTER_MAC.encode()[:6]),
        True,
    ),
    "this host's own frame, reflected": (unsolicited(OWN, ADDRESS), False),
    "in the place of this host": (unsolicited(OTHER, ADDRESS, lladdr=OWN), False),
    "an address that nobody shares": (
        unsolicited(OTHER, parse_prefix("2001:db8::21").address),
        False,
    ),
    "a wrong checksum": (BROKEN[:56] + b"\0\0" + BROKEN[58:], False),
    "a router is in between": (BROKEN[:21] + b"\xfe" + BROKEN[22:], False),
    "a group as the source": (b"".join((BROKEN[:6], b"\3", BROKEN[7:])), False),
    "cut off": (BROKEN[:77], False),
    "cut off in the option": (BROKEN[:80], False),
    "empty": (b"", False),
}


@pytest.mark.parametrize("name", CASES)
def test_which_advertisements_count(name: str) -> None:
    frame, counts = CASES[name]
    world = World()
    assert world.sees(frame) is counts
    assert world.rivals.count == counts


def test_every_cut_frame_is_harmless() -> None:
    world = World()
    for length in range(len(BROKEN)):
        assert not world.sees(BROKEN[:length])


def test_the_former_holder_has_a_second() -> None:
    world = World()
    world.rivals.hold(rules(WIDE))
    assert not world.sees(unsolicited(OTHER, ADDRESS))  # it is the other host's now
    world.rivals.hold(rules(WIDE, SHARED))
    world.now += GRACE - 0.01
    assert not world.sees(unsolicited(OTHER, ADDRESS))
    assert world.sees(unsolicited(OTHER, inside(1)))  # held all the time
    world.now += 0.02
    assert world.sees(unsolicited(OTHER, ADDRESS))
    world.rivals.hold(rules(SHARED, WIDE))  # again, as at every change of another address
    assert world.sees(unsolicited(OTHER, ADDRESS))
    world.rivals.hold(rules())
    assert not world.rivals.holds_any
    assert not world.sees(unsolicited(OTHER, ADDRESS))
    assert world.rivals.count == 3


def test_the_grace_of_an_address_within_a_wide_prefix() -> None:
    world = World()
    narrow = Prefix(inside(1), 128)
    world.rivals.hold(rules(WIDE, narrow))
    assert not world.sees(unsolicited(OTHER, inside(1)))
    assert world.sees(unsolicited(OTHER, inside(2)))


def test_the_log_names_a_pair_once_an_hour() -> None:
    world = World()
    assert world.logs()
    assert not world.logs()
    assert world.logs(mac=b"\2\0\0\0\0\x78")
    assert world.logs(inside(1))
    world.now += LOG_PERIOD - 1
    assert not world.logs()
    world.now += 1
    assert world.logs()
    assert not world.logs()
    assert [each.heard for each in world.rivals.seen(1)] == [5]
    assert world.rivals.seen(1)[0][:2] == (ADDRESS, OTHER)
    assert world.rivals.count == 7


def test_any_number_of_addresses_and_macs_takes_bounded_memory() -> None:
    world = World()
    for number in range(4 * PAIRS_MAX):
        world.logs(inside(number), b"\2\1\0" + number.to_bytes(3, "big"))
    assert len(world.rivals.seen(10**6)) == PAIRS_MAX
    assert world.rivals.seen(1)[0].address == inside(4 * PAIRS_MAX - 1)
    assert world.rivals.count == 4 * PAIRS_MAX


# ---- which addresses are probed, and when --------------------------------------------------------


def test_when_addresses_are_probed() -> None:
    probes = RivalProbes()
    assert probes.due() is None
    assert probes.take(0.0) is None
    probes.add([ADDRESS], 0.0)
    assert probes.due() == FIRST
    assert probes.take(FIRST - 0.1) is None
    assert probes.take(FIRST) == ADDRESS
    assert probes.take(FIRST) is None
    assert probes.due() == FIRST + PERIOD
    probes.add([inside(1)], 100.0)
    assert probes.due() == 100.0 + FIRST
    assert probes.take(PERIOD * 2) == inside(1)
    assert probes.take(PERIOD * 2) == ADDRESS
    assert len(probes) == 2
    probes.remove([ADDRESS])
    assert len(probes) == 1
    probes.remove([inside(1), ADDRESS])
    assert probes.due() is None


# ---- on the wire ---------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndxdp.fleet.rivals.GRACE", 0.0)


@contextlib.contextmanager
def watching(interface: str = UPLINK) -> Iterator[RivalWatch]:
    with RivalWatch(interface, socket.if_nametoindex(interface), lambda: OWN) as watch:
        yield watch


async def becomes(probe: Callable[[], bool]) -> None:
    async with asyncio.timeout(5 * PATIENCE):
        while not probe():
            await asyncio.sleep(0.01)


def test_a_second_host_on_the_link(
    net: Network, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        with watching() as watch, packet_socket(ROUTER, ROUTER_LINK) as wire:
            wire.send(unsolicited(OTHER, ADDRESS))  # before anything is held
            watch.hold(rules(SHARED, WIDE))
            wire.send(unsolicited(OTHER, parse_prefix("2001:db8::21").address))
            for _ in range(3):
                wire.send(unsolicited(OTHER, ADDRESS))
            wire.send(answer(inside(1), OTHER))
            await becomes(lambda: watch.count == 4)
            assert [(each.address, each.heard) for each in watch.seen()] == [
                (inside(1), 1),
                (ADDRESS, 3),
            ]
            # The host sends this one itself, whatever its MAC is.
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as own:
                own.bind((UPLINK, 0))
                own.send(unsolicited(b"\2\0\0\0\0\x99", ADDRESS))
            wire.send(unsolicited(OTHER, ADDRESS)[:12] + b"\x81\0\0\5" + BROKEN[12:])  # VLAN 5
            wire.send(answer(inside(2), OTHER))
            await becomes(lambda: watch.count == 5)
            watch.hold(rules())
            wire.send(unsolicited(OTHER, ADDRESS))
            watch.hold(rules(WIDE))
            wire.send(answer(inside(2), OTHER))
            await becomes(lambda: watch.count == 6)

    with caplog.at_level(logging.WARNING):
        asyncio.run(check())
    lines = [each.getMessage() for each in caplog.records]
    assert len(lines) == 3
    assert lines[0] == (
        "up0: 02:00:00:00:00:77 answers for 2001:db8::20, too, which this host answers for:"
        " two hosts have the address"
    )


def test_the_kernel_of_a_second_host(net: Network, quick: None) -> None:
    """A node with the address announces it by itself, as Linux does with ndisc_notify."""

    async def check() -> None:
        with watching() as watch:
            watch.hold(rules(SHARED))
            net.at_router("sysctl", "-qw", f"net.ipv6.conf.{ROUTER_LINK}.ndisc_notify=1")
            added = net.at_router("ip", "address", "add", "2001:db8::20/128", "dev", ROUTER_LINK)
            assert added.code == 0
            await becomes(lambda: watch.count > 0)
            assert watch.seen()[0].mac.hex(":") == ROUTER_MAC

    try:
        asyncio.run(check())
    finally:
        net.at_router("ip", "address", "del", "2001:db8::20/128", "dev", ROUTER_LINK)
        net.at_router("sysctl", "-qw", f"net.ipv6.conf.{ROUTER_LINK}.ndisc_notify=0")


def test_a_node_that_announces_nothing_is_probed(
    net: Network, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux announces no address by default. It defends one against a probe."""
    monkeypatch.setattr("ndxdp.fleet.rival_probes.FIRST", 0.1)
    added = net.at_router("ip", "address", "add", "2001:db8::20/128", "dev", ROUTER_LINK, "nodad")
    assert added.code == 0

    async def check() -> None:
        with watching() as watch:
            watch.hold(rules(WIDE, Prefix(inside(1), 128)))
            await asyncio.sleep(0.3)
            assert watch.count == 0
            watch.hold(rules(SHARED))
            await becomes(lambda: watch.count > 0)
            (rival,) = watch.seen()
            assert (rival.address, rival.mac.hex(":")) == (ADDRESS, ROUTER_MAC)

    try:
        asyncio.run(check())
    finally:
        net.at_router("ip", "address", "del", "2001:db8::20/128", "dev", ROUTER_LINK)


def test_probes_are_paced_and_end_with_the_address(
    net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a solicitation of DAD, which this host's own program ignores."""
    monkeypatch.setattr("ndxdp.fleet.rival_probes.FIRST", 0.05)
    monkeypatch.setattr(rival_watch, "_PROBE_RATE", 40.0)
    done("attach", UPLINK, "--mode", "tc", "-n", str(WIDE))
    held = [Prefix(inside(number), 128) for number in range(30)]

    async def check() -> None:
        with watching() as watch, packet_socket(ROUTER, ROUTER_LINK) as wire:
            wire.setblocking(False)

            def frames() -> list[bytes]:
                found = []
                with contextlib.suppress(BlockingIOError):
                    while True:
                        found.append(wire.recv(2000))
                return [each for each in found if icmpv6_type_of(each) in (TYPE_NS, TYPE_NA)]

            began = time.monotonic()
            watch.hold(rules(*held))
            seen: list[bytes] = []

            def all_are_probed() -> bool:
                seen.extend(frames())
                return {target_of(each) for each in seen} == {each.address for each in held}

            await becomes(all_are_probed)
            assert time.monotonic() - began > 0.05 + 20 / 40  # ten at once
            assert len(seen) == 30
            assert {source_of(each) for each in seen} == {bytes(16)}
            assert {icmpv6_type_of(each) for each in seen} == {TYPE_NS}
            watch.hold(rules(SHARED))
            watch.hold(rules())
            await asyncio.sleep(0.2)
            assert frames() == []

    try:
        asyncio.run(check())
    finally:
        remove_instance()


def test_the_socket_is_there_while_something_is_held(net: Network) -> None:
    def sockets() -> int:
        return len(Path("/proc/net/packet").read_text().splitlines())

    async def check() -> None:
        before = sockets()
        with watching() as watch:
            assert sockets() == before
            watch.hold(rules(SHARED))
            watch.hold(rules(SHARED, WIDE))
            assert sockets() == before + 1
            watch.hold(rules())
            assert sockets() == before
            watch.hold(rules(SHARED))
        assert sockets() == before

    asyncio.run(check())


def test_a_socket_that_cannot_be_opened(
    net: Network, quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rival_watch, "_RETRY", 0.05)

    async def check() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with watching() as watch, packet_socket(ROUTER, ROUTER_LINK) as wire:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                watch.hold(rules(SHARED))
                await asyncio.sleep(0.2)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

            def is_heard() -> bool:
                wire.send(unsolicited(OTHER, ADDRESS))
                return watch.count > 0

            await becomes(is_heard)

    with caplog.at_level(logging.WARNING):
        asyncio.run(check())
    lines = [each.getMessage() for each in caplog.records]
    assert sum("cannot notice that two hosts answer" in line for line in lines) == 1


FLOOD = """
import sys, time
sys.path.insert(0, {repository!r})
from lab.capture import packet_socket
from ndxdp.ndp.message import unsolicited
frames = [bytes.fromhex(each) for each in {frames!r}]
with packet_socket({namespace!r}, {link!r}) as wire:
    print("ready", flush=True)
    until = time.monotonic() + {seconds}
    sent = 0
    while time.monotonic() < until:
        for frame in frames:
            try:
                wire.send(frame)
            except OSError:
                continue
            sent += 1
    print(sent)
"""


@pytest.mark.parametrize("held", [True, False])
def test_a_flood_takes_a_bounded_part_of_a_cpu(
    net: Network, quick: None, caplog: pytest.LogCaptureFixture, held: bool
) -> None:
    """Each frame is from another MAC. The limit is on the CPU time, which a slow machine keeps."""
    seconds = 2.0
    targets = inside if held else lambda number: bytes(14) + number.to_bytes(2, "big")
    frames = [
        unsolicited(b"\2\1\0\0" + number.to_bytes(2, "big"), targets(number + 1)).hex()
        for number in range(500)
    ]
    code = FLOOD.format(
        repository=str(rival_watch.__file__).rpartition("/ndxdp/daemon")[0],
        frames=frames,
        namespace=ROUTER,
        link=ROUTER_LINK,
        seconds=seconds,
    )

    async def check() -> tuple[int, float, int]:
        flood = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert flood.stdout
        with watching() as watch:
            assert flood.stdout.readline() == "ready\n"
            watch.hold(rules(WIDE))
            began = time.process_time()
            while flood.poll() is None:
                await asyncio.sleep(0.05)
            used = time.process_time() - began
            return int(flood.stdout.read()), used, watch.count

    with caplog.at_level(logging.WARNING):
        sent, used, counted = asyncio.run(check())
    print(f"{sent / seconds:.0f}/s: {used / seconds:.1%} of a CPU, {counted} counted")
    assert sent > 10 * 2000 * seconds or PATIENCE > 1
    assert (counted > 0) is held
    assert counted <= 500 + 2000 * seconds * 1.5 + 128
    assert used < 0.5 * seconds
    assert len(caplog.records) <= 12
