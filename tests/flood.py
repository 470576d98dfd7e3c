"""`python -m tests.flood`: solicit at a steady rate, and name what was not answered.

Run in the solicitor's network namespace. Every solicitation asks for another address of the
prefix, so that each answer can be told from every other. Prints one JSON object when ended by
SIGTERM or after --seconds: how many were sent, answered, and the gaps. It goes on while the link
is down, or another one takes its place: what it sends then is unanswered.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import random
import signal
import socket
import sys
import time
from pathlib import Path

from ndxdp import ndp
from ndxdp.policy import parse_address, parse_mac

_SO_RCVBUFFORCE = 33
_BURST = 64
_LINGER = 0.5  # seconds for the last answers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("interface")
    parser.add_argument("--mac", type=parse_mac, required=True, help="ours")
    parser.add_argument("--prefix", type=parse_address, required=True, help="a /96 or shorter")
    parser.add_argument("--rate", type=int, default=12_000, help="solicitations per second")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--random-macs", action="store_true", help="another Ethernet source each")
    parser.add_argument("--sllao", type=parse_mac, help="whom is to be answered, not --mac")
    parser.add_argument("--list", action="store_true", help="number each that was not answered")
    arguments = parser.parse_args()

    link = _open(arguments.interface)

    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    source = _own_address(arguments.interface)
    base = arguments.prefix[:12]
    answered: set[bytes] = set()
    started = time.monotonic()
    deadline = started + arguments.seconds
    sent = 0
    print("soliciting", file=sys.stderr, flush=True)
    while not stopping and (now := time.monotonic()) < deadline:
        # Where the machine cannot keep up the rate falls: a burst to catch up would overflow
        # the queues between here and the responder, and look like its loss.
        due = min(int((now - started) * arguments.rate), sent + _BURST)
        while sent < due:
            target = base + (sent + 1).to_bytes(4, "big")
            mac = arguments.mac
            if arguments.random_macs:
                mac = b"\x02" + random.randbytes(5)
            try:
                link.send(ndp.solicit(mac, target, source=source, sllao=arguments.sllao or mac))
            except BlockingIOError:
                break
            except OSError as error:  # down, or gone
                if error.errno != errno.ENOBUFS:
                    with contextlib.suppress(OSError):
                        fresh = _open(arguments.interface)
                        _collect(link, answered)
                        link.close()
                        link = fresh
            sent += 1
        _collect(link, answered)
        time.sleep(0.0005)
    lasted = time.monotonic() - started
    until = time.monotonic() + _LINGER
    while time.monotonic() < until:
        _collect(link, answered)
        time.sleep(0.005)
    missing = [n for n in range(1, sent + 1) if base + n.to_bytes(4, "big") not in answered]
    print(
        json.dumps(
            {
                "sent": sent,
                "rate": round(sent / lasted),
                "unanswered": len(missing),
                "missing": missing if arguments.list else [],
                "first_unanswered": [round(n / arguments.rate, 3) for n in missing[:5]],
            }
        )
    )


def _own_address(interface: str) -> bytes:
    """Return a link-local address of ours; without one, one that nobody has.

    A router would forward the answers to an address that it does not have itself, send a redirect
    to the source of each, and so fill the table of neighbours, which is one for all namespaces.
    """
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        address, _, _, _, _, name = line.split()
        if name == interface and address.startswith("fe8"):
            return bytes.fromhex(address)
    return parse_address("fe80::f00d")


def _open(interface: str) -> socket.socket:
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD))
    try:
        link.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        link.bind((interface, 0x86DD))
        link.setblocking(False)
    except BaseException:
        link.close()
        raise
    return link


def _collect(link: socket.socket, answered: set[bytes]) -> None:
    """The targets of the advertisements that have come."""
    while True:
        try:
            frame = link.recv(2048)
        except BlockingIOError:
            return
        except OSError:  # said once, when the link goes down
            continue
        if len(frame) == 86 and frame[54] == 136:
            answered.add(frame[62:78])


if __name__ == "__main__":
    main()
