"""Many guests behind a `neighbour` rule: more than the kernel's neighbour table has room for.

For the virtual machine of lab/vm.py: all network namespaces of a machine share the table and its
limits, so these tests would take the room of everything else. Run
`make test-vm TESTS=tests/scenarios/many_guests.py`.

[netns router] eth0 ==== up0 [this namespace] down0 ==== eth0 [netns guest], which has all addresses
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ndxdp.netlink import neighbour_table
from tests.fixtures.network import (
    ROUTER_MAC,
    UPLINK,
    Network,
    Running,
    call,
    eventually,
    sh,
    status,
    wait_for_link,
)

DOWN, GUEST = "down0", "guest"
AREA = "2001:db8:0:c::/64"
GUESTS = "2001:db8:0:c:0:1::"
SMALL, GUESTS_MAX = 128, 300
"""The size of a small table, and how many guests are too many for it."""
OUTSIDE = os.environ.get("NDXDP_VM_NETNS", "only in the virtual machine")


@pytest.fixture
def sysctls() -> Iterator[Callable[[list[str]], None]]:
    """Return a function that sets the limits of the kernel's neighbour table."""

    def set_limits(settings: list[str]) -> None:
        sh("nsenter", f"--net={OUTSIDE}", "sysctl", "-qw", *settings)

    yield set_limits
    set_limits(limits(1024))


def limits(most: int) -> list[str]:
    """Return the settings for a table of this size, in the proportions of the kernel's own."""
    name = "net.ipv6.neigh.default.gc_thresh"
    return [f"{name}3={most}", f"{name}2={most // 2}", f"{name}1={most // 8}"]


@pytest.fixture
def behind(net: Network) -> Iterator[Callable[[int], None]]:
    """Return a function that makes a number of guests behind this host, from GUESTS + 1 on."""
    forwarding = Path("/proc/sys/net/ipv6/conf/all/forwarding")
    sh("ip", "netns", "add", GUEST)

    def make(count: int) -> None:
        lines = "".join(
            f"address add {GUESTS}{n:x}/64 dev eth0 nodad\n" for n in range(1, count + 1)
        )
        sh("nsenter", f"--net=/run/netns/{GUEST}", "ip", "-6", "-batch", "-", stdin=lines)
        wait_for_link("eth0", f"{GUESTS}{count:x}", namespace=GUEST)

    try:
        sh(*f"ip link add {DOWN} type veth peer name eth0 netns {GUEST}".split())
        forwarding.write_text("1")
        sh("ip", "link", "set", DOWN, "addrgenmode", "none", "up")
        sh("ip", "-6", "address", "add", "fe80::1/64", "dev", DOWN, "nodad")
        sh("ip", "-6", "address", "add", "2001:db8:0:c::1/64", "dev", DOWN, "nodad")
        sh("nsenter", f"--net=/run/netns/{GUEST}", "ip", "link", "set", "eth0", "up")
        wait_for_link(DOWN, "2001:db8:0:c::1", "fe80::1")
        yield make
    finally:
        call("ip", "link", "delete", DOWN)
        call("ip", "netns", "delete", GUEST)
        forwarding.write_text("0")


def solicit_all(net: Network, count: int, rate: int = 100) -> list[int]:
    """Solicit each guest once; return the numbers of those without an answer."""
    done = net.at_router(
        *(sys.executable, "-m", "tests.fixtures.flood", "eth0", "--mac", ROUTER_MAC),
        *("--prefix", GUESTS, "--rate", str(rate), "--seconds", str((count + 0.5) / rate)),
        "--list",
    ).json()
    missing: list[int] = done["missing"]
    return [number for number in missing if number <= count]


@pytest.fixture
def running(net: Network, behind: Callable[[int], None]) -> Running:
    """Start the daemon."""
    return net.run(UPLINK, "--mode", "tc", "--answer", "neighbour", "-n", AREA)


def test_a_full_table(
    net: Network,
    sysctls: Callable[[list[str]], None],
    behind: Callable[[int], None],
    running: Running,
) -> None:
    """Say that the table is full, answer for the guests in it, and for all once it is larger."""
    sysctls(limits(SMALL))
    behind(GUESTS_MAX)
    for _ in range(3):
        assert solicit_all(net, GUESTS_MAX)
    warned = running.next_warning()
    assert "the kernel's table of IPv6 neighbours is " in warned
    assert "sysctl -w net.ipv6.neigh.default.gc_thresh3=" in warned
    (shown,) = status()["warnings"]
    assert f" of {SMALL})" in shown
    assert status()["resolver"]["refused"]
    sysctls(neighbour_table.settings_for(GUESTS_MAX))
    eventually(lambda: not solicit_all(net, GUESTS_MAX), within=30)
    assert status()["warnings"] == []
    assert running.end() == (0, "", "")


def test_thousands_of_guests(
    net: Network,
    sysctls: Callable[[list[str]], None],
    behind: Callable[[int], None],
    running: Running,
) -> None:
    """Answer for all of 5000 guests where the table has room for them."""
    count = 5000
    sysctls(neighbour_table.settings_for(count))
    behind(count)
    missing = list(range(count))
    for _ in range(10):  # an emulated machine answers for some hundred in a round
        missing = solicit_all(net, count, rate=150)
        if not missing:
            break
    assert missing == []
    assert running.end() == (0, "", "")
