"""Solicited-node groups: joined, reported, and forwarded by a switch that snoops MLD."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import random
import resource
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.capture import packet_socket
from ndxdp.ndp.address import solicited_node_group
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_address
from ndxdp.rules.address_set import AddressSet
from ndxdp.sockets import group_memberships
from ndxdp.sockets.group_memberships import SOCKET_MAX, GroupMemberships
from tests.fixtures.network import ROUTER, ROUTER_LINK, UPLINK, eventually, python, sh
from tests.fixtures.segment import BRIDGE, HOST_PORT, ROUTER_MAC_BYTES, SWITCH, Segment, at, segment

ADDRESS = "2001:db8::c:0:0:99"
ADDRESS_BYTES = parse_address(ADDRESS)
GROUP = "ff02::1:ff00:99"
_IF_INET6_GROUPS = Path("/proc/thread-self/net/igmp6")


def behind(number: int) -> bytes:
    return ADDRESS_BYTES[:12] + number.to_bytes(4, "big")


def kernel_groups() -> dict[bytes, int]:
    """Return the interface's solicited-node groups, and the number of users of each."""
    lines = (line.split() for line in _IF_INET6_GROUPS.read_text().splitlines())
    prefix = solicited_node_group(bytes(16))[:13]
    return {
        group: int(fields[3])
        for fields in lines
        if fields[1] == UPLINK and (group := bytes.fromhex(fields[2]))[:13] == prefix
    }


@pytest.fixture
def snooped(privacy: None) -> Iterator[Segment]:
    with segment(snooping=True) as made:
        yield made


class Joining(GroupMemberships):
    """Groups that can also be changed by differences."""

    known: frozenset[bytes] = frozenset()
    last = AddressSet()

    def listen(self, addresses: Iterable[bytes], at_most: int | None = None) -> bool:
        self.known = frozenset(addresses)
        return self.update(AddressSet.of(self.known), at_most)

    def change(self, appeared: Iterable[bytes], gone: Iterable[bytes]) -> None:
        self.listen(self.known.union(appeared).difference(gone))


@contextlib.contextmanager
def joining(made: Segment) -> Iterator[Joining]:
    groups = Joining(made.ifindex())
    try:
        yield groups
    finally:
        groups.close()


@contextlib.contextmanager
def small_sockets(made: Segment) -> Iterator[int]:
    """Limit sockets to few memberships if the kernel can do that per namespace; yield the limit."""
    path = Path("/proc/sys/net/core/optmem_max")
    before = path.read_text() if path.exists() else ""
    if before:
        path.write_text(str(56 * 10 + 8))
    try:
        yield capacity(made.ifindex())
    finally:
        if before:
            path.write_text(before)


def capacity(ifindex: int) -> int:
    """Return the number of memberships that one socket can have."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as opened:
        for number in range(100_000):
            group = solicited_node_group(behind(0x800000 + number))
            request = group + struct.pack("=I", ifindex)
            try:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                return number
    raise AssertionError("no limit is left to be tested")


def snooped_groups() -> set[str]:
    """Return the groups of the host's port according to `bridge mdb`."""
    shown: list[dict[str, Any]] = json.loads(at(SWITCH, "bridge", "-j", "mdb", "show").out)
    return {entry["grp"] for entry in shown[0]["mdb"] if entry["port"] == HOST_PORT}


# ---- the switch ----------------------------------------------------------------------------------


def reaches_host(made: Segment) -> bool:
    """Return True if a solicitation of the router for ADDRESS reaches the host."""
    frame = solicit(ROUTER_MAC_BYTES, ADDRESS_BYTES, source=parse_address("fe80::1"))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as here:
        here.bind((UPLINK, 3))
        here.settimeout(0.3)
        with packet_socket(ROUTER, ROUTER_LINK) as wire:
            wire.send(frame)
        with contextlib.suppress(TimeoutError):
            while True:
                if here.recv(2000) == frame:
                    return True
    return False


def test_snooping_switch_forwards_after_the_join(snooped: Segment) -> None:
    # Until the bridge knows a querier, it floods unreported groups.
    eventually(lambda: not reaches_host(snooped), within=20)
    assert GROUP not in snooped_groups()
    with joining(snooped) as groups:
        groups.listen([ADDRESS_BYTES])
        eventually(lambda: GROUP in snooped_groups())
        assert reaches_host(snooped)

        # The kernel reports again when the link comes up.
        at(SWITCH, "ip", "link", "set", HOST_PORT, "nomaster")
        at(SWITCH, "ip", "link", "set", HOST_PORT, "master", BRIDGE)
        sh("ip", "link", "set", UPLINK, "down")
        sh("ip", "link", "set", UPLINK, "up")
        eventually(lambda: GROUP in snooped_groups())
    eventually(lambda: GROUP not in snooped_groups())


# ---- counting ------------------------------------------------------------------------------------


def test_groups_are_shared_and_kept_in_step(wired: Segment) -> None:
    same = parse_address("2001:db8:0:0:d::99")  # its last 24 bits are those of ADDRESS
    group = solicited_node_group(ADDRESS_BYTES)
    before = kernel_groups()
    with joining(wired) as groups:
        groups.listen([ADDRESS_BYTES, same, behind(1)])
        assert (groups.joined, groups.left_out, groups.sockets) == (2, 0, 1)
        assert kernel_groups()[group] == 1
        groups.listen([same])
        assert groups.joined == 1
        assert group in kernel_groups()
        groups.change([same, same], [ADDRESS_BYTES, behind(5)])
        assert groups.joined == 1
        groups.change([behind(2)], [same])
        assert solicited_node_group(behind(2)) in kernel_groups()
        assert group not in kernel_groups()
        groups.listen([])
        assert (groups.joined, groups.sockets) == (0, 0)
        assert kernel_groups() == before
        groups.listen([ADDRESS_BYTES])
    assert kernel_groups() == before


def test_the_hosts_own_group_is_not_left(wired: Segment) -> None:
    own = parse_address("2001:db8::2")
    group = solicited_node_group(own)
    count = kernel_groups()[group]
    with joining(wired) as groups:
        groups.listen([own[:12] + bytes(3) + b"\2"])
        assert kernel_groups()[group] == count + 1
        groups.listen([])
        assert kernel_groups()[group] == count


def test_process_death_leaves_nothing(wired: Segment) -> None:
    code = f"""if True:
        import os
        from ndxdp.rules.address_set import AddressSet
        from ndxdp.sockets.group_memberships import GroupMemberships
        groups = GroupMemberships({wired.ifindex()})
        groups.update(AddressSet.of(bytes(12) + n.to_bytes(4, "big") for n in range(3000, 3100)))
        print(groups.joined, flush=True)
        os.kill(os.getpid(), 9)
    """
    assert python(code).out == "100\n"
    ours = {solicited_node_group(bytes(12) + n.to_bytes(4, "big")) for n in range(3000, 3100)}
    assert not ours & kernel_groups().keys()


def test_the_interface_is_deleted(wired: Segment) -> None:
    with joining(wired) as groups:
        groups.listen([behind(number) for number in range(20)])
        sh("ip", "link", "delete", UPLINK)
        groups.listen([])
        groups.listen([ADDRESS_BYTES])
        assert (groups.joined, groups.left_out) == (0, 1)


def test_no_privilege_is_needed(wired: Segment) -> None:
    code = f"""if True:
        import os
        from ndxdp.rules.address_set import AddressSet
        from ndxdp.sockets.group_memberships import GroupMemberships
        os.setgid(65534), os.setuid(65534)
        groups = GroupMemberships({wired.ifindex()})
        groups.update(AddressSet.of([bytes(16)]))
        print(groups.joined, groups.left_out)
    """
    assert python(code).out == "1 0\n"


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        (("link set up0 down", "link set up0 up"), 0),
        (("link set up0 address 02:00:00:00:00:0b",), 0),
        (("link set up0 mtu 1279", "link set up0 mtu 1500"), 3),
    ],
    ids=["down", "mac", "mtu"],
)
def test_groups_that_the_kernel_drops_are_joined_again(
    wired: Segment, changes: tuple[str, ...], lost: int
) -> None:
    addresses = [behind(number) for number in (17, 18, 19)]
    wanted = set(map(solicited_node_group, addresses))
    with joining(wired) as groups:
        groups.listen(addresses)
        for change in changes:
            sh("ip", *change.split())
        assert len(wanted - kernel_groups().keys()) == lost
        assert groups.forget_lost() == lost
        groups.listen(addresses)
        assert wanted <= kernel_groups().keys()
        assert groups.forget_lost() == 0
    assert not wanted & kernel_groups().keys()


@pytest.mark.parametrize("switch", ["0", "1"])
def test_groups_survive_ipv6_that_is_switched_off(wired: Segment, switch: str) -> None:
    """Keep groups while IPv6 is switched off, and join groups that were added in that time."""
    sysctl = f"net.ipv6.conf.{UPLINK}.disable_ipv6"
    group = solicited_node_group(ADDRESS_BYTES)
    sh("sysctl", "-qw", f"{sysctl}={switch}")
    with joining(wired) as groups:
        groups.listen([ADDRESS_BYTES])
        for value in ("1", "0"):
            sh("sysctl", "-qw", f"{sysctl}={value}")
        groups.forget_lost()
        groups.listen([ADDRESS_BYTES])
        assert group in kernel_groups()


def test_any_sequence_of_changes(wired: Segment) -> None:
    """Join what the last call wanted, and count what is left out."""
    rng = random.Random(7)
    known = [
        prefix + number.to_bytes(4, "big")
        for prefix in (bytes(12), b"\1" * 12)
        for number in range(0x8000, 0x8000 + 40)
    ]
    before = set(kernel_groups())
    with joining(wired) as groups:
        for _ in range(200):
            addresses = AddressSet.of(rng.sample(known, rng.choice((0, 1, 20, 79, 80))))
            if rng.random() < 0.5:  # a small change
                addresses = (groups.last | AddressSet.of(rng.sample(known, 1))) - AddressSet.of(
                    rng.sample(known, 1)
                )
            limit = rng.choice((0, 5, 30, 30, None))
            more, groups.last = True, addresses
            while more and rng.random() < 0.9:  # other work may interrupt it
                more = groups.update(addresses, rng.choice((1, 7, 100)), limit=limit)
            if more:
                continue
            wanted = set(map(solicited_node_group, addresses))
            found = set(kernel_groups()) - before
            assert found <= wanted
            assert (
                len(found) == groups.joined == min(len(wanted), 16384 if limit is None else limit)
            )
            assert groups.left_out == len(wanted) - len(found)


# ---- limits --------------------------------------------------------------------------------------


def test_ten_thousand(wired: Segment) -> None:
    addresses = [behind(number) for number in range(10_000)]
    before = kernel_groups()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with joining(wired) as groups:
        began = time.monotonic()
        groups.listen(addresses)
        joined = time.monotonic() - began
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
        assert (groups.joined, groups.left_out) == (10_000, 0)
        assert groups.sockets == -(-10_000 // SOCKET_MAX)
        assert len(kernel_groups()) >= 10_000
        groups.change([behind(20_000)], [behind(5)])
        began = time.monotonic()
        groups.listen(addresses[:10])
        left = time.monotonic() - began
        print(f"10 000 groups: joined {joined:.2f} s, left {left:.2f} s, {grown} kB")
        assert grown < 10_000
        assert groups.joined == 10
    assert kernel_groups() == before


def test_a_full_socket_is_followed_by_another(wired: Segment) -> None:
    with small_sockets(wired) as room, joining(wired) as groups:
        count = 9 * room + room // 2
        groups.listen([behind(number) for number in range(count)])
        assert (groups.joined, groups.sockets) == (count, 10)
        # Released room is used again.
        groups.listen([behind(number) for number in range(count) if number % room != 4])
        assert groups.joined == count - 10
        groups.change([behind(count + number) for number in range(room // 2 + 9)], [])
        assert (groups.joined, groups.sockets) == (count - 1 + room // 2, 10)
    assert solicited_node_group(behind(count)) not in kernel_groups()


def test_beyond_the_limits(wired: Segment, caplog: pytest.LogCaptureFixture) -> None:
    """Count and log groups that no socket has room for, and join them later."""
    caplog.set_level(logging.WARNING)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with small_sockets(wired) as room, joining(wired) as groups:
        groups.listen([behind(number) for number in range(room)])
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # open files stay open
        try:
            groups.listen([behind(number) for number in range(3 * room)])
            assert (groups.joined, groups.left_out) == (room, 2 * room)
            groups.change([behind(4 * room)], [])
            assert (groups.joined, groups.left_out) == (room, 2 * room + 1)
            assert len(caplog.records) == 1, caplog.records
            words = f"cannot join {2 * room} of {3 * room} solicited-node groups"
            assert f"{words}: too many open files" in caplog.text
            # Two groups leave: two others take their places.
            groups.change([], [behind(0), behind(1)])
            assert (groups.joined, groups.left_out) == (room, 2 * room - 1)
            groups.change([], [behind(4 * room)])
            assert (groups.joined, groups.left_out) == (room, 2 * room - 2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        groups.change([], [])
        assert (groups.joined, groups.left_out) == (3 * room - 2, 0)
        assert len(caplog.records) == 1


def test_in_slices_and_no_more_than_the_limit(
    wired: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Join in slices, so that other tasks run in between; use allmulti above the limit."""
    addresses = [b"\x20\x01" + bytes(10) + number.to_bytes(4, "big") for number in range(25)]
    with joining(wired) as groups:
        assert [groups.listen(addresses, 10) for _ in range(3)] == [True, True, False]
        assert (groups.joined, groups.left_out) == (25, 0)
        monkeypatch.setattr(group_memberships, "GROUPS_MAX", 27)
        more = [b"\x20\x02" + address[2:13] + b"\1" + address[14:] for address in addresses]
        assert not groups.listen(addresses + more)
        assert (groups.joined, groups.left_out) == (27, 23)
        assert not groups.listen(more)
        assert (groups.joined, groups.left_out) == (25, 0)
