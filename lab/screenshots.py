"""Pictures of the status page for docs/pictures: `make screenshots`. Needs root, and a mirror.

A daemon answers real solicitations on interfaces in private namespaces, and headless Chromium opens
its page. Chromium is installed in an overlay of the machine's files. The overlay is in memory, in a
mount namespace of its own, so nothing is left of it, however the program ends.

    python -m lab.screenshots DIRECTORY
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lab import private
from ndxdp.ndp.message import solicit

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("chromium", "fonts-dejavu-core", "pngquant")
MOUNT = REPOSITORY / "build" / "screenshots"
HOST = "host1"
_NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
"""The command that runs another one so that its mounts and processes end with this process."""

PAGE = "http://[::1]:9877/"
LARGEST = 150_000  # bytes of a picture

# A daemon that samples its answers 20 times as often, so that its curves are full in a minute.
DAEMON = (
    "from ndxdp.observe import history; history._SHORTEST = 0.5;"
    "from ndxdp.cli.main import main; main()"
)
_PAUSE = 0.05  # seconds between bursts of solicitations

_GATEWAY_MAC = bytes.fromhex("020000000001")
_GATEWAY = socket.inet_pton(socket.AF_INET6, "fe80::1")


class Picture(NamedTuple):
    """A picture of the page: its file, the size of the window, and the colours."""

    file: str
    width: int
    height: int
    dark: bool = False


class Browser:
    """Chromium in the overlay."""

    def __init__(self, root: Path, directory: Path) -> None:
        self._root, self._directory = root, directory

    def take(self, picture: Picture) -> None:
        """Take a picture of the page, with 64 colours at most."""
        scheme = 0 if picture.dark else 1
        taken, small = "/tmp/taken.png", "/tmp/small.png"
        self._call(
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-dev-shm-usage", "--user-data-dir=/tmp/profile"),
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={picture.width},{picture.height}",
            f"--screenshot={taken}",
            f"{PAGE}?refresh=off",
        )
        self._call("pngquant", "--force", "--speed", "1", "--output", small, "64", taken)
        data = (self._root / small.lstrip("/")).read_bytes()
        if len(data) > LARGEST:
            sys.exit(f"{picture.file} has {len(data)} bytes")
        (self._directory / picture.file).write_bytes(data)
        print(f"{self._directory / picture.file}: {len(data)} bytes")

    def _call(self, *command: str) -> None:
        inside = ["chroot", str(self._root), "env", "-i", "PATH=/usr/bin:/bin", "HOME=/tmp"]
        done = subprocess.run(
            [*inside, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120
        )
        if done.returncode:
            sys.exit(f"{command[0]} failed:\n{done.stdout.decode(errors='replace')}")


# ---- the network and the daemon -----------------------------------------------------------------


def _ip(commands: Sequence[str]) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)


@contextlib.contextmanager
def interfaces(names: Sequence[str]) -> Iterator[None]:
    """Make Ethernet interfaces, each with an end that solicits: `eth0` and `eth0-end`."""
    _ip(
        [
            command
            for number, name in enumerate(names)
            for command in (
                f"link add {name} address 52:54:00:12:34:{number:02x} type veth peer {name}-end",
                f"link set {name}-end up",
                f"link set {name} up",
            )
        ]
    )
    try:
        yield
    finally:
        _ip([f"link delete {name}" for name in names])


def _table(number: int, name: str) -> str:
    return (
        f'[[interface]]\nname = "{name}"\nmode = "tc"\non_stop = "detach"\n'
        f'[[interface.prefix]]\nprefix = "2001:db8:0:{number:x}:c::/80"\n'
    )


def _target(number: int) -> bytes:
    return socket.inet_pton(socket.AF_INET6, f"2001:db8:0:{number:x}:c::10")


@contextlib.contextmanager
def daemon(file: Path, answering: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon, from the moment when it answers on these interfaces."""
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON, "run", "-c", str(file)],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(lambda: _text().count("ndxdp_attached{") >= len(answering))
        yield process
    finally:
        process.terminate()
        process.wait()


def _text(path: str = "metrics") -> str:
    try:
        with urllib.request.urlopen(f"{PAGE}{path}", timeout=20) as response:
            text: str = response.read().decode()
    except OSError:
        return ""
    return text


def _wait(condition: Callable[[], bool], within: float = 60) -> None:
    until = time.monotonic() + within
    while not condition():
        if time.monotonic() > until:
            sys.exit(f"not within {within:g} s; the page:\n{_text('')}")
        time.sleep(0.2)


@contextlib.contextmanager
def traffic(rates: Mapping[str, float], numbers: Mapping[str, int]) -> Iterator[None]:
    """Solicit on interfaces while the block runs.

    Args:
        rates: The solicitations per second on an interface; they swell and ebb.
        numbers: The number of each interface, by which its prefix is known.
    """
    ended = threading.Event()

    def send() -> None:
        rng, began = random.Random(7), time.monotonic()
        sockets = {name: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) for name in rates}
        due = dict.fromkeys(rates, 0.0)
        for name, opened in sockets.items():
            opened.bind((f"{name}-end", 0))
        while not ended.wait(_PAUSE):
            passed = time.monotonic() - began
            for name, most in rates.items():
                number = numbers[name]
                swell = 0.6 + 0.3 * math.sin(passed / (5 + number) + number)
                due[name] += _PAUSE * most * max(swell + rng.gauss(0, 0.25), 0)
                # Some of the solicitations are for targets without a rule.
                for _ in range(int(due[name])):
                    target = _target(number if rng.random() > 0.04 else 99)
                    frame = solicit(_GATEWAY_MAC, target, source=_GATEWAY, sllao=_GATEWAY_MAC)
                    sockets[name].send(frame)
                due[name] %= 1
        for opened in sockets.values():
            opened.close()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# ---- the pictures -------------------------------------------------------------------------------


def _few(browser: Browser, file: Path) -> None:
    """Take the page of four interfaces without problems, and the same with problems."""
    names = ["eth0", "eth1", "eth2", "eth10"]
    numbers = {name: number for number, name in enumerate(names)}
    metrics = '[metrics]\nlisten = "[::1]:9877"\n'
    good = metrics + "".join(_table(number, name) for name, number in numbers.items())
    file.write_text(good)
    busy = {"eth0": 400.0, "eth1": 60.0}
    with interfaces(names), daemon(file, names) as process, traffic(busy, numbers):
        time.sleep(66)
        browser.take(Picture("page.png", 1000, 1135))
        missing = _table(7, "wan7") + '[[interface.docker]]\nnetwork = "web"\n'
        file.write_text(f'[docker]\nsocket = "/run/docker.sock"\n{good}{missing}')
        process.send_signal(signal.SIGHUP)
        _wait(lambda: "wan7" in _text("") and "disconnected" in _text(""))
        file.write_text(good.replace('mode = "tc"', 'mode = "xdp"', 1))
        process.send_signal(signal.SIGHUP)
        _wait(lambda: "did not reload" in _text(""))
        subprocess.run([sys.executable, "-m", "ndxdp", "pause", "eth2"], cwd=REPOSITORY, check=True)
        browser.take(Picture("page-problems.png", 1000, 640, dark=True))


def _many(browser: Browser, file: Path) -> None:
    """Take the page of a hundred interfaces, most of them idle, as on a phone."""
    names = [f"tap{number}" for number in range(100)]
    numbers = {name: number for number, name in enumerate(names)}
    tables = (_table(number, name) for name, number in numbers.items())
    file.write_text('[metrics]\nlisten = "[::1]:9877"\n' + "".join(tables))
    busy = {name: 10.0 + 7 * number for name, number in numbers.items() if number % 9 == 2}
    with interfaces(names), daemon(file, names), traffic(busy, numbers):
        time.sleep(40)
        browser.take(Picture("page-narrow.png", 500, 860))


def _inside(root: Path, directory: Path) -> None:
    """Take all pictures; the network, mounts and processes are private."""
    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    browser, file = Browser(root, directory), Path("/run/ndxdp.toml")  # /run is private, too
    _few(browser, file)
    _many(browser, file)


# ---- the overlay --------------------------------------------------------------------------------


def _overlay() -> Path:
    """Mount an overlay of this machine's files, install Chromium in it, and return its root."""
    MOUNT.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", MOUNT], check=True)
    upper, work, root = (MOUNT / name for name in ("upper", "work", "root"))
    for path in (upper, work, root):
        path.mkdir()
    options = f"lowerdir=/,upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", root], check=True)
    for name in ("dev", "sys"):
        subprocess.run(["mount", "--rbind", f"/{name}", root / name], check=True)
    print(f"installing {' '.join(PACKAGES)} in an overlay", flush=True)
    inside = ["chroot", str(root), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            [*inside, "-o", "DPkg::Lock::Timeout=600", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            sys.exit(f"apt-get {words[0]} failed:\n{done.stdout.decode(errors='replace')}")
    return root


def main() -> int:
    """Run one of three stages: the overlay's namespaces, the overlay, and the pictures in it."""
    parser = argparse.ArgumentParser(description="Take pictures of the status page.")
    parser.add_argument("directory", type=Path, help="the folder for the pictures")
    parser.add_argument(
        "--stage", choices=["namespace", "overlay", "pictures"], default="namespace"
    )
    options = parser.parse_args()
    directory = options.directory.resolve()
    again = [sys.executable, "-m", "lab.screenshots", str(directory), "--stage"]
    if options.stage == "pictures":
        _inside(MOUNT / "root", directory)
        return 0
    if os.geteuid() != 0:
        sys.exit("lab.screenshots needs root: sudo make screenshots")
    if options.stage == "namespace":
        directory.mkdir(parents=True, exist_ok=True)
        try:
            return subprocess.run([*_NAMESPACES, *again, "overlay"]).returncode
        except KeyboardInterrupt:
            return 130
        finally:
            with contextlib.suppress(OSError):  # the mount itself has vanished with its namespace
                MOUNT.rmdir()
    socket.sethostname(HOST)
    _overlay()
    return private.run([*again, "pictures"])


if __name__ == "__main__":
    sys.exit(main())
