"""Pins and files that are removed while a daemon runs: it notices, restores them, and logs that."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndxdp.store import handover
from ndxdp.store.directories import Trees
from tests.fixtures.network import (
    BEHIND,
    BPFFS,
    FILES,
    PINS,
    TARGET,
    UPLINK,
    Network,
    Running,
    counts,
    done,
    eventually,
    has_allmulti,
    leftovers,
    ndxdp,
    rules,
    sh,
    status,
    tc_ids,
)

BY_HAND = "2001:db8:0:0:d::/80"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ndxdp.toml"
    path.write_text(
        f'[[interface]]\nname = "{UPLINK}"\n[[interface.prefix]]\nprefix = "{BEHIND}"\n'
    )
    return path


@pytest.fixture
def daemon(net: Network, file: Path) -> Iterator[Running]:
    """Run a daemon, with a rule by hand and one counted answer."""
    running = net.run("-c", str(file))
    done("prefix", "add", BY_HAND)
    assert net.answers()
    yield running
    running.close()
    ndxdp("-q", "detach", UPLINK)


def directory(root: Path = PINS) -> Path:
    (found,) = root.glob(f"v*/{UPLINK}")
    return found


def names(root: Path = PINS) -> set[str]:
    """Return the names of the interface's pins or files, without the daemon's own queue."""
    found = {each.name for path in root.glob(f"v*/{UPLINK}") for each in path.iterdir()}
    return found - {handover.NAME}


@contextlib.contextmanager
def stopped(daemon: Running) -> Iterator[None]:
    """Stop the daemon during the block, so that it notices the changes afterwards."""
    with Trees().pins.lock.exclusive():  # which the daemon does not have at this moment
        daemon.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def warnings(ended: str) -> list[str]:
    return [line for line in ended.splitlines() if "another process removed" in line]


def test_removed_pins_are_restored(net: Network, daemon: Running) -> None:
    before, program = names(), tc_ids()
    with net.solicited_continuously() as missed:
        shutil.rmtree(directory())
        eventually(lambda: names() == before and Trees().pins.is_locked(UPLINK), within=10)
        for name in ("settings", "link"):
            (directory() / name).unlink()
        assert names() != before
        eventually(lambda: names() == before)
    assert missed == []
    assert tc_ids() == program
    assert set(rules()) >= {BEHIND, BY_HAND}
    assert counts()["answered"] > 1
    with stopped(daemon):
        shutil.rmtree(directory())
        done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    eventually(lambda: names() == before and tc_ids() == program)
    assert status()["held_by"] == "run"
    refused = ndxdp("detach", UPLINK)
    assert refused.code == 1
    assert "locked by a running" in refused.err
    ended = daemon.end()
    assert ended.code == 0
    assert len(warnings(ended.err)) == 3
    assert net.answers()
    assert has_allmulti()
    done("detach", UPLINK)
    assert leftovers() == []


def test_a_detached_program_is_attached_again(net: Network, daemon: Running) -> None:
    sh("bpftool", "link", "detach", "pinned", str(directory() / "link"))
    assert net.silent()
    eventually(net.answers, within=12)
    assert status()["held_by"] == "run"
    assert set(rules()) >= {BEHIND, BY_HAND}
    ended = daemon.end()
    assert ended.code == 0
    assert ended.err.count("another process detached the program; attaching it again") == 1


def test_removed_just_before_the_stop(net: Network, daemon: Running) -> None:
    """Keep answering by on_stop = "keep"; the next `detach` removes the rest."""
    before = names()
    with stopped(daemon):
        shutil.rmtree(directory())
        daemon.process.terminate()
    assert daemon.wait().code == 0
    assert names() == before
    assert net.answers()


def test_a_new_bpf_file_system(net: Network, daemon: Running) -> None:
    """Pin again on a BPF file system that was unmounted and mounted again."""
    before = names()
    with net.solicited_continuously() as missed:
        sh("umount", "-l", str(BPFFS))
        time.sleep(0.1)
        sh("mount", "-t", "bpf", "-o", "mode=1777", "bpf", str(BPFFS))  # as it was
        eventually(lambda: names() == before, within=12)
    assert missed == []
    assert set(rules()) >= {BEHIND, BY_HAND}
    assert daemon.end().code == 0
    assert net.answers()


def test_removed_files_are_restored(net: Network, file: Path) -> None:
    """Restore rules, counters and lock in userspace mode."""
    file.write_text(
        file.read_text().replace(
            "[[interface.prefix]]", 'mode = "userspace"\n[[interface.prefix]]', 1
        )
    )
    daemon = net.run("-c", str(file))
    done("prefix", "add", BY_HAND)
    assert net.answers()
    before, counted = names(FILES), status()["reasons"]["answered"]
    with net.solicited_continuously() as missed:
        shutil.rmtree(FILES)
        eventually(lambda: names(FILES) == before and Trees().files.is_locked(UPLINK), within=10)
        for name in ("rules", "reasons"):
            (directory(FILES) / name).unlink()
        assert names(FILES) != before
        eventually(lambda: names(FILES) == before and set(rules()) >= {BEHIND, BY_HAND})
        eventually(lambda: status()["reasons"]["answered"] > counted)
    assert missed == []
    assert set(rules()) >= {BEHIND, BY_HAND}
    done("prefix", "add", "2001:db8:0:0:e::/80")
    assert net.answers("2001:db8::e:0:0:1")
    assert "locked by a running" in ndxdp("detach", UPLINK).err
    ended = daemon.end()
    assert ended.code == 0
    assert len(warnings(ended.err)) == 2


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Mount another file system over the BPF file system."""
    sh("mount", "-t", "tmpfs", "tmpfs", str(BPFFS))
    try:
        yield
    finally:
        sh("umount", str(BPFFS))


def test_hidden_maps_follow_the_network(net: Network, daemon: Running) -> None:
    """Write to the open maps although their pins are hidden."""
    with hidden():
        sh("ip", "link", "set", UPLINK, "address", "02:00:00:00:00:78")
        eventually(lambda: net.ask(TARGET) == ("02:00:00:00:00:78", TARGET), within=10)
        expected = f"{UPLINK}  answering, but its state cannot be read: not in step: "
        eventually(lambda: expected in ndxdp("status").out, within=10)
    eventually(lambda: status()["mac"] == "02:00:00:00:00:78")
    assert daemon.end().code == 0


def test_a_stop_detaches_hidden_pins(net: Network, file: Path) -> None:
    file.write_text(
        file.read_text().replace("\n[[interface.", '\non_stop = "detach"\n[[interface.')
    )
    running = net.run("-c", str(file))
    assert net.answers()
    with hidden():
        assert running.end().code == 0
        assert tc_ids() == []
        assert not has_allmulti()
    done("detach", UPLINK)
