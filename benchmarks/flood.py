"""Solicit at a rate that only system calls limit, and count what comes back.

    python -m benchmarks.flood IFACE --mac OURS --prefix PREFIX --rate N --seconds S

To be run in the soliciting router's network namespace. It prints one JSON object; `answered` is
the interface's own count of received frames at the moment the flood ends, so that nobody gains by
a long queue. A sample of the answers is taken apart and checked.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import socket
import time
from collections import Counter
from pathlib import Path

from ndxdp import ndp
from ndxdp.policy import parse_address, parse_mac
from ndxdp.wire.packet import BATCH, MessageBatch
from ndxdp.wire.raw import JEQ, LD_B, LD_H, LD_W, RET, assemble, attach_filter

FRAMES = 8192
"""Different solicitations, sent in turn."""

_CATCH_UP = 2048  # what a generator that was held up may send at once, and no more
_SAMPLE = 1 / 2000

_SOL_PACKET = 263
_PACKET_QDISC_BYPASS, _PACKET_IGNORE_OUTGOING = 20, 23
_JGT = 0x25
_RANDOM = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("interface")
    parser.add_argument("--mac", type=parse_mac, required=True, help="the solicitor's")
    parser.add_argument("--source", type=parse_address, default=parse_address("fe80::1"))
    parser.add_argument("--prefix", type=parse_address, required=True, help="of a /96")
    parser.add_argument("--rate", type=int, required=True, help="solicitations per second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--cpu", type=int, help="stay on this one")
    arguments = parser.parse_args()
    if arguments.cpu is not None:
        os.sched_setaffinity(0, {arguments.cpu})

    rng = random.Random(4861)
    frames = [
        ndp.solicit(
            arguments.mac,
            arguments.prefix[:12] + rng.randbytes(4),
            source=arguments.source,
            sllao=arguments.mac,
        )
        for _ in range(FRAMES)
    ]
    sample = _sampling_socket(arguments.interface)
    before = _received(arguments.interface)
    sent, lasted = _send(arguments.interface, frames, arguments.rate, arguments.seconds)
    answered = _received(arguments.interface) - before
    solicited = {frame[62:78] for frame in frames}
    print(
        json.dumps(
            {
                "offered": round(sent / lasted),
                "answered": round(answered / lasted),
                "seconds": round(lasted, 3),
                "sample": _check(sample, solicited, arguments.source),
            }
        )
    )


def _send(interface: str, frames: list[bytes], rate: int, seconds: float) -> tuple[int, float]:
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    out.bind((interface, 0))
    out.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
    batches: list[MessageBatch] = []  # they hold the memory that the kernel reads
    for at in range(0, len(frames), BATCH):
        batch = MessageBatch(len(frames[0]))
        batch.bytes[:] = b"".join(frames[at : at + BATCH]).ljust(len(batch.bytes))
        batches.append(batch)
    sendmmsg = ctypes.CDLL(None).sendmmsg
    sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
    addresses = [batch.address() for batch in batches]
    number, turn = out.fileno(), 0
    sent = skipped = 0
    started = time.monotonic()
    while (lasted := time.monotonic() - started) < seconds:
        due = int(lasted * rate) - skipped
        if due - sent > _CATCH_UP:
            skipped += due - sent - _CATCH_UP
        if due - sent >= BATCH:
            sent += max(sendmmsg(number, addresses[turn], BATCH, 0), 0)
            turn = (turn + 1) % len(addresses)
    return sent, lasted


def _received(interface: str) -> int:
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == interface:
            return int(numbers.split()[1])
    raise SystemExit(f"there is no interface {interface}")


def _sampling_socket(interface: str) -> socket.socket:
    """Some of the received advertisements, chosen by the kernel's dice."""
    program = (
        (LD_H, 0, 0, 12),
        (JEQ, 0, 5, 0x86DD),
        (LD_B, 0, 0, 54),
        (JEQ, 0, 3, 136),
        (LD_W, 0, 0, _RANDOM),
        (_JGT, 1, 0, int(_SAMPLE * (1 << 32))),
        (RET, 0, 0, 2048),
        (RET, 0, 0, 0),
    )
    sample = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    attach_filter(sample, assemble(program))
    sample.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    sample.bind((interface, 3))
    sample.setblocking(False)
    return sample


def _check(sample: socket.socket, solicited: set[bytes], source: bytes) -> dict[str, int]:
    """Answers by what is wrong with them: `good`, `target`, `checksum`, `destination`, `length`."""
    found: Counter[str] = Counter()
    while True:
        try:
            frame = sample.recv(2048)
        except BlockingIOError:
            return dict(found)
        if len(frame) != 86:
            found["length"] += 1
            continue
        na = ndp.decode_advertisement(frame)
        faults = [
            name
            for name, fault in (
                ("target", na.target not in solicited),
                ("checksum", not na.checksum_correct),
                ("destination", na.destination != source or not na.solicited),
            )
            if fault
        ]
        found[faults[0] if faults else "good"] += 1


if __name__ == "__main__":
    main()
