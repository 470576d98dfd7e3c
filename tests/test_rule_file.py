"""The file of the rules in userspace mode: changes as a whole or not at all, whoever reads."""

from __future__ import annotations

import errno
import os
import random
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from ndxdp.errors import Damaged
from ndxdp.ndp.decision import Match
from ndxdp.ndp.profile import Answer
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.difference import Difference, difference
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule, RuleClass
from ndxdp.rules.ruleset import Rules
from ndxdp.rules.table import Table
from ndxdp.store import rule_file
from ndxdp.store.live_table import LiveTable
from ndxdp.store.maps import Maps
from ndxdp.store.rule_file import RuleFile, View
from ndxdp.store.rule_format import SIZES
from tests.fixtures.network import REPOSITORY, sh

LIMITS = {"addresses": 60, "prefixes": 50, "dev_sets": 10}
KEYS = {"addresses": 16, "prefixes": 20}
ONE, TWO, THREE = (number.to_bytes(16, "big") for number in (1, 2, 3))
RULE, OTHER_RULE = bytes(8), b"\1" + bytes(7)

Contents = dict[str, dict[bytes, bytes]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    RuleFile.create(tmp_path / "rules", LIMITS)
    return tmp_path / "rules"


def contents(view: View) -> Contents:
    """Return all entries, after a check of their order, of lookups and of numbers."""
    found: Contents = {}
    for table, (name, key_size) in enumerate(KEYS.items()):
        size, packed = SIZES[table], view.entries(table)
        entries = [packed[at : at + size] for at in range(0, len(packed), size)]
        assert entries == sorted(entries)
        found[name] = {entry[:key_size]: entry[key_size:] for entry in entries}
        assert view.counts[table] == len(entries) == len(found[name])
        assert all(view.lookup(table, key) == value for key, value in found[name].items())
    slots = (struct.unpack_from("=H", rule)[0] for some in found.values() for rule in some.values())
    assert view.by_slot() == Counter(slots)
    return found


def changed(before: Contents, changes: dict[str, dict[bytes, bytes | None]]) -> Contents:
    after = {name: {**before[name], **changes.get(name, {})} for name in KEYS}
    return {name: {k: v for k, v in some.items() if v is not None} for name, some in after.items()}


def addresses(file: RuleFile) -> dict[bytes, bytes]:
    return contents(file.view())["addresses"]


@pytest.fixture(params=["long log", "short log", "no log"])
def log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have records only, some records before each new file, or a new file for each change."""
    few, most = {"long log": (99, 1 << 20), "short log": (9, 700), "no log": (0, 0)}[request.param]
    monkeypatch.setattr(rule_file, "FEW", few)
    monkeypatch.setattr(rule_file, "LOG_MAX", most)
    return str(request.param)


def test_it_is_a_dict(path: Path, log: str) -> None:
    """Compare random changes by two writers in turn with a dict, for all kinds of readers."""
    rng, expected = random.Random(7), {name: dict[bytes, bytes]() for name in KEYS}
    writers = [RuleFile(path), RuleFile(path)]
    reader = RuleFile(path)
    follower, known, reads = reader.follow(), dict[str, dict[bytes, bytes]](), 0
    absent = b"\7" * 20
    for _ in range(600):
        changes: dict[str, dict[bytes, bytes | None]] = {}
        for name, size in KEYS.items():
            for _ in range(rng.choice((0, 1, 1, 2, 12))):
                key = bytes(rng.choice((0, 1, 255)) for _ in range(4)).rjust(size, b"\1")
                value = None if rng.random() < 0.5 else bytes(rng.choice((0, 1)) for _ in range(8))
                changes.setdefault(name, {})[key] = value
        after = changed(expected, changes)
        number = rng.randrange(2)
        if rng.random() < 0.1:
            writers[number] = RuleFile(path)
        if any(len(after[name]) > LIMITS[name] for name in KEYS):
            with pytest.raises(OSError, match="Argument list too long"):
                writers[number].write(changes)
        else:
            writers[number].write(changes)
            expected = after
        assert contents(RuleFile(path).view()) == expected
        assert contents(writers[number].view()) == expected
        assert writers[number].view().lookup(1, absent) is None
        if rng.random() < 0.3:
            noted = follower.take()
            if noted is None:
                known, reads = contents(reader.view()), reads + 1
            else:
                known = changed(known, noted)
            assert known == expected
    if log == "long log":
        assert reads == 1


def test_a_record_that_is_cut_anywhere(path: Path) -> None:
    """Ignore a record that is incomplete; the next writer puts its own in its place."""
    file = RuleFile(path)
    file.write({"addresses": {ONE: RULE}})
    whole = path.stat().st_size
    file.write({"addresses": {TWO: RULE, ONE: None}, "prefixes": {bytes(20): RULE}})
    data = path.read_bytes()
    for size in range(whole, len(data)):
        path.write_bytes(data[:size])
        read = RuleFile(path)
        assert addresses(read) == {ONE: RULE}
        for _ in range(2):  # the second writer finds no trace
            read.write({"addresses": {THREE: RULE}})
            assert addresses(RuleFile(path)) == addresses(read) == {ONE: RULE, THREE: RULE}
            assert path.stat().st_size == read.view().end
    path.write_bytes(data)
    assert addresses(RuleFile(path)) == {TWO: RULE}


def test_a_record_that_is_changed_anywhere(path: Path) -> None:
    file = RuleFile(path)
    file.write({"addresses": {ONE: RULE}})
    whole = path.stat().st_size
    file.write({"addresses": {TWO: RULE, ONE: None}})
    data = path.read_bytes()
    for place in range(whole, len(data)):
        path.write_bytes(data[:place] + bytes((data[place] ^ 0x10,)) + data[place + 1 :])
        assert addresses(RuleFile(path)) == {ONE: RULE}


def test_a_reader_sees_a_record_once_it_is_complete(path: Path) -> None:
    file, reader = RuleFile(path), RuleFile(path)
    follower = reader.follow()
    file.write({"addresses": {ONE: RULE}})
    assert follower.take() is None
    start = path.stat().st_size
    file.write({"addresses": {TWO: RULE}})
    data = path.read_bytes()
    os.truncate(path, start)
    with path.open("ab", buffering=0) as writing:
        for byte in data[start:-1]:
            writing.write(bytes((byte,)))
            assert addresses(reader) == {ONE: RULE}
            assert follower.take() == {}
        writing.write(data[-1:])
    assert follower.take() == {"addresses": {TWO: RULE}}
    assert addresses(reader) == {ONE: RULE, TWO: RULE}


def test_a_new_file_with_the_same_contents_is_not_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule_file, "LOG_MAX", 300)
    file, reader = RuleFile(path), RuleFile(path)
    follower = reader.follow()
    assert follower.take() is None
    before = reader.view()
    files = set[int]()
    for number in range(20):
        key = number.to_bytes(16, "big")
        file.write({"addresses": {key: RULE}})
        files.add(path.stat().st_ino)
        assert follower.take() == {"addresses": {key: RULE}}
    assert len(files) > 3
    assert contents(before)["addresses"] == {}
    # One new file may be missed, as the former one stays open.
    for number in range(4):
        file.write({"addresses": {number.to_bytes(16, "big"): None}})
    assert follower.take() == {
        "addresses": {number.to_bytes(16, "big"): None for number in range(4)}
    }
    # After a second one, the reader cannot tell what it has missed.
    for number in range(20):
        file.write({"addresses": {number.to_bytes(16, "big"): OTHER_RULE}})
    assert follower.take() is None
    assert follower.take() == {}
    assert set(addresses(reader).values()) == {OTHER_RULE}


def test_no_room_for_a_new_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the log grow where there is no room for a new file."""
    file = RuleFile(path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(rule_file, "LOG_MAX", 0)
    with monkeypatch.context() as patched:
        patched.setattr(rule_file, "write_file", full)
        file.write({"addresses": {ONE: RULE}})
        file.write({"addresses": {TWO: RULE}})
    assert path.stat().st_size > file.view().snapshot.end
    file.write({"addresses": {THREE: RULE}})
    assert set(addresses(RuleFile(path))) == {ONE, TWO, THREE}


def test_too_many_changes_to_note(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_file, "PENDING_MAX", 5)
    file = RuleFile(path)
    follower = file.follow()
    follower.take()
    for _ in range(9):
        file.write({"addresses": {ONE: RULE}})
        file.write({"addresses": {ONE: None}})
    assert follower.take() == {"addresses": {ONE: None}}
    file.write({"addresses": {number.to_bytes(16, "big"): RULE for number in range(6)}})
    assert follower.take() is None


@pytest.mark.parametrize("place", ["write_file", "_record_of"])
def test_a_reader_does_not_wait_for_a_writer(
    path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Leave the lock to the thread that answers while another one writes."""
    monkeypatch.setattr(rule_file, "LOG_MAX", 0)
    file, real, free = RuleFile(path), getattr(rule_file, place), list[bool]()

    def look() -> None:
        free.append(file.lock.acquire(blocking=False))
        if free[-1]:
            file.lock.release()

    def watched(*arguments: object) -> object:
        other = threading.Thread(target=look)
        other.start()
        other.join()
        return real(*arguments)

    monkeypatch.setattr(rule_file, place, watched)
    file.write({"addresses": {ONE: RULE}})
    file.resize("addresses", 77)
    path.unlink()
    file.restore()
    assert free
    assert all(free)


def test_a_change_that_is_none_writes_nothing(path: Path) -> None:
    file = RuleFile(path)
    file.write({"addresses": {ONE: RULE}})
    before = path.stat()
    file.write({"addresses": {ONE: RULE, TWO: None}})
    file.resize("addresses", LIMITS["addresses"])
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)


def test_another_size(path: Path) -> None:
    file, other = RuleFile(path), RuleFile(path)
    file.write({"addresses": {ONE: RULE, TWO: RULE}})
    file.resize("addresses", 2)
    with pytest.raises(OSError, match="Argument list too long"):
        other.write({"addresses": {THREE: RULE}, "prefixes": {bytes(20): RULE}})
    other.write({"addresses": {THREE: RULE, ONE: None}})
    assert contents(file.view()) == {"addresses": {TWO: RULE, THREE: RULE}, "prefixes": {}}


def test_a_removed_file_is_restored(path: Path) -> None:
    file, other = RuleFile(path), RuleFile(path)
    follower = file.follow()
    other.write({"addresses": {ONE: RULE}})
    assert follower.take() is None
    other.write({"addresses": {TWO: RULE}})
    path.unlink()
    with pytest.raises(FileNotFoundError):
        file.view()
    file.restore()
    assert follower.take() == {"addresses": {TWO: RULE}}
    assert addresses(other) == addresses(file) == {ONE: RULE, TWO: RULE}


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda data: b"",
    lambda data: data[:9],
    lambda data: data[:100],
    lambda data: b"no file of ndxdp" * 20,
    lambda data: bytes(len(data)),
    lambda data: data[:30] + b"\xff" + data[31:],
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file(path: Path, damage: Callable[[bytes], bytes]) -> None:
    """Report it with a cure, to who opens the file and to who had it open."""
    file = RuleFile(path)
    many: dict[bytes, bytes | None] = {bytes((n,)) * 16: RULE for n in range(50)}
    file.write({"addresses": many})
    file._rewrite(file.view(), [60, 60, 60])
    file.view()
    fresh = path.with_name("fresh")
    fresh.write_bytes(damage(path.read_bytes()))
    fresh.rename(path)
    for read in (lambda: RuleFile(path), file.view):
        with pytest.raises(Damaged, match="is not a map of ABI version") as raised:
            read()
        assert raised.value.hint == f"another program made it; to remove it: rm -r {path.parent}"


# ---- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Yield a directory on a file system of 64 pages."""
    sh("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path))
    yield tmp_path
    sh("umount", str(tmp_path))


def test_a_full_file_system(small: Path) -> None:
    """Change nothing without room, however far a change came; go on as soon as there is some."""
    path, rng = small / "rules", random.Random(3)
    RuleFile.create(path, LIMITS | {"addresses": 1 << 20})
    file, filling, refused = RuleFile(path), small / "filling", 0
    expected = contents(file.view())
    for _ in range(60):
        filling.write_bytes(b"")
        with filling.open("wb", buffering=0) as full:
            try:
                while True:
                    full.write(bytes(4096))
            except OSError:
                # The file is left some pages in which a change may begin.
                full.truncate(max(full.tell() - rng.randrange(3) * 4096, 0))
        keys = [rng.randbytes(16) for _ in range(rng.choice((1, 9, 200, 600)))]
        changes: dict[str, dict[bytes, bytes | None]] = {"addresses": dict.fromkeys(keys, RULE)}
        try:
            file.write(changes)
        except OSError as error:
            found = error.errno, error.filename
            refused += 1
        else:
            found = errno.ENOSPC, str(path)
            expected = changed(expected, changes)
        assert found == (errno.ENOSPC, str(path))
        assert contents(file.view()) == contents(RuleFile(path).view()) == expected
        assert path.stat().st_size == file.view().end
        if len(expected["addresses"]) > 1000:
            filling.unlink()
            file.write({"addresses": dict.fromkeys(expected["addresses"])})
            expected["addresses"] = {}
    assert refused > 5
    filling.unlink()
    file.write({"addresses": {ONE: RULE}})
    assert addresses(RuleFile(path))[ONE] == RULE
    assert {each.name for each in small.iterdir()} == {"rules"}


# ---- the rules in it -----------------------------------------------------------------------------


def rules(*labels: str, count: int = 3, dev: tuple[str, ...] = ()) -> Rules:
    """Return rules of some classes, of which each has `count` addresses and a prefix."""
    found: dict[Prefix, Rule] = {}
    for label in labels:
        rule = Rule(label=label, answer=Answer.ROUTED if dev else Answer.ALWAYS, dev=dev)
        for number in range(count):
            found[Prefix(label.encode().ljust(15, b"\0") + bytes((number,)), 128)] = rule
        found[Prefix(label.encode().ljust(8, b"\0") + bytes(8), 64)] = rule
    return Rules.of(found)


BEFORE, AFTER = rules("a", "b"), rules("a", "c", count=2, dev=("tap*", "eth1"))

CHANGE = dedent(
    """
    import ctypes, sys
    from pathlib import Path
    from ndxdp.rules.difference import difference
    from ndxdp.session.former_tables import join_tables
    from ndxdp.store import rule_file
    from ndxdp.store.maps import Maps
    from tests.test_rule_file import AFTER

    directory, kind, point = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    arm = ctypes.CDLL(None).kill_point_arm
    if kind == "join":
        arm(point, 1)
        join_tables(directory)
        sys.exit()
    rule_file.LOG_MAX = 1 if kind == "new file" else 1 << 16
    rule_file.FEW = 1 if kind == "many" else 2048
    with Maps.open_files(directory) as maps:
        actual = maps.rules()
        arm(point, 1)
        if kind == "resize":
            maps.resize_addresses(777)
        elif kind == "restore":
            (directory / "rules").unlink()
            maps.restore_files()
        else:
            maps.apply(difference(AFTER, actual), actual)
    """
)
KINDS = ("few", "torn", "new file", "many", "resize", "restore", "join")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shim") / "kill_points.so"
    source = REPOSITORY / "tests/kills/kill_points.c"
    sh("clang", "-O1", "-shared", "-fPIC", "-o", str(made), str(source))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_every_system_call(tmp_path: Path, shim: Path, kind: str) -> None:
    """Find all rules of a change or none after a kill, and change them again."""
    from ndxdp.session.former_tables import join_tables
    from tests.test_former_layout import split_rules

    points, ends = 0, set[bool]()
    killed = True
    while killed:
        points += 1
        directory = tmp_path / str(points)
        directory.mkdir()
        with Maps.create_files(directory) as maps:
            maps.apply(Difference(BEFORE, Rules()), Rules())
        if kind == "torn":
            with (directory / "rules").open("ab") as file:
                file.write(b"torn" * 20)
        if kind == "join":
            split_rules(directory)
        ended = subprocess.run(
            [sys.executable, "-c", CHANGE, str(directory), kind, str(points)],
            env=os.environ | {"LD_PRELOAD": str(shim)},
            cwd=REPOSITORY,
            check=False,
        )
        killed = ended.returncode < 0
        assert killed or ended.returncode == 0
        if kind == "join":
            join_tables(directory)
            assert not (directory / "addresses").exists()
        if kind == "restore" and not (directory / "rules").exists():
            continue  # the process that had the file open is gone
        with Maps.open_files(directory) as maps:
            found = maps.rules()
            assert found in (BEFORE, AFTER)
            ends.add(found == AFTER)
            wanted = rules("d", count=5)
            maps.apply(difference(wanted, found), found)
            assert maps.rules() == wanted
            assert sum(maps.rule_count().by_origin.values()) == len(wanted)
    assert points > 1
    assert ends == ({False, True} if kind in ("few", "torn", "new file", "many") else {False})


@pytest.mark.parametrize("many", [False, True])
def test_a_reader_sees_whole_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, many: bool
) -> None:
    """Read all the time while rules change back and forth, in the log and by new files."""
    monkeypatch.setattr(rule_file, "FEW", 1 if many else 2048)
    monkeypatch.setattr(rule_file, "LOG_MAX", 5000)
    sets = [rules("a", "b"), rules("a", "c", count=5), rules("b", "c")]
    Maps.create_files(tmp_path).close()
    ended, seen = threading.Event(), set[int]()

    def read() -> None:
        with Maps.open_files(tmp_path) as maps:
            live = LiveTable(maps)
            while not ended.is_set():
                found = maps.rules()
                seen.add([*sets, Rules()].index(found))
                live.refresh(expired=False)

    with Maps.open_files(tmp_path) as maps:
        maps.apply(Difference(sets[0], Rules()), Rules())
        thread = threading.Thread(target=read)
        thread.start()
        try:
            for number in range(400):
                actual = maps.rules()
                maps.apply(difference(sets[number % 3], actual), actual)
        finally:
            ended.set()
            thread.join()
    assert seen == {0, 1, 2}


def test_a_table_follows_changes(tmp_path: Path, log: str) -> None:
    """Compare a table that follows random changes with one made of all rules."""
    rng = random.Random(5)
    labels = [f"l{number}" for number in range(8)]
    with Maps.create_files(tmp_path) as maps, Maps.open_files(tmp_path) as writer:
        live = LiveTable(maps)
        kept: dict[int, Match] = {}
        for _ in range(150):
            wanted = Rules()
            for label in rng.sample(labels, rng.randrange(4)):
                wanted = wanted | rules(label, count=rng.randrange(5))
            actual = writer.rules()
            writer.apply(difference(wanted, actual), actual)
            if live.refresh(expired=False):
                kept = {}
            slots = {rule_class: slot for slot, rule_class in writer.rule_classes().items()}
            expected = Table.of(
                wanted,
                rule_class=lambda rule: slots[RuleClass.of(rule)],  # noqa: B023
            )
            for label in labels:
                for last in range(6):
                    target = label.encode().ljust(15, b"\0") + bytes((last,))
                    found = live.table.match(target)
                    assert found == expected.match(target)
                    assert live.table.lookup(target) == expected.lookup(target)
                    if found is not None:  # templates are found by the identity of the Match
                        assert kept.setdefault(id(found), found) == found


def test_a_class_in_the_place_of_another(tmp_path: Path) -> None:
    """Report that a Match is another rule's if a new class has the slot of a former one."""
    with Maps.create_files(tmp_path) as maps:
        live = LiveTable(maps)
        maps.apply(Difference(rules("a"), Rules()), Rules())
        assert live.refresh(expired=False)
        assert not live.refresh(expired=False)
        (slot,) = maps.rule_classes()
        maps.apply(Difference(Rules(), rules("a")), rules("a"))
        assert not live.refresh(expired=False)
        maps.slots("groups").clear([slot])
        maps.apply(Difference(rules("b"), Rules()), Rules())
        assert list(maps.rule_classes()) == [slot]
        assert live.refresh(expired=False)
        found = live.table.lookup(next(iter(rules("b").addresses)))
        assert found is not None
        assert found[1].label == "b"


def test_one_rule_is_changed_without_reading_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read no table when one rule changes: neither the writer nor who answers, nor a count."""
    many = Rules({Rule(): AddressSet(b"".join(n.to_bytes(16, "big") for n in range(3000)))})
    one = rules("one", count=1)
    with Maps.create_files(tmp_path) as maps:
        maps.apply(Difference(many, Rules()), Rules())
        live = LiveTable(maps)
        live.refresh(expired=False)

        def read(*_: object) -> bytes:
            raise AssertionError

        with monkeypatch.context() as patched, Maps.open_files(tmp_path) as writer:
            patched.setattr(View, "entries", read)
            assert writer.rules_at(one) == Rules()
            writer.apply_at(Difference(one, Rules()), Rules())
            assert writer.rules_at(one) == one
            assert not live.refresh(expired=False)
            for prefix in one:
                assert live.table.lookup(prefix.address)
            counted = writer.rule_count()
            assert (counted.addresses, counted.prefixes) == (3001, 1)
            assert writer.entries("addresses") == 3001
            writer.apply_at(Difference(Rules(), one), one)
            assert not live.refresh(expired=False)
        assert maps.rules() == many
