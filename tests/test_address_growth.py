"""The table of exact addresses grows while a router solicits: by commands, by a daemon, in turn."""

from __future__ import annotations

import os
import shutil
import signal
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from ndxdp.kernel import abi, bpf_maps, libbpf
from ndxdp.store.address_map import PIN
from tests.fixtures.network import (
    BEHIND,
    PINS,
    TARGET,
    UPLINK,
    Network,
    addresses,
    call,
    done,
    eventually,
    explain,
    leftovers,
    ndxdp,
    remove_instance,
    status,
)

BASE = IPv6Address("2001:db8::a:0:0:0")
DIRECTORY = PINS / f"v{abi.VERSION}" / UPLINK


def written(file: Path, first: int, count: int) -> Path:
    """Write a file with so many addresses."""
    file.write_text("".join(f"{BASE + n}\n" for n in range(first, first + count)))
    return file


def known() -> set[bytes]:
    """Return the exact addresses in the pins, without the host's own."""
    return {key for key in addresses(DIRECTORY) if key.startswith(BASE.packed[:12])}


def expected(first: int, end: int) -> set[bytes]:
    return {(BASE + n).packed for n in range(first, end)}


def elements() -> int:
    """Return the number of elements of the pinned table."""
    fd = libbpf.get_pinned(str(DIRECTORY / PIN), readonly=True)
    try:
        return bpf_maps.spec_of(fd).max_entries
    finally:
        os.close(fd)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    written(tmp_path / "list", 0, 10)
    found = tmp_path / "ndxdp.toml"
    found.write_text(
        f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\non_stop = "detach"\n'
        f'[[interface.prefix]]\nprefix = "{TARGET}"\n[[interface.prefix]]\nfile = "list"\n'
    )
    return found


@pytest.mark.parametrize("mode", ["generic", "tc"])
def test_no_answer_is_lost_while_commands_add_addresses(
    net: Network, tmp_path: Path, mode: str
) -> None:
    done("attach", UPLINK, "--mode", mode, "-n", TARGET)
    small = elements()
    with net.solicited_continuously() as missed:
        end = 0
        for count in (1, 100, 1000, 1, 20_000, 300):
            done("prefix", "add", "--file", str(written(tmp_path / "more", end, count)))
            end += count
            assert net.answers(str(BASE + end - 1))
    assert missed == []
    assert known() == expected(0, end)
    assert elements() > 100 * small
    found = status()["rules"]
    assert (found["max_addresses"], found["addresses"] > end) == (abi.MAX_ADDRESSES, True)
    assert explain(str(BASE + 7))["reason"] == "answered"
    with net.solicited_continuously() as missed:
        done("prefix", "del", "--file", str(written(tmp_path / "more", 5, end - 5)))
        assert elements() > 100 * small
        done("attach", UPLINK)
    assert missed == []
    assert elements() == small, "attaching has not given the memory back"
    assert known() == expected(0, 5)
    assert net.silent(str(BASE + 5))
    remove_instance()


def test_a_daemon_and_commands_in_turn(net: Network, file: Path, tmp_path: Path) -> None:
    """Each finds the table that the other one has made."""
    daemon = net.run("-c", str(file))
    more = tmp_path / "more"
    with net.solicited_continuously() as missed:
        done("prefix", "add", "--file", str(written(more, 100_000, 3000)))
        assert known() == expected(0, 10) | expected(100_000, 103_000)
        written(tmp_path / "list", 0, 30_000)
        done("reload", "-c", str(file))
        eventually(lambda: known() == expected(0, 30_000) | expected(100_000, 103_000), within=20)
        done("prefix", "add", "--file", str(written(more, 103_000, 67_000)))
        written(tmp_path / "list", 0, 30_500)
        done("reload", "-c", str(file))
        eventually(lambda: known() == expected(0, 30_500) | expected(100_000, 170_000), within=20)
        assert net.answers(str(BASE + 30_499))
        assert net.answers(str(BASE + 169_999))
    assert missed == []
    refused = ndxdp("prefix", "add", "--file", str(written(more, 170_000, 60_000)))
    assert refused.code == 1
    assert "addresses" in refused.err
    assert known() == expected(0, 30_500) | expected(100_000, 170_000)
    assert len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir())) < 70
    daemon.end_cleanly()
    assert leftovers() == []


def test_pins_that_are_removed_after_a_growth(net: Network, file: Path, tmp_path: Path) -> None:
    """The daemon restores the pin of the table that a command has made."""
    daemon = net.run("-c", str(file))
    done("prefix", "add", "--file", str(written(tmp_path / "more", 100_000, 3000)))
    wanted = expected(0, 10) | expected(100_000, 103_000)
    for name in (PIN, "addresses", ""):
        with net.solicited_continuously() as missed:
            if name:
                (DIRECTORY / name).unlink()
            else:
                shutil.rmtree(DIRECTORY)
            eventually(lambda: (DIRECTORY / PIN).exists() and (DIRECTORY / "addresses").exists())
        assert missed == []
        eventually(lambda: known() == wanted)
        assert net.answers(str(BASE + 102_999))
    done("prefix", "add", str(BASE + 200_000))
    assert net.answers(str(BASE + 200_000))
    daemon.end()


def test_the_next_daemon_finds_the_table(net: Network, file: Path, tmp_path: Path) -> None:
    """A daemon that is killed leaves the table to the next one."""
    file.write_text(file.read_text().replace('on_stop = "detach"\n', ""))
    daemon = net.run("-c", str(file))
    done("prefix", "add", "--file", str(written(tmp_path / "more", 100_000, 3000)))
    daemon.end(signal.SIGKILL)
    with net.solicited_continuously() as missed:
        done("prefix", "add", "--file", str(written(tmp_path / "more", 103_000, 9000)))
        daemon = net.run("-c", str(file))
        assert known() == expected(0, 10) | expected(100_000, 112_000)
    assert missed == []
    daemon.end()
    remove_instance()


def test_a_damaged_table(net: Network) -> None:
    """A header that ndxdp did not write is one sentence, and detaching helps."""
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND, "-n", TARGET)
    fd = libbpf.get_pinned(str(DIRECTORY / PIN))
    for header in (bytes(64), b"\xff" * 64):
        bpf_maps.update(fd, bytes(4), header)
        for words in (
            ("status", UPLINK),
            ("prefix", "add", "2001:db8::77"),
            ("prefix", "list"),
            ("explain", TARGET),
            ("attach", UPLINK),
            ("doctor", UPLINK),
        ):
            found = ndxdp(*words)
            assert "Traceback" not in found.err + found.out, (words, found)
    done("detach", UPLINK)
    assert leftovers() == []


def test_a_group_that_may_only_read(net: Network) -> None:
    """Commands that read need only the right to read, also after the table was replaced."""
    done("attach", UPLINK, "--mode", "tc", "-n", TARGET)
    done("prefix", "add", *(str(BASE + n) for n in range(300)))
    modes: dict[str, Any] = {
        name: (DIRECTORY / name).stat().st_mode & 0o777 for name in ("addresses", PIN)
    }
    assert modes == {"addresses": 0o640, PIN: 0o640}
    listed = call(*("bpftool", "map", "show", "pinned", str(DIRECTORY / PIN)))
    assert "address_table" in listed.out
    remove_instance()
