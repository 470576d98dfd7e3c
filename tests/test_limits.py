"""Floods that make ndxdp answer others, or keep it from answering the router.

The attacker is on the router's link and can forge every MAC, the router's as well. Beside each
flood the router solicits one address after the other, and each is answered.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fixtures.network import (
    BEHIND,
    GATEWAY,
    HOST_MAC,
    REPOSITORY,
    ROUTER,
    ROUTER_LINK,
    ROUTER_MAC,
    UPLINK,
    Network,
    call,
    done,
    explain,
    ndxdp,
    sh,
    status,
    wait_for_link,
)
from tests.test_routed import AREA, DOWN, GUEST, behind, in_guest, sysctl

__all__ = ["behind"]

MODES = ("native", "generic", "tc", "userspace")
VICTIM = "02:00:00:00:00:66"
ASKED = [f"2001:db8::c:0:1:{number:x}" for number in range(20)]
SECONDS = 2.0


@dataclass
class Flood:
    """A running flood. It has its figures when it has ended."""

    sent: int = 0
    answered: int = 0


@contextlib.contextmanager
def flood(rate: int, prefix: str, *words: str) -> Iterator[Flood]:
    """Solicit at a steady rate for the length of a block, of a few seconds at the most."""
    command = [
        *("nsenter", f"--net=/run/netns/{ROUTER}", sys.executable, "-m", "tests.fixtures.flood"),
        *(ROUTER_LINK, "--prefix", prefix, "--rate", str(rate), "--seconds", "60", *words),
    ]
    found = Flood()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, **pipes) as flooder:
        try:
            assert flooder.stderr is not None
            assert flooder.stderr.readline() == "soliciting\n"
            yield found
        finally:
            flooder.terminate()
            out, _ = flooder.communicate()
    report = json.loads(out)
    found.sent, found.answered = report["sent"], report["sent"] - report["unanswered"]


@contextlib.contextmanager
def limited(net: Network, mode: str, *words: str) -> Iterator[None]:
    if mode == "native":
        net.pass_at_router()
    running = net.run("-i", UPLINK, "--mode", mode, *words)
    try:
        # The daemon makes the kernel resolve the gateway's MAC, by which it recognizes the gateway.
        yield
    finally:
        ended = running.end()
        assert ended.code == 0
        assert [line for line in ended.err.splitlines() if "is a veth" not in line] == []


def missed(
    net: Network, targets: list[str], seconds: float = SECONDS, solicitations: int = 1
) -> list[str]:
    """Solicit all targets in turn for some seconds; return those without an answer.

    Args:
        net: The network of the router.
        targets: The addresses to solicit.
        seconds: The time; each target is solicited at least once.
        solicitations: How often the router solicits a target before it gives up.
    """
    silent: list[str] = []
    until = time.monotonic() + seconds
    for number in itertools.count():
        if number >= len(targets) and time.monotonic() > until:
            return silent
        target = targets[number % len(targets)]
        if not any(net.ask(target) == (HOST_MAC, target) for _ in range(solicitations)):
            silent.append(target)
    raise AssertionError("unreachable")


@pytest.mark.parametrize("mode", MODES)
def test_random_macs_that_have_one_victim_answered(net: Network, mode: str) -> None:
    """Limit reflection: the victim receives no more answers than its own rate allows."""
    with limited(net, mode, "-n", BEHIND, "--rate", "10", "--burst", "5"):
        words = ("--mac", VICTIM, "--random-macs", "--sllao", VICTIM)
        with flood(1000, "2001:db8::c:0:0:0", *words) as done_:
            assert missed(net, ASKED) == []
        assert done_.sent > 500
        assert 5 <= done_.answered <= 5 + done_.sent * 10 / 1000 * 3
        assert status()["reasons"]["rate_limited"] >= done_.sent - done_.answered - 20


@pytest.mark.parametrize("mode", MODES)
def test_the_routers_mac_is_forged(net: Network, mode: str) -> None:
    """Give a gateway a separate limit, which a flood at this rate does not exhaust."""
    with limited(net, mode, "-n", BEHIND, "--rate", "10", "--burst", "5"):
        with flood(500, "2001:db8::c:0:0:0", "--mac", ROUTER_MAC) as done_:
            assert missed(net, ASKED) == []
        assert done_.sent > 100
        assert status()["reasons"]["rate_limited"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_the_routers_mac_is_forged_to_have_a_victim_answered(net: Network, mode: str) -> None:
    """Charge the gateway's limit only for answers that go to the gateway."""
    with limited(net, mode, "-n", BEHIND, "--rate", "10", "--burst", "5"):
        words = ("--mac", ROUTER_MAC, "--sllao", VICTIM)
        with flood(500, "2001:db8::c:0:0:0", *words) as done_:
            assert missed(net, ASKED) == []
        assert done_.sent > 100
        assert done_.answered <= 5 + done_.sent * 10 / 500 * 3


@pytest.mark.parametrize("mode", MODES)
def test_a_bound_for_the_interface(net: Network, mode: str) -> None:
    """Limit all answers of an interface, against a flood of random MACs that are all answered."""
    with limited(net, mode, "-n", BEHIND, "--interface-rate", "50"):
        with flood(1000, "2001:db8::c:0:0:0", "--mac", VICTIM, "--random-macs") as done_:
            assert missed(net, ASKED) == []
        assert done_.sent > 500
        assert done_.answered <= 50 + done_.sent * 50 / 1000 * 3


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_a_gateways_share_is_bounded(net: Network, mode: str) -> None:
    """Pass solicitations above the gateway's limit to the kernel, and count them separately."""
    words = ("--interface-rate", "1000", "--gateway-rate", "5")
    with limited(net, mode, "-n", BEHIND, *words):
        with flood(500, "2001:db8::c:0:0:0", "--mac", ROUTER_MAC) as done_:
            missed(net, ASKED[:3])
        reasons = status()["reasons"]
        assert reasons["gateway_limited"] > 0
        assert reasons["rate_limited"] == 0
        assert done_.answered < done_.sent


def test_attach_knows_the_existing_gateways(net: Network) -> None:
    call("ip", "-6", "neighbour", "flush", "dev", UPLINK, "nud", "all")
    done("attach", UPLINK, "-n", BEHIND, "--rate", "1", "--burst", "1", "-q")
    try:
        assert ROUTER_MAC in sh("ip", "-6", "neighbour", "show", GATEWAY, "dev", UPLINK)
        assert missed(net, ASKED, 0) == []
        shown = status()
        limits = (shown["rate"], shown["burst"], shown["interface_rate"], shown["gateway_rate"])
        assert limits == (1, 1, 0, 10_000)
        done("attach", UPLINK, "--gateway-rate", "0", "--interface-rate", "7", "-q")
        assert (status()["gateway_rate"], status()["interface_rate"]) == (0, pytest.approx(7))
        assert "no limit for each gateway" in done("status")
    finally:
        done("detach", UPLINK)


def test_bad_rates(net: Network) -> None:
    for words in (("--gateway-rate", "-1"), ("--interface-rate", "x"), ("--gateway-rate", "1e-12")):
        refused = ndxdp("attach", UPLINK, "-n", BEHIND, *words)
        assert refused.code == 2, refused
        assert "Traceback" not in refused.err


# ---- unknown neighbours -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["tc", "userspace"])
@pytest.mark.parametrize("forged", [False, True], ids=["random-macs", "the-routers-mac"])
def test_living_neighbours_are_found_beside_a_scan(
    net: Network,
    behind: None,
    mode: str,
    forged: bool,
) -> None:
    """Find live neighbours during a scan, which leaves a bounded number of neighbour entries."""
    sysctl(UPLINK).write_text("1")
    living = [f"2001:db8:0:c:1::{number:x}" for number in range(1, 9)]
    for address in living:
        in_guest(f"ip -6 address add {address}/64 dev eth0 nodad")
    wait_for_link("eth0", *living, namespace=GUEST)
    try:
        with limited(net, mode, "--answer", "neighbour", "-n", AREA):
            words = ("--mac", ROUTER_MAC) if forged else ("--mac", VICTIM, "--random-macs")
            most = 0
            with flood(400 if forged else 1000, "2001:db8:0:c::", *words) as done_:
                until = time.monotonic() + SECONDS
                while time.monotonic() < until or not most:
                    # the entries that the end of the scan may remove in the meantime
                    for address in living:
                        call("ip", "-6", "neighbour", "delete", address, "dev", DOWN)
                    # While the daemon waits for a processor, the scan may use all places: a router
                    # solicits three times (MAX_MULTICAST_SOLICIT, RFC 4861 10).
                    assert missed(net, living, 0, solicitations=3) == []
                    most = max(most, len(entries()))
            assert done_.sent > 300
            assert explain(living[0])["reason"] == "answered"
            # A place for each search, and one for its group.
            assert most <= 2 * 128 + 2 * len(living)
        # The guest has two more addresses; each may have its group in the table, too.
        assert len(entries()) <= 2 * (len(living) + 2), "left when the daemon has ended"
    finally:
        for address in living:
            in_guest(f"ip -6 address delete {address}/64 dev eth0")
        call("ip", "-6", "neighbour", "flush", "dev", DOWN, "nud", "all")


def entries() -> list[str]:
    shown = sh("ip", "-6", "-j", "neighbour", "show", "dev", DOWN, "nud", "all")
    return [entry["dst"] for entry in json.loads(shown)]
