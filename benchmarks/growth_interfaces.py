"""The curves of interfaces: a daemon's start, foreign changes, and the status page."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.growing import Bench, Curve, Figures
from benchmarks.wire import host_command, in_host

_RATE = 1_000  # address changes a second, half of them additions
_SECONDS = 6.0
_BATCH = 20  # address changes that are sent at once
_LINKS = 250  # links that come and go
_WITHIN = 120  # seconds for a daemon to end
_PORT = 9877
_FETCH = f"from urllib.request import urlopen; urlopen('http://[::1]:{_PORT}/').read()"
_AGAIN = 2.0  # seconds between two views of the page


def _start(bench: Bench, count: int) -> Figures:
    """Measure a daemon until it answers on all interfaces; then count what it has open."""
    with (
        interfaces(count) as names,
        bench.daemon(configuration(bench, names), count) as daemon,
    ):
        return {
            "start s": daemon.spent,
            "open descriptors": len(os.listdir(f"/proc/{daemon.pid}/fd")),
            "peak MB": daemon.peak,
        }


def _foreign_addresses(bench: Bench, count: int) -> Figures:
    """Measure a daemon while an interface that is not its own gets and loses addresses."""
    with (
        interfaces(count + 1) as (foreign, *names),
        bench.daemon(configuration(bench, names), count) as daemon,
    ):
        found: dict[str, float] = {}
        with daemon.working(found):
            _change_addresses(foreign)
        return found


def _page(bench: Bench, count: int) -> Figures:
    """Measure the CPU for the status page: when it is shown first, and when it is shown again."""
    in_host("ip", "link", "set", "lo", "up")
    metrics = f'[metrics]\nlisten = "[::1]:{_PORT}"\n'
    with (
        interfaces(count) as names,
        bench.daemon(configuration(bench, names, metrics), count) as daemon,
    ):
        found: dict[str, float] = {}
        for figure in ("first s", "again s"):
            before = daemon.spent
            in_host(sys.executable, "-c", _FETCH)
            found[figure] = daemon.spent - before
            time.sleep(_AGAIN)
        return found | {"peak MB": daemon.peak}


def _change_addresses(name: str) -> None:
    """Add and delete addresses of an interface at _RATE, for _SECONDS."""
    changes = [
        f"address {verb} 2001:db8:ffff::{number:x}/128 dev {name}{how}\n"
        for verb, how in (("add", " nodad"), ("delete", ""))
        for number in range(1, _BATCH // 2 + 1)
    ]
    ip = subprocess.Popen(host_command("ip", "-6", "-batch", "-"), stdin=subprocess.PIPE, text=True)
    assert ip.stdin is not None
    done, began = 0, time.monotonic()
    while (elapsed := time.monotonic() - began) < _SECONDS:
        while done < elapsed * _RATE:
            ip.stdin.writelines(changes)
            ip.stdin.flush()
            done += _BATCH
        time.sleep(0.002)
    ip.communicate(timeout=_WITHIN)


def _foreign_links(bench: Bench, count: int) -> Figures:
    """Measure a daemon with patterns that match nothing while other links come and go."""
    foreign = [f"foreign{number}" for number in range(_LINKS)]
    with interfaces(1) as names:
        absent = (f'[[interface]]\nname = "absent{number}x*"\n' for number in range(count))
        file = bench.file("it.toml", (configuration(bench, names).read_text(), *absent))
        with bench.daemon(file) as daemon:
            found: dict[str, float] = {}
            with daemon.working(found):
                _ip(
                    command
                    for name in foreign
                    for command in (f"link add {name} type bridge", f"link delete {name}")
                )
            return found


def configuration(bench: Bench, names: Sequence[str], top: str = "") -> Path:
    """Write the configuration of a daemon that answers on all interfaces; `top` is its head."""
    tables = (
        f'[[interface]]\nname = "{name}"\nmode = "tc"\non_stop = "detach"\n'
        f'[[interface.prefix]]\nprefix = "2001:db8:0:{number:x}:c::/80"\n'
        for number, name in enumerate(names, 1)
    )
    return bench.file("it.toml", (top, *tables))


@contextlib.contextmanager
def interfaces(count: int) -> Iterator[list[str]]:
    """Make Ethernet interfaces that are up, and remove them afterwards."""
    names = [f"up{number}" for number in range(count)]
    _ip(
        command
        for name in names
        for command in (
            f"link add {name} type veth peer name {name}p",
            f"link set {name}p up",
            f"link set {name} up",
        )
    )
    try:
        yield names
    finally:
        _ip(f"link delete {name}" for name in names)


def _ip(commands: Iterable[str]) -> None:
    in_host("ip", "-batch", "-", stdin="\n".join(commands))


CURVES = (
    Curve("daemon starts, interfaces", _start, (10, 50, 100, 200, 500)),
    Curve("the status page is shown, interfaces", _page, (1, 10, 100, 200, 500)),
    Curve(f"{_LINKS} foreign links, patterns", _foreign_links, (10, 100, 1_000)),
    Curve("6 s of foreign addresses, interfaces", _foreign_addresses, (10, 40, 160)),
)
