"""The hashes that an interface has only once it needs them: made, found, completed and restored."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndxdp.errors import Damaged, NdxdpError
from ndxdp.kernel import abi, bpf_maps, libbpf
from ndxdp.kernel.abi import MapSpec
from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.kernel.libbpf import BpfError
from ndxdp.kernel.parked import Parked
from ndxdp.rules.difference import Difference
from ndxdp.rules.ruleset import Rules
from ndxdp.store import pins
from ndxdp.store.directories import Trees
from ndxdp.store.instance import open_instance
from ndxdp.store.late_hash import LateHash, pin_name
from ndxdp.store.maps import Maps
from tests.fixtures.network import (
    BEHIND,
    PINS,
    TARGET,
    UPLINK,
    Network,
    call,
    done,
    eventually,
    explain,
    leftovers,
    ndxdp,
    program_id,
    remove_instance,
    sh,
    status,
)
from tests.test_rule_classes import of_labels, write

DIRECTORY = PINS / f"v{abi.VERSION}" / UPLINK
PIN_NAMES = {pin_name(name) for name in abi.HASHES}
NAMES = sorted(abi.HASHES)
IN_ARRAYS = sorted(abi.HASHES.keys() & abi.MAPS)
DOWN, ROUTED, THERE = "late0", "2001:db8:0:60::/64", "2001:db8:0:60::7"
CLASSES = range(1, abi.FIRST_RULE_CLASSES + 9)


def entry(name: str, number: int) -> tuple[bytes, bytes]:
    """Return the key and the value of an entry."""
    spec = abi.HASHES[name]
    value = bytes([number % 255 + 1]) * bpf_maps.value_size(spec)
    return number.to_bytes(spec.key_size, "little"), value


def put(late: LateHash, name: str, *numbers: int) -> None:
    keys, values = zip(*(entry(name, number) for number in numbers), strict=True)
    late.update(b"".join(keys), b"".join(values))


def check(late: LateHash, name: str, *numbers: int) -> None:
    expected = dict(entry(name, number) for number in numbers)
    assert dict(late.items()) == expected
    assert sum(len(keys) for keys, _ in late.pieces()) == sum(map(len, expected))
    for key, value in expected.items():
        assert late.lookup(key) == value
    assert late.lookup(entry(name, 1_000_000)[0]) is None
    assert late.max_entries == abi.HASHES[name].max_entries


def in_array(late: LateHash) -> int:
    """Return the number of the hash that the program finds; 0 for none."""
    if late.array is None:
        return 0
    return int.from_bytes(late.array.lookup(bytes(4)) or b"", "little")


def number_of(path: Path) -> int:
    with contextlib.closing(KernelMap(MapSpec("", 0, 0, 0, 0), libbpf.get_pinned(str(path)))) as it:
        return bpf_maps.id_of(it.fd)


@pytest.fixture
def directory(privacy: None) -> Iterator[Path]:
    """Yield a directory for pins."""
    path = PINS.parent / f"late-{os.getpid()}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def pinned(directory: Path, name: str) -> Iterator[LateHash]:
    """Yield an array in a directory, without a hash."""
    with contextlib.closing(LateHash.create(name)) as made:
        made.repin(directory)
        yield made


@contextlib.contextmanager
def opened(directory: Path, name: str, *, readonly: bool = False) -> Iterator[LateHash]:
    with contextlib.closing(LateHash.open(directory, name, readonly=readonly)) as found:
        yield found


# ---- one process and several ---------------------------------------------------------------------


def test_no_hash_without_an_entry(pinned: LateHash, directory: Path, name: str) -> None:
    for _ in range(2):
        check(pinned, name)
        pinned.update(b"", b"")
        pinned.delete(entry(name, 1)[0])
    assert (in_array(pinned), os.listdir(directory)) == (0, [name] if pinned.array else [])


def test_the_first_entry_makes_the_hash(pinned: LateHash, directory: Path, name: str) -> None:
    with opened(directory, name, readonly=True) as early:
        check(early, name)
        put(pinned, name, 1, 2, 3)
        path = directory / pin_name(name)
        assert in_array(pinned) == (number_of(path) if pinned.array else 0)
        assert path.stat().st_mode & 0o777 == 0o640
        with opened(directory, name) as other, opened(directory, name, readonly=True) as reader:
            for each in (pinned, other, early, reader):
                check(each, name, 1, 2, 3)
            other.delete(entry(name, 2)[0])
            put(other, name, 4)
            for each in (pinned, early, reader, pinned.duplicate()):
                check(each, name, 1, 3, 4)
            with pytest.raises(OSError, match="Operation not permitted"):
                put(reader, name, 5)


def test_two_writers_at_once(pinned: LateHash, directory: Path, name: str) -> None:
    """Make one hash, which has the entries of all writers."""
    writers = [LateHash.open(directory, name) for _ in range(8)]
    begin = threading.Barrier(len(writers))

    def work(number: int) -> None:
        begin.wait()
        put(writers[number], name, number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in (pinned, *writers):
        check(each, name, *range(len(writers)))
        each.close() if each is not pinned else None
    assert in_array(pinned) == (number_of(directory / pin_name(name)) if pinned.array else 0)


def test_another_writer_was_faster(
    pinned: LateHash, directory: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use the hash of a writer that pinned its own between two system calls of this one."""
    create = KernelMap.create.__func__  # type: ignore[attr-defined]

    def slow(cls: type[KernelMap], spec: MapSpec) -> KernelMap:
        monkeypatch.undo()
        with opened(directory, name) as other:
            put(other, name, 1)
        made: KernelMap = create(cls, spec)
        return made

    monkeypatch.setattr(KernelMap, "create", classmethod(slow))
    before = len(os.listdir("/proc/self/fd"))
    put(pinned, name, 2)
    check(pinned, name, 1, 2)
    assert len(os.listdir("/proc/self/fd")) == before + 1


@pytest.mark.parametrize("name", IN_ARRAYS, indirect=True)
@pytest.mark.parametrize("at", ["chmod", "publish"])
def test_a_writer_that_was_killed(
    pinned: LateHash, directory: Path, name: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete what a writer has left that was killed after it had pinned the hash."""
    path = directory / pin_name(name)
    made = KernelMap.create(abi.HASHES[name])
    pins.pin(made.fd, path)
    if at == "chmod":
        path.chmod(0o600)
    made.close()
    with opened(directory, name, readonly=True) as reader:
        check(reader, name)
    assert in_array(pinned) == 0
    put(pinned, name, 1)
    check(pinned, name, 1)
    assert in_array(pinned) == number_of(path)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", IN_ARRAYS, indirect=True)
def test_a_pin_that_was_removed(
    pinned: LateHash, directory: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Take the hash from its array, or refuse without the right to do so; never make a second."""
    put(pinned, name, 1)
    path = directory / pin_name(name)
    path.unlink()
    with opened(directory, name, readonly=True) as reader:
        check(reader, name, 1)
    assert not path.exists()
    with opened(directory, name) as other:
        put(other, name, 2)
    check(pinned, name, 1, 2)
    assert number_of(path) == in_array(pinned)
    path.unlink()

    def refuse(_: int) -> int:
        raise BpfError(errno.EPERM, "bpf_map_get_fd_by_id")

    monkeypatch.setattr(bpf_maps, "open_id", refuse)
    with opened(directory, name) as other:
        for use in (lambda: put(other, name, 3), lambda: dict(other.items())):
            with pytest.raises(Damaged, match="has been removed"):
                use()
    check(pinned, name, 1, 2)


def test_a_directory_that_was_removed(pinned: LateHash, directory: Path, name: str) -> None:
    """Go on without pins, until somebody restores them."""
    shutil.rmtree(directory)
    put(pinned, name, 1)
    check(pinned, name, 1)
    assert bool(in_array(pinned)) == bool(pinned.array)
    directory.mkdir()
    assert pinned.is_known(set())


def test_no_memory_for_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change nothing, and say why, if the kernel has no memory for a hash."""
    create = bpf_maps.create

    def short(spec: MapSpec, inner_fd: int = 0) -> int:
        if spec in abi.HASHES.values():
            raise BpfError(errno.ENOMEM, "bpf_map_create")
        return create(spec, inner_fd)

    every = of_labels(range(abi.FIRST_RULE_CLASSES + 1))
    with Maps.create() as maps:
        monkeypatch.setattr(bpf_maps, "create", short)
        with pytest.raises(NdxdpError, match="Cannot allocate memory; no rule was changed"):
            maps.apply(Difference(every, Rules()), Rules())
        assert not maps.rules()
        monkeypatch.undo()
        write(maps, every)
        assert maps.rules() == every


# ---- descriptors and pins of all maps ------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("parked_first", [True, False])
@pytest.mark.parametrize("is_open", [True, False])
def test_hashes_are_parked(directory: Path, parked_first: bool, is_open: bool) -> None:
    """Take no descriptor for a hash if the maps are parked, and pin it again if asked to."""
    every = of_labels(range(abi.FIRST_RULE_CLASSES + 20))
    with Maps.create() as maps:
        maps.pin(directory)
        none = set(os.listdir(directory))
        assert not none & PIN_NAMES
        if parked_first:
            maps.park()
            before = descriptors()
        with maps.opened() if is_open else contextlib.nullcontext():
            write(maps, every)
            assert maps.rules() == every
        if not parked_first:
            maps.park()
            before = descriptors()
        assert maps.rules() == every
        assert descriptors() == before
        assert set(os.listdir(directory)) - none == {"more_classes:hash", "more_counters:hash"}
        assert maps.missing(directory) == []
        numbers = {each: number_of(directory / each) for each in os.listdir(directory)}
        shutil.rmtree(directory)
        directory.mkdir()
        assert set(maps.missing(directory)) == set(numbers)
        maps.restore_pins(directory)
        assert {each: number_of(directory / each) for each in os.listdir(directory)} == numbers
        assert descriptors() == before
        with Maps.open(directory) as other:
            assert other.rules() == every


def test_pins_of_a_hash_that_another_process_has_made(directory: Path) -> None:
    """Restore them, too, although this process has not needed the hash so far."""
    with Maps.create() as maps:
        maps.pin(directory)
        maps.park()
        with Maps.open(directory) as other:
            write(other, of_labels(range(abi.FIRST_RULE_CLASSES + 1)))
        assert maps.missing(directory) == []
        (directory / "more_counters:hash").unlink()
        assert maps.missing(directory) == ["more_counters:hash"]
        maps.restore_pins(directory)
        assert maps.missing(directory) == []


def test_one_more_descriptor_is_parked() -> None:
    """Have it at once where the others are open, and keep it open if the kernel refuses."""
    fds = {str(n): os.open("/dev/null", os.O_RDONLY) for n in range(3)}
    before = descriptors()
    parked = Parked(fds)
    with parked.opened() as some:
        parked.add("late", os.open("/dev/zero", os.O_RDONLY))
        assert os.readlink(f"/proc/self/fd/{some['late']}") == "/dev/zero"
    for _ in range(2):
        with parked.opened() as found:
            links = [os.readlink(f"/proc/self/fd/{found[name]}") for name in (*fds, "late")]
        assert links == ["/dev/null"] * 3 + ["/dev/zero"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        parked.add("none", 9999)
    with parked.opened() as found:
        assert set(found) == {*fds, "late"}
    parked.close()
    assert descriptors() == before - 3


# ---- commands and the daemon ---------------------------------------------------------------------


def make_output_interface() -> None:
    sh("ip", "link", "add", DOWN, "up", "type", "veth", "peer", "name", "late1")
    sh("ip", "link", "set", "late1", "up")
    sh("ip", "-6", "route", "add", ROUTED, "dev", DOWN)


@pytest.fixture
def output_interface() -> Iterator[None]:
    """Route a prefix by an interface of its own."""
    forwarding = Path("/proc/sys/net/ipv6/conf/all/forwarding")
    before = forwarding.read_text()
    try:
        make_output_interface()
        forwarding.write_text("1")
        yield
    finally:
        call("ip", "link", "delete", DOWN)
        forwarding.write_text(before)


def hashes() -> set[str]:
    """Return the pins of hashes."""
    return PIN_NAMES.intersection(os.listdir(DIRECTORY))


def test_commands_without_a_hash(net: Network) -> None:
    """Show and change everything of an interface that needs no hash, and make none."""
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    for words in (
        *(("status",), ("status", "--json"), ("metrics",), ("prefix", "list"), ("doctor", UPLINK)),
        *(("explain", TARGET), ("pause", UPLINK), ("resume", UPLINK), ("attach", UPLINK)),
        *(("prefix", "add", "2001:db8::77"), ("prefix", "del", "2001:db8::77")),
    ):
        found = ndxdp(*words)
        assert found.code == 0 or words[0] == "doctor", (words, found)
        assert "Traceback" not in found.out + found.err, (words, found)
    samples = done("metrics")
    for name in ("vias", "dev_sets"):
        labels = f'interface="{UPLINK}",map="{name}"'
        assert f"ndxdp_map_entries{{{labels}}} 0" in samples
        assert f"ndxdp_map_max_entries{{{labels}}} 65536" in samples
    assert hashes() == set()
    assert net.answers()
    done("detach", UPLINK)
    assert leftovers() == []


@pytest.mark.usefixtures("output_interface")
@pytest.mark.parametrize("mode", ["generic", "tc"])
def test_dev_without_another_program(net: Network, mode: str) -> None:
    """Answer by the first rule with `dev` at once, without a lost answer for the others."""
    done("attach", UPLINK, "--mode", mode, "-n", BEHIND)
    program = program_id()
    with net.solicited_continuously() as missed:
        done("prefix", "add", "--answer", "routed", "--dev", "none*", ROUTED)
        assert hashes() == {"dev_sets"}
        assert explain(THERE)["reason"] == "route_elsewhere"
        done("prefix", "replace", "--answer", "routed", "--dev", "late*", ROUTED)
        assert hashes() == {"dev_sets", "vias:hash"}
        assert net.answers(THERE)
    assert missed == []
    assert program_id() == program
    done("attach", UPLINK)
    assert program_id() != program
    assert net.answers(THERE)
    done("detach", UPLINK)
    assert leftovers() == []


@pytest.fixture
def with_hashes(tmp_path: Path) -> Path:
    """Return a configuration with more rule classes than the arrays hold, and a rule with `dev`."""
    classes = "".join(f'[[interface.prefix]]\nprefix = "2001:db8:{n:x}::/64"\n' for n in CLASSES)
    path = tmp_path / "ndxdp.toml"
    path.write_text(
        f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\n{classes}'
        f'[[interface.prefix]]\nprefix = "{ROUTED}"\nanswer = "routed"\ndev = ["late*"]\n'
    )
    return path


def beyond() -> str:
    """Return the prefix of a rule class in no array."""
    with open_instance(Trees().pins, UPLINK) as instance:
        classes = instance.maps.rule_classes()
    slot = max(slot for slot, each in classes.items() if not each.dev)
    assert slot >= abi.FIRST_RULE_CLASSES
    return classes[slot].label


def answered(label: str) -> int:
    (found,) = [each for each in status()["groups"] if each["label"] == label]
    count: int = found["answered"]
    return count


@pytest.mark.usefixtures("output_interface")
def test_a_daemon_restores_the_hashes(net: Network, with_hashes: Path) -> None:
    """Lose no answer and no count when pins are removed, and when the daemon is killed."""
    daemon = net.run("-c", str(with_hashes))
    assert hashes() == PIN_NAMES
    label = beyond()
    target = label.replace("::/64", "::1")
    assert net.answers(target)
    assert net.answers(THERE)
    for removed in (*sorted(PIN_NAMES), ""):
        with net.solicited_continuously(target) as missed:
            if removed:
                (DIRECTORY / removed).unlink()
            else:
                shutil.rmtree(DIRECTORY)
            eventually(lambda: DIRECTORY.is_dir() and hashes() == PIN_NAMES, within=10)
        assert missed == [], removed
    before = eventually(lambda: answered(label))
    assert before > 10
    daemon.end(signal.SIGKILL)
    with net.solicited_continuously(THERE) as missed:
        daemon = net.run("-c", str(with_hashes))
        assert net.answers(target)
    assert missed == []
    assert answered(label) > before
    daemon.end()
    remove_instance()
    eventually(lambda: not leftovers())


@pytest.mark.usefixtures("output_interface")
def test_an_output_interface_that_comes_later(net: Network, tmp_path: Path) -> None:
    """The daemon makes the hash of the indexes when the first interface of the name appears."""
    file = tmp_path / "ndxdp.toml"
    file.write_text(
        f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\non_stop = "detach"\n'
        f'[[interface.prefix]]\nprefix = "{ROUTED}"\nanswer = "routed"\ndev = ["late*"]\n'
    )
    sh("ip", "link", "delete", DOWN)
    daemon = net.run("-c", str(file))
    assert hashes() == {"dev_sets"}
    make_output_interface()
    eventually(lambda: net.answers(THERE))
    assert hashes() == {"dev_sets", "vias:hash"}
    daemon.end_cleanly()
    assert leftovers() == []


def test_pins_of_an_unreleased_layout(net: Network) -> None:
    """Name a cure for pins that have the hash in place of the array."""
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    for name in ("vias", "more_classes", "more_counters"):
        with contextlib.closing(KernelMap.create(abi.HASHES[name])) as made:
            pins.repin(made.fd, DIRECTORY / name)
    for words in (("status", UPLINK), ("prefix", "add", "2001:db8::77"), ("attach", UPLINK)):
        found = ndxdp(*words)
        assert "Traceback" not in found.out + found.err, (words, found)
        assert f"is not a map of ABI version {abi.VERSION}" in found.out + found.err, words
        assert "hint:" in found.err or words[0] == "status", found
    remove_instance()
    eventually(lambda: not leftovers())
