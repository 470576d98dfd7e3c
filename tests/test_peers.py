"""The README's table: answers of ndxdp and its peers to the same solicitations."""

from __future__ import annotations

import contextlib
import functools
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from lab.capture import packet_socket
from tests.fixtures import network, peer
from tests.fixtures.network import (
    BEHIND,
    GATEWAY,
    HOST,
    HOST_LINK_LOCAL,
    HOST_MAC,
    REPOSITORY,
    ROUTER,
    ROUTER_LINK,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    a_way_behind,
    sh,
)

_NPD6 = f"""\
prefix = 2001:0db8:0000:0000:
interface = {UPLINK}
ralogging = off
listtype = none
linkOption = false
ignoreLocal = true
routerNA = true
maxHops = 255
collectTargets = 0
"""

WAIT = 0.4  # seconds for an answer, or for none

_GROUP = "ff02::1:ff00:99"


def solicitation(
    source: str = ROUTER_LINK_LOCAL, destination: str = _GROUP, hop_limit: int = 255
) -> Packet:
    to = HOST_MAC if destination == TARGET else "33:33:ff:00:00:99"
    frame = Ether(src=ROUTER_MAC, dst=to) / IPv6(src=source, dst=destination, hlim=hop_limit)
    frame /= ICMPv6ND_NS(tgt=TARGET)
    return frame if source == "::" else frame / ICMPv6NDOptSrcLLAddr(lladdr=ROUTER_MAC)


def answers(frame: bytes) -> list[Packet]:
    """Return the advertisements for the target that reach the router after a frame."""
    found = []
    with packet_socket(ROUTER, ROUTER_LINK) as wire:
        wire.send(frame)
        until = time.monotonic() + WAIT
        while (left := until - time.monotonic()) > 0:
            wire.settimeout(left)
            with contextlib.suppress(TimeoutError):
                seen, address = wire.recvfrom(65536)
                packet = Ether(seen)
                if address[2] != socket.PACKET_OUTGOING and ICMPv6ND_NA in packet:
                    found.append(packet)
    return [packet for packet in found if packet[ICMPv6ND_NA].tgt == TARGET]


def answer(frame: Packet) -> Packet | None:
    """Return the first answer; solicit again if none comes, as on a busy machine."""
    for _ in range(3):
        found = answers(bytes(frame))
        if found:
            return found[0]
    return None


def behaviour() -> dict[str, str]:
    """Return a row of the table."""
    plain = answer(solicitation(source=GATEWAY))
    assert plain is not None, "it does not answer"
    sources = {TARGET: "the target", HOST: "the host", HOST_LINK_LOCAL: "the host"}
    na = plain[ICMPv6ND_NA]

    def verdict(packet: Packet | None) -> str:
        return "answered" if packet is not None else "not answered"

    dad = answer(solicitation(source="::"))
    if dad is None:
        duplicate = "not answered"
    else:
        assert dad[ICMPv6ND_NA].tgt == TARGET
        duplicate = f"answered to {dad[IPv6].dst}, S={dad[ICMPv6ND_NA].S}"
    damaged = bytearray(bytes(solicitation()))
    damaged[57] ^= 1  # of the checksum
    return {
        "source of the advertisement": sources.get(plain[IPv6].src, "another of the host's"),
        "flags": f"R={na.R} S={na.S} O={na.O}",
        "solicitation to the target itself (NUD)": verdict(
            answer(solicitation(destination=TARGET))
        ),
        "duplicate address detection": duplicate,
        "wrong checksum": verdict(answer(Ether(bytes(damaged)))),
        "hop limit below 255": verdict(answer(solicitation(hop_limit=64))),
    }


@contextlib.contextmanager
def _ndxdp(net: Network) -> Iterator[None]:
    with a_way_behind():
        run = net.run("-i", UPLINK, "-n", BEHIND)
        yield
        assert run.end() == (0, "", "")


@contextlib.contextmanager
def _ndppd(net: Network) -> Iterator[None]:
    with peer.serving(f"proxy {UPLINK} {{ rule {BEHIND} {{ static }} }}\n"):
        yield


@contextlib.contextmanager
def _npd6(net: Network) -> Iterator[None]:
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write(_NPD6)
        file.flush()
        process = subprocess.Popen(
            ["npd6", "-f", "-c", file.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            network.eventually(lambda: answers(bytes(solicitation(source=GATEWAY))), within=20)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=10)
            finally:
                process.kill()
                process.wait()
            sh("ip", "link", "set", UPLINK, "allmulticast", "off")  # npd6 leaves it on


@contextlib.contextmanager
def _proxy_ndp(net: Network, *, place: str) -> Iterator[None]:
    """Let the kernel answer. place: the interface whose `proxy_ndp` is 1, or `all`."""
    settings = {
        "net/ipv6/conf/all/forwarding": "1",
        f"net/ipv6/conf/{place}/proxy_ndp": "1",
        f"net/ipv6/neigh/{UPLINK}/proxy_delay": "0",
    }
    before = {name: Path("/proc/sys", name).read_text() for name in settings}
    for name, value in settings.items():
        Path("/proc/sys", name).write_text(value)
    sh("ip", "-6", "neighbour", "add", "proxy", TARGET, "dev", UPLINK)
    try:
        yield
    finally:
        sh("ip", "-6", "neighbour", "delete", "proxy", TARGET, "dev", UPLINK)
        for name, value in before.items():
            Path("/proc/sys", name).write_text(value)


Serve = Callable[[Network], contextlib.AbstractContextManager[None]]

PEERS: dict[str, Serve] = {
    "ndxdp": _ndxdp,
    "ndppd 0.2": _ndppd,
    "npd6 1.1": _npd6,
    "Linux `proxy_ndp` on the interface": functools.partial(_proxy_ndp, place=UPLINK),
    "Linux `proxy_ndp` on `all`": functools.partial(_proxy_ndp, place="all"),
}


def shown() -> dict[str, dict[str, str]]:
    """Read the README's table by responder and behaviour."""
    table = re.search(
        r"^\| \|( .* )\|\n\|[-|]+\|\n((?:\|.*\n)+)",
        (REPOSITORY / "README.md").read_text().partition("## On the wire")[2],
        re.MULTILINE,
    )
    assert table
    titles = [title.strip() for title in table[1].split("|")]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table[2].splitlines()]
    return {row[0]: dict(zip(titles, row[1:], strict=True)) for row in rows}


def test_a_row_without_a_test_has_its_source() -> None:
    """The first cell links the source at a commit, so that the row can be checked."""
    others = [name for name in shown() if name not in PEERS]
    assert len(others) == 3
    for name in others:
        assert re.fullmatch(
            r"\[[\w-]+\]\(https://github\.com/[\w/-]+/blob/[0-9a-f]{40}/\S+\)", name
        )


@pytest.mark.parametrize("name", PEERS)
def test_the_readmes_table(name: str, net: Network) -> None:
    with PEERS[name](net):
        assert behaviour() == shown()[name]
