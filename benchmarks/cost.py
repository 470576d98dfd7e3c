"""Cost of the program for a frame that is a solicitation, and for one that is not."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from ipaddress import IPv6Address

from benchmarks.contestants import attached, xdp
from benchmarks.wire import (
    BEHIND,
    CONTAINER_MAC,
    HOST_MAC,
    LINK,
    PREFIX,
    SPREAD,
    Wire,
    in_host,
)
from ndxdp.kernel import libbpf
from ndxdp.store.directories import Trees

_ETHERNET = bytes.fromhex(HOST_MAC.replace(":", "")) + bytes.fromhex("020000000100")
_CONTAINER = IPv6Address(f"{PREFIX}99").packed
_SOURCE = IPv6Address("2001:db8:ffff::1").packed
_PADDING = bytes(60)


def _ip6(next_header: int, payload: bytes, *, hop_limit: int = 64) -> bytes:
    head = struct.pack("!IHBB", 0x60000000, len(payload), next_header, hop_limit)
    return _ETHERNET + b"\x86\xdd" + head + _SOURCE + _CONTAINER + payload


_UDP = struct.pack("!4H", 5000, 5001, 32, 0) + bytes(24)
OTHERS = {
    "TCP": _ip6(6, struct.pack("!2H2IH3H", 443, 40000, 1, 1, 0x5010, 512, 0, 0) + _PADDING),
    "UDP": _ip6(17, _UDP),
    "NA": _ip6(58, bytes((136, 0, 0, 0, 0x60, 0, 0, 0)) + _CONTAINER, hop_limit=255),
    "RS": _ip6(58, bytes((133, 0, 0, 0, 0, 0, 0, 0)), hop_limit=255),
    "echo": _ip6(58, bytes((128, 0, 0, 0, 0, 1, 0, 1)) + _PADDING),
    "IPv4": _ETHERNET + b"\x08\x00\x45" + bytes(85),
    "VLAN": _ETHERNET + b"\x81\x00\x00\x05\x86\xdd" + bytes(80),
}
"""Frames that are not solicitations."""


@contextlib.contextmanager
def loaded(mode: str, *options: str) -> Iterator[int]:
    """Return the descriptor of ndxdp's program as attached."""
    with attached(mode, *options):
        fd = libbpf.get_pinned(str(Trees().pins.base / LINK / "program"))
        try:
            yield fd
        finally:
            os.close(fd)


def others(wire: Wire, times: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Return ns per run for each kind of frame: of ndxdp's program, and of one that passes all."""
    found: dict[str, list[dict[str, float]]] = {}
    for mode, empty in (("native", "pass"), ("tc", "pass_tc")):
        with loaded(mode) as ours:
            for _ in range(rounds):
                for kind, frame in OTHERS.items():
                    one = {
                        "ours": wire.ns_per_frame(ours, frame, times, skb=mode == "tc"),
                        "empty": wire.ns_per_frame(
                            wire.program(empty), frame, times, skb=mode == "tc"
                        ),
                    }
                    found.setdefault(f"{mode}, {kind}", []).append(_added(one))
    return found


def _added(one: dict[str, float]) -> dict[str, float]:
    return {name: round(ns, 2) for name, ns in one.items()} | {
        "added": round(one["ours"] - one["empty"], 2),
    }


def solicitation(wire: Wire, times: int, rounds: int) -> list[dict[str, float]]:
    """Return ns per run on a fresh solicitation, without the cost of making it."""
    wire.spread(SPREAD)
    found = []
    with loaded("native") as ours:
        for _ in range(rounds):
            making = wire.ns_per_run(wire.program("pass"), times)
            found.append(
                {
                    "native": round(wire.ns_per_run(ours, times) - making, 2),
                    "reflector": round(wire.ns_per_run(wire.program("reflect"), times) - making, 2),
                }
            )
    return found


def forwarding(wire: Wire, seconds: float, repeats: int) -> list[dict[str, float]]:
    """Return the UDP packets forwarded per second, by the program on the interface."""
    neighbour = f"neighbour replace {IPv6Address(_CONTAINER)} lladdr {CONTAINER_MAC} dev {BEHIND}"
    in_host("ip", "-6", *neighbour.split(), "nud", "permanent")
    packet = OTHERS["UDP"]
    found = []
    for _ in range(repeats):
        one: dict[str, float] = {}
        for name, there in (
            ("nothing", contextlib.nullcontext()),
            ("pass", xdp("pass")),
            ("native", attached("native")),
            ("generic", attached("generic")),
            ("tc", attached("tc")),
        ):
            with there:
                one[name] = round(wire.carry(packet, seconds).received)
        if not min(one.values()):
            raise SystemExit(f"The host does not forward: {one}")
        found.append(one)
    return found
