"""The lab under traffic, watched by Prometheus, until Ctrl-C: `make demo-monitoring`. Needs root.

ndxdp and Prometheus run in private namespaces, which vanish however the program ends. Only the
sockets on localhost are this machine's: the program opens them before it enters the namespaces, and
forwards their connections.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import math
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlencode

from lab import private
from lab.capture import socket_in
from lab.commands import LabError, exit_code
from lab.demonstration import check_machine
from lab.topology import (
    CONTAINER_ADDRESS,
    CONTAINER_PREFIX,
    HOST,
    INTERNET_ADDRESS,
    ON_LINK_PREFIX,
    ROUTER,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    UPLINK,
    Lab,
)
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_mac

_REPOSITORY = Path(__file__).resolve().parent.parent

PAGE, PROMETHEUS = 9877, 9090
"""The ports in the host's namespace, and on localhost as long as nobody else has them."""

_WORK = Path("/run/monitoring")
"""The directory of all files; it is in the private /run, which vanishes with the namespaces."""

_UNPACKED = _REPOSITORY / "build" / "prometheus"
_PROGRAM = _UNPACKED / "usr" / "bin" / "prometheus"

MISSING = "eth1"
"""An interface that the configuration has and the host has not, so that an alert fires."""

CONFIGURATION = f"""\
[metrics]
listen = "[::1]:{PAGE}"

[[interface]]
name = "{UPLINK}"
mode = "native"

[[interface.prefix]]
prefix = "{CONTAINER_PREFIX}"

[[interface.prefix]]
prefix = "{CONTAINER_PREFIX[0xDEAD << 32]}/96"
answer = "never"

[[interface.prefix]]
prefix = "{CONTAINER_ADDRESS}"

[[interface]]
name = "{MISSING}"

[[interface.prefix]]
prefix = "2001:db8:0:2::/64"
"""

PROMETHEUS_CONFIGURATION = f"""\
global: {{scrape_interval: 5s, evaluation_interval: 5s}}
rule_files: [{_REPOSITORY}/dashboards/alerts.yaml, {_REPOSITORY}/dashboards/rules.yaml]
scrape_configs:
  - job_name: ndxdp
    static_configs: [{{targets: ["[::1]:{PAGE}"]}}]
"""

GRAPHS = (
    "sum by (path) (rate(ndxdp_advertisements_total[1m]))",
    "sum by (reason) (rate(ndxdp_solicitations_total[1m])) > 0",
    "interface_map:ndxdp_map_fill:ratio",
)
"""The expressions that the printed address of Prometheus shows."""

_TICK = 0.05  # seconds
_MEAN, _SWING, _PERIOD = 150, 100, 180  # solicitations per second, and seconds of a wave


# ---- on this machine ----------------------------------------------------------------------------


def listen(port: int) -> list[socket.socket]:
    """Return sockets that listen on localhost, on a free port if another process has this one.

    Raises:
        LabError: No port can be had.
    """
    for wanted in (port, 0):
        with suppress(OSError):
            return _listen(wanted)
    raise LabError("No port of localhost is free.", "See `ss -ltn`.")


def _listen(port: int) -> list[socket.socket]:
    ipv4 = socket.create_server(("127.0.0.1", port))
    try:
        ipv6 = socket.create_server(("::1", ipv4.getsockname()[1]), family=socket.AF_INET6)
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # a machine without IPv6
            return [ipv4]
        ipv4.close()
        raise
    return [ipv4, ipv6]


def outside(options: argparse.Namespace) -> int:
    """Open the sockets, run the rest in private namespaces, and return the exit code."""
    check_machine(None)
    if not os.access(options.ndxdp, os.X_OK):
        raise LabError(f"There is no ndxdp at {options.ndxdp}.", "Name another with --ndxdp PATH.")
    if not os.access(_PROGRAM, os.X_OK):
        raise LabError(f"There is no {_PROGRAM}.", "`make demo-monitoring` fetches it.")
    with ExitStack() as opened:
        page, prometheus = (
            [opened.enter_context(each) for each in listen(port)] for port in (PAGE, PROMETHEUS)
        )
        fds = [",".join(str(each.fileno()) for each in part) for part in (page, prometheus)]
        command = [sys.executable, "-m", "lab.monitoring", "--ndxdp", str(options.ndxdp)]
        command += ["--sockets", *fds]
        code = private.run(command, pass_fds=[each.fileno() for each in (*page, *prometheus)])
    if code == 130:
        print("\nended; namespaces, processes and files are gone", flush=True)
        return 0
    return code


# ---- in the namespaces --------------------------------------------------------------------------


class Watched:
    """A program that runs until the end; its output is in a file."""

    def __init__(self, lab: Lab, name: str, *command: str) -> None:
        self._name, self._log = name, _WORK / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = lab.popen(HOST, *command, stdout=log.fileno(), stderr=log.fileno())

    def check(self) -> None:
        """Raise LabError if the program has ended."""
        if self._process.poll() is not None:
            output = self._log.read_text(errors="replace").strip().splitlines()
            last = "\n".join(output[-3:])
            raise LabError(f"{self._name} has ended ({self._process.returncode}).", last)


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a port of the host's loopback."""
    inner = socket_in(HOST, socket.AF_INET6, socket.SOCK_STREAM)
    inner.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(inner, ("::1", port))
    except BaseException:
        inner.close()
        raise
    return await asyncio.open_connection(sock=inner)


async def answers(port: int, path: str) -> bool:
    """Return True if a server in the host's namespace answers a request with 200."""
    try:
        reader, writer = await connect(port)
    except OSError:
        return False
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    status = await reader.readline()
    writer.close()
    return b" 200 " in status


async def forward(listening: socket.socket, port: int) -> None:
    """Forward the connections of a socket of this machine to a port of the host's namespace."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        with suppress(OSError):
            writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there, back = await connect(port)
            await asyncio.gather(copy(reader, back), copy(there, writer))
            back.close()
        writer.close()

    await asyncio.start_server(serve, sock=listening)


def frames() -> Iterator[bytes]:
    """Yield solicitations of the router, for targets with a rule, with a hole and without one."""
    rng = random.Random()
    router = parse_mac(ROUTER_MAC)
    prefixes = (  # the number, which is a weight, and the prefix
        (60, CONTAINER_PREFIX, 48),
        (10, CONTAINER_PREFIX, 8),
        (15, ON_LINK_PREFIX, 32),
    )
    while True:
        kind = rng.randrange(100)
        for weight, prefix, bits in prefixes:
            if kind < weight:
                target = prefix[rng.randrange(16, 1 << bits)]
                break
            kind -= weight
        else:
            target = CONTAINER_ADDRESS if kind < 10 else CONTAINER_PREFIX[(0xDEAD << 32) + kind]
        source = ROUTER_LINK_LOCAL.packed
        yield solicit(router, target.packed, source=source, sllao=router)


async def solicit_for_ever() -> None:
    """Send solicitations from the router; their rate rises and falls in waves."""
    made = frames()
    with socket_in(ROUTER, socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((UPLINK, 0))  # protocol 0: the socket only sends
        due = 0.0
        while True:
            wave = math.sin(time.monotonic() * 2 * math.pi / _PERIOD)
            due += (_MEAN + _SWING * wave) * _TICK
            while due >= 1:
                due -= 1
                with suppress(BlockingIOError):
                    wire.send(next(made))
            await asyncio.sleep(_TICK)


def start(lab: Lab, ndxdp: Path, port: int) -> list[Watched]:
    """Start ndxdp and Prometheus, whose port on localhost is `port`."""
    _WORK.mkdir()
    (_WORK / "ndxdp.toml").write_text(CONFIGURATION)
    (_WORK / "prometheus.yml").write_text(PROMETHEUS_CONFIGURATION)
    return [
        Watched(lab, "ndxdp", str(ndxdp), "run", "-c", f"{_WORK}/ndxdp.toml"),
        Watched(
            lab,
            "Prometheus",
            str(_PROGRAM),
            f"--config.file={_WORK}/prometheus.yml",
            f"--storage.tsdb.path={_WORK}/data",
            f"--web.listen-address=[::1]:{PROMETHEUS}",
            f"--web.external-url=http://localhost:{port}/",
            f"--web.local-assets={_UNPACKED}/usr/share/prometheus/web/",  # Debian's own option
            "--log.level=warn",
        ),
    ]


async def watch(lab: Lab, options: argparse.Namespace) -> None:
    """Start everything, print the addresses, and go on until a program ends.

    Raises:
        LabError: A program does not start, or has ended.
    """
    page, prometheus = (
        [socket.socket(fileno=int(fd)) for fd in group.split(",")] for group in options.sockets
    )
    page_port, prometheus_port = (group[0].getsockname()[1] for group in (page, prometheus))
    programs = start(lab, options.ndxdp, prometheus_port)
    give_up = time.monotonic() + 60
    while not (await answers(PAGE, "/metrics") and await answers(PROMETHEUS, "/-/ready")):
        for program in programs:
            program.check()
        if time.monotonic() > give_up:
            raise LabError("ndxdp and Prometheus do not answer within a minute.")
        await asyncio.sleep(0.1)
    lab.popen(
        *(ROUTER, "ping", "-6", "-q", "-I", str(INTERNET_ADDRESS), str(CONTAINER_ADDRESS)),
        stdout=subprocess.DEVNULL,
    )
    traffic = asyncio.create_task(solicit_for_ever())
    for group, port in ((page, PAGE), (prometheus, PROMETHEUS)):
        for listening in group:
            await forward(listening, port)
    # Debian's Prometheus has the pages without a build by npm, at another place.
    folder = "/classic" if await answers(PROMETHEUS, "/classic/graph") else ""
    print(addresses(page_port, prometheus_port, folder), flush=True)
    while not traffic.done():
        for program in programs:
            program.check()
        await asyncio.sleep(0.5)
    await traffic


def addresses(page: int, prometheus: int, folder: str) -> str:
    """Return what to open in a browser.

    Args:
        page: The port of ndxdp's page on localhost.
        prometheus: The port of Prometheus.
        folder: The folder of Prometheus' pages.
    """
    graphs = {
        f"g{nth}.{key}": value
        for nth, expression in enumerate(GRAPHS)
        for key, value in (("expr", expression), ("tab", "0"), ("range_input", "15m"))
    }
    base = f"http://localhost:{prometheus}"
    return f"""
A router solicits a host with ndxdp, which Prometheus scrapes: {_MEAN - _SWING} to {_MEAN + _SWING}\
 solicitations per second.

  ndxdp's page     http://localhost:{page}/
  its metrics      http://localhost:{page}/metrics
  Prometheus       {base}{folder}/graph
  some graphs      {base}{folder}/graph?{urlencode(graphs)}
  alerts           {base}{folder}/alerts

{MISSING} is configured and missing, so that NdxdpNotAttached fires after two minutes.
A Grafana on this machine can take {base} as its data source (docs/monitoring.md).

ready: until Ctrl-C"""


def inside(options: argparse.Namespace) -> int:
    """Run everything, and return the exit code."""
    with Lab() as lab:
        asyncio.run(watch(lab, options))
    return 0


@exit_code
def main() -> int:
    """Run the program; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = _REPOSITORY / ".venv" / "bin" / "ndxdp"
    parser.add_argument("--ndxdp", type=Path, default=default, metavar="PATH")
    parser.add_argument("--sockets", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.ndxdp = options.ndxdp.absolute()
    return inside(options) if options.sockets else outside(options)


if __name__ == "__main__":
    sys.exit(main())
