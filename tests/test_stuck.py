"""A daemon whose executor's thread does not return for a while, or never, or that is busy."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ndxdp.store.directories import Trees
from ndxdp.store.instance import open_instance
from tests.fixtures.network import (
    BEHIND,
    NDXDP,
    REPOSITORY,
    UPLINK,
    Network,
    eventually,
    leftovers,
    ndxdp,
    rules,
    sh,
    status,
)
from tests.test_reload import OTHER, Service, service

__all__ = ["service"]  # a fixture

# The executor's thread blocks while a file exists, as in a system call that never returns.
_HANGING = """
import os, sys, time
from ndxdp.cli.main import main
from ndxdp.netlink import links

find_link, flag = links.find_link, sys.argv.pop(1)

def hanging(*args, **kwargs):
    while os.path.exists(flag):
        time.sleep(0.05)
    return find_link(*args, **kwargs)

links.find_link = hanging
main()
"""


def test_a_task_that_returns_is_waited_for_at_the_end(net: Network, tmp_path: Path) -> None:
    """Take no task for a stuck one because the last proof that the daemon works is old."""
    path, flag = tmp_path / "ndxdp.toml", tmp_path / "hang"
    path.write_text(f'[[interface]]\nname = "{UPLINK}"\non_stop = "detach"\n')
    old = "from ndxdp.daemon.heartbeat import Pulse\nPulse.age = 11.0\n"
    running = net.run("-c", str(path), command=(sys.executable, "-c", old + _HANGING, str(flag)))
    flag.touch()
    sh("ip", "link", "set", UPLINK, "address", "02:00:00:00:00:77")
    running.process.send_signal(signal.SIGTERM)
    time.sleep(1.5)  # longer than the first look at the executor takes
    flag.unlink()
    assert running.wait().code == 0
    assert leftovers() == []


def test_a_hanging_executor_is_not_alive(
    net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feed no watchdog and acknowledge no reload with a stuck executor; SIGTERM still ends it."""
    path, flag = tmp_path / "ndxdp.toml", tmp_path / "hang"
    path.write_text(f'[[interface]]\nname = "{UPLINK}"\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        command = (sys.executable, "-c", _HANGING, str(flag))
        running = net.run("-c", str(path), command=command)
        monkeypatch.delenv("NOTIFY_SOCKET")
        listener.settimeout(10)
        while listener.recv(4096) != b"WATCHDOG=1":
            pass
        flag.touch()
        sh("ip", "link", "set", UPLINK, "address", "02:00:00:00:00:77")
        path.write_text(
            f'[[interface]]\nname = "{UPLINK}"\n[[interface.prefix]]\nprefix = "{OTHER}"\n'
        )
        refused = ndxdp("reload", "-c", str(path), "--timeout", "1")
        assert refused.code == 1
        assert "has not reloaded within 1 s" in refused.err
        listener.settimeout(1)
        found: list[bytes] = []
        with contextlib.suppress(TimeoutError):
            while True:
                found.append(listener.recv(4096))
        quiet = found[next(n for n, text in enumerate(found) if text.startswith(b"RELOADING=1")) :]
        assert quiet[1:] == []
        ended = running.end()
        assert ended.code == 1
        assert "ending without detaching" in ended.err
        assert "in hanging" in ended.err, "the stack of the executor's thread"
    flag.unlink()
    with contextlib.closing(net.run("-c", str(path))) as again:
        assert OTHER in rules()
        assert status()["mac"] == "02:00:00:00:00:77"
        assert again.end().code == 0
    assert ndxdp("detach", UPLINK).code == 0


def test_a_long_reload_delays_no_other_work(
    net: Network, service: Service, trees: Trees, tmp_path: Path
) -> None:
    """Follow changes of the MAC and write heartbeats, three a second, during a long reload."""
    more = "heartbeat_timeout = 1\n"
    service.write(BEHIND, more=more)
    service.start()
    for n in range(200):
        addresses = "".join(f"2001:db8:{n:x}::{m:x}\n" for m in range(150))
        (tmp_path / f"list{n}").write_text(addresses)
    lists = "".join(f'[[interface.prefix]]\nfile = "list{n}"\n' for n in range(200))
    service.write(BEHIND, more=more)
    path = tmp_path / "ndxdp.toml"
    path.write_text(path.read_text() + lists)
    reloading = subprocess.Popen(
        [*NDXDP, "reload", "-c", str(path)], stdin=subprocess.DEVNULL, cwd=REPOSITORY
    )
    beats, changes = set(), 0
    while reloading.poll() is None:
        mac = f"02:00:00:00:01:{changes % 256:02x}"
        sh("ip", "link", "set", UPLINK, "address", mac)
        changes += 1
        eventually(lambda: status()["mac"] == mac, within=10)  # noqa: B023
        with open_instance(trees.of(UPLINK), UPLINK) as instance:
            beats.add(instance.maps.settings().heartbeat)
    assert reloading.returncode == 0
    assert changes > 1
    assert len(beats) > 1
    assert len(rules()) > 200 * 150


# A thread that the interpreter joins at its end never ends.
_ENDLESS = """
import threading, time
from ndxdp.cli.main import main
from ndxdp.daemon import ending

ending._STUCK = 1.0
threading.Thread(target=time.sleep, args=(1000,), name="endless").start()
main()
"""


def test_a_thread_that_never_ends_does_not_keep_the_daemon(net: Network, tmp_path: Path) -> None:
    path = tmp_path / "ndxdp.toml"
    path.write_text(f'[[interface]]\nname = "{UPLINK}"\non_stop = "detach"\n')
    running = net.run("-c", str(path), command=(sys.executable, "-c", _ENDLESS))
    ended = running.end()
    assert ended.code == 1
    assert "Timeout (0:00:01)!" in ended.err
    assert "in run\n" in ended.err, "the stack of the thread"
    assert leftovers() == []


# What is to end waits for something that never comes.
_UNENDED = """
import asyncio
from ndxdp.cli.main import main
from ndxdp.daemon import ending, shares, uplink

async def endless(self):
    await asyncio.Event().wait()

async def run_endlessly(self):
    await run(self)
    await endless(self)

run = uplink.Uplink.run
ending._STUCK = 1.0
"""


@pytest.mark.parametrize(
    "what", ["uplink.Uplink.run = run_endlessly", "shares.Shares.end = endless"]
)
def test_a_task_that_never_ends_does_not_keep_the_daemon(
    net: Network, tmp_path: Path, what: str
) -> None:
    path = tmp_path / "ndxdp.toml"
    path.write_text(f'[[interface]]\nname = "{UPLINK}"\n')
    command = (sys.executable, "-c", f"{_UNENDED}{what}\nmain()\n")
    ended = net.run("-c", str(path), command=command).end()
    assert ndxdp("detach", UPLINK).code == 0
    assert ended.code == 1
    assert f"ending without detaching {UPLINK}: a task has not returned for 2 s" in ended.err
    assert "in endless\n" in ended.err, "where the task waits"
