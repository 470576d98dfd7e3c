"""Readiness of the exporter: it is ready when it can read something, and says why it is not."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.error import HTTPError

import pytest

from ndxdp.config.model import Metrics
from ndxdp.observe.exporter import Exporter
from ndxdp.store.directories import FileTree, PinTree, Trees
from tests.fixtures import network
from tests.fixtures.network import (
    BEHIND,
    NDXDP,
    REPOSITORY,
    UPLINK,
    Network,
    call,
    done,
    eventually,
    sh,
)
from tests.fixtures.prometheus import get, parsed

URL = "http://[::1]:9877"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
POWERLESS = ("--inh-caps=-all", "--bounding-set=-all")


@contextmanager
def started(*options: str, notify: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start the exporter, and end it at the end, when it must print nothing more."""
    process = subprocess.Popen(
        [*NDXDP, *options, "exporter"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | ({"NOTIFY_SOCKET": str(notify)} if notify else {}),
    )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def answer(path: str) -> tuple[int, str]:
    """Return the code and the text of an answer."""
    try:
        return 200, get(f"{URL}{path}")
    except HTTPError as error:
        return error.code, error.read().decode()


# ---- the process ---------------------------------------------------------------------------------


def test_without_rights_it_ends(attached: Network) -> None:
    (path,) = network.PINS.glob(f"v*/{UPLINK}")
    group = 4711
    shutil.chown(path, group=group)
    strangers = (
        (*NOBODY, *POWERLESS),  # may not enter the directory of the pins
        ("setpriv", "--reuid=65534", f"--regid={group}", "--clear-groups", *POWERLESS),  # nor open
    )
    for stranger in strangers:
        ended = call(*stranger, *NDXDP, "exporter")
        assert (ended.code, ended.out) == (1, "")
        sentence, hint = ended.err.splitlines()
        assert "permission denied" in sentence
        assert "root" in hint


def test_a_file_system_that_may_not_be_entered(net: Network, tmp_path: Path) -> None:
    closed = tmp_path / "bpf"
    closed.mkdir()
    sh("mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(closed))
    try:
        ended = call(*NOBODY, *POWERLESS, *NDXDP, "--bpffs", str(closed), "exporter")
        assert (ended.code, ended.out) == (1, "")
        assert "permission denied" in ended.err
    finally:
        sh("umount", str(closed))


def test_without_a_file_system_it_waits(net: Network, tmp_path: Path) -> None:
    place = tmp_path / "bpf"
    place.mkdir()
    notify = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(notify))
        systemd.settimeout(20)
        with started("--bpffs", str(place), notify=notify) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            warning = process.stderr.readline()
            assert warning == f"ndxdp: not ready: there is no BPF file system at {place}\n"
            assert systemd.recv(4096).decode() == f"STATUS={warning[7:-1]}"
            assert answer("/-/healthy") == (200, "ndxdp is healthy.\n")
            assert answer("/-/ready") == (503, warning[7:])
            assert parsed(get(f"{URL}/metrics"))["ndxdp_pins_readable"] == {(): 0}
            sh("mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(place))
            try:
                assert process.stdout.readline() == f"ready: {URL}/metrics\n"
                state = systemd.recv(4096).decode()
                while state.startswith("STATUS="):
                    state = systemd.recv(4096).decode()
                assert state == f"READY=1\nSTATUS=serves {URL}/metrics"
                assert answer("/-/ready") == (200, "ndxdp is ready.\n")
            finally:
                sh("umount", str(place))
        assert systemd.recv(4096) == b"STOPPING=1"


def test_it_ends_while_it_waits(net: Network, tmp_path: Path) -> None:
    with started("--bpffs", str(tmp_path)) as process:
        assert process.stderr is not None
        assert "not ready" in process.stderr.readline()


@pytest.mark.parametrize("has_interface", [False, True])
def test_it_is_ready_with_and_without_interfaces(net: Network, has_interface: bool) -> None:
    if has_interface:
        done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    with started() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready: {URL}/metrics\n"
        assert answer("/-/ready")[0] == 200
    done("detach", UPLINK, "--missing-ok")


# ---- the path ------------------------------------------------------------------------------------


def test_one_interface_is_enough(attached: Network) -> None:
    """Be ready if one of two interfaces can be read, and not if none can."""
    (path,) = network.PINS.glob(f"v*/{UPLINK}")
    broken = path.with_name("broken")
    broken.mkdir()
    trees = Trees(PinTree(), FileTree(network.FILES))
    with closing(Exporter(trees)) as serving:
        serving.listen(Metrics())
        assert answer("/-/ready") == (200, "ndxdp is ready.\n")
        done("detach", UPLINK)
        code, text = answer("/-/ready")
        assert code == 503
        assert "the pins of broken are incomplete" in text
        done("detach", "broken")
        assert answer("/-/ready")[0] == 200
        assert answer("/-/else")[0] == 404


def test_a_daemon_has_the_paths(net: Network, tmp_path: Path) -> None:
    file = tmp_path / "ndxdp.toml"
    head = '[metrics]\nlisten = "[::1]:9877"\n[[interface]]\n'
    file.write_text(f'{head}name = "{UPLINK}"\nmode = "tc"\non_stop = "detach"\n')
    run = net.run("-c", str(file))
    eventually(lambda: answer("/-/ready") == (200, "ndxdp is ready.\n"))
    assert answer("/-/healthy")[0] == 200
    run.end_cleanly()
