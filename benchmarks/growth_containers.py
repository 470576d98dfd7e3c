"""The curves of containers: starts while others run, starts during announcements, reloads."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.engine import NETWORK, Engine, address_of
from benchmarks.growing import MANY, Bench, Curve, Daemon, Figures
from benchmarks.wire import LINK, ROUTER_MAC
from ndxdp.ndp.frame import FLAGS_AT, SOLICITED, TARGET_AT, TYPE_NA
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.sockets.cbpf import (
    LD_B,
    Condition,
    address_conditions,
    attach_filter,
    icmpv6_conditions,
    program,
)

_STARTS = 3
_REPEATED = 2.5  # seconds, after which nothing is listed again
_FEW = 10  # containers that run beside addresses
_SEVERAL = 12  # starts while addresses are announced ...
_EVERY = 0.4  # seconds
_WITHIN = 20.0  # seconds for an answer to come, at most
_GAP = 0.001  # seconds between two solicitations
_ETH_P_IPV6 = 0x86DD
_FRAME = 2000  # bytes


def _configuration(bench: Bench, engine: Path, count: int, *tables: str) -> Path:
    return bench.file(
        "it.toml",
        (
            f'[docker]\nsocket = "{engine}"\n'
            f'[[interface]]\nname = "{LINK}"\nmode = "tc"\non_stop = "detach"\n',
            f"max_addresses = {count + 1000}\n",
            f'[[interface.docker]]\nnetwork = "{NETWORK}"\n',
            *tables,
        ),
    )


def _late(number: int) -> float:
    """Solicit a container until it is answered for; return how many seconds that took."""
    target, mac = parse_address(address_of(number)), parse_mac(ROUTER_MAC)
    question = solicit(mac, target, source=parse_address("fe80::1"), sllao=mac)
    began = time.monotonic()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        # Announcements come by the ten thousand, and must not be read one by one.
        conditions = [
            *icmpv6_conditions(TYPE_NA),
            *address_conditions(TARGET_AT, target),
            Condition(LD_B, FLAGS_AT, SOLICITED, mask=SOLICITED),
        ]
        attach_filter(wire, program(conditions, last=TARGET_AT, keep=_FRAME))
        wire.bind((LINK, _ETH_P_IPV6))
        while time.monotonic() < began + _WITHIN:
            wire.send(question)
            if select.select([wire], [], [], _GAP)[0]:
                return time.monotonic() - began
    raise SystemExit(f"{address_of(number)} was not answered for within {_WITHIN} s.")


@contextlib.contextmanager
def _watched(
    bench: Bench, listed: int, count: int, *more: str
) -> Iterator[tuple[Engine, Daemon, Path]]:
    """Run a daemon during the block, idle, that answers for an engine's containers.

    Args:
        bench: Where the daemon runs.
        listed: The number of containers.
        count: The number for which the daemon is configured.
        more: Tables of the configuration.
    """
    path = bench.folder / "engine.sock"
    configuration = _configuration(bench, path, count, *more)
    with Engine(path, listed) as engine, bench.daemon(configuration) as daemon:
        _late(listed - 1)
        time.sleep(_REPEATED)
        daemon.settle()
        yield engine, daemon, path


def _one_start(bench: Bench, count: int) -> Figures:
    with _watched(bench, count, count) as (engine, daemon, _):
        late, before = 0.0, engine.sent
        found: dict[str, float] = {}
        with daemon.working(found):
            for number in range(count, count + _STARTS):
                engine.start(number)
                late = max(late, _late(number))
                time.sleep(_REPEATED)
        return {
            "daemon s": found["daemon s"] / _STARTS,
            "late s": late,
            "fetched MB": (engine.sent - before) / _STARTS / 1e6,
        }


def _addresses(count: int) -> Iterator[str]:
    return (f"2001:db8:0:1:c:0:{n >> 16:x}:{n & 0xFFFF:x}\n" for n in range(count))


def _start_while_announcing(bench: Bench, count: int) -> Figures:
    bench.file("list", _addresses(count))
    announced = "[interface.announce]\nadvertise = true\nrate = 100000\n"
    listed = '[[interface.prefix]]\nfile = "list"\n'
    with _watched(bench, _FEW, count, announced) as (engine, daemon, path):
        _configuration(bench, path, count, announced, listed)
        daemon.send_hangup()
        late = 0.0
        for number in range(_FEW, _FEW + _SEVERAL):
            engine.start(number)
            late = max(late, _late(number))
            time.sleep(_EVERY)
        return {"late s": late}


def _reload(bench: Bench, count: int) -> Figures:
    with _watched(bench, count, count) as (engine, daemon, _):
        found: dict[str, float] = {}
        before = engine.sent
        with daemon.working(found):
            daemon.send_hangup()
        return {"daemon s": found["daemon s"], "fetched MB": (engine.sent - before) / 1e6}


CURVES = (
    Curve("one container starts beside N", _one_start, MANY),
    Curve("containers start while N addresses are announced", _start_while_announcing, MANY),
    Curve("reload without a change, N containers", _reload, MANY),
)
