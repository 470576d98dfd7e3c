"""Converted configurations of ndppd that answer on the wire as ndppd does."""

from __future__ import annotations

import socket
import time
import tomllib
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.capture import packet_socket
from ndxdp.convert import ndpresponder
from ndxdp.convert.width import Host
from ndxdp.ndp import message
from ndxdp.ndp.frame import TYPE_NA, flags_of, icmpv6_type_of, target_of
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.rules.prefix import parse_prefix
from tests.fixtures import network, peer
from tests.fixtures.converted import DB8, rule, text_of
from tests.fixtures.network import Done, Network, ndxdp
from tests.test_breadth import takes

# ---- on the wire ---------------------------------------------------------------------------------


LIVE = "2001:db8::c:0:0:99"
"""The container's address, behind the host."""
NOBODY = "2001:db8::c:0:0:98"
ALL = (LIVE, NOBODY, "2001:db8::c:0:1:5", "2001:db8::c:1:0:1")
TARGETS = (*ALL, "2001:db8::d:0:0:1", "2001:db8:ffff::1")
C80, C112 = "2001:db8:0:0:c::/80", "2001:db8:0:0:c::/112"


class Served(NamedTuple):
    """The content of the proxy section, and the targets that ndppd then answers for."""

    text: str
    answered: tuple[str, ...]
    router: bool = True


SERVED = {
    "prefix": Served(f"rule {C80} {{ static }}", ALL),
    "smaller prefix": Served(f"rule {C112} {{ static }}", (LIVE, NOBODY)),
    "host bits": Served(f"rule {LIVE}/112 {{ static }}", (LIVE, NOBODY)),
    "addresses": Served(
        f"rule {LIVE} {{ static }} rule 2001:db8:ffff::1 {{ static }}", (LIVE, "2001:db8:ffff::1")
    ),
    "no router": Served(f"rule {C112} {{ static }} router no", (LIVE, NOBODY), router=False),
    "auto in static": Served(f"rule {C112} {{ auto }} rule {C80} {{ static }}", ALL),
    "auto": Served(f"rule {C80} {{ auto }}", (LIVE,)),
    "iface": Served(f"rule {C80} {{ iface to-container }}", (LIVE,)),
}


def section(served: Served) -> str:
    return f"proxy {network.UPLINK} {{ {served.text} }}"


@pytest.fixture
def container(net: Network) -> Iterator[Network]:
    """Add a container with the address LIVE behind the host."""
    enter = ("nsenter", "--net=/run/netns/container")
    network.sh("ip", "netns", "add", "container")
    try:
        network.sh(
            *("ip", "link", "add", "to-container", "type", "veth"),
            *("peer", "name", "eth0", "netns", "container"),
        )
        here = """
            link set to-container addrgenmode none up
            address add fe80::c/64 dev to-container nodad
            route add 2001:db8:0:0:c::/80 dev to-container
        """
        there = f"""
            link set eth0 addrgenmode none up
            address add fe80::d/64 dev eth0 nodad
            address add {LIVE}/80 dev eth0 nodad
        """
        network.sh("ip", "-6", "-batch", "-", stdin=here)
        network.sh(*enter, "ip", "-6", "-batch", "-", stdin=there)
        # ndppd answers without forwarding, ndxdp does not.
        for name in ("to-container", network.UPLINK):
            Path(f"/proc/sys/net/ipv6/conf/{name}/forwarding").write_text("1")
        yield net
    finally:
        network.call("ip", "link", "delete", "to-container")
        network.call("ip", "netns", "delete", "container")


class Router:
    """A solicitor on the router's link that keeps the received advertisements."""

    def __init__(self, packets: socket.socket) -> None:
        self._packets = packets
        packets.setblocking(False)
        self.flags: dict[str, int] = {}
        """First byte of the flags, by target."""

    def solicit(self, targets: tuple[str, ...]) -> None:
        mac = parse_mac(network.ROUTER_MAC)
        source = parse_address(network.ROUTER_LINK_LOCAL)
        for target in targets:
            frame = message.solicit(mac, parse_address(target), source=source, sllao=mac)
            self._packets.send(frame)

    def listen(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                frame, address = self._packets.recvfrom(65536)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            if address[2] != socket.PACKET_OUTGOING and icmpv6_type_of(frame) == TYPE_NA:
                self.flags[str(IPv6Address(target_of(frame)))] = flags_of(frame)

    def answered_flags(self, wanted: tuple[str, ...]) -> dict[str, int]:
        """Solicit until all wanted targets have answered; return the answers' flags by target."""
        self.flags.clear()
        for _ in range(20):
            self.solicit(TARGETS)
            self.listen(0.3)
            if set(wanted) <= set(self.flags):
                break
        # Solicit once more, so that a responder that was still starting has seen each target.
        self.solicit(TARGETS)
        self.listen(0.7)
        return {target: flags for target, flags in self.flags.items() if target in TARGETS}


@pytest.mark.parametrize("served", SERVED.values(), ids=SERVED)
def test_ndppd_answers(container: Network, served: Served) -> None:
    """Check the table against the real ndppd; the next test checks ndxdp against it."""
    with (
        packet_socket(network.ROUTER, network.ROUTER_LINK) as packets,
        peer.serving(section(served)),
    ):
        found = Router(packets).answered_flags(served.answered)
    assert set(found) == set(served.answered)
    assert {flags & 0x80 for flags in found.values()} == {0x80 if served.router else 0}


@pytest.mark.parametrize(
    "served",
    [pytest.param(served, id=name) for name, served in SERVED.items()],
)
def test_answers_what_ndppd_answers(container: Network, served: Served, tmp_path: Path) -> None:
    source, target = tmp_path / "ndppd.conf", tmp_path / "ndxdp.toml"
    source.write_text(section(served))
    assert ndxdp("convert", str(source), "-o", str(target)).code == 0
    with packet_socket(network.ROUTER, network.ROUTER_LINK) as packets:
        running = container.run("-c", str(target))
        try:
            found = Router(packets).answered_flags(served.answered)
        finally:
            running.end()
            network.done("detach", network.UPLINK)
    assert set(found) >= set(served.answered)
    ruled = [IPv6Network(word, strict=False) for word in served.text.split() if ":" in word]
    assert all(any(IPv6Address(each) in prefix for prefix in ruled) for each in found)
    assert {flags & 0x80 for flags in found.values()} == {0x80 if served.router else 0}


# ---- the whole on-link prefix --------------------------------------------------------------------


WHOLE = f"rule {DB8} {{ static }}"
UNSEEN = "2001:db8::77"
"""An unused address of the on-link prefix."""


def converted(tmp_path: Path, text: str) -> tuple[Path, Done]:
    """Run `convert` on this machine; return its file and its result."""
    source, target = tmp_path / "ndppd.conf", tmp_path / "ndxdp.toml"
    source.write_text(text)
    return target, ndxdp("convert", str(source), "-o", str(target), "--force")


def test_the_whole_prefix_disturbs_as_little_as_with_ndppd(net: Network, tmp_path: Path) -> None:
    """Answer for the whole prefix, as ndppd does, and let the router take its address again."""
    text = f"proxy {network.UPLINK} {{ {WHOLE} }}"
    target, result = converted(tmp_path, text)
    assert result == (0, "", "")
    toml = tomllib.loads(target.read_text())
    assert toml["interface"][0]["prefix"] == [rule(DB8, force=True)]
    with (
        packet_socket(network.ROUTER, network.ROUTER_LINK) as packets,
        peer.serving(text),
    ):
        assert set(Router(packets).answered_flags(TARGETS[:-1])) == set(TARGETS[:-1])
        assert takes(net, network.OTHER_GATEWAY)
    assert ndxdp("check", "-c", str(target)).err == ""
    running = net.run("-c", str(target))
    assert net.answers(UNSEEN)
    assert takes(net, network.OTHER_GATEWAY)
    assert takes(net, UNSEEN)
    assert network.status()["warnings"] == []
    assert running.end().code == 0
    network.done("detach", network.UPLINK)


def test_force_is_written_only_where_it_is_needed(net: Network, tmp_path: Path) -> None:
    prefixes_of = ("::/0", "fe80::/10", "2001:db8::/48", DB8, "2001:db8:5::/64", C80, LIVE)
    rules = " ".join(f"rule {prefix} {{ static }}" for prefix in prefixes_of)

    def forced(name: str) -> set[str]:
        target, result = converted(tmp_path, f"proxy {name} {{ {rules} }}")
        assert result.code == 0
        (interface,) = tomllib.loads(target.read_text())["interface"]
        found = [each for each in interface["prefix"] if each["dad"] == "ignore"]
        assert len(found) == len(prefixes_of)
        assert ndxdp("check", "-c", str(target)) == (0, f"{target}: good\n{summary(name)}", "")
        return {each["prefix"] for each in found if each.get("force")}

    def summary(name: str) -> str:
        return f"{name}  auto mode; rules: {len(prefixes_of)}\n"

    narrow = {C80, LIVE}
    assert forced(network.UPLINK) == {*prefixes_of} - narrow - {"2001:db8:5::/64"}
    assert forced("nosuch") == {*prefixes_of} - narrow
    network.sh("ip", "address", "delete", f"{network.HOST}/64", "dev", network.UPLINK)
    assert forced(network.UPLINK) == {*prefixes_of} - narrow, "no prefix is there yet"


def test_a_prefix_that_ends_here(net: Network, tmp_path: Path) -> None:
    """Convert AnyIP, the most frequent kind of ndppd's configurations."""
    network.sh("ip", "-6", "route", "add", "local", "2001:db8:a::/64", "dev", "lo")
    try:
        rules = "rule 2001:db8:a::/64 { static } rule 2001:db8:a::5 { static }"
        rules += f" rule 2001:db8:a::/63 {{ static }} rule {network.HOST} {{ static }}"
        rules += " rule 2001:db8:a:0:1::/80 { auto }"
        target, result = converted(tmp_path, f"proxy {network.UPLINK} {{ {rules} }}")
        assert result.code == 0
        assert ndxdp("check", "-c", str(target)).code == 0
        running = net.run("-c", str(target))
        assert net.answers("2001:db8:a::7")
        assert net.answers("2001:db8:a::5")
        assert net.silent("2001:db8:b::5")
        assert running.end().code == 0
        ndxdp("detach", network.UPLINK)
    finally:
        network.sh("ip", "-6", "route", "delete", "local", "2001:db8:a::/64", "dev", "lo")
    text = target.read_text()
    (interface,) = tomllib.loads(text)["interface"]
    answers = {each["prefix"]: each["answer"] for each in interface["prefix"]}
    assert answers == {
        "2001:db8:a::/64": "local",
        "2001:db8:a::5": "local",
        "2001:db8:a::/63": "always",
        network.HOST: "always",
        "2001:db8:a:0:1::/80": "local",  # the wider static rule answers there, too
    }
    assert not any("force" in each for each in interface["prefix"])
    assert "# local: this machine has a local route for 2001:db8:a::/64" in text
    assert "ip -6 route add local PREFIX dev lo" in text, "there is a prefix left to ask about"


def test_facts_of_another_machine_are_proposed() -> None:
    text = text_of(f"proxy eth0 {{ {WHOLE} }}")
    proposal = (
        "# if a local route delivers a prefix to this host (ip -6 route add local PREFIX dev lo),"
    )
    assert f'{proposal} write answer = "local"' in text
    assert (
        "# dad: ndppd's answers do not disturb Duplicate Address Detection, so neither do these"
        in text
    )
    assert (
        "# force: without it ndxdp leaves this rule out if it covers the on-link prefix of eth0"
        in text
    )
    text = text_of("proxy eth0 { rule ::/0 { static } }")
    assert "# force: without it ndxdp refuses a rule that answers for the other nodes" in text
    assert "#" not in text_of(f"proxy eth0 {{ rule {DB8} {{ auto }} }}").partition("\n")[2]
    exact = text_of("proxy eth0 { rule 2001:db8::9 { static } }")
    assert "local" not in exact
    host = Host(local=frozenset([parse_prefix("2001:db8::/32")]))
    draft = ndpresponder.convert("-i eth0 -n 2001:db8::/64 -n 2001:db9::/80", host)
    (interface,) = tomllib.loads(draft.text("x"))["interface"]
    assert interface["prefix"] == [
        {"prefix": DB8, "answer": "local", "dad": "ignore"},
        rule("2001:db9::/80"),
    ]
    assert "ndpresponder's answers do not disturb" in draft.text("x")
