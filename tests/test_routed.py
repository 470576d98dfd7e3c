"""`routed` and `neighbour` rules against the kernel's own tables, in every mode.

[netns router] eth0 ==== up0 [this namespace] down0 ==== eth0 [netns guest]
                                              other0 ... (nobody)
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import features
from tests.fixtures.engine import Engine
from tests.fixtures.network import (
    BEHIND,
    HOST_MAC,
    REPOSITORY,
    ROUTER,
    UPLINK,
    Network,
    Running,
    call,
    done,
    eventually,
    explain,
    ndxdp,
    sh,
    status,
    wait_for_link,
)

DOWN, OTHER, GUEST = "down0", "other0", "guest"
GUEST_MAC = "02:00:00:00:00:0c"
MODES = ("native", "generic", "tc", "userspace")

AREA = "2001:db8:0:c::/64"
"""An on-link prefix behind DOWN. Each prefix below has a route of another kind."""
KNOWN = "2001:db8:0:c::99"

ROUTES = {
    # prefix: (arguments of `ip route`, the reason for `routed`, the one for `neighbour`)
    "2001:db8:0:20::/64": (f"dev {DOWN}", "answered", "no_neighbour"),
    "2001:db8:0:21::/64": (f"via fe80::c dev {DOWN}", "answered", "route_gateway"),
    "2001:db8:0:22::/64": ("blackhole", "route_blackhole", "route_blackhole"),
    "2001:db8:0:23::/64": ("unreachable", "route_unreachable", "route_unreachable"),
    "2001:db8:0:24::/64": ("prohibit", "route_prohibit", "route_prohibit"),
    "2001:db8:0:25::/64": ("throw", "no_route", "no_route"),  # an empty table
    "2001:db8:0:26::/64": (f"dev {UPLINK}", "route_back", "route_back"),
    "2001:db8:0:27::/64": ("local dev lo", "route_local", "route_local"),
    "2001:db8:0:28::/64": (f"dev {OTHER}", "route_elsewhere", "route_elsewhere"),
    "2001:db8:0:29::/64": (
        f"encap seg6 mode encap segs 2001:db8::5 dev {DOWN}",
        "route_encap",
        "route_encap",
    ),
    "2001:db8:0:2a::/64": (
        f"nexthop via fe80::c dev {DOWN} nexthop via fe80::d dev {DOWN}",
        "answered",
        "route_gateway",
    ),
}

DEFENDED = {
    # prefix of ROUTES: the reason of DAD under an `always` rule, and of a `local` rule
    "2001:db8:0:20::/64": ("answered_dad", "not_local"),
    "2001:db8:0:21::/64": ("answered_dad", "not_local"),
    "2001:db8:0:22::/64": ("answered_dad", "not_local"),
    "2001:db8:0:23::/64": ("answered_dad", "not_local"),
    "2001:db8:0:24::/64": ("answered_dad", "not_local"),
    "2001:db8:0:25::/64": ("answered_dad", "not_local"),
    "2001:db8:0:26::/64": ("dad_on_link", "not_local"),
    "2001:db8:0:27::/64": ("answered_dad", "answered"),
    "2001:db8:0:28::/64": ("answered_dad", "not_local"),
    "2001:db8:0:29::/64": ("answered_dad", "not_local"),
    "2001:db8:0:2a::/64": ("answered_dad", "not_local"),
}

NEIGHBOURS = {
    # state for `ip neighbour`: whether it is answered for
    "permanent": True,
    "noarp": True,
    "reachable": True,
    "stale": True,
    "delay": True,
    "probe": True,
    "incomplete": False,
    "failed": False,
    "none": False,
}


@pytest.fixture(scope="module")
def behind(privacy: None) -> Iterator[None]:
    """Build a guest behind this host, and tables with one route of each kind."""
    sh("ip", "netns", "add", GUEST)
    before = {name: sysctl(name).read_text() for name in ("all", "default")}
    try:
        peer = f"peer name eth0 address {GUEST_MAC} netns {GUEST}"
        sh(*f"ip link add {DOWN} type veth {peer}".split())
        sh(*f"ip link add {OTHER} type veth peer name {OTHER}x".split())
        sysctl("all").write_text("1")
        for name in (DOWN, OTHER):
            sh("ip", "link", "set", name, "addrgenmode", "none", "up")
        sh("ip", "-6", "address", "add", "2001:db8:0:c::1/64", "dev", DOWN, "nodad")
        sh("ip", "-6", "address", "add", "fe80::1/64", "dev", DOWN, "nodad")
        in_guest("ip link set lo up")
        in_guest("ip link set eth0 addrgenmode none up")
        in_guest("ip -6 address add fe80::c/64 dev eth0 nodad")
        in_guest(f"ip -6 address add {KNOWN}/64 dev eth0 nodad")
        in_guest("ip -6 route add default via 2001:db8:0:c::1")
        wait_for_link(DOWN, "2001:db8:0:c::1", "fe80::1")
        wait_for_link("eth0", KNOWN, "fe80::c", namespace=GUEST)
        yield
    finally:
        for name in (DOWN, OTHER):
            call("ip", "link", "delete", name)
        call("ip", "netns", "delete", GUEST)
        for name, value in before.items():
            sysctl(name).write_text(value)


@pytest.fixture
def routes(behind: None, net: Network) -> Iterator[Network]:
    sh("ip", "link", "set", OTHER, "up")
    sysctl(UPLINK).write_text("1")
    for prefix, (words, _, _) in ROUTES.items():
        kind, _, rest = words.partition(" ")
        typed = kind in ("blackhole", "unreachable", "prohibit", "throw", "local")
        line = [kind, prefix, *rest.split()] if typed else [prefix, *words.split()]
        sh("ip", "-6", "route", "add", *line)
    yield net
    for prefix in ROUTES:
        call("ip", "-6", "route", "delete", prefix)
        call("ip", "-6", "route", "delete", "local", prefix, "table", "local")


def sysctl(name: str) -> Path:
    return Path(f"/proc/sys/net/ipv6/conf/{name}/forwarding")


def in_guest(command: str) -> str:
    return sh("nsenter", f"--net=/run/netns/{GUEST}", *command.split())


def in_prefix(prefix: str) -> str:
    return prefix.replace("::/64", "::5")


@contextlib.contextmanager
def answering(net: Network, mode: str, *args: str) -> Iterator[None]:
    """Attach in a mode, or run in userspace, for the length of a block."""
    if mode == "native":
        net.pass_at_router()
    if mode == "userspace":
        running = net.run("-i", UPLINK, "--mode", mode, *args)
        try:
            yield
        finally:
            running.end()
    else:
        done("attach", UPLINK, "--mode", mode, "-q", *args)
        try:
            yield
        finally:
            done("detach", UPLINK)


# ---- each kind of route, each state of a neighbour -----------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("answer", ["routed", "neighbour"])
def test_routes(routes: Network, mode: str, answer: str) -> None:
    """Answer by the kind of route, and count the right reason."""
    words = [word for prefix in ROUTES for word in ("-n", prefix)]
    with answering(routes, mode, "--answer", answer, "--via", "down*", *words):
        before, wanted = reasons(), Counter[str]()
        for prefix, (route, routed, neighbour) in ROUTES.items():
            if mode == "userspace" and "encap" in route and features.lacks("encap"):
                continue  # docs/kernels.md
            reason = routed if answer == "routed" else neighbour
            target, is_answered = in_prefix(prefix), reason == "answered"
            heard = routes.ask(target, wait=2 if is_answered else 0.15)
            assert heard == ((HOST_MAC, target) if is_answered else None), route
            wanted[reason] += 1
        # A process writes the counts a moment after the answer.
        eventually(lambda: counted(before) == wanted)


@pytest.mark.parametrize("mode", ["tc", "userspace"])
@pytest.mark.parametrize("answer", ["routed", "neighbour"])
def test_explain_gives_the_reason(routes: Network, mode: str, answer: str) -> None:
    words = [word for prefix in ROUTES for word in ("-n", prefix)]
    with answering(routes, mode, "--answer", answer, "--via", "down*", *words):
        for prefix, (route, routed, neighbour) in ROUTES.items():
            explained = explain(in_prefix(prefix))
            assert explained["reason"] == (routed if answer == "routed" else neighbour), route
            assert (explained["rule"]["answer"], explained["rule"]["via"]) == (answer, ["down*"])


@pytest.mark.parametrize("mode", MODES)
def test_neighbour_states(routes: Network, mode: str) -> None:
    with answering(routes, mode, "--answer", "neighbour", "-n", AREA):
        for number, (state, is_answered) in enumerate(NEIGHBOURS.items(), 0x30):
            target = f"2001:db8:0:c::{number:x}"
            enter(target, state)
            heard = routes.ask(target, wait=2 if is_answered else 0.15)
            assert heard == ((HOST_MAC, target) if is_answered else None), state
            if state == "noarp":  # which a flush leaves in place
                sh("ip", "-6", "neighbour", "delete", target, "dev", DOWN)
    sh("ip", "-6", "neighbour", "flush", "dev", DOWN, "nud", "all")


def enter(address: str, state: str, device: str = DOWN) -> None:
    """Add a neighbour to the table in this state, as far as the kernel allows."""
    if state == "none":
        return
    words = ["lladdr", GUEST_MAC] if state not in ("incomplete", "failed") else []
    sh("ip", "-6", "neighbour", "replace", address, "dev", device, "nud", state, *words)


# ---- Duplicate Address Detection, and addresses of this host -------------------------------------


def dad_reason(target: str) -> str:
    reason: str = json.loads(done("explain", target, "--dad", "--json"))["reason"]
    return reason


@pytest.mark.parametrize("mode", MODES)
def test_dad_is_not_defended_where_the_route_leads_back(routes: Network, mode: str) -> None:
    words = [word for prefix in ROUTES for word in ("-n", prefix)]
    with answering(routes, mode, "--force", *words):
        for prefix, (reason, _) in DEFENDED.items():
            if mode == "userspace" and "encap" in ROUTES[prefix][0] and features.lacks("encap"):
                continue  # docs/kernels.md
            assert dad_reason(in_prefix(prefix)) == reason, ROUTES[prefix][0]
            assert explain(in_prefix(prefix))["reason"] == "answered"


@pytest.mark.parametrize("mode", MODES)
def test_dad_under_routed_is_judged_like_neighbour(routes: Network, mode: str) -> None:
    """Require a neighbour for DAD under `routed`: a prefix may be on both sides of a router."""
    words = [word for prefix in ROUTES for word in ("-n", prefix)]
    with answering(routes, mode, "--answer", "routed", "--via", "down*", *words, "-n", AREA):
        for prefix, (route, _, neighbour) in ROUTES.items():
            if mode == "userspace" and "encap" in route and features.lacks("encap"):
                continue  # docs/kernels.md
            assert dad_reason(in_prefix(prefix)) == neighbour, route
        enter("2001:db8:0:c::77", "stale")
        assert dad_reason("2001:db8:0:c::77") == "answered_dad"
        assert dad_reason("2001:db8:0:c::78") == "no_neighbour"
    sh("ip", "-6", "neighbour", "flush", "dev", DOWN, "nud", "all")


@pytest.mark.parametrize("mode", MODES)
def test_local(routes: Network, mode: str) -> None:
    """Answer if the kernel delivers packets for the target here; this needs no forwarding."""
    words = [word for prefix in ROUTES for word in ("-n", prefix)]
    with answering(routes, mode, "--answer", "local", *words):
        for forwarding in ("1", "0"):
            sysctl(UPLINK).write_text(forwarding)
            for prefix, (_, reason) in DEFENDED.items():
                target, is_answered = in_prefix(prefix), reason == "answered"
                heard = routes.ask(target, wait=2 if is_answered else 0.15)
                assert heard == ((HOST_MAC, target) if is_answered else None), prefix
                assert explain(target)["reason"] == reason
                wanted = "answered_dad" if is_answered else reason
                assert dad_reason(target) == wanted, prefix


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_local_follows_the_routes(routes: Network, mode: str) -> None:
    target = "2001:db8:0:44::5"
    running = routes.run("-i", UPLINK, "--mode", mode, "--answer", "local", "-n", "2001:db8::/32")
    try:
        assert routes.silent(target)
        for _ in range(3):
            sh("ip", "-6", "route", "add", "local", "2001:db8:0:44::/64", "dev", "lo")
            eventually(lambda: routes.answers(target))
            sh("ip", "-6", "route", "delete", "local", "2001:db8:0:44::/64", "dev", "lo")
            eventually(lambda: routes.silent(target))
    finally:
        assert running.end() == (0, "", "")


@pytest.mark.parametrize("mode", MODES)
def test_without_forwarding_dad_is_defended_for_local_addresses(routes: Network, mode: str) -> None:
    """Defend only addresses of this host without forwarding: routes may lead back to the link."""
    here, behind = "2001:db8:0:27::/64", "2001:db8:0:20::/64"
    with answering(routes, mode, "-n", here, "-n", behind):
        sysctl(UPLINK).write_text("0")
        assert dad_reason(in_prefix(here)) == "answered_dad"
        assert dad_reason(in_prefix(behind)) == "not_forwarding"
        assert explain(in_prefix(behind))["reason"] == "answered"


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_dad_is_not_defended_against_a_neighbour_of_the_link(routes: Network, mode: str) -> None:
    """Defend no address that a neighbour on the link has, now or later, on any route."""
    prefix = "2001:db8:0:20::/64"
    early, late = "2001:db8:0:20::6", "2001:db8:0:20::7"
    enter(early, "stale", UPLINK)
    running = routes.run("-i", UPLINK, "--mode", mode, "-n", prefix)
    try:
        assert dad_reason(early) == "dad_on_link"
        assert dad_reason(late) == "answered_dad"
        enter(late, "reachable", UPLINK)
        eventually(lambda: dad_reason(late) == "dad_on_link")
        assert explain(late)["reason"] == "answered"
        sh("ip", "-6", "neighbour", "delete", late, "dev", UPLINK)
        eventually(lambda: dad_reason(late) == "answered_dad")
    finally:
        ended = running.end()
        call("ip", "-6", "neighbour", "flush", "dev", UPLINK, "nud", "all")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.count("\n") == 1
    assert f"the rule for {prefix} answers for 1 present neighbours" in ended.err


def test_attach_sees_the_existing_neighbours(routes: Network) -> None:
    known = "2001:db8:0:20::6"
    enter(known, "permanent", UPLINK)
    with answering(routes, "tc", "-n", "2001:db8:0:20::/64"):
        assert dad_reason(known) == "dad_on_link"
        assert dad_reason("2001:db8:0:20::7") == "answered_dad"
    sh("ip", "-6", "neighbour", "delete", known, "dev", UPLINK)


def reasons() -> dict[str, int]:
    found: dict[str, int] = status()["reasons"]
    return found


def counted(before: dict[str, int]) -> dict[str, int]:
    """Return the counts since `before`."""
    return {name: n - before[name] for name, n in reasons().items() if n != before[name]}


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_forwarding_off(routes: Network, mode: str) -> None:
    target = "2001:db8:0:20::5"
    with answering(routes, mode, "--answer", "routed", "-n", "2001:db8:0:20::/64"):
        assert routes.answers(target)
        sysctl(UPLINK).write_text("0")
        assert routes.silent(target)
        assert explain(target)["reason"] == "not_forwarding"
        assert "forwarding is off" in done("explain", target)
        sysctl(UPLINK).write_text("1")
        assert routes.answers(target)


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_never_stale(routes: Network, mode: str) -> None:
    """Apply a changed table to the very next solicitation."""
    target = "2001:db8:0:40::5"
    with answering(routes, mode, "--answer", "routed", "-n", "2001:db8::/32"):
        assert routes.silent(target)
        for _ in range(5):
            sh("ip", "-6", "route", "add", "2001:db8:0:40::/64", "dev", DOWN)
            assert routes.answers(target)
            sh("ip", "-6", "route", "delete", "2001:db8:0:40::/64", "dev", DOWN)
            assert routes.silent(target)


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_holes_within_and_the_reverse(routes: Network, mode: str) -> None:
    """Let the most specific rule win, independent of its `answer`."""
    with answering(routes, mode, "--answer", "routed", "-n", "2001:db8:0:20::/60"):
        add = ("prefix", "add", "--answer")
        done(*add, "always", "2001:db8:0:22::/64")
        done(*add, "never", "2001:db8:0:20::/64")
        done(*add, "routed", "2001:db8:0:20::/112")
        assert routes.answers("2001:db8:0:22::5")  # a black hole, but the rule says always
        assert routes.silent("2001:db8:0:20:1::5")
        assert routes.answers("2001:db8:0:20::5")
        assert routes.answers("2001:db8:0:21::5")


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_a_bridge_port(routes: Network, mode: str) -> None:
    """Treat a bridge like its port: a route by the bridge leads back."""
    sh("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
    try:
        sysctl("br0").write_text("1")
        sh("ip", "link", "set", "br0", "up")
        sh("ip", "link", "set", UPLINK, "master", "br0")
        sysctl(UPLINK).write_text("0")  # irrelevant: nothing is routed from a port
        sh("ip", "-6", "route", "add", "2001:db8:0:42::/64", "dev", "br0")
        words = ("-n", "2001:db8:0:20::/64", "-n", "2001:db8:0:42::/64")
        with answering(routes, mode, "--answer", "routed", *words):
            assert routes.answers("2001:db8:0:20::5")
            assert routes.silent("2001:db8:0:42::5")
            assert explain("2001:db8:0:42::5")["reason"] == "route_back"
    finally:
        sh("ip", "link", "delete", "br0")


def test_explain_shows_the_route(routes: Network) -> None:
    prefix = "2001:db8:0:21::/64"
    with answering(routes, "tc", "--answer", "routed", "-n", prefix, "-n", AREA):
        output = done("explain", "2001:db8:0:21::5")
        assert f"route    {prefix} via fe80::c dev {DOWN} table 254" in output
        enter("2001:db8:0:c::77", "reachable")
        assert f"dev {DOWN} table 254, neighbour reachable" in done("explain", "2001:db8:0:c::77")
        explained = explain("2001:db8:0:21::5")["forwarding"]
        assert (explained["type"], explained["interface"], explained["gateway"]) == (
            "unicast",
            DOWN,
            "fe80::c",
        )
    sh("ip", "-6", "neighbour", "flush", "dev", DOWN, "nud", "all")


# ---- via -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_via_follows_the_interfaces(routes: Network, mode: str) -> None:
    """Apply `via` to the interfaces that match now, by their current names."""
    prefix, target = "2001:db8:0:41::/64", "2001:db8:0:41::5"
    running = routes.run(
        "-i", UPLINK, "--mode", mode, "--answer", "routed", "--via", "vnet*", "-n", prefix
    )
    try:
        for name in ("vnet0", "vnet1"):
            sh("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}x")
            sh("ip", "link", "set", name, "up")
            sh("ip", "-6", "route", "add", prefix, "dev", name)
            assert eventually(lambda: routes.ask(target, wait=0.1))
            sh("ip", "link", "set", name, "down")
            sh("ip", "link", "set", name, "name", "else0", "up")
            sh("ip", "-6", "route", "replace", prefix, "dev", "else0")
            eventually(lambda: routes.silent(target))
            sh("ip", "link", "delete", "else0")
    finally:
        running.end()


def test_bad_via(routes: Network) -> None:
    for args, message in (
        (("--via", "down0", "-n", AREA), "--via selects routes, and --answer always does not ask"),
        (("--answer", "routed", "--via", "a b", "-n", AREA), "'a b' matches no interface's name"),
        (("--answer", "routed", "--via", "x" * 128, "-n", AREA), "more than 127 bytes"),
    ):
        refused = ndxdp("attach", UPLINK, *args)
        assert (refused.code, message in refused.err) == (2, True), refused


# ---- neighbours that the kernel does not know ----------------------------------------------------


@contextlib.contextmanager
def resolving(net: Network, mode: str, *args: str) -> Iterator[Running]:
    running = net.run("-i", UPLINK, "--mode", mode, "--answer", "neighbour", "-n", AREA, *args)
    try:
        yield running
    finally:
        assert running.end() == (0, "", ""), "it logged something"


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_reachable_at_the_first_ping(routes: Network, mode: str) -> None:
    """Resolve an unknown guest, so that the router's first and only ping is answered."""
    with resolving(routes, mode):
        for _ in range(3):
            sh("ip", "-6", "neighbour", "flush", "dev", DOWN, "nud", "all")
            routes.at_router("ip", "-6", "neighbour", "flush", "dev", "eth0")
            routes.at_router("ip", "-6", "route", "replace", AREA, "dev", "eth0")
            pinged = routes.at_router("ping", "-6", "-c", "1", "-W", "2", KNOWN)
            assert pinged.code == 0, pinged
        resolver = status()["resolver"]
        assert resolver == {"asked": 3, "answered": 3, "failed": 0, "refused": 0}
        assert explain(KNOWN)["reason"] == "answered"


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_an_unused_address(routes: Network, mode: str) -> None:
    """Stay silent for an unused address, and leave no entry in the kernel's table."""
    nobody = "2001:db8:0:c::404"
    with resolving(routes, mode):
        assert routes.silent(nobody)
        assert nobody in neighbours()
        eventually(lambda: status()["resolver"]["failed"] == 1, within=8)
        assert nobody not in neighbours()
        assert status()["resolver"]["answered"] == 0


def test_a_stopped_guest_falls_silent(routes: Network) -> None:
    """Stop answering for a stopped guest after the kernel's own timeout."""
    with resolving(routes, "tc"):
        routes.at_router("ip", "-6", "route", "replace", AREA, "dev", "eth0")
        quick = Path(f"/proc/sys/net/ipv6/neigh/{DOWN}/delay_first_probe_time")
        before = quick.read_text()
        quick.write_text("1")
        try:
            assert routes.at_router("ping", "-6", "-c", "1", "-W", "2", KNOWN).code == 0
            # The guest's link stays up: the kernel flushes all neighbours when a carrier is lost.
            in_guest(f"ip -6 address delete {KNOWN}/64 dev eth0")
            entry = f"{KNOWN} dev {DOWN} lladdr {GUEST_MAC} nud stale"
            sh("ip", "-6", "neighbour", "replace", *entry.split())
            assert routes.answers(KNOWN)
            assert routes.at_router("ping", "-6", "-c", "1", "-W", "1", KNOWN).code == 1
            eventually(lambda: routes.silent(KNOWN), within=10)
        finally:
            quick.write_text(before)
            in_guest(f"ip -6 address replace {KNOWN}/64 dev eth0 nodad")
            wait_for_link("eth0", KNOWN, namespace=GUEST)
    sh("ip", "-6", "neighbour", "flush", "dev", DOWN, "nud", "all")


def test_a_real_container(net: Network, docker_engine: Engine) -> None:
    """Answer for a container by its prefix alone, from the first ping until it stops."""
    engine, address = docker_engine, "2001:db8:0:0:c::10"
    sysctl("all").write_text("1")
    engine.make_network("exposed", "172.30.7.0/24", BEHIND)
    run = net.run("-i", UPLINK, "--answer", "neighbour", "-n", BEHIND)
    try:
        assert net.silent(address)
        engine.run("web", "exposed", address=address)
        # Its first container gives the bridge a carrier, whereupon the bridge's addresses are
        # tentative for up to 2 s. The kernel solicits nobody from a tentative address.
        eventually(lambda: not tentative("exposed"), within=10)
        pinged = net.at_router("ping", "-6", "-c", "1", "-W", "3", address)
        assert pinged.code == 0, pinged
        engine.ask("POST", "/containers/web/stop", t="0")
        net.at_router("ping", "-6", "-c", "1", "-W", "1", address)
        eventually(lambda: net.silent(address), within=30)
        assert explain(address)["reason"] in ("no_neighbour", "no_route")
        assert run.end() == (0, "", "")
    finally:
        engine.clear()
        sysctl("all").write_text("0")


def tentative(device: str) -> str:
    return sh("ip", "-6", "address", "show", "dev", device, "tentative")


def neighbours() -> set[str]:
    shown: list[dict[str, Any]] = json.loads(sh("ip", "-6", "-j", "neighbour", "show", "dev", DOWN))
    return {entry["dst"] for entry in shown}


def test_paused_means_paused(routes: Network) -> None:
    """Answer for no neighbour that is found while answering is paused."""
    with resolving(routes, "tc"):
        sh("ip", "-6", "neighbour", "flush", "dev", DOWN, "nud", "all")
        done("pause", UPLINK)
        assert routes.silent(KNOWN)
        assert status()["resolver"]["answered"] == 0
        done("resume", UPLINK)
        assert routes.answers(KNOWN)


@pytest.mark.parametrize(("mode", "rate"), [("tc", 5000), ("userspace", 1000)])
def test_a_scan_beside_a_router(routes: Network, mode: str, rate: int, tmp_path: Path) -> None:
    """Answer a legitimate router during a scan of an almost empty /112 (RFC 6583).

    The kernel's table holds no more entries than there are places. The router solicits old and new
    neighbours all the time and misses none. It solicits three times, as routers do: on a busy
    machine the scan may use all places for a moment.
    """

    def is_found(address: str) -> bool:
        return any(routes.answers(address) for _ in range(3))

    young = [f"2001:db8:0:c:1::{number:x}" for number in range(1, 21)]
    for address in young:
        in_guest(f"ip -6 address add {address}/64 dev eth0 nodad")
    wait_for_link("eth0", *young, namespace=GUEST)
    places = 64
    path = tmp_path / "ndxdp.toml"
    path.write_text(
        f'[[interface]]\nname = "{UPLINK}"\nmode = "{mode}"\non_stop = "detach"\n'
        f'[[interface.prefix]]\nprefix = "{AREA}"\nanswer = "neighbour"\n'
        f"[interface.resolve]\npending = {places}\n"
    )
    running = routes.run("-c", str(path))
    try:
        assert routes.answers(KNOWN)
        before, most, began = resident(running), 0, time.monotonic()
        scan = [
            *(
                "nsenter",
                f"--net=/run/netns/{ROUTER}",
                sys.executable,
                "-m",
                "tests.fixtures.flood",
            ),
            *("eth0", "--mac", "02:00:00:00:00:99", "--prefix", "2001:db8:0:c::"),
            *("--rate", str(rate), "--seconds", "120"),
        ]
        with subprocess.Popen(scan, stdout=subprocess.PIPE, cwd=REPOSITORY) as scanner:
            missed = []
            for address in young * 2:
                most = max(most, len(neighbours()))
                missed += [each for each in (address, KNOWN) if not is_found(each)]
            scanner.terminate()
            scanned = json.loads(scanner.communicate()[0])
        assert missed == []
        assert scanned["sent"] > 2 * places
        assert scanned["unanswered"] >= scanned["sent"] - 1  # KNOWN is in the /112
        assert most <= places + len(young) + 5
        assert resident(running) - before < 2048
        allowed = 100 * (2 + time.monotonic() - began)  # 100 at once, 100 a second; two solicitors
        assert status()["resolver"]["asked"] <= allowed
    finally:
        running.end()
        for address in young:
            in_guest(f"ip -6 address delete {address}/64 dev eth0")


def resident(running: Running) -> int:
    """Return the resident memory in kB."""
    output = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(output.partition("VmRSS:")[2].split()[0])
