r"""Three virtual machines, provisioned by the scripts of vagrant/, and queries of their state.

    router: br0, filter ---- host: uplink, ndxdp, two containers
                       \--- monitor: uplink, Prometheus

QEMU's guest agent runs the commands, so that no query depends on the network that it is about.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lab import image
from lab.commands import LabError
from lab.machine import Card, Machine
from ndxdp import __version__

CONTAINER, WEB = "2001:db8:0:1:c::10", "2001:db8:0:1:d::77"  # in a namespace; Docker's
SOLICITED = "2001:db8:0:1:c::"  # the load solicits its addresses one after the other
INTERNET = "2001:db8:ffff::1"  # of the router, not on the link
ROUTER_MAC = "02:00:00:5e:10:10"  # br0's

RATE = 200  # solicitations per second; an emulated processor answers many more
SCRAPED = 120  # seconds within which Prometheus notices a change

_ASK_PROMETHEUS = (
    "import sys, urllib.parse, urllib.request as r; "
    "url = 'http://[::1]:9090/api/v1/query?' + urllib.parse.urlencode({'query': sys.argv[1]}); "
    "print(r.urlopen(url, timeout=30).read().decode())"
)


class Packages(NamedTuple):
    """Paths of the packages in the machines.

    `newer` differs only by its version; the maps of `other`, an older version, have another layout.
    """

    version: str
    newer_version: str
    path: str = "/ndxdp/build/ndxdp.deb"
    newer: str = "/ndxdp/build/ndxdp-newer.deb"
    other: str = "/ndxdp/build/ndxdp-other.deb"


class Testbed:
    """The three machines, and the values that one check passes to the next."""

    def __init__(self, router: Machine, host: Machine, monitor: Machine, packages: Packages):
        self.router, self.host, self.monitor = router, host, monitor
        self.packages = packages
        self.before = ""

    # ---- queries ---------------------------------------------------------------------------------

    def reaches(self, target: str) -> bool:
        """Return True if a ping from the Internet is answered; the router solicits for it."""
        forget = f"ip -6 neighbour flush to {target} dev br0"
        ping = f"ping -6 -q -c 1 -W 3 -I {INTERNET} {target}"
        return self.router.run(f"{forget}; {ping}", check=False).code == 0

    def reached(self, *targets: str, within: float = 180) -> str:
        """Wait until all addresses are reached, and return the seconds."""
        began = time.monotonic()
        what = f"{' and '.join(targets)} reached"
        eventually(what, lambda: all(map(self.reaches, targets)), within)
        return f"after {time.monotonic() - began:.0f} s"

    @contextlib.contextmanager
    def solicited(self) -> Iterator[dict[str, int]]:
        """Let the router solicit for the block; then count sent and unanswered ones."""
        flood = (
            f"cd /ndxdp && exec python3 -m tests.fixtures.flood br0"
            f" --mac {ROUTER_MAC} --prefix {SOLICITED}"
            f" --rate {RATE} --seconds 3600 2>/run/flood"
        )
        self.router.run("rm -f /run/flood")
        pid = self.router.start(flood)
        result: dict[str, int] = {}
        begun = "grep -q soliciting /run/flood"
        eventually(
            "solicitations are sent", lambda: not self.router.run(begun, check=False).code, 60
        )
        time.sleep(2)
        try:
            yield result
            time.sleep(2)
        finally:
            self.router.run(f"kill {pid}", check=False)
            done = self.router.finish(pid)
        result.update(json.loads(done.out))

    def dropped(self) -> int:
        """Return the number of advertisements that the router's filter dropped."""
        output = self.router.run("nft -j list counter bridge antispoof advertisements_dropped").out
        (packets,) = (
            part["counter"]["packets"]
            for part in json.loads(output)["nftables"]
            if "counter" in part
        )
        found: int = packets
        return found

    def status(self) -> dict[str, Any]:
        """Return the status of the host's uplink."""
        (found,) = json.loads(self.host.run("ndxdp status --json").out)["interfaces"]
        status: dict[str, Any] = found
        return status

    def service(self, name: str) -> str:
        """Return a property of the host's service."""
        return self.host.run(f"systemctl show --value -p {name} ndxdp").out.strip()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return samples of the monitor's Prometheus."""
        ask = f"python3 -c {shlex.quote(_ASK_PROMETHEUS)} {shlex.quote(expression)}"
        done = self.monitor.run(ask, check=False)
        if done.code:
            return []
        found: list[dict[str, Any]] = json.loads(done.out)["data"]["result"]
        return found

    def known(self, expression: str) -> None:
        """Wait until Prometheus has a sample for the expression."""
        eventually(expression, lambda: bool(self.query(expression)), SCRAPED)


def eventually(what: str, holds: Callable[[], bool], within: float) -> None:
    """Repeat a query until it holds; LabError if it does not in time."""
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            raise LabError(f"Not so within {within:g} s: {what}.")
        time.sleep(1)


def expect(holds: bool, what: str) -> None:
    """Raise LabError unless the condition holds."""
    if not holds:
        raise LabError(what)


@contextlib.contextmanager
def started(package: Path, other: Path | None) -> Iterator[Testbed]:
    """Boot the machines for the first time, and remove all but their consoles at the end.

    Args:
        package: The package to install.
        other: An older one, whose maps have another layout.
    """
    image.check_machine()
    image.debian()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=image.CACHE)))
        packages = _repository(package, other, folder)
        to_host, to_monitor = folder / "to-host", folder / "to-monitor"

        def machine(name: str, *cards: Card, memory: int, processors: int = 1) -> Machine:
            made = Machine(name, folder, cards, memory=memory, processors=processors)
            stack.callback(_keep_console, made)
            return stack.enter_context(made)

        router = machine(
            "router",
            Card(to_host, "02:00:00:5e:10:01", listens=True),
            Card(to_monitor, "02:00:00:5e:10:03", listens=True),
            memory=512,
        )
        host = machine("host", Card(to_host, "02:00:00:5e:10:02"), memory=1536, processors=2)
        monitor = machine("monitor", Card(to_monitor, "02:00:00:5e:10:04"), memory=768)
        yield Testbed(router, host, monitor, packages)


def _repository(package: Path, other: Path | None, folder: Path) -> Packages:
    """Make the disk with the files that the machines need, as /ndxdp."""
    tree = folder / "tree"
    for name in ("vagrant", "dashboards", "ndxdp", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", ".vagrant", "*.o")
        shutil.copytree(image.REPOSITORY / name, tree / name, ignore=ignored)
    packages = pack(package, tree / "build")
    if other is not None:
        shutil.copy(other, tree / "build" / Path(packages.other).name)
    image.repository(tree, folder / "repository")
    return packages


def _keep_console(machine: Machine) -> None:
    with contextlib.suppress(OSError):
        shutil.copy(machine.console, image.CACHE / machine.console.name)


def pack(package: Path, build: Path) -> Packages:
    """Copy the package, and a newer one, to the place where the machines expect them."""
    if not package.is_file():
        raise LabError(f"There is no package {package}.", "`make deb` makes one.")
    build.mkdir()
    shutil.copy(package, build / "ndxdp.deb")
    with tempfile.TemporaryDirectory(dir=image.CACHE) as work:
        tree = Path(work, "tree")
        _dpkg("--raw-extract", str(package), str(tree))
        control = tree / "DEBIAN" / "control"
        found = re.search(r"^Version: (\S+)$", control.read_text(), re.MULTILINE)
        if not found:
            raise LabError(f"{package} has no version.", "`make deb` makes one that has.")
        version = found[1]
        newer = f"{version}+newer"
        control.write_text(control.read_text().replace(found[0], f"Version: {newer}"))
        # The version that the program itself prints distinguishes the upgrade from the old package.
        (module,) = (path for path in tree.rglob("ndxdp/__init__.py"))
        text, changes = re.subn(r'(__version__ = "[^"]*)"', r'\1+newer"', module.read_text())
        if changes != 1:
            raise LabError(f"{package} has no __version__ in {module.relative_to(tree)}.")
        module.write_text(text)
        _dpkg("--build", "--root-owner-group", "-Znone", str(tree), str(build / "ndxdp-newer.deb"))
    return Packages(version.partition("-")[0], "+newer")


def _dpkg(*arguments: str) -> None:
    done = subprocess.run(["dpkg-deb", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"dpkg-deb {arguments[0]} failed.", done.stderr.strip())


def built_package(build: Path = image.REPOSITORY / "build") -> Path:
    """Return the package that `make deb` built of these sources; tests leave other versions."""
    package = build / f"ndxdp_{__version__}_all.deb"
    if not package.is_file():
        raise LabError(f"There is no {package}.", "Try it after `make deb`.")
    return package
