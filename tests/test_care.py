"""The source address of gateway care: how it is chosen, when it changes, and where it is shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.capture import packet_socket
from ndxdp.ndp.frame import source_of
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.netlink.addresses import OwnAddress
from ndxdp.netlink.links import Link
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.rules.prefix import Prefix, parse_prefix
from ndxdp.rules.rule import Rule, owned_rule
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime.daemon_status import NoSource
from ndxdp.upstream.gateway_keepalive import GatewayKeepalive, Source
from ndxdp.upstream.gateways import Choice, choose
from tests.fixtures.network import (
    BEHIND,
    GATEWAY,
    HOST,
    HOST_MAC,
    ROUTER,
    ROUTER_LINK,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    UPLINK,
    Running,
    done,
    eventually,
    ndxdp,
    rules,
    sh,
    status,
)
from tests.fixtures.segment import BEHIND_LINK, BRIDGE, SWITCH, Segment, at, ip

FIRST, SECOND = "2001:db8::d:0:0:7", "2001:db8::d:0:0:8"
"""Exact addresses behind this host."""
STRANGER, STRANGER_MAC = "stranger", "02:00:00:00:00:77"
"""Another host on the link."""

# ---- the choice ---------------------------------------------------------------------------------

_TEMPORARY, _DADFAILED, _DEPRECATED, _TENTATIVE, _PERMANENT = 0x01, 0x08, 0x20, 0x40, 0x80

PORT_MAC, BRIDGE_MAC = parse_mac("02:00:00:00:00:0a"), parse_mac("02:00:00:00:00:0b")


def link(ifindex: int, mac: bytes) -> Link:
    return Link(ifindex, f"if{ifindex}", mac, "", True, True, False)


PORT, ABOVE = link(3, PORT_MAC), link(4, BRIDGE_MAC)


def own(text: str, flags: int = _PERMANENT) -> OwnAddress:
    return OwnAddress(parse_address(text), 64, flags, 0, 0, link_local=text.startswith("fe80:"))


def chosen(
    *addresses: OwnAddress,
    rules: dict[str, Rule] | None = None,
    wanted: str | None = None,
    paused: bool = False,
) -> list[str] | NoSource:
    """Choose a source and check its MAC; return the addresses, or the reason for none."""
    found = choose(
        parse_address(wanted) if wanted else None,
        PORT,
        ABOVE,
        addresses,
        Rules.of({parse_prefix(text): rule for text, rule in (rules or {}).items()}),
        paused=paused,
    )
    assert found.ifindex == ABOVE.ifindex
    for source in found.sources:
        is_own = any(source.address == each.address for each in addresses)
        assert source.mac == (BRIDGE_MAC if is_own else PORT_MAC)
    if found.why:
        assert found == Choice(4, (), found.why, parse_address(wanted) if wanted else None)
        return found.why
    assert found.sources
    return [socket.inet_ntop(socket.AF_INET6, source.address) for source in found.sources]


ALWAYS = Rule()
LOCAL = own("fe80::2")
OWN = own("2001:db8::2")


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (OWN, own("2001:db8::1", _TEMPORARY)),
        (OWN, own("2001:db8::1", 0)),
        (own("2001:db8::9", 0), own("2001:db8::1", _TEMPORARY)),
        (own("2001:db8::9", 0), own("fd00::1")),
        (own("fd00::1"), own("2001:db8::1", _TEMPORARY)),
        (own("2001:db8::9", _TEMPORARY), own("2001:db8::1", _DEPRECATED | _PERMANENT)),
        (OWN, own("2001:db8::1", _TENTATIVE | _PERMANENT)),
        (OWN, own("2001:db8::1", _DADFAILED | _TENTATIVE | _PERMANENT)),
        (OWN, LOCAL),
    ],
)
def test_the_hosts_best_address(better: OwnAddress, worse: OwnAddress) -> None:
    text = socket.inet_ntop(socket.AF_INET6, better.address)
    assert chosen(better, worse) == chosen(worse, better) == [text]


def test_an_exact_address_comes_second() -> None:
    rules = {SECOND: ALWAYS, FIRST: ALWAYS, BEHIND: ALWAYS}
    assert chosen(OWN, LOCAL, rules=rules) == ["2001:db8::2", FIRST]
    assert chosen(LOCAL, rules=rules) == [FIRST]
    assert chosen(own("2001:db8::2", _DEPRECATED), rules=rules) == [FIRST]
    assert chosen(own("2001:db8::2", _DEPRECATED)) == ["2001:db8::2"], "better than none"


@pytest.mark.parametrize(
    "rule",
    [
        Rule(Answer.NEVER),
        Rule(Answer.ROUTED),
        owned_rule("own"),
        Rule(owned=True),
        Rule(profile=Profile(lladdr=parse_mac("00:00:5e:00:02:01"))),
    ],
)
def test_exact_addresses_that_are_not_used(rule: Rule) -> None:
    assert chosen(LOCAL, rules={FIRST: rule}) is NoSource.NO_ADDRESS
    assert chosen(LOCAL, rules={FIRST: rule, SECOND: ALWAYS}) == [SECOND]


def test_nothing_to_choose() -> None:
    assert chosen(LOCAL, rules={BEHIND: ALWAYS}) is NoSource.NO_ADDRESS
    assert chosen(own("2001:db8::2", _TENTATIVE)) is NoSource.NO_ADDRESS
    assert chosen(LOCAL, rules={FIRST: ALWAYS}, paused=True) is NoSource.PAUSED
    assert chosen(OWN, rules={FIRST: ALWAYS}, paused=True) == ["2001:db8::2"]


def test_a_configured_source() -> None:
    """Use only a configured source, while the host owns it or a rule answers for it."""
    wanted = "2001:db8::c:0:0:99"
    assert chosen(OWN, rules={FIRST: ALWAYS}, wanted=wanted) is NoSource.UNCOVERED
    assert chosen(OWN, rules={BEHIND: ALWAYS}, wanted=wanted) == [wanted]
    assert chosen(OWN, rules={BEHIND: Rule(Answer.ROUTED)}, wanted=wanted) == [wanted]
    assert chosen(OWN, rules={BEHIND: ALWAYS}, wanted=wanted, paused=True) is NoSource.PAUSED
    excepted = {BEHIND: ALWAYS, wanted: Rule(Answer.NEVER)}
    assert chosen(OWN, rules=excepted, wanted=wanted) is NoSource.UNCOVERED
    assert chosen(OWN, rules={wanted: owned_rule("gateway")}, wanted=wanted) is NoSource.UNCOVERED
    other = Rule(profile=Profile(lladdr=parse_mac("00:00:5e:00:02:01")))
    assert chosen(OWN, rules={BEHIND: other}, wanted=wanted) is NoSource.OTHER_MAC
    for flags in (_PERMANENT, _DEPRECATED, _TEMPORARY):
        assert chosen(own(wanted, flags), rules={wanted: owned_rule("own")}, wanted=wanted) == [
            wanted
        ]
    assert chosen(own(wanted, _TENTATIVE), wanted=wanted) is NoSource.UNCOVERED


def test_most_specific_rule() -> None:
    texts = ("::/0", "2001:db8::/32", "2001:db8::7")
    rules = Rules.of({parse_prefix(text): Rule(label=text) for text in texts})
    for address, label in (("2001:db8::7", texts[2]), ("2001:db8::8", texts[1]), ("::7", "::/0")):
        rule = rules.most_specific(parse_address(address))
        assert rule
        assert rule.label == label
    assert Rules.of({Prefix(bytes(16), 128): ALWAYS}).most_specific(parse_address("::7")) is None


# ---- the daemon ---------------------------------------------------------------------------------


@contextlib.contextmanager
def at_work(
    tmp_path: Path,
    *prefixes: str,
    source: str = "",
    name: str = UPLINK,
    every: str = "1",
    mode: str = "tc",
) -> Iterator[Running]:
    """Run the daemon on an interface with gateway care each second; detach at the end."""
    file = tmp_path / "ndxdp.toml"
    file.write_text(config(*prefixes, source=source, name=name, every=every, mode=mode))
    run = Running(("-c", str(file)))
    try:
        yield run
        assert run.process.poll() in (None, 0)
    finally:
        run.close()
        ndxdp("-q", "detach", name)


def config(
    *prefixes: str,
    source: str = "",
    name: str = UPLINK,
    every: str = "1",
    mode: str = "tc",
) -> str:
    chosen = f'source = "{source}"\n' if source else ""
    chosen += f"interval = {every}\n" if every else ""
    tables = "".join(f'[[interface.prefix]]\nprefix = "{prefix}"\n' for prefix in prefixes)
    return f'[[interface]]\nname = "{name}"\nmode = "{mode}"\n[interface.gateway]\n{chosen}{tables}'


def care(name: str = UPLINK) -> dict[str, Any]:
    found: dict[str, Any] = status(name)["gateway_care"] or {}
    return found


def solicits_from(source: str, name: str = UPLINK) -> None:
    eventually(lambda: care(name) == {"source": source, "why": None}, within=8)


def at_router(address: str) -> str:
    """Return the MAC of an address in the router's neighbour table."""
    shown = at(ROUTER, "ip", "-j", "-6", "neigh", "show", address, "dev", ROUTER_LINK).out
    found: list[dict[str, Any]] = json.loads(shown or "[]")
    return str(found[0].get("lladdr", "")) if found else ""


def no_global_address() -> None:
    sh("ip", "-6", "address", "del", f"{HOST}/64", "dev", UPLINK)
    sh("ip", "-6", "route", "replace", "2001:db8::/64", "dev", UPLINK)
    sh("ip", "-6", "route", "replace", "default", "via", GATEWAY, "dev", UPLINK)


class Wire:
    """The frames that reach the router from now on."""

    def __init__(self) -> None:
        self._socket = packet_socket(ROUTER, ROUTER_LINK)
        self._socket.setblocking(False)

    def icmp(self) -> list[tuple[int, int, str]]:
        """Return type, code and source address of each ICMPv6 message since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = self._socket.recvfrom(2000)
                if address[2] != socket.PACKET_OUTGOING and frame[20] == 58:
                    source = socket.inet_ntop(socket.AF_INET6, source_of(frame))
                    found.append((frame[54], frame[55], source))
        return found

    def solicited_from(self) -> set[str]:
        return {source for kind, _, source in self.icmp() if kind == 135}

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def wire(wired: Segment) -> Iterator[Wire]:
    with contextlib.closing(Wire()) as made:
        yield made


@contextlib.contextmanager
def stranger(address: str) -> Iterator[None]:
    """Give an address to another host on the link, which sends packets to the router from it."""
    sh("ip", "netns", "add", STRANGER)
    try:
        ip(
            SWITCH,
            f"""
            link add to-stranger type veth peer name eth0 address {STRANGER_MAC} netns {STRANGER}
            link set to-stranger master {BRIDGE} up
            """,
        )
        ip(STRANGER, f"link set eth0 up\naddress add {address}/64 dev eth0 nodad")
        at(STRANGER, "ping", "-6", "-c", "2", "-i", "0.2", "-W", "2", "-I", address, GATEWAY)
        yield
    finally:
        sh("ip", "netns", "delete", STRANGER)


@contextlib.contextmanager
def entries_at_router() -> Iterator[list[str]]:
    """Record the changes of the router's neighbour table; the block's end fills the list."""
    command = ["nsenter", f"--net=/run/netns/{ROUTER}", "stdbuf", "-oL", "ip", "-6", "monitor"]
    monitor = subprocess.Popen([*command, "neigh"], stdout=subprocess.PIPE, text=True)
    lines: list[str] = []
    try:
        yield lines
    finally:
        monitor.terminate()
        lines += monitor.communicate(timeout=10)[0].splitlines()


def test_a_removed_address_is_left_to_its_next_host(
    wired: Segment, tmp_path: Path, wire: Wire
) -> None:
    """Solicit from the next exact address at once; leave the router's entry of the old one."""
    no_global_address()
    with at_work(tmp_path, FIRST, SECOND) as run:
        solicits_from(FIRST)
        eventually(lambda: at_router(FIRST) == HOST_MAC)
        (tmp_path / "ndxdp.toml").write_text(config(SECOND))
        run.process.send_signal(signal.SIGHUP)
        solicits_from(SECOND)
        with stranger(FIRST):
            eventually(lambda: at_router(FIRST) == STRANGER_MAC)
            wire.icmp()
            with entries_at_router() as changes:
                seen: list[tuple[int, int, str]] = []
                eventually(lambda: rounds(seen, wire, SECOND) >= 3, within=10)
                assert at_router(FIRST) == STRANGER_MAC
            assert not [line for line in changes if FIRST in line and HOST_MAC in line]
            assert not [each for each in seen if each[2] == FIRST and each[0] == 135]
        assert wired.entry() == ("REACHABLE", ROUTER_MAC)


def rounds(seen: list[tuple[int, int, str]], wire: Wire, source: str) -> int:
    """Return the number of solicitations from a source so far."""
    seen += wire.icmp()
    return sum(kind == 135 and each == source for kind, _, each in seen)


def test_the_last_exact_address_is_removed(wired: Segment, tmp_path: Path, wire: Wire) -> None:
    """Stop soliciting without a usable source, report it, and resume when there is one."""
    no_global_address()
    because = f"{UPLINK} has no global address that can be used, and no rule answers for an exact"
    with at_work(tmp_path, BEHIND) as run:
        eventually(lambda: care().get("why") == f"{because} address")
        assert care()["source"] is None
        assert status()["warnings"] == [
            f"the daemon does not solicit the gateway: {because} address"
        ]
        found = doctor()
        assert found["level"] == "warning"
        assert found["why"].startswith(because)
        assert wire.solicited_from() & {FIRST, SECOND, HOST} == set()
        done("prefix", "add", FIRST)
        solicits_from(FIRST)
        done("prefix", "del", FIRST)
        eventually(lambda: care().get("why"))
        sh("ip", "-6", "address", "add", f"{HOST}/64", "dev", UPLINK, "nodad")
        solicits_from(HOST)
        assert doctor() == {
            "check": "gateway",
            "level": "note",
            "what": f"ndxdp solicits the gateway from {HOST}",
            "why": "",
            "cure": "",
        }
        assert status()["warnings"] == []
        assert f"gateway   solicited from {HOST}" in done("status", UPLINK)
        output = run.end().err
    assert output.count("the gateway is not solicited") == 2, "once each time"
    assert output.count("the gateway is solicited again") == 2


def doctor() -> dict[str, str]:
    """Return doctor's finding on gateway care."""
    result = ndxdp("doctor", UPLINK, "--json")
    (interface,) = json.loads(result.out)["interfaces"]
    (found,) = [
        each
        for each in interface["findings"]
        if each["check"] == "gateway" and each["what"].startswith("ndxdp ")
    ]
    return dict(found)


def test_the_hosts_own_address_is_the_default(wired: Segment, tmp_path: Path, wire: Wire) -> None:
    """Solicit from the host's own address, also with prefix rules only or with an exact rule."""
    with at_work(tmp_path, BEHIND, FIRST) as run:
        solicits_from(HOST)
        eventually(lambda: wired.entry() == ("REACHABLE", ROUTER_MAC))
        eventually(lambda: at_router(HOST) == HOST_MAC)
        assert FIRST not in wire.solicited_from()
        # A deprecated address is no longer the best; then there is a new one.
        sh(*f"ip -6 address change {HOST}/64 dev {UPLINK} preferred_lft 0".split())
        solicits_from(FIRST)
        sh("ip", "-6", "address", "add", "2001:db8::3/64", "dev", UPLINK, "nodad")
        solicits_from("2001:db8::3")
        (tmp_path / "ndxdp.toml").write_text(config(BEHIND, source=HOST))
        run.process.send_signal(signal.SIGHUP)
        solicits_from(HOST)


def test_a_configured_source_has_to_be_covered(wired: Segment, tmp_path: Path, wire: Wire) -> None:
    with at_work(tmp_path, BEHIND, source=FIRST):
        because = f"{FIRST} is not an address of {UPLINK}, and no rule answers for it"
        eventually(lambda: care() == {"source": None, "why": because})
        assert doctor()["cure"] == f"ndxdp prefix add {UPLINK} {FIRST}"
        assert FIRST not in wire.solicited_from()
        done(*doctor()["cure"].split()[1:])
        solicits_from(FIRST)
        done("prefix", "del", FIRST)
        eventually(lambda: care() == {"source": None, "why": because})
        sh("ip", "-6", "address", "add", f"{FIRST}/128", "dev", UPLINK, "nodad")
        solicits_from(FIRST)


@pytest.mark.parametrize("turns", range(4))
def test_care_ends_when_cancelled_beside_an_event(wired: Segment, turns: int) -> None:
    """End when cancelled, even if an event arrives at the same time or a few loop turns earlier."""

    async def main() -> None:
        sources = [Source(parse_address(HOST), parse_mac(HOST_MAC))]
        ifindex = socket.if_nametoindex(UPLINK)
        care = GatewayKeepalive(ifindex, parse_address(ROUTER_LINK_LOCAL), sources, interval=60)
        try:
            task = asyncio.ensure_future(care.run())
            await asyncio.sleep(0.5)  # care waits for the next round
            care.wake()
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            ended, _ = await asyncio.wait({task}, timeout=5)
            assert ended
        finally:
            care.close()

    asyncio.run(main())


def test_a_reload_of_rule_and_interval_at_once(wired: Segment, tmp_path: Path) -> None:
    """Use the new source and the new interval after a reload that changes both."""
    no_global_address()
    with at_work(tmp_path, FIRST, every="60") as run:
        solicits_from(FIRST)
        for every, address in (("50", SECOND), ("40", FIRST), ("30", SECOND)):
            (tmp_path / "ndxdp.toml").write_text(config(address, every=every))
            run.process.send_signal(signal.SIGHUP)
            solicits_from(address)
            assert address in rules()
        assert run.end().code == 0


def test_a_pause_leaves_the_address_to_the_active_host(
    wired: Segment, tmp_path: Path, wire: Wire
) -> None:
    no_global_address()
    with at_work(tmp_path, FIRST):
        solicits_from(FIRST)
        done("pause", UPLINK)
        eventually(lambda: "answering is paused" in (care().get("why") or ""))
        time.sleep(0.2)
        with stranger(FIRST):
            eventually(lambda: at_router(FIRST) == STRANGER_MAC)
            wire.icmp()
            time.sleep(2.5)  # more than two rounds
            mine = [each for each in wire.icmp() if each[0] == 135 and each[2] == FIRST]
            assert at_router(FIRST) == STRANGER_MAC
        assert len(mine) <= 1, "the stranger's own, when it probes the router"
        assert doctor()["cure"] == f"ndxdp resume {UPLINK}"
        done("resume", UPLINK)
        solicits_from(FIRST)


def test_a_port_cares_for_its_bridges_gateway(wired: Segment, tmp_path: Path, wire: Wire) -> None:
    """Use the bridge's route, address and neighbour entry on a port."""
    sh("ip", "link", "add", "lan0", "type", "bridge", "stp_state", "0", "mcast_snooping", "0")
    try:
        sh("ip", "link", "set", UPLINK, "master", "lan0")
        sh("ip", "link", "set", "lan0", "address", "02:00:00:00:00:0b", "addrgenmode", "none", "up")
        for address in (f"{HOST}/64", "fe80::2/64"):
            sh("ip", "-6", "address", "del", address, "dev", UPLINK)
            sh("ip", "-6", "address", "add", address, "dev", "lan0", "nodad")
        sh("ip", "-6", "route", "replace", "default", "via", GATEWAY, "dev", "lan0")
        with at_work(tmp_path, BEHIND):
            solicits_from(HOST)
            shown = ("ip", "-6", "neigh", "show", GATEWAY, "dev", "lan0")
            eventually(lambda: f"{ROUTER_MAC} router REACHABLE" in sh(*shown))
            assert HOST in wire.solicited_from()
            assert at_router(HOST) == "02:00:00:00:00:0b", "the host's MAC there, not the port's"
            # Addresses behind the host have the port's MAC, as in the rules' answers.
            done("prefix", "add", FIRST)
            sh("ip", "-6", "address", "del", f"{HOST}/64", "dev", "lan0")
            sh("ip", "-6", "route", "replace", "2001:db8::/64", "dev", "lan0")
            sh("ip", "-6", "route", "replace", "default", "via", GATEWAY, "dev", "lan0")
            solicits_from(FIRST)
            eventually(lambda: at_router(FIRST) == HOST_MAC)
            eventually(lambda: f"{ROUTER_MAC} router REACHABLE" in sh(*shown))
    finally:
        sh("ip", "link", "delete", "lan0")


def test_the_interval_follows_the_kernels_reachable_time(
    wired: Segment, tmp_path: Path, wire: Wire
) -> None:
    """Follow the kernel's reachable time, which a router advertisement may change at any time."""
    with at_work(tmp_path, BEHIND, every=""):
        eventually(lambda: wired.entry() == ("REACHABLE", ROUTER_MAC))
        sh("sysctl", "-qw", f"net.ipv6.neigh.{UPLINK}.base_reachable_time_ms=500")
        sh("ip", "-6", "neighbour", "delete", GATEWAY, "dev", UPLINK)  # the next round begins now
        seen: list[tuple[int, int, str]] = []
        eventually(lambda: rounds(seen, wire, HOST) >= 6, within=8)


def test_the_gateway_is_replaced(wired: Segment, tmp_path: Path, wire: Wire) -> None:
    """Solicit the new gateway and not the old one, without an error in the log."""
    with at_work(tmp_path, BEHIND) as run:
        solicits_from(HOST)
        sh("ip", "-6", "route", "replace", "default", "via", ROUTER_LINK_LOCAL, "dev", UPLINK)
        eventually(lambda: wired.entry(ROUTER_LINK_LOCAL) == ("REACHABLE", ROUTER_MAC))
        sh("ip", "-6", "route", "delete", "default")
        eventually(lambda: care() == {})
        result = run.end()
    assert result.code == 0
    assert "Traceback" not in result.err


# ---- a link-local gateway ------------------------------------------------------------------------


ERROR = {(1, 2)}  # destination unreachable, beyond scope of source address


@pytest.mark.parametrize(
    ("mode", "source", "routes", "errors"),
    [
        ("tc", HOST, [], set()),
        ("tc", FIRST, [f"{FIRST} dev {BEHIND_LINK}"], set()),
        ("generic", FIRST, [f"{FIRST} dev {BEHIND_LINK}"], set()),
        ("native", FIRST, [f"{FIRST} dev {BEHIND_LINK}"], set()),
        ("userspace", FIRST, [f"{FIRST} dev {BEHIND_LINK}"], ERROR),
        ("userspace", FIRST, [f"blackhole {FIRST}"], set()),
        ("tc", FIRST, [f"unreachable {FIRST}"], set()),
        ("tc", FIRST, [], set()),
    ],
    ids=[
        "the host's address",
        "a container's",
        "a container's, generic",
        "a container's, native",
        "a container's, userspace",
        "a spare one, userspace",
        "unreachable",
        "no route",
    ],
)
def test_errors_to_a_link_local_gateway(
    wired: Segment,
    tmp_path: Path,
    wire: Wire,
    mode: str,
    source: str,
    routes: list[str],
    errors: set[tuple[int, int]],
) -> None:
    """Cause no errors about a link-local gateway's answer to an address that the host lacks.

    Such an answer may not be forwarded (RFC 4291 2.5.6). The program hides it from the kernel;
    docs/gateway.md describes userspace mode.
    """
    sh("ip", "-6", "route", "replace", "default", "via", ROUTER_LINK_LOCAL, "dev", UPLINK)
    sh("sysctl", "-qw", "net.ipv6.icmp.ratelimit=0")
    for route in routes:
        sh("ip", "-6", "route", "replace", *route.split())
    sh(*f"ip -6 neigh add {FIRST} lladdr 02:00:00:00:00:99 dev {BEHIND_LINK}".split())
    with at_work(tmp_path, FIRST, source=source, mode=mode):
        solicits_from(source)
        seen: list[tuple[int, int, str]] = []
        eventually(lambda: rounds(seen, wire, source) >= 3, within=10)
        eventually(lambda: wired.entry(ROUTER_LINK_LOCAL) == ("REACHABLE", ROUTER_MAC))
    seen += wire.icmp()
    assert {(kind, code) for kind, code, _ in seen if kind < 128} == errors
