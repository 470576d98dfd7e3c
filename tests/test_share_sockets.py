"""The kernel as a share uses it: host routes, packet sockets, and the state of interfaces."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab.capture import packet_socket
from ndxdp.config.model import Share
from ndxdp.daemon import share_links, share_sockets
from ndxdp.daemon.share_former import FormerHost, FormerShare
from ndxdp.daemon.share_links import Members
from ndxdp.daemon.share_routes import ShareRoutes
from ndxdp.daemon.share_rules import share_rules
from ndxdp.daemon.share_sockets import PacedReader
from ndxdp.doctor import breadth
from ndxdp.ndp.frame import TYPE_NA, TYPE_NS, TYPE_RA, TYPE_RS, icmpv6_frame, icmpv6_type_of
from ndxdp.ndp.message import solicit
from ndxdp.ndp.profile import Answer
from ndxdp.netlink import host_routes
from ndxdp.netlink.host_routes import HostRoute, HostRouteMonitor, HostRoutes
from ndxdp.rules.prefix import Prefix, parse_prefix
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime.share_report import SharedHost, SharedPrefix, ShareReport
from ndxdp.sockets.discovery import OTHERS, SOLICITATIONS, DiscoverySocket
from tests.fixtures.network import HOST, ROUTER, ROUTER_LINK, UPLINK, Network, eventually, sh

ADDRESS = socket.inet_pton(socket.AF_INET6, "2001:db8::77")
LANS = ("lan0", "lan1")
PROTO_FILE = Path(__file__).resolve().parent.parent / "packaging/iproute2/ndxdp.conf"


def shell(commands: str) -> str:
    """Return the stdout of commands of a shell, the last of which must succeed."""
    return sh("sh", "-c", commands)


@pytest.fixture
def lans(net: Network) -> Iterator[tuple[int, int]]:
    """Return the indexes of two downstream interfaces."""
    for name in LANS:
        shell(f"ip link add {name} type veth peer name {name}p")
        shell(f"ip link set {name} up; ip link set {name}p up")
    yield socket.if_nametoindex(LANS[0]), socket.if_nametoindex(LANS[1])
    for name in LANS:
        shell(f"ip link del {name} 2>/dev/null || true")


@pytest.fixture
def routes(lans: tuple[int, int]) -> Iterator[HostRoutes]:
    with contextlib.closing(HostRoutes()) as opened:
        yield opened
        for route in opened.read():
            opened.remove(route)


def shown(what: str = f"proto {host_routes.PROTOCOL}") -> list[str]:
    return shell(f"ip -6 route show {what}").splitlines()


# ---- host routes --------------------------------------------------------------------------------


def test_a_route_is_added_moved_and_removed(routes: HostRoutes, lans: tuple[int, int]) -> None:
    first, second = (HostRoute(ADDRESS, ifindex) for ifindex in lans)
    assert routes.add(first)
    assert routes.add(first)
    (line,) = shown()
    assert line.startswith("2001:db8::77 dev lan0")
    routes.move(first, second)
    (line,) = shown()
    assert line.startswith("2001:db8::77 dev lan1")
    assert routes.read() == host_routes.read() == {second}
    assert routes.remove(second)
    assert not routes.remove(second)
    assert not shown()


def test_another_programs_route_stays(routes: HostRoutes, lans: tuple[int, int]) -> None:
    shell("ip -6 route add 2001:db8::77/128 dev lan1")
    assert not routes.add(HostRoute(ADDRESS, lans[0]))
    assert not routes.remove(HostRoute(ADDRESS, lans[1]))
    assert not shown()
    (line,) = shown("2001:db8::77")
    assert "dev lan1" in line
    shell("ip -6 route del 2001:db8::77/128 dev lan1")


def test_routes_by_some_interfaces_are_removed(routes: HostRoutes, lans: tuple[int, int]) -> None:
    other = HostRoute(bytes(15) + b"\x09", lans[1])
    routes.add(HostRoute(ADDRESS, lans[0]))
    routes.add(other)
    routes.remove_by(["lan0", "absent0"])
    assert routes.read() == {other}


def test_the_monitor_reports_removals_of_routes_to_single_addresses_only(
    routes: HostRoutes, lans: tuple[int, int]
) -> None:
    ours = HostRoute(ADDRESS, lans[0])
    with contextlib.closing(HostRouteMonitor()) as monitor:
        routes.add(ours)
        for other in ("2001:db8:7::/64", "2001:db8::78/127", "2001:db8::79/128 table 99"):
            shell(f"ip -6 route add {other} dev lan0; ip -6 route del {other} dev lan0")
        assert monitor.drain() == set()
        shell("ip -6 route del 2001:db8::77/128 dev lan0")
        assert monitor.drain() == {ours}
        shell("ip -6 route add 2001:db8::77/128 dev lan1")
        shell("ip -6 route del 2001:db8::77/128 dev lan1")
        assert monitor.drain() == {HostRoute(ADDRESS, lans[1])}


@pytest.mark.parametrize("other", ["dev lan0", "dev lan1", "via fe80::9 dev lan1"])
def test_a_host_gets_a_route_when_another_programs_is_gone(
    routes: HostRoutes, lans: tuple[int, int], other: str
) -> None:
    heard: list[set[bytes]] = []

    async def check() -> None:
        ours = ShareRoutes(heard.append)
        assert ours.bind(ADDRESS, lans[0])
        assert not ours.interfaces
        assert ours.has(ADDRESS)
        ours.audit()
        assert not routes.read()
        shell(f"ip -6 route del 2001:db8::77/128 {other}")
        for _ in range(100):
            if ours.interfaces:
                break
            await asyncio.sleep(0.02)
        assert dict(ours.interfaces) == {ADDRESS: lans[0]}
        ours.close()

    shell(f"ip -6 route add 2001:db8::77/128 {other}")
    asyncio.run(check())
    assert not heard
    assert routes.read() == {HostRoute(ADDRESS, lans[0])}


def test_iproute2_names_the_protocol() -> None:
    number, name = PROTO_FILE.read_text().splitlines()[-1].split()
    assert (int(number), name) == (host_routes.PROTOCOL, "ndxdp")


async def _removed_after(routes: ShareRoutes, heard: list[set[bytes]], command: str) -> None:
    shell(command)
    for _ in range(100):
        if heard:
            return
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "command",
    ["ip -6 route del 2001:db8::77/128 dev lan0", "ip link set lan0 down", "ip link del lan0"],
)
def test_a_removed_route_is_missed_once(
    routes: HostRoutes, lans: tuple[int, int], command: str
) -> None:
    heard: list[set[bytes]] = []

    async def check() -> None:
        ours = ShareRoutes(heard.append)
        assert ours.bind(ADDRESS, lans[0])
        await _removed_after(ours, heard, command)
        ours.audit()
        ours.close()

    asyncio.run(check())
    assert heard == [{ADDRESS}]


def test_own_removals_and_returns_are_no_news(routes: HostRoutes, lans: tuple[int, int]) -> None:
    heard: list[set[bytes]] = []

    async def check() -> None:
        ours = ShareRoutes(heard.append)
        for ifindex in (lans[0], lans[1], lans[0]):
            assert ours.bind(ADDRESS, ifindex)
        ours.unbind(ADDRESS)
        assert ours.bind(ADDRESS, lans[0])  # the news of its removal has not been read yet
        await asyncio.sleep(0.2)
        ours.audit()
        assert dict(ours.interfaces) == {ADDRESS: lans[0]}
        ours.close()

    asyncio.run(check())
    assert not heard
    assert routes.read() == {HostRoute(ADDRESS, lans[0])}


def test_the_next_daemon_adopts_routes(routes: HostRoutes, lans: tuple[int, int]) -> None:
    routes.add(HostRoute(ADDRESS, lans[0]))

    async def check() -> None:
        ours = ShareRoutes(lambda removed: None)
        assert ours.adopt([lans[1]]) == []
        assert ours.adopt(lans) == [HostRoute(ADDRESS, lans[0])]
        assert ours.adopt(lans) == []
        ours.unbind(ADDRESS)
        ours.close()

    asyncio.run(check())
    assert not shown()


def test_a_route_by_an_absent_interface_is_refused(net: Network) -> None:
    async def check() -> bool:
        ours = ShareRoutes(lambda removed: None)
        bound = ours.bind(ADDRESS, 999_999)
        ours.close()
        return bound

    assert not asyncio.run(check())


# ---- packet sockets -----------------------------------------------------------------------------


def _sent(net: Network, kinds: tuple[int, ...], *frames: bytes) -> list[int | None]:
    """Send frames from the router; return the types that a socket for `kinds` has received."""
    receiver = DiscoverySocket(socket.if_nametoindex(UPLINK), kinds)
    with contextlib.closing(receiver) as opened, packet_socket(ROUTER, ROUTER_LINK) as wire:
        opened.receive()
        for frame in frames:
            wire.send(frame)
        last = solicit(b"\2\0\0\0\0\1", ADDRESS) if TYPE_NS in kinds else _message(TYPE_NA, 40)
        wire.send(last)
        found: list[bytes] = []

        def has_last() -> bool:
            found.extend(opened.receive())
            return last in found

        eventually(has_last)
        return [icmpv6_type_of(each) for each in found if each != last]


def _message(kind: int, length: int = 24) -> bytes:
    group = bytes.fromhex("ff02") + bytes(13) + b"\1"
    return icmpv6_frame(
        b"\2\0\0\0\0\1",
        b"\x33\x33\0\0\0\1",
        b"\xfe\x80" + bytes(13) + b"\1",
        group,
        kind,
        bytes(length),
    )


def test_each_socket_receives_its_types(net: Network) -> None:
    frames = [_message(kind) for kind in range(128, 138)]
    frames.append(_message(TYPE_RA)[:14] + b"\x45" + bytes(60))  # no IPv6
    assert _sent(net, OTHERS, *frames)[-3:] == [TYPE_RS, TYPE_RA, TYPE_NA]
    assert TYPE_NS in _sent(net, SOLICITATIONS, *frames)
    assert set(_sent(net, SOLICITATIONS, *frames)) == {TYPE_NS}


def test_a_socket_notices_that_its_interface_was_away(net: Network, lans: tuple[int, int]) -> None:
    """The interface has the same name and index again, but the kernel has unbound the socket."""
    shell("ip netns add elsewhere")
    try:
        with contextlib.closing(DiscoverySocket(lans[0], OTHERS)) as opened:
            shell("ip link set lan0 down; ip link set lan0 up")
            assert opened.is_bound()
            here = os.getpid()
            shell(f"ip link set lan0 netns elsewhere; ip -n elsewhere link set lan0 netns {here}")
            assert socket.if_nametoindex("lan0") == lans[0]
            assert not opened.is_bound()
    finally:
        shell("ip netns delete elsewhere")


def test_frames_of_a_vlan_are_left_out(net: Network) -> None:
    frame = _message(TYPE_RA)
    tagged = frame[:12] + b"\x81\x00\x00\x05" + frame[12:]
    priority = frame[:12] + b"\x81\x00\xe0\x00" + frame[12:]
    kinds = _sent(net, OTHERS, tagged, priority)
    assert kinds.count(TYPE_RA) == 1


def test_a_flood_is_read_at_a_bounded_rate(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        """A socket on which 64 frames wait all the time."""

        def __init__(self) -> None:
            self._ends = socket.socketpair()
            self._ends[1].send(b"x")

        def fileno(self) -> int:
            return self._ends[0].fileno()

        def close(self) -> None:
            for end in self._ends:
                end.close()

        def receive(self) -> list[bytes]:
            return [b""] * 64

    read: list[int] = []
    monkeypatch.setattr(share_sockets, "_BURST", 100)
    monkeypatch.setattr(share_sockets, "_RATE", 640.0)

    async def check() -> float:
        began = time.monotonic()
        reader = PacedReader(Endless(), lambda frames: read.append(len(frames)))  # type: ignore[arg-type]
        await asyncio.sleep(1)
        reader.close()
        return time.monotonic() - began

    took = asyncio.run(check())
    assert 64 < sum(read) <= 100 + 640 * took + 64


# ---- interfaces ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "altnames", "downstream"),
    [
        ("lan0", (), True),
        ("br-5", (), True),
        ("br", (), False),
        ("eth0", (), False),
        ("br-up", ("eth0",), False),
        ("enp1", ("lan0",), True),
        ("enp1", ("br-7",), False),  # patterns are compared with names only
    ],
)
def test_members(name: str, altnames: tuple[str, ...], downstream: bool) -> None:
    members = Members(Share("eth0", ("lan0", "br-*", "eth*")))
    assert members.is_downstream(name, altnames) is downstream
    assert members.is_member(name, altnames) is (downstream or "eth0" in (name, *altnames))


def test_the_interfaces_as_they_are(net: Network, lans: tuple[int, int]) -> None:
    share = Share(UPLINK, ("lan*",))
    shell("ip link set lan0 mtu 1400; ip -6 addr add 2001:db8::5/128 dev lan1 nodad")
    address = socket.inet_pton(socket.AF_INET6, "2001:db8::5")
    # The kernel adds the route to an address in a work queue, also if it does no DAD.
    eventually(lambda: address in share_links.read(share, Members(share)).local)
    found = share_links.read(share, Members(share))
    assert found.upstream is not None
    assert (found.upstream.name, found.upstream.problem) == (UPLINK, "")
    assert socket.inet_pton(socket.AF_INET6, HOST) in found.upstream.own
    assert found.upstream.gateways
    names = {link.name: link for link in found.downstream}
    assert names.keys() == {"lan0", "lan1", "lan0p", "lan1p"}
    assert names["lan0"].mtu == 1400
    assert address in found.local
    shell("ip link set lan0 down")
    lan0 = next(
        each for each in share_links.read(share, Members(share)).downstream if each.name == "lan0"
    )
    assert lan0.problem == "it is down"


def test_an_absent_upstream(net: Network) -> None:
    share = Share("absent0", ("lan*",))
    assert share_links.read(share, Members(share)).upstream is None


# ---- the report of an earlier daemon -------------------------------------------------------------


def test_what_an_earlier_daemon_has_left() -> None:
    wall = time.time()
    host = SharedHost("2001:db8::77", "lan0", "02:00:00:00:00:07", wall - 100, wall - 40)
    prefixes = [
        SharedPrefix("2001:db8::/64", wall + 60),
        SharedPrefix("fd00::/64"),
        SharedPrefix("2001:db8:9::/64", wall - 1),
        SharedPrefix("nonsense"),
    ]
    report = ShareReport("up0", 1, 1, wall, [], prefixes, [], True, 4096, [host], {}, {}, {})
    former = FormerShare(report)
    known = former.prefixes(1000.0)
    assert known.keys() == {parse_prefix("2001:db8::/64"), parse_prefix("fd00::/64")}
    assert known[parse_prefix("fd00::/64")] is None
    until = known[parse_prefix("2001:db8::/64")]
    assert until is not None
    assert 1050 < until <= 1060
    mac, age, idle = former.host(ADDRESS, "lan0")
    assert mac == bytes.fromhex("020000000007")
    assert 100 <= age < 110
    assert 40 <= idle < 50
    assert former.host(ADDRESS, "lan1") == FormerHost()
    damaged = FormerShare(report._replace(hosts=[host._replace(mac="zz", since=wall + 1e6)]))
    assert damaged.host(ADDRESS, "lan0")[:2] == (None, 0)
    assert FormerShare(None).prefixes(0) == {}


# ---- rules --------------------------------------------------------------------------------------


def test_the_rules_of_a_share() -> None:
    share = Share("eth0", ("lan0", "br-*"))
    prefix = parse_prefix("2001:db8:0:1::/64")
    router = socket.inet_pton(socket.AF_INET6, "fe80::ff:fe00:10")
    rules = share_rules(share, [prefix], [ADDRESS], [router])
    assert set(rules) == {prefix, Prefix(ADDRESS, 128), Prefix(router, 128)}
    assert rules[Prefix(router, 128)].answer is Answer.ALWAYS
    assert not rules[Prefix(router, 128)].profile.defend
    assert rules[prefix].answer is Answer.NEIGHBOUR
    assert rules[prefix].dev == ("eth0", "lan0", "br-*")
    assert not rules[prefix].profile.defend
    own = rules[Prefix(ADDRESS, 128)]
    assert own.answer is Answer.LOCAL
    assert own.profile.defend
    assert {rule.origin for rule in rules.distinct_rules} == {"share"}


def test_doctor_finds_no_rule_of_a_share_too_broad(net: Network) -> None:
    share = Share(UPLINK, ("lan*",))
    routers = [socket.inet_pton(socket.AF_INET6, "fe80::ff:fe00:10")]
    rules = share_rules(share, [parse_prefix("2001:db8::/64")], [ADDRESS], routers)
    index = socket.if_nametoindex(UPLINK)
    assert not breadth.gather(UPLINK, (index, index), rules).broad
    ours = Rules.of({prefix: replace(rule, origin="manual") for prefix, rule in rules.pairs()})
    assert breadth.gather(UPLINK, (index, index), ours).broad
