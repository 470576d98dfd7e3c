"""`make demo-monitoring`: its addresses, its end by Ctrl-C, and that it leaves nothing behind."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlencode

import pytest

from dashboards.alerts import alerts
from lab import monitoring
from lab.commands import LabError
from lab.topology import Lab
from tests.fixtures.network import REPOSITORY, eventually, sh
from tests.fixtures.prometheus import get

NDXDP = Path(sys.executable).with_name("ndxdp")


class Demo:
    """The demonstration on a terminal of its own."""

    def __init__(self) -> None:
        self._terminal, other = pty.openpty()
        self._read = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lab.monitoring", "--ndxdp", NDXDP],
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=REPOSITORY,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(other)

    def output(self, until: str = "") -> str:
        """Return what the terminal shows, up to a text or to the end."""
        while not until or until.encode() not in self._read:
            try:
                self._read += os.read(self._terminal, 4096)
            except OSError:  # EIO: no process has the terminal any more
                break
        text = self._read.decode().replace("\r\n", "\n")
        assert until in text, text
        return text

    def press_ctrl_c(self) -> None:
        os.write(self._terminal, b"\x03")

    def inner(self, word: str) -> int:
        """Return the process inside whose command has a word."""
        (found,) = (
            pid
            for pid, command in processes().items()
            if word in command and self.process.pid != pid
        )
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


def processes() -> dict[int, str]:
    """Return the command of each process that has not ended; pytest reaps no orphans."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if path.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found[int(path.name)] = path.joinpath("cmdline").read_text().replace("\0", " ")
    return found


def machine() -> set[str]:
    """Return what the demonstration could leave behind, each thing as a line."""
    alive = processes()
    namespaces = set()
    for path in Path("/proc").glob("[0-9]*/ns/[mnp]*"):
        with suppress(OSError):
            if int(path.parts[2]) in alive:
                namespaces.add(os.readlink(path))
    folders = ("/run", "/var/tmp", "/sys/fs/bpf", str(REPOSITORY / "lab"))
    files = {str(path) for folder in folders for path in Path(folder).rglob("*")}
    return {
        *(f"{pid} {command}" for pid, command in alive.items()),
        *namespaces,
        *(file for file in files if "__pycache__" not in file),
        *re.findall(r"^\d+: ([^:]+)", sh("ip", "-o", "link"), re.MULTILINE),
        *sh("ss", "-Hltn").splitlines(),
        *Path("/proc/mounts").read_text().splitlines(),
    }


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fail if processes, namespaces, files, links, sockets or mounts remain."""
    before = machine()
    yield
    with suppress(AssertionError):
        eventually(lambda: machine() <= before, within=20)
    assert machine() - before == set()


@pytest.fixture(autouse=True)
def loopback(privacy: None) -> Iterator[None]:
    """Give the namespace of the tests a localhost, as a machine has."""
    sh("ip", "link", "set", "lo", "up")
    yield
    sh("ip", "link", "set", "lo", "down")


@pytest.fixture
def demo() -> Iterator[Demo]:
    started = Demo()
    yield started
    started.close()


def has_data(base: str, expression: str) -> bool:
    """Return True if Prometheus finds series for an expression."""
    answer = json.loads(get(f"{base}/api/v1/query?{urlencode({'query': expression})}"))
    return bool(answer["data"]["result"])


def test_it_shows_everything_until_ctrl_c() -> None:
    with nothing_left():
        demo = Demo()
        try:
            shown = demo.output("ready: until Ctrl-C")
            addresses = dict(re.findall(r"^  (\w.*?) {2,}(http\S+)$", shown, re.MULTILINE))
            assert list(addresses) == [
                *("ndxdp's page", "its metrics", "Prometheus", "some graphs", "alerts"),
            ]
            pages = {name: get(address) for name, address in addresses.items()}
            assert "eth0" in pages["ndxdp's page"]
            assert 'ndxdp_attached{interface="eth0"} 1.0' in pages["its metrics"]
            for alert in alerts():
                assert alert.name in pages["alerts"]
            base = addresses["Prometheus"].removesuffix("/classic/graph")
            libraries = re.findall(r'(?:src|href)="(/[^"]+)"', pages["some graphs"])
            assert len([each for each in libraries if ".js" in each]) > 10
            for library in libraries:
                if ".js" in library or ".css" in library:
                    assert get(base + library)
            for expression in (*monitoring.GRAPHS, 'ALERTS{interface="eth1"}'):
                eventually(partial(has_data, base, expression), within=60)
            for reason in ("answered", "no_rule", "denied"):
                expression = f'ndxdp_solicitations_total{{reason="{reason}"}} > 0'
                eventually(partial(has_data, base, expression), within=60)
            demo.press_ctrl_c()
            assert demo.process.wait(20) == 0
            assert demo.output().endswith("ended; namespaces, processes and files are gone\n")
        finally:
            demo.close()


def test_it_takes_other_ports_and_ends_when_it_is_killed() -> None:
    with ExitStack() as others:
        for port in (monitoring.PAGE, monitoring.PROMETHEUS):
            others.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6))
        with nothing_left():
            demo = Demo()
            try:
                shown = demo.output("ready: until Ctrl-C")
                (page,) = re.findall(r"ndxdp's page +http://localhost:(\d+)/", shown)
                assert page != str(monitoring.PAGE)
                for host in ("127.0.0.1", "[::1]"):
                    assert "eth0" in get(f"http://{host}:{page}/")
                os.kill(demo.process.pid, signal.SIGKILL)
            finally:
                demo.close()


@pytest.mark.parametrize(
    ("word", "message"),
    [("prometheus.yml", "Prometheus has ended (-9)."), ("ndxdp.toml", "ndxdp has ended (-9).")],
)
def test_it_ends_with_its_programs(demo: Demo, word: str, message: str) -> None:
    demo.output("ready: until Ctrl-C")
    os.kill(demo.inner(word), signal.SIGKILL)
    assert demo.process.wait(20) == 1
    assert message in demo.output()


@pytest.mark.parametrize("lines", [0, 1, 4])
def test_the_last_lines_of_a_program_that_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: int
) -> None:
    class Here:
        """A lab without namespaces."""

        def popen(self, _node: str, *command: str, **how: int) -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, stdout=how["stdout"], stderr=how["stderr"])

    monkeypatch.setattr(monitoring, "_WORK", tmp_path)
    program = monitoring.Watched(cast(Lab, Here()), "ndxdp", "seq", str(lines))
    program._process.wait()
    with pytest.raises(LabError) as raised:
        program.check()
    last = [str(n) for n in range(max(lines - 2, 1), lines + 1)]
    assert str(raised.value).splitlines() == ["ndxdp has ended (0).", *last]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"There is no ndxdp at .*\nName another with --ndxdp PATH"):
        monitoring.outside(argparse.Namespace(ndxdp=tmp_path / "ndxdp"))
    monkeypatch.setattr(monitoring, "_PROGRAM", tmp_path / "prometheus")
    with pytest.raises(LabError, match=r"There is no .*\n`make demo-monitoring` fetches it"):
        monitoring.outside(argparse.Namespace(ndxdp=NDXDP))
