"""Cost of joined groups: for each multicast packet to the host, to join, and to replace all.

    python -m benchmarks.groups [--groups 0 1000 4000 16000] [--rounds 500]

Solicitations for a group that is not joined arrive on a veth, and the kernel compares them with all
groups of the interface. The counts of groups take turns, and the minimum counts, as other work on
the machine only adds time. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.wire import HOST_MAC, PREFIX, REPOSITORY, ROUTER_MAC, cpu_name
from lab import private
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.rules.address_set import AddressSet
from ndxdp.sockets.group_memberships import GroupMemberships

RESULTS = REPOSITORY / "benchmarks" / "results" / "groups.json"

_LINK = f"link add far type veth peer name eth0 address {HOST_MAC}\nlink set eth0 allmulticast on\n"
_UP = "link set far up\nlink set eth0 up\n"
_FIRST, _OTHER = parse_address(f"{PREFIX}1"), parse_address("2001:db8::ff:ffff")
_SLICE = 128  # groups, as the daemon's


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, nargs="+", default=[0, 1000, 4000, 16000])
    parser.add_argument("--packets", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="the file to write the figures to"
    )
    arguments = parser.parse_args()
    if not private.inside():
        return private.run([sys.executable, "-m", "benchmarks.groups", *sys.argv[1:]])
    subprocess.run(["ip", "-batch", "-"], input=_LINK + _UP, text=True, check=True)
    counts = [_measure(count, arguments.packets, arguments.rounds) for count in arguments.groups]
    for each in counts:
        each["packet_us"] = round(max(each["sent_us"] - counts[0]["sent_us"], 0), 1)
        print(
            f"  {each['groups']:>6} groups: {each['packet_us']:6.1f} us for a packet;"
            f" processor time to join {each['join_cpu']:.3f} s, to replace"
            f" {each['replace_cpu']:.3f} s, to leave {each['leave_cpu']:.4f} s;"
            f" longest turn {each['longest']:.3f} s"
        )
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "cpu": cpu_name()}
    arguments.output.write_text(json.dumps({"machine": machine, "counts": counts}, indent=2) + "\n")
    return 0


def _measure(count: int, packets: int, rounds: int) -> dict[str, Any]:
    """Join groups, send packets to another group, replace the groups by others, and leave."""
    groups = GroupMemberships(socket.if_nametoindex("eth0"))
    try:
        join = _update(groups, 1, count)
        sent = min(_sent(packets) for _ in range(rounds))
        replace = _update(groups, 1 << 20, count)
        leave = _update(groups, 0, 0)
    finally:
        groups.close()
    return {
        "groups": count,
        "sent_us": round(sent * 1e6, 2),
        "join_cpu": join[0],
        "replace_cpu": replace[0],
        "leave_cpu": leave[0],
        "longest": max(join[1], replace[1], leave[1]),
    }


def _update(groups: GroupMemberships, first: int, count: int) -> tuple[float, float]:
    """Join these groups only; return the processor time, and the longest turn, in seconds."""
    start = int.from_bytes(_FIRST) + first
    addresses = AddressSet.of((start + number).to_bytes(16) for number in range(count))
    began, longest, more = time.process_time(), 0.0, True
    while more:
        turn = time.monotonic()
        more = groups.update(addresses, _SLICE)
        longest = max(longest, time.monotonic() - turn)
    assert groups.joined == count
    return round(time.process_time() - began, 4), round(longest, 4)


def _sent(packets: int) -> float:
    """Return the seconds to send a packet, which the kernel receives before send() returns."""
    frame = solicit(parse_mac(ROUTER_MAC), _OTHER, source=parse_address("fe80::1"))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        wire.bind(("far", 0))
        began = time.perf_counter()
        for _ in range(packets):
            wire.send(frame)
        return (time.perf_counter() - began) / packets


if __name__ == "__main__":
    sys.exit(main())
