"""Answers that are lost on the way, and unnecessary answers, judged by the packets that arrive."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ndxdp.doctor import arrival
from ndxdp.doctor.arrival import Facts, LostAnswers, Solicited
from ndxdp.doctor.finding import Level
from ndxdp.kernel import abi
from ndxdp.ndp.profile import Answer, NaSource, Profile
from ndxdp.ndp.reason import Reason
from ndxdp.observe.trace import Event
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.rules.prefix import Prefix, parse_prefix
from ndxdp.rules.rule import Rule
from tests.fixtures.doctor import bad, conf, findings, follow, found_one, mends
from tests.fixtures.network import (
    BEHIND,
    HOST,
    HOST_LINK_LOCAL,
    HOST_MAC,
    PINS,
    ROUTER,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    call,
    done,
    remove_instance,
)
from tests.fixtures.segment import HOST_PORT, SWITCH, Segment, at, segment

WATCH = ("--watch", "1.5")
FROM_INTERNET = "2001:db8:ffff::1"
"""An address of the router's: for packets from there it solicits from its link-local address."""


@contextlib.contextmanager
def traffic(target: str = TARGET) -> Iterator[None]:
    """Send packets to the target during the block."""
    ping = subprocess.Popen(
        [
            *("nsenter", f"--net=/run/netns/{ROUTER}", "ping", "-q", "-i", "0.2"),
            *("-I", FROM_INTERNET, target),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        ping.kill()
        ping.wait()


def arrival_findings() -> list[str]:
    return [each["what"] for each in findings(*WATCH) if each["check"] == "arrival"]


@pytest.fixture
def host(privacy: None) -> Iterator[Segment]:
    """Yield a host behind a switch, with a container."""
    with segment() as made:
        made.behind(TARGET)
        # The router solicits three times within a second.
        at(ROUTER, "sysctl", "-qw", "net.ipv6.neigh.eth0.retrans_time_ms=300")
        yield made
        remove_instance()


def switch_drops(condition: str) -> None:
    """Let the switch drop some packets from the host."""
    ruleset = f"""
        table bridge antispoof {{
            chain forward {{
                type filter hook forward priority filter;
                iifname "{HOST_PORT}" {condition} drop
            }}
        }}
    """
    at(SWITCH, "nft", "-f", "-", stdin=ruleset)


def router_gets_an_answer() -> bool:
    """Return True if the router gets an answer. A ping would need the way back, too."""
    asking = ("ndisc6", "-q", "-1", "-r", "1", "-w", "1000", TARGET, "eth0")
    return call("nsenter", f"--net=/run/netns/{ROUTER}", *asking).code == 0


def attach(*options: str) -> None:
    done("attach", UPLINK, "--mode", "tc")
    done("prefix", "add", BEHIND, "-i", UPLINK, *options)


def test_answers_arrive(host: Segment) -> None:
    attach()
    with traffic():
        assert arrival_findings() == [f"answers arrive: packets arrived for {TARGET}"]


def test_no_solicitation(host: Segment) -> None:
    attach()
    assert arrival_findings() == [
        "cannot check whether answers arrive: no solicitation came in 1.5 s"
    ]
    assert not PINS.joinpath(f"v{abi.VERSION}", UPLINK, "tracer").exists()


def test_there_are_no_answers(host: Segment) -> None:
    assert arrival_findings() == [
        f"cannot check whether answers arrive: ndxdp answers nothing on {UPLINK}"
    ]


def test_the_switch_passes_containers_only(host: Segment) -> None:
    """Find that the switch drops answers from the link-local address, which ndppd always uses."""
    attach("--na-source", "link-local", "--no-router", "--dad", "ignore")
    switch_drops(f"ip6 saddr != {BEHIND}")
    with traffic():
        found = found_one("arrival", f"{ROUTER_LINK_LOCAL} keeps soliciting {TARGET}", *WATCH)
        follow(found["cure"])
        assert arrival_findings() == [f"answers arrive: packets arrived for {TARGET}"]
    assert f"reach the router from {TARGET}, not from" in found["why"]
    assert f"drops answers from {HOST_LINK_LOCAL}" in found["why"]
    assert found["cure"].endswith("--na-source target --no-router --dad ignore")
    assert router_gets_an_answer()


def test_the_switch_looks_into_neighbor_discovery(host: Segment) -> None:
    attach()
    switch_drops(f"icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} ip6 saddr {BEHIND}")
    with traffic():
        found = mends("arrival", f"{ROUTER_LINK_LOCAL} keeps soliciting {TARGET}", *WATCH)
    assert found["cure"].endswith("--na-source link-local")
    assert host.ping(TARGET) == 1


def test_advertisements_alone_are_dropped(host: Segment) -> None:
    attach()
    switch_drops(f"icmpv6 type nd-neighbor-advert ip6 saddr {BEHIND}")
    with traffic():
        found = found_one("arrival", f"{ROUTER_LINK_LOCAL} keeps soliciting {TARGET}", *WATCH)
    follow(found["cure"])
    assert host.ping(TARGET) == 1
    assert "a filter drops, or the router ignores, advertisements" in found["why"]


def test_nothing_passes(host: Segment) -> None:
    attach()
    switch_drops("icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }")
    with traffic():
        lost = [each for each in bad(*WATCH) if each["check"] == "arrival"]
        (found,) = lost
        assert "reach the router from none of this host's addresses" in found["why"]
        follow(found["cure"])  # it has an example of the exchange


def test_the_prefix_is_routed(host: Segment) -> None:
    """Report that no responder is needed: the router has a route to the prefix via this host."""
    attach()
    at(ROUTER, "ip", "-6", "route", "add", BEHIND, "via", HOST_LINK_LOCAL, "dev", "eth0")
    with traffic():
        (what,) = arrival_findings()
        assert what.startswith(
            f"cannot check yet whether {BEHIND} needs a responder: packets for {TARGET} arrive"
        )
        (pin,) = PINS.glob(f"v*/{UPLINK}/group_counters")
        before = time.time() - 2 * arrival._SETTLED
        os.utime(pin, (before, before))
        (what,) = arrival_findings()
    assert what.startswith(f"{BEHIND} is routed to this host and needs no responder")


def test_another_tracer_runs(net: Network) -> None:
    conf("forwarding", 1, "all")
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    command = (".venv/bin/ndxdp", "trace", "-i", UPLINK, "--seconds", "30")
    tracing = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        (tracer,) = (path / "tracer" for path in PINS.glob(f"v*/{UPLINK}"))
        for _ in range(500):
            if tracer.exists():
                break
            time.sleep(0.02)
        assert arrival_findings() == [
            f"cannot check whether answers arrive: {UPLINK} is being traced already"
        ]
    finally:
        tracing.terminate()
        tracing.wait()
        remove_instance()
        conf("forwarding", 0, "all")


# ---- repeated solicitations ---------------------------------------------------------------------

ASKED = Solicited(parse_mac(ROUTER_MAC), parse_address(ROUTER_LINK_LOCAL), parse_address(TARGET))
AROUND = parse_prefix(BEHIND)


def event(second: float, *, reason: Reason = Reason.ANSWERED, multicast: bool = True) -> Event:
    eth = b"\x33\x33\0\0\0\1" if multicast else parse_mac(HOST_MAC)
    frame = eth + ASKED.mac + b"\x86\xdd" + bytes(8) + ASKED.source + bytes(24) + ASKED.target
    return Event(int(second * 1e9), UPLINK, 86, frame, reason, AROUND, Rule(), None)


@pytest.mark.parametrize(
    ("events", "times"),
    [
        ([event(0)], 0),
        ([event(0), event(1)], 0),  # the second one and the answer have crossed
        ([event(0), event(1), event(2)], 2),
        ([event(0), event(1), event(2), event(3)], 3),
        ([event(0), event(30), event(60)], 0),  # a new entry each time
        ([event(at, multicast=False) for at in range(3)], 0),  # probes: the router knows the MAC
        ([event(at, reason=Reason.RATE_LIMITED) for at in range(3)], 0),
    ],
)
def test_repeats(events: list[Event], times: int) -> None:
    from collections import Counter

    found = arrival.repeated(events, Counter())
    assert [each.times for each in found.values()] == ([times] if times else [])
    # A router that sends packets has received the answer.
    assert arrival.repeated(events, Counter({(ASKED.mac, ASKED.target): 1})) == {}


def facts(**changes: object) -> Facts:
    return replace(Facts(UPLINK, "", 10.0, link_local=parse_address(HOST_LINK_LOCAL)), **changes)  # type: ignore[arg-type]


def test_routed_is_reported_after_neighbours_were_probed() -> None:
    unasked = {AROUND: {ASKED.target}}
    for age, level in ((None, Level.UNSEEN), (59.0, Level.UNSEEN), (61.0, Level.NOTE)):
        (found,) = arrival.judge(facts(unsolicited=unasked, age=age))
        assert found.level is level
    assert found.what.startswith(f"{BEHIND} is routed to this host and needs no responder")
    assert "in the 61 s since" in found.what


def test_the_command_keeps_the_rest_of_the_rule() -> None:
    profile = Profile(NaSource.LINK_LOCAL, override=True, lladdr=parse_mac("02:00:5e:10:00:01"))
    rule = Rule(Answer.ROUTED, profile, "config", dev=("br-*",))
    host = parse_address(HOST)
    lost = LostAnswers(2, Prefix(ASKED.target, 128), rule, passing=[host])
    (found,) = arrival.judge(facts(lost={ASKED: lost}))
    assert found.cure == (
        f"ndxdp prefix del {UPLINK} {TARGET} --origin config"
        f" && ndxdp prefix add {UPLINK} {TARGET} --na-source {HOST} --answer routed"
        " --via 'br-*' --override --lladdr 02:00:5e:10:00:01"
    )
    assert f'write in the file: source = "{HOST}"' in found.why
    lost = replace(lost, rule=replace(rule, origin="wg0"))
    (found,) = arrival.judge(facts(lost={ASKED: lost}))
    assert found.cure == (
        f"ndxdp prefix replace {UPLINK} {TARGET} --origin wg0 --na-source {HOST}"
        " --answer routed --via 'br-*' --override --lladdr 02:00:5e:10:00:01"
    )
