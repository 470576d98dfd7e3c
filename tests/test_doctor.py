"""Doctor finds faults of forwarding, limits and containers, and its commands repair them."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ndxdp.doctor import examination, limits
from ndxdp.doctor.finding import Level
from ndxdp.netlink.neighbour_table import NeighbourTable
from ndxdp.store.directories import Trees
from tests.fixtures.doctor import (
    advertise,
    bad,
    conf,
    default_route,
    findings,
    follow,
    found_one,
    ip,
    mends,
    notes,
    sysctl,
)
from tests.fixtures.documented import json_of
from tests.fixtures.engine import Engine
from tests.fixtures.network import (
    BEHIND,
    BPFFS,
    GATEWAY,
    HOST,
    PINS,
    REPOSITORY,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    done,
    eventually,
    ndxdp,
    python,
    remove_instance,
    sh,
    snapshot,
)
from tests.fixtures.tap import tap

FROM_ROUTER = f"{ROUTER_LINK_LOCAL} dev {UPLINK} lladdr {ROUTER_MAC} STALE \n"


@pytest.fixture
def advertised(net: Network) -> Network:
    """Yield a host without forwarding, whose default route comes from an advertisement."""
    sh("ip", "-6", "route", "delete", "default")
    conf("forwarding", 0, "all")
    advertise()
    eventually(lambda: "proto ra" in default_route())
    return net


# ---- a healthy host, and command lines -----------------------------------------------------------


def test_a_healthy_host(answering: Network) -> None:
    sh("ping", "-c1", "-W2", GATEWAY)
    assert f"gateway {GATEWAY}: reachable, {ROUTER_MAC}" in notes()
    assert f"ndxdp answers on {UPLINK} in tc mode" in notes()
    result = ndxdp("doctor")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0] == UPLINK
    assert result.out.splitlines()[-1] == "all is well"


def test_it_changes_nothing(answering: Network) -> None:
    def state() -> list[object]:
        return [
            snapshot(),
            sh("sysctl", "-a", "-r", r"^net\.ipv6\.conf\."),
            # The router's kernel solicits routers, and the host's kernel creates an entry.
            sh("ip", "-6", "neighbour", "show").replace(FROM_ROUTER, ""),
            sh("nft", "list", "ruleset"),
        ]

    before = state()
    assert findings()
    assert state() == before


def test_text(net: Network) -> None:
    result = ndxdp("doctor", UPLINK)
    assert (result.code, result.err) == (2, "")
    lines = [line.strip() for line in result.out.splitlines()]
    at = lines.index("failure:  this host does not forward IPv6")
    assert lines[at + 2] == "$ sysctl -w net.ipv6.conf.all.forwarding=1"
    assert lines[-1] == "there are failures"


def unseen_without_rights() -> list[str]:
    """Return the facts that doctor could not see as a user without rights."""
    # Import everything first: Python itself may be in a directory that only root can read.
    script = (
        "import json, os, sys, ndxdp.cli.main, ndxdp.doctor.examination\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.argv[1:] = ['doctor', 'up0', '--json']; ndxdp.cli.main.main()"
    )
    result = python(script)
    assert (result.code, result.err) == (0, "")
    answer = json.loads(result.out)["interfaces"][0]["findings"]
    return [each["what"] for each in answer if each["level"] == "unseen"]


def test_without_root(answering: Network) -> None:
    """Report what an unprivileged user can see, list the rest as unseen, and guess nothing."""
    hidden = unseen_without_rights()
    assert "cannot check ndxdp on up0: cannot open the pins of up0: permission denied" in hidden
    assert "cannot check the firewall's rules: only root may list them" in hidden


def test_without_root_where_systemd_mounted_bpf(healthy: Network) -> None:
    mode = BPFFS.stat().st_mode
    BPFFS.chmod(0o700)
    try:
        assert (
            f"cannot check ndxdp on up0: cannot enter {BPFFS}: permission denied"
            in unseen_without_rights()
        )
    finally:
        BPFFS.chmod(mode)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["eth9"], "there is no interface 'eth9'"),
    ],
)
def test_no_interface_to_examine(privacy: None, args: list[str], sentence: str) -> None:
    result = ndxdp("doctor", *args)
    assert result.code == 1
    assert sentence in result.err
    assert "hint: " in result.err


def test_nothing_to_begin_with(privacy: None) -> None:
    result = ndxdp("doctor")
    assert result.code == 1
    assert "no interface with a MAC address is up" in result.err


def test_no_default_route_at_all(healthy: Network) -> None:
    """Continue without a default route, and report that there is none."""
    sh("ip", "-6", "route", "delete", "default")
    result = ndxdp("doctor")
    assert (result.code, result.err) == (2, "")
    assert result.out.splitlines()[0] == UPLINK
    assert f"there is no IPv6 default route by {UPLINK}" in result.out


def test_the_interface_of_the_ipv4_default_route(healthy: Network) -> None:
    sh("ip", "-6", "route", "delete", "default")
    sh("ip", "address", "add", "192.0.2.2/24", "dev", UPLINK)
    sh("ip", "route", "add", "default", "via", "192.0.2.1")
    result = ndxdp("doctor")
    assert result.out.splitlines()[0] == UPLINK
    assert result.code == 2  # it has no IPv6 default route


def test_a_tunnel_is_examined_last(healthy: Network) -> None:
    ip("tuntap add tun7 mode tun")
    try:
        ip("link set tun7 up")
        ip("-6 route add default dev tun7 metric 1")
        looked = ndxdp("doctor", "--json").json()["interfaces"]
        assert [each["interface"] for each in looked] == [UPLINK, "tun7"]
        only = ndxdp("doctor", "tun7", "--json").json()["interfaces"]
        assert only == looked[1:]
    finally:
        ip("link delete tun7")


def test_an_interface_that_is_down(privacy: None) -> None:
    with tap("tap7"):
        conf("forwarding", 1, "all")
        found = found_one("link", "tap7 is down", interface="tap7")
        follow(found["cure"])
        assert not any(each["check"] == "link" for each in findings(interface="tap7"))
    conf("forwarding", 0, "all")


# ---- forwarding, router advertisements -----------------------------------------------------------


def test_no_forwarding(healthy: Network) -> None:
    conf("forwarding", 0, "all")
    mends("forwarding", "this host does not forward IPv6")


def test_forwarding_everywhere_but_here(healthy: Network) -> None:
    conf("forwarding", 0)
    mends("forwarding", f"forwarding is off on {UPLINK}, but on for the host")


def test_ipv6_switched_off(healthy: Network) -> None:
    conf("disable_ipv6", 1)
    found = next(each for each in bad() if each["check"] == "forwarding")
    assert found["what"] == f"IPv6 is disabled on {UPLINK}"
    follow(found["cure"])
    assert not any("switched off" in each["what"] for each in bad())


def test_turning_forwarding_on_keeps_the_default_route(advertised: Network) -> None:
    mends("forwarding", "this host does not forward IPv6")
    assert "proto ra" in default_route()


def test_forwarding_alone_would_lose_the_default_route(advertised: Network) -> None:
    """Lose the default route by forwarding alone: the reason for the two settings in the cure."""
    conf("forwarding", 1, "all")
    assert default_route() == ""
    found = found_one("forwarding", f"there is no IPv6 default route by {UPLINK}")
    assert "ignores router advertisements" in found["why"]
    follow(found["cure"])
    advertise()
    eventually(default_route)
    assert bad() == []


def test_accept_ra_of_all_is_a_trap(advertised: Network) -> None:
    conf("accept_ra", 2)
    conf("forwarding", 1, "all")
    assert bad() == []
    conf("accept_ra", 1)
    conf("accept_ra", 2, "all")
    try:
        found = mends("forwarding", f"the default route of {UPLINK} expires in 1")
    finally:
        conf("accept_ra", 1, "all")
    assert "conf.all.accept_ra=2 has no effect" in found["why"]


def test_no_default_route_of_the_advertisement(net: Network) -> None:
    sh("ip", "-6", "route", "delete", "default")
    conf("accept_ra", 2)
    conf("accept_ra_defrtr", 0)
    conf("forwarding", 1, "all")
    found = found_one("forwarding", "there is no IPv6 default route")
    follow(found["cure"])
    advertise()
    eventually(default_route)
    assert bad() == []


def test_no_address_of_the_advertisement(net: Network) -> None:
    sh("ip", "-6", "route", "delete", "default")
    sh("ip", "-6", "address", "delete", f"{HOST}/64", "dev", UPLINK)
    conf("accept_ra", 2)
    conf("accept_ra_pinfo", 0)
    conf("autoconf", 0)
    conf("forwarding", 1, "all")
    advertise()
    eventually(default_route)
    (cause, effect) = bad()
    assert cause["what"].startswith(f"{UPLINK} has no address of a router's prefix")
    assert "a link-local address, which no router forwards" in effect["what"]
    follow(cause["cure"])
    advertise()
    eventually(lambda: bad() == [])


def test_an_interface_with_dots(healthy: Network) -> None:
    ip("link add up0.5 type veth peer name far5")
    try:
        ip("link set up0.5 up")
        sysctl("net/ipv6/conf/up0.5/forwarding=0")
        found = next(
            each for each in bad(interface="up0.5") if "but on for the host" in each["what"]
        )
        follow(found["cure"])
        assert not any("but on for the host" in each["what"] for each in bad(interface="up0.5"))
    finally:
        ip("link delete up0.5")


def test_the_default_route_is_elsewhere(healthy: Network) -> None:
    ip("link add other0 type veth peer name far0")
    try:
        ip("link set other0 up")
        assert f"the IPv6 default route leads out of {UPLINK}, not other0" in notes("other0")
    finally:
        ip("link delete other0")


# ---- limits, containers --------------------------------------------------------------------------


def test_limits() -> None:
    table = NeighbourTable(most=1024, entries=800, overflows=0)
    well = limits.Facts(jit=1, unprivileged=2, table=table, addresses=1000)
    assert limits.judge(well) == []

    def levels_and_cures(**changes: Any) -> list[tuple[Level, str]]:
        return [(each.level, each.cure) for each in limits.judge(replace(well, **changes))]

    assert levels_and_cures(jit=0) == [(Level.WARNING, "sysctl -w net.core.bpf_jit_enable=1")]
    assert levels_and_cures(unprivileged=0) == [(Level.NOTE, "")]
    assert levels_and_cures(table=None) == [(Level.UNSEEN, "")]
    of = "net.ipv6.neigh.default.gc_thresh"
    ((_, cure),) = levels_and_cures(table=table._replace(entries=820))
    assert cure == f"sysctl -w {of}3=4096 {of}2=2048 {of}1=1024"
    ((_, cure),) = levels_and_cures(addresses=5000)
    assert cure == f"sysctl -w {of}3=32768 {of}2=16384 {of}1=8192"


def test_more_addresses_than_the_neighbour_table_holds(healthy: Network) -> None:
    shown = sh("ip", "-s", "ntable", "show", "name", "ndisc_cache")
    (most,) = re.findall(r"thresh3 (\d+)", shown)[:1]
    many = "".join(f"2001:db8::c:0:1:{number:x}\n" for number in range(1, int(most) + 2))
    done("attach", UPLINK, "--mode", "tc")
    try:
        done("prefix", "add", "--file", "-", stdin=many.partition("\n")[2])
        assert bad() == []
        done("prefix", "add", many.partition("\n")[0])
        output = f"has room for {most} entries, and rules answer for {int(most) + 1} addresses"
        # The table belongs to the whole machine: no test changes its size.
        found = found_one("limits", output)
        assert found["cure"].startswith("sysctl -w net.ipv6.neigh.default.gc_thresh3=")
    finally:
        remove_instance()


@pytest.fixture
def container(healthy: Network, docker_engine: Engine) -> Iterator[Engine]:
    """Start a container in a network within the uplink's prefix, and one in another network."""
    docker_engine.make_network("six", BEHIND)
    docker_engine.make_network("far", "2001:db8:9::/64")
    docker_engine.run("web", "six", address=TARGET)
    docker_engine.run("db", "far")
    yield docker_engine
    docker_engine.clear()


def test_containers_without_an_answer(container: Engine, healthy: Network) -> None:
    engine = ("--docker-socket", str(container.socket))
    assert bad() == []  # without the engine
    assert healthy.silent(TARGET)
    try:
        found = mends("containers", f"for the containers of six: {TARGET}", *engine)
        assert found["cure"] == f"ndxdp attach {UPLINK} -n {TARGET}"
        assert healthy.answers(TARGET)
        done("prefix", "del", TARGET)
        found = mends("containers", f"for the containers of six: {TARGET}", *engine)
        assert found["cure"] == f"ndxdp prefix add {UPLINK} {TARGET}"
        assert healthy.answers(TARGET)
    finally:
        remove_instance()


def test_containers_beside_rules_that_cannot_be_read(container: Engine, healthy: Network) -> None:
    """Make no claim about containers if the rules cannot be read."""
    done("attach", UPLINK, "--mode", "tc", "-n", TARGET)
    try:
        (rules,) = PINS.glob(f"v*/{UPLINK}/addresses")
        rules.unlink()
        found_all = findings("--docker-socket", str(container.socket))
        (found,) = [each for each in found_all if each["check"] == "containers"]
        assert found["level"] == "unseen"
        assert found["what"].startswith("cannot check for which containers ndxdp answers: the pins")
    finally:
        remove_instance()


def test_an_engine_that_does_not_answer(healthy: Network, tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        found_all = findings("--docker-socket", str(path))
        whats = [each["what"] for each in found_all if each["level"] == "unseen"]
        assert f"cannot check the containers: {path}: the engine does not answer" in whats


# ---- its page ------------------------------------------------------------------------------------


def test_the_page_names_every_check(answering: Network) -> None:
    page = (REPOSITORY / "docs" / "doctor.md").read_text()
    listed = re.findall(r"^- \*\*(\w+)\*\*:", page, re.MULTILINE)
    sections = examination.examine(UPLINK, Trees(), "/none", probing=True, watching=0.1)
    assert listed == [check for check, _ in sections]


def test_json_is_as_documented(net: Network) -> None:
    documented = json_of("doctor")
    answer = json.loads(ndxdp("doctor", UPLINK, "--json").out)
    assert answer.keys() == documented.keys()
    (one,), (other,) = answer["interfaces"], documented["interfaces"]
    assert one.keys() == other.keys()
    mended = {**other["findings"][0], "why": other["findings"][0]["why"].replace("eth0", UPLINK)}
    assert mended in one["findings"]
