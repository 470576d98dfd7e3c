"""Pins and files of the layouts before this one: attaching takes them over and loses no answer.

The pins are those of this ndxdp, turned into a former layout. `make lab-vm` upgrades a package
that really has it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ndxdp.kernel import abi, libbpf
from ndxdp.kernel.abi import MapSpec
from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.session import former_layout
from ndxdp.session.former_layout import FORMER
from ndxdp.store import pins
from ndxdp.store.address_map import PIN, AddressMap
from ndxdp.store.directories import Trees
from ndxdp.store.late_hash import pin_name
from ndxdp.store.map_files import ArrayFile
from ndxdp.store.rule_file import RuleFile
from ndxdp.store.rule_format import SIZES, TABLES
from tests.fixtures.network import (
    BEHIND,
    FILES,
    PINS,
    TARGET,
    UPLINK,
    Network,
    done,
    eventually,
    explain,
    leftovers,
    ndxdp,
    remove_instance,
    rules,
    status,
)
from tests.test_late_hash import THERE, answered, beyond, output_interface, with_hashes
from tests.test_places import locking

__all__ = ["output_interface", "with_hashes"]

OTHER, ADDED, EXACT = "2001:db8::d:0:0:1", "2001:db8::e:0:0:1", "2001:db8::d:0:0:2"
NOW = f"v{abi.VERSION}"
REASONS = MapSpec("reasons", abi.PERCPU_ARRAY, 4, 8, 35)
EXPLAINED = MapSpec("explained", abi.ARRAY, 4, 8, 1)
ADDRESSES = MapSpec("addresses", abi.HASH, 16, 8, 5000, abi.NO_PREALLOC)
HINTS = MapSpec("hints", abi.ARRAY, 4, 8, 4096)
SIX, SEVEN = FORMER
LAPSED = 15


def former_key(key: bytes) -> bytes | None:
    """Return the key that a reason has in version 6; None if it has none."""
    number = int.from_bytes(key, sys.byteorder)
    if number == LAPSED:
        return None
    return (number - (number > LAPSED)).to_bytes(4, sys.byteorder)


def former_hint(address: bytes) -> int:
    """Return the number of the address's bit in the former `hints`."""
    words = struct.unpack("=4I", address)
    factors = (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x9E3779B1)
    number = 0
    for word, factor in zip(words, factors, strict=True):
        number ^= word * factor
    return (number & 0xFFFFFFFF) >> 14


def make_former_hints(path: Path, addresses: Iterable[bytes]) -> None:
    """Pin the former `hints` of some addresses."""
    made = KernelMap.create(HINTS)
    words: dict[int, int] = {}
    for address in addresses:
        bit = former_hint(address)
        words[bit // 64] = words.get(bit // 64, 0) | 1 << bit % 64
    for at, word in words.items():
        made.update(at.to_bytes(4, sys.byteorder), word.to_bytes(8, sys.byteorder))
    pins.repin(made.fd, path / "hints")
    made.close()


def make_former_pins(version: str) -> Path:
    """Turn the pins into those of a former layout, and return their directory.

    The program keeps its maps, as one of that layout does.
    """
    path = PINS / NOW / UPLINK
    present = AddressMap.open(path)
    made = KernelMap.create(ADDRESSES)
    addresses: list[bytes] = []
    for keys, values in present.pieces():
        made.update(keys, values)
        addresses += (keys[at : at + 16] for at in range(0, len(keys), 16))
    present.close()
    make_former_hints(path, addresses)
    (path / PIN).unlink()
    pins.repin(made.fd, path / "addresses")
    made.close()
    for name in abi.HASHES:
        _make_former_hash(path, name)
    if version == SIX:
        _make_version_6(path)
    return moved(PINS, version)


def _make_former_hash(path: Path, name: str) -> None:
    """Pin a hash in place of its array; it was always there."""
    present = path / pin_name(name)
    if present.exists():
        present.rename(path / name)
        return
    with contextlib.closing(KernelMap.create(abi.HASHES[name])) as made:
        pins.repin(made.fd, path / name)


def _make_version_6(path: Path) -> None:
    (path / "lease").unlink()
    (path / "explained").unlink()
    made = KernelMap.create(EXPLAINED)
    pins.pin(made.fd, path / "explained")
    made.close()
    before = KernelMap.open(path / "reasons", abi.MAPS["reasons"])
    made = KernelMap.create(REASONS)
    for key, value in before.items():
        former = former_key(key)
        if former is not None:
            made.update(former, value)
    pins.repin(made.fd, path / "reasons")
    made.close()
    before.close()


def make_former_files(version: str) -> Path:
    """Turn the files of userspace mode into those of a former layout."""
    path = FILES / NOW / UPLINK
    if version == SIX:
        (path / "lease").unlink()
        values = dict(ArrayFile(path / "reasons", abi.FILES["reasons"]).items())
        data = b"".join(value for key, value in values.items() if former_key(key) is not None)
        assert len(data) == 35 * 8
        (path / "reasons").write_bytes(data)
    split_rules(path)
    return moved(FILES, version)


def split_rules(path: Path) -> None:
    """Turn the file of the rules into a file for each table, with entries in no order."""
    view = RuleFile(path / "rules").view()
    for table, name in enumerate(TABLES):
        size, entries = SIZES[table], view.entries(table)
        last_first = [entries[at : at + size] for at in range(0, len(entries), size)][::-1]
        header = struct.pack("=II", view.snapshot.limits[table], 0)
        (path / name).write_bytes(header + b"".join(last_first))
    (path / "rules").unlink()


def moved(root: Path, version: str) -> Path:
    (root / version).mkdir()
    (root / NOW / UPLINK).rename(root / version / UPLINK)
    (root / NOW).rmdir()
    return root / version / UPLINK


def counted() -> dict[str, int]:
    found: dict[str, int] = status()["reasons"]
    return {reason: count for reason, count in found.items() if count}


def taken_over() -> None:
    for version in FORMER:
        assert not (PINS / version).exists()
        assert not (FILES / version).exists()


def former_path() -> Path:
    """Return the directory of the former pins."""
    (path,) = (each for version in FORMER if (each := PINS / version / UPLINK).is_dir())
    return path


@pytest.fixture(params=[("generic", SIX), ("tc", SEVEN)], ids=" ".join)
def former(net: Network, request: pytest.FixtureRequest) -> Any:
    """Attach with some rules and counters, and make the pins those of the former layout."""
    mode, version = request.param
    done("attach", UPLINK, "--mode", mode, "-n", BEHIND)
    done("prefix", "add", "--answer", "never", OTHER)
    done("prefix", "add", "--answer", "local", ADDED)
    done("prefix", "add", EXACT)
    assert net.answers()
    for target in (OTHER, ADDED):
        assert net.silent(target)
    eventually(lambda: counted() == {"answered": 1, "denied": 1, "not_local": 1})
    make_former_pins(version)
    yield net
    remove_instance()
    eventually(lambda: not leftovers())  # the kernel detaches some time after the last pin is gone


def test_attach_takes_over(former: Network) -> None:
    refused = ndxdp("prefix", "add", UPLINK, "2001:db8::77")
    assert (refused.code, f"hint: ndxdp attach {UPLINK} takes it over" in refused.err) == (1, True)
    before = {name: bpf_id(former_path() / name) for name in ("prefixes", "settings")}
    with former.solicited_continuously() as missed:
        done("attach", UPLINK)
    assert missed == []
    taken_over()
    after = {name: bpf_id(PINS / NOW / UPLINK / name) for name in before}
    assert before == after, "rules and settings are in other maps now"
    found = counted()
    assert (found["denied"], found["not_local"], found["answered"] > 1) == (1, 1, True)
    assert {prefix: rule["answer"] for prefix, rule in rules().items()}.items() >= {
        (BEHIND, "always"),
        (OTHER, "never"),
        (ADDED, "local"),
    }
    assert explain(ADDED)["reason"] == "not_local"
    done("prefix", "add", OTHER, "--answer", "never")
    assert former.answers()
    assert former.answers(EXACT)
    assert status()["rules"]["max_addresses"] == ADDRESSES.max_entries


def bpf_id(path: Path) -> bytes:
    fd = libbpf.get_pinned(str(path))
    try:
        return Path(f"/proc/self/fdinfo/{fd}").read_bytes().partition(b"map_id:")[2].split()[0]
    finally:
        os.close(fd)


@pytest.mark.parametrize("kill", [False, True])
def test_hashes_without_entries_are_dropped(former: Network, kill: bool) -> None:
    path = former_path()
    if kill:  # after the hash was pinned, and before the array was
        made = KernelMap.open(path / "vias", abi.HASHES["vias"])
        pins.pin(made.fd, path / pin_name("vias"))
        pins.stage(made.fd, path / "vias")
        made.close()
    with former.solicited_continuously() as missed:
        done("attach", UPLINK)
    assert missed == []
    names = set(os.listdir(PINS / NOW / UPLINK))
    assert {pin_name(name) for name in abi.HASHES} & names == ({"vias:hash"} if kill else set())
    done("prefix", "add", "--answer", "routed", "--dev", "none*", "2001:db8:0:60::/64")
    assert explain("2001:db8:0:60::1")["reason"] != "answered"
    assert pin_name("dev_sets") in os.listdir(PINS / NOW / UPLINK)


def repin_until(name: str | None, fd: int, path: Path, repin: Any = pins.repin) -> None:
    """Replace a pin, unless it has a name."""
    if path.name == name:
        raise InterruptedError
    repin(fd, path)


@pytest.mark.parametrize("version", FORMER)
@pytest.mark.usefixtures("output_interface")
def test_classes_and_output_interfaces_are_taken_over(
    net: Network, with_hashes: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lose neither an answer nor a count by rules whose classes or interfaces are in the hashes."""
    net.run("-c", str(with_hashes)).end()
    label = beyond()
    target = label.replace("::/64", "::1")
    assert net.answers(target)
    assert net.answers(THERE)
    before, counted_before = rules(), eventually(lambda: answered(label))
    former = make_former_pins(version)
    numbers = {name: bpf_id(former / name) for name in abi.HASHES}
    with net.solicited_continuously(target) as missed:
        for failing in ("more_classes", "more_counters:hash", "vias", None):
            # A kill before each rename of a pin: the next call goes on.
            with monkeypatch.context() as patched, Trees().pins.lock.exclusive():
                patched.setattr(pins, "repin", partial(repin_until, failing))
                with contextlib.suppress(InterruptedError):
                    former_layout._convert_pins(former)
            assert net.answers(THERE)
        done("attach", UPLINK)
    assert missed == []
    taken_over()
    path = PINS / NOW / UPLINK
    assert {name: bpf_id(path / pin_name(name)) for name in abi.HASHES} == numbers
    assert rules() == before
    assert net.answers(THERE)
    assert answered(label) > counted_before
    done("detach", UPLINK)
    assert leftovers() == []


def test_the_daemon_takes_over(former: Network, tmp_path: Path) -> None:
    file = tmp_path / "ndxdp.toml"
    file.write_text(
        f'[[interface]]\nname = "{UPLINK}"\n[[interface.prefix]]\nprefix = "2001:db8::f:0:0:0/96"\n'
    )
    with former.solicited_continuously() as missed:
        run = former.run("-c", str(file))
        assert former.answers("2001:db8::f:0:0:1")
    assert missed == []
    taken_over()
    assert counted()["not_local"] == 1
    assert former.answers()
    ended = run.end()
    assert ended.code == 0, ended


@pytest.mark.parametrize("until", ["addresses", "lease", "rename"])
def test_a_take_over_that_was_killed(
    former: Network, until: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Go on where a killed process has stopped, also if only the last step is left."""
    path = former_path()
    if until == "rename":
        former_layout._convert_pins(path)
        former_layout._convert_pins(path)
    elif until == "addresses":
        table = AddressMap.create()
        pins.pin(table._table.fd, path / PIN)
        pins.stage(table._table.fd, path / PIN)
        table.close()
    else:
        (path / "lease").unlink(missing_ok=True)
        made = KernelMap.create(abi.MAPS["lease"])
        pins.pin(made.fd, path / "lease")
        pins.stage(made.fd, path / "explained")
        made.close()
    with former.solicited_continuously() as missed:
        done("attach", UPLINK)
    assert missed == []
    taken_over()
    found = counted()
    assert (found["denied"], found["not_local"]) == (1, 1)
    assert former.answers(EXACT)


def test_an_upgrade_that_was_killed_before_the_program_was_replaced(former: Network) -> None:
    """Refuse to change rules that the program does not read, until ndxdp attaches again."""
    with Trees().pins.lock.exclusive():
        former_layout.take_over(Trees().pins, UPLINK)
    taken_over()
    assert former.answers(EXACT)
    for words in (("prefix", "add", "2001:db8::77"), ("prefix", "del", EXACT)):
        refused = ndxdp(*words)
        assert refused.code == 1
        assert (
            f"an upgrade of {UPLINK} was interrupted: its program reads other rules" in refused.err
        )
    assert rules()[EXACT]["answer"] == "always"
    with former.solicited_continuously() as missed:
        done("attach", UPLINK)
    assert missed == []
    done("prefix", "del", EXACT)
    assert former.silent(EXACT)


def test_detach_takes_over(former: Network) -> None:
    done("detach", UPLINK)
    taken_over()
    assert leftovers() == []


def test_a_running_process_of_the_former_version(former: Network) -> None:
    with locking(str(former_path())):
        for words in (("attach", UPLINK), ("detach", UPLINK)):
            refused = ndxdp(*words)
            assert refused.code == 1
            assert f"{UPLINK} is locked by a running `ndxdp run`" in refused.err
    assert former.answers()
    done("attach", UPLINK)


@pytest.mark.parametrize("version", FORMER)
def test_userspace_mode_takes_over(net: Network, version: str) -> None:
    words = ("-i", UPLINK, "--mode", "userspace", "-n", BEHIND)
    run = net.run(*words)
    done("prefix", "add", "--answer", "local", ADDED)
    assert net.answers()
    assert net.silent(ADDED)
    eventually(lambda: counted() == {"answered": 1, "not_local": 1})
    run.end(signal.SIGKILL)
    make_former_files(version)
    run = net.run(*words)
    taken_over()
    assert counted() == {"answered": 1, "not_local": 1}
    assert net.answers(TARGET)
    assert net.silent(ADDED)
    eventually(lambda: counted() == {"answered": 2, "not_local": 2})
    assert run.end() == (0, "", "")
    assert leftovers() == []


def test_files_of_tables_of_this_version_are_taken_over(net: Network) -> None:
    words = ("-i", UPLINK, "--mode", "userspace", "-n", BEHIND)
    run = net.run(*words, "--max-addresses", "77")
    done("prefix", "add", "--answer", "never", OTHER)
    run.end(signal.SIGKILL)
    before = rules()
    split_rules(FILES / NOW / UPLINK)
    refused = ndxdp("prefix", "list")
    assert (refused.code, "hint: " in refused.err) == (1, True)
    run = net.run(*words)
    assert rules() == before
    assert status()["rules"]["max_addresses"] == 77
    assert net.answers()
    assert net.silent(OTHER)
    assert run.end() == (0, "", "")
    assert leftovers() == []


@pytest.mark.parametrize("version", [*FORMER, NOW])
def test_a_kernel_mode_takes_over_files(net: Network, version: str) -> None:
    run = net.run("-i", UPLINK, "--mode", "userspace", "-n", BEHIND)
    done("prefix", "add", "--answer", "never", OTHER)
    run.end(signal.SIGKILL)
    if version == NOW:
        split_rules(FILES / NOW / UPLINK)
    else:
        make_former_files(version)
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    taken_over()
    assert rules()[OTHER]["answer"] == "never"
    assert net.answers()
    remove_instance()


@pytest.mark.parametrize("version", FORMER)
def test_both_layouts_are_there(net: Network, version: str) -> None:
    """Refuse to choose, where an older ndxdp has attached, too."""
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    (PINS / version / UPLINK).mkdir(parents=True)
    refused = ndxdp("attach", UPLINK)
    assert refused.code == 1
    assert f"another ABI version ({version}" in refused.err
    shutil.rmtree(PINS / version)
    remove_instance()
