"""The judge of a fleet: a process at the router that solicits without a pause, and notes answers.

Each solicitation has a source address of its own, and an answer goes to that address: so the judge
knows which solicitation was answered, by which MAC, and how often, however late an answer comes.
Frames have a MAC of the judge, so that the router's kernel leaves its answers alone.

`Judge` starts the process and reads its reports; lab/verdict.py draws the conclusions.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from lab.commands import LabError, enter
from lab.nodes import LINK
from lab.verdict import Announcement, Double, Report, Span
from ndxdp.ndp.frame import (
    NA_LEN,
    OVERRIDE,
    SOLICITED,
    eth_source_of,
    flags_of,
    target_of,
)
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import mac_text, parse_address, parse_mac

MAC = "02:00:00:00:00:fe"
"""The MAC of the judge; the router has another one."""

_MARK = 0xFE << 56
"""The beginning of the interface identifiers of sources, below which is the number."""
_SOURCE_ID_AT, _CHECKSUM_AT, _DESTINATION_ID_AT = 30, 56, 46
_SETTLED = 250_000_000  # ns after which a report counts a solicitation as unanswered
_BEHIND = 1.0  # seconds; a judge that is later than that does not catch up

# asm-generic/socket.h, linux/if_packet.h
_SO_RCVBUFFORCE, _SO_ATTACH_FILTER = 33, 26
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_IGNORE_OUTGOING = 263, 6, 23
_ETH_P_ALL, _BUFFER = 3, 1 << 25

# Classic BPF: load half-word or byte at an offset, and compare; accept only advertisements.
_FILTER = (
    (0x28, 0, 0, 12),  # EtherType
    (0x15, 0, 5, 0x86DD),  # IPv6
    (0x30, 0, 0, 20),  # next header
    (0x15, 0, 3, 58),  # ICMPv6
    (0x30, 0, 0, 54),  # type
    (0x15, 0, 1, 136),  # advertisement
    (0x06, 0, 0, 0xFFFF),
    (0x06, 0, 0, 0),
)


class _Template:
    """The solicitation of one target, in which each sending changes source and checksum."""

    def __init__(self, target: str) -> None:
        self.target = parse_address(target)
        mac, zero = parse_mac(MAC), parse_address("fe80::")
        self.frame = bytearray(solicit(mac, self.target, source=zero, sllao=mac))
        self._sum = 0xFFFF ^ int.from_bytes(self.frame[_CHECKSUM_AT : _CHECKSUM_AT + 2], "big")

    def numbered(self, number: int) -> bytearray:
        """Return the frame of the solicitation with a number."""
        identifier = _MARK | number
        total = self._sum + (identifier >> 48) + (identifier >> 32 & 0xFFFF)
        total += (identifier >> 16 & 0xFFFF) + (identifier & 0xFFFF)
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        struct.pack_into(">Q", self.frame, _SOURCE_ID_AT, identifier)
        struct.pack_into(">H", self.frame, _CHECKSUM_AT, 0xFFFF ^ total)
        return self.frame


class Solicitor:
    """The loop of the process: it sends, receives, and answers commands."""

    def __init__(self, wire: socket.socket, targets: Sequence[str], rate: float) -> None:
        """Send nothing yet.

        Args:
            wire: A packet socket at the router; non-blocking.
            targets: The addresses to solicit.
            rate: Solicitations of each target in a second.
        """
        self._wire, self._targets = wire, list(targets)
        self._templates = [_Template(target) for target in targets]
        self._numbers = {each.target: n for n, each in enumerate(self._templates)}
        self._period = 1 / rate
        # By number of the solicitation; its target is the number modulo the number of targets.
        self._sent = array("q")
        self._answers = array("Q")
        self._macs: list[bytes] = []
        self._latest: dict[int, tuple[int, int]] = {}
        self._doubles: list[tuple[int, int]] = []
        self._announcements: list[tuple[int, int, bytes, bool]] = []
        self._odd, self._dropped, self._stall, self._unsent = 0, 0, 0.0, 0

    def run(self, commands: int, output: int) -> None:
        """Solicit until the end of the commands.

        Args:
            commands: The descriptor with a command in each line: `report NUMBER`, `latest`.
            output: The descriptor for the answers, a line of JSON each.
        """
        poll = select.poll()
        poll.register(self._wire, select.POLLIN)
        poll.register(commands, select.POLLIN)
        rest = b""
        due = last = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= due:
                self._stall = max(self._stall, now - last - self._period)
                last = now
                self._solicit()
                due = due + self._period if now - due < _BEHIND else now + self._period
            ready = poll.poll(max(0.0, (due - time.monotonic()) * 1000))
            self._receive()
            if any(fd == commands for fd, _ in ready):
                piece = os.read(commands, 65536)
                if not piece:
                    return
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    answer = json.dumps(self._answer(line.decode().split())) + "\n"
                    _write(output, answer.encode())

    def _solicit(self) -> None:
        for template in self._templates:
            frame = template.numbered(len(self._sent))
            self._sent.append(time.monotonic_ns())
            self._answers.append(0)
            try:
                self._wire.send(frame)
            except OSError:
                self._unsent += 1

    def _receive(self) -> None:
        while True:
            try:
                frame = self._wire.recv(2048)
            except BlockingIOError:
                return
            except OSError:  # the interface was down
                continue
            if len(frame) < NA_LEN or (target := self._numbers.get(target_of(frame))) is None:
                continue
            mac, flags = eth_source_of(frame), flags_of(frame)
            if not flags & SOLICITED:
                now = time.monotonic_ns()
                self._announcements.append((now, target, mac, bool(flags & OVERRIDE)))
                continue
            (identifier,) = struct.unpack_from(">Q", frame, _DESTINATION_ID_AT)
            number = identifier ^ _MARK
            if number < len(self._sent) and number % len(self._targets) == target:
                self._note(number, target, mac)
            else:
                self._odd += 1

    def _note(self, number: int, target: int, mac: bytes) -> None:
        if mac not in self._macs:
            self._macs.append(mac)
        bit = 1 << self._macs.index(mac)
        before = self._answers[number]
        self._answers[number] = before | bit
        self._latest[target] = max(self._latest.get(target, (0, 0)), (number, bit))
        if before and before != bit and not before & bit:
            self._doubles.append((number, time.monotonic_ns()))

    # ---- commands

    def _answer(self, words: list[str]) -> object:
        if words == ["latest"]:
            now = time.monotonic_ns()
            return {
                self._targets[target]: (self._names(bit)[0], (now - self._sent[number]) / 1e9)
                for target, (number, bit) in self._latest.items()
            }
        return self._report(float(words[1]))

    def _report(self, since: float) -> dict[str, Any]:
        """Return everything about the solicitations since a time of time.monotonic()."""
        _, dropped = struct.unpack("II", self._wire.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self._dropped += dropped
        size = len(self._targets)
        first = bisect_left(self._sent, int(since * 1e9))
        first += -first % size  # all targets from the same round on
        end = bisect_left(self._sent, time.monotonic_ns() - _SETTLED)
        spans = {
            target: self._spans(range(first + n, end, size))
            for n, target in enumerate(self._targets)
        }
        answered = sum(1 for bits in self._answers[first:end] if bits)
        stall, self._stall = self._stall, 0.0
        return {
            "spans": spans,
            "doubles": [
                (self._targets[n % size], self._sent[n] / 1e9, at / 1e9, self._names_of(n))
                for n, at in self._doubles
            ],
            "announcements": [
                (at / 1e9, self._targets[target], mac_text(mac), override)
                for at, target, mac, override in self._announcements
                if at >= since * 1e9
            ],
            "sent": max(0, end - first),
            "answered": answered,
            "dropped": self._dropped,
            "unsent": self._unsent,
            "odd": self._odd,
            "stall": stall,
        }

    def _spans(self, numbers: range) -> list[tuple[list[str], float, float, int]]:
        """Return the runs of solicitations that the same MACs answered."""
        found: list[tuple[list[str], float, float, int]] = []
        bits, begin, last, count = -1, 0, 0, 0
        for number in numbers:
            if self._answers[number] != bits:
                if count:
                    found.append((self._names(bits), begin / 1e9, last / 1e9, count))
                bits, begin, count = self._answers[number], self._sent[number], 0
            last = self._sent[number]
            count += 1
        if count:
            found.append((self._names(bits), begin / 1e9, last / 1e9, count))
        return found

    def _names_of(self, number: int) -> list[str]:
        return self._names(self._answers[number])

    def _names(self, bits: int) -> list[str]:
        return [mac_text(mac) for n, mac in enumerate(self._macs) if bits >> n & 1]


class Judge:
    """The judge's process at a router, from construction until `close`."""

    def __init__(self, namespace: str, targets: Sequence[str], rate: float = 100) -> None:
        """Begin to solicit.

        Args:
            namespace: The router's; the interface is `eth0`.
            targets: The addresses to solicit.
            rate: Solicitations of each target in a second.
        """
        words = [sys.executable, "-m", "lab.judge", f"{rate:g}", *targets]
        self._process = subprocess.Popen(
            enter(namespace, words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parent.parent,
        )
        self.latest()  # it has begun

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process. A second call does nothing."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def latest(self) -> dict[str, tuple[str, float]]:
        """Return for each target that was ever answered the last MAC, and the seconds since."""
        return {target: (mac, ago) for target, (mac, ago) in self._ask("latest").items()}

    def answering(self, target: str, within: float = 0.3) -> str:
        """Return the MAC that answered for a target in the last seconds; "" if none did."""
        mac, ago = self.latest().get(target, ("", 0.0))
        return mac if ago <= within else ""

    def report(self, since: float = 0) -> Report:
        """Return everything about the solicitations since a time of time.monotonic().

        Double answers are those of the whole life of the judge, as they may come late.
        """
        found = self._ask(f"report {since}")
        return Report(
            {
                target: [Span(tuple(macs), *rest) for macs, *rest in spans]
                for target, spans in found.pop("spans").items()
            },
            [Double(target, sent, at, tuple(m)) for target, sent, at, m in found.pop("doubles")],
            [Announcement(*each) for each in found.pop("announcements")],
            **found,
        )

    def _ask(self, command: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{command}\n")
            self._process.stdin.flush()
        except OSError:
            raise LabError("The judge has ended.") from None
        line = self._process.stdout.readline()
        if not line:
            raise LabError("The judge has ended.")
        return json.loads(line)


def open_wire(interface: str) -> socket.socket:
    """Return a packet socket that receives advertisements; it never blocks."""
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    wire.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    wire.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _FILTER)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HP", len(_FILTER), ctypes.addressof(buffer))
    wire.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    wire.bind((interface, _ETH_P_ALL))
    wire.setblocking(False)
    return wire


def _write(descriptor: int, text: bytes) -> None:
    while text:
        text = text[os.write(descriptor, text) :]


def main() -> int:
    """Solicit the targets of the arguments until stdin ends; return the exit code."""
    rate, *targets = sys.argv[1:]
    gc.disable()  # nothing here is a cycle, and a collection would be a pause
    with open_wire(LINK) as wire:
        Solicitor(wire, targets, float(rate)).run(0, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
