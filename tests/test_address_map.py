"""The table of exact addresses in the kernel: like a dict, growing, with collisions, in use."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ndxdp.errors import Damaged
from ndxdp.kernel import abi, bpf_maps, bpf_programs, loader
from ndxdp.kernel.abi import MapSpec, Mode
from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.kernel.libbpf import BpfError
from ndxdp.kernel.loader import Loader
from ndxdp.ndp.message import solicit
from ndxdp.ndp.profile import Answer
from ndxdp.ndp.reason import Reason
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.difference import Difference
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.session import former_layout
from ndxdp.store.address_map import PIN, AddressMap
from ndxdp.store.maps import Maps
from ndxdp.store.records import Settings
from tests.fixtures.pair import RECEIVER, pair
from tests.packets import HOST

ROUTER, SOURCE = parse_mac("02:00:00:00:00:aa"), parse_address("fe80::aa")
BASE = parse_address("2001:db8:0:1:c::")
MOST_IN_A_BUCKET = abi.BUCKET_SLOTS * abi.PROBES
FULL = os.strerror(errno.E2BIG)


def address(number: int) -> bytes:
    return BASE[:8] + number.to_bytes(8, "big")


def addresses(numbers: range) -> bytes:
    return b"".join(map(address, numbers))


def rule(rule_class: int) -> bytes:
    return abi.RULE.pack(rule_class=rule_class, answer=Answer.ALWAYS, prefix_len=128)


def elements(table: AddressMap) -> int:
    """Return the number of elements of the array."""
    return bpf_maps.spec_of(table._table.fd).max_entries


def passed(table: AddressMap) -> int:
    """Return the sum of `passed` of all buckets."""
    spec = abi.TABLE._replace(max_entries=elements(table))
    found = iter(KernelMap(spec, table._table.fd).items())
    next(found)
    return sum(abi.BUCKET.unpack(value)["passed"] for _, value in found)


def set_header(table: AddressMap, **fields: object) -> None:
    data = bpf_maps.lookup(table._table.fd, bytes(4), abi.BUCKET.size) or b""
    packed = abi.ADDRESS_TABLE.pack(**(abi.ADDRESS_TABLE.unpack(data) | fields))
    bpf_maps.update(table._table.fd, bytes(4), packed)


def collide(table: AddressMap) -> None:
    """Give an empty table a seed for which all colliding() addresses have the same first bucket."""
    # With a seed of zeros, the products are those of the address's words: zero, if one word is.
    set_header(table, seed=struct.pack("=5Q", 7 << 60, *[0] * 4))


def colliding(number: int) -> bytes:
    return struct.pack(">4I", 0x20010DB8, 0, number + 1, 0)


@pytest.fixture(params=[1, 2, 3, 69, 70, 71, 3000])
def table(request: pytest.FixtureRequest) -> Iterator[AddressMap]:
    made = AddressMap.create(request.param)
    yield made
    made.close()


@pytest.fixture
def roomy() -> Iterator[AddressMap]:
    made = AddressMap.create(1_000_000)
    yield made
    made.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path("/sys/fs/bpf/address_map")
    path.mkdir()
    yield path
    for each in path.iterdir():
        each.unlink()
    path.rmdir()


def check(table: AddressMap, expected: dict[bytes, bytes]) -> None:
    found = list(table.items())
    assert len(found) == len(expected)
    assert dict(found) == expected
    classes = sorted(number for some in table.leading("H") for number in some.tolist())
    assert classes == sorted(abi.RULE.unpack(value)["rule_class"] for value in expected.values())


def test_like_a_dict(table: AddressMap) -> None:
    """Add, replace and remove entries one by one and many at a time, while the table grows."""
    rng = random.Random(table.max_entries)
    every = [address(rng.getrandbits(64)) for _ in range(2 * table.max_entries)]
    expected: dict[bytes, bytes] = {}
    for _ in range(200):
        some = rng.sample(every, min(len(every), rng.choice([1, 2, 30, 500])))
        if rng.random() < 0.6:
            room = table.max_entries - len(expected)
            new = [key for key in some if key not in expected][:room]
            some = [key for key in some if key in expected] + new
            values = [rule(rng.randrange(1 << 16)) for _ in some]
            table.update(b"".join(some), b"".join(values))
            expected |= zip(some, values, strict=True)
        else:
            table.delete(b"".join(some))
            for key in some:
                expected.pop(key, None)
        for key in rng.sample(every, min(len(every), 20)):
            assert table.lookup(key) == expected.get(key)
        check(table, expected)
        if rng.random() < 0.05:
            table.fit()
            check(table, expected)
    table.delete(b"".join(every))
    check(table, {})
    assert not passed(table)


def test_full(table: AddressMap) -> None:
    """Refuse what has no room, replace entries of a full map, and count after a kill."""
    most = table.max_entries
    keys = [address(number) for number in range(most)]
    table.update(b"".join(keys), rule(1) * most)
    with pytest.raises(OSError, match=FULL):
        table.update(address(most), rule(1))
    with pytest.raises(OSError, match=FULL):
        table.update(addresses(range(most, most + 100)), rule(1) * 100)
    check(table, dict.fromkeys(keys, rule(1)))
    table.update(b"".join(keys), rule(2) * most)
    check(table, dict.fromkeys(keys, rule(2)))
    table.delete(keys[0])
    set_header(table, used=1 << 30)  # as a writer leaves it that was killed
    table.update(address(most), rule(3))
    check(table, dict.fromkeys(keys[1:], rule(2)) | {address(most): rule(3)})


def test_another_limit(roomy: AddressMap) -> None:
    roomy.update(addresses(range(100)), rule(1) * 100)
    with pytest.raises(OSError, match=FULL):
        roomy.resize(99)
    assert roomy.max_entries == 1_000_000
    roomy.resize(100)
    with pytest.raises(OSError, match=FULL):
        roomy.update(address(100), rule(1))
    roomy.resize(101)
    roomy.update(address(100), rule(1))
    assert roomy.max_entries == 101


@pytest.mark.parametrize("at_once", [1, 63, 1000, 100_000])
def test_grows(roomy: AddressMap, at_once: int) -> None:
    """Take memory in proportion to the addresses, and give it back."""
    assert elements(roomy) * abi.BUCKET.size == 4096
    count = 100_000 if at_once > 1 else 2000
    for start in range(0, count, at_once):
        some = addresses(range(start, start + at_once))
        roomy.update(some, rule(start % 7) * at_once)
    assert roomy.max_entries == 1_000_000
    expected = {
        address(n): rule(n // at_once * at_once % 7) for n in range(len(dict(roomy.items())))
    }
    assert len(expected) >= count
    check(roomy, expected)
    least = len(expected) * 2 / 3
    # One table in a hundred takes a tenth more, because an address has found its buckets full.
    assert least <= elements(roomy) <= (1.15 if at_once == count else 2.6) * least + 100
    roomy.delete(addresses(range(10, len(expected))))
    roomy.fit()
    assert elements(roomy) * abi.BUCKET.size == 4096
    check(roomy, {address(n): rule(n // at_once * at_once % 7) for n in range(10)})


def test_notes_of_paused_rules_stay(roomy: AddressMap) -> None:
    values = [rule(7)[:5] + bytes((note, 0, 0)) for note in range(4)]
    owned = [abi.RULE.pack(flags=abi.RuleFlag.OWNED, prefix_len=128), bytes(4) + b"\x80" + bytes(3)]
    values += owned  # the last one is a rule of zeros, but for its length
    roomy.update(addresses(range(6)), b"".join(values))
    check(roomy, {address(n): value for n, value in enumerate(values)})
    assert [roomy.lookup(address(n)) for n in range(6)] == values


def test_entry_in_the_same_update_twice(roomy: AddressMap) -> None:
    roomy.update(address(1) * 2 + address(2) * 70, rule(1) + rule(2) + rule(3) * 70)
    check(roomy, {address(1): rule(2), address(2): rule(3)})


def test_addresses_that_contain_each_other(roomy: AddressMap) -> None:
    """Find an address by its own bytes only, not across the bounds of a bucket's addresses."""
    collide(roomy)
    first, zeros = struct.pack(">4I", 0, 1, 0, 0), bytes(16)
    roomy.update(first, rule(1))
    roomy.update(struct.pack(">4I", 0, 0x10000, 0, 0), rule(2))
    assert roomy.lookup(zeros) is None
    roomy.update(zeros, rule(3))
    assert roomy.lookup(zeros) == rule(3)
    roomy.delete(zeros)
    assert roomy.lookup(zeros) is None
    assert roomy.lookup(first) == rule(1)


@pytest.mark.parametrize("at_once", [1, 1000], ids=["one by one", "at once"])
def test_collisions(roomy: AddressMap, at_once: int) -> None:
    """Keep as many addresses of one bucket as the program looks at; take another seed for more."""
    collide(roomy)
    keys = [colliding(number) for number in range(MOST_IN_A_BUCKET)]
    for start in range(0, len(keys), at_once):
        some = keys[start : start + at_once]
        roomy.update(b"".join(some), rule(1) * len(some))
    check(roomy, dict.fromkeys(keys, rule(1)))
    assert len({*roomy._table.header().homes(b"".join(keys))}) == 1
    assert roomy.lookup(keys[-1]) == rule(1)
    more = colliding(len(keys))
    roomy.delete(keys[0])
    roomy.update(more, rule(2))
    assert len({*roomy._table.header().homes(b"".join(keys))}) == 1
    check(roomy, dict.fromkeys(keys[1:], rule(1)) | {more: rule(2)})
    roomy.update(keys[0], rule(3))
    assert len({*roomy._table.header().homes(b"".join(keys))}) > 1
    check(roomy, dict.fromkeys(keys[1:], rule(1)) | {more: rule(2), keys[0]: rule(3)})
    for start in range(0, len(keys), at_once):
        roomy.delete(b"".join(keys[start : start + at_once]))
    check(roomy, {more: rule(2)})


def test_buckets_that_are_full_by_chance(roomy: AddressMap) -> None:
    """Take a tenth more memory if an address finds its buckets full, in a table that has room."""
    roomy._replace(6000)
    collide(roomy)
    before = elements(roomy)
    others = [struct.pack(">4I", 0x20010DB8, n + 1, n + 1, n + 1) for n in range(4000)]
    keys = [*others, *(colliding(number) for number in range(MOST_IN_A_BUCKET + 1))]
    for key in keys:
        roomy.update(key, rule(1))
    check(roomy, dict.fromkeys(keys, rule(1)))
    assert before < elements(roomy) < 1.15 * before


@pytest.mark.parametrize("fields", [{"buckets": 0}, {"buckets": 1 << 31}, {"buckets": 48}], ids=str)
def test_a_damaged_header(roomy: AddressMap, fields: dict[str, int]) -> None:
    roomy.update(addresses(range(3)), rule(1) * 3)
    set_header(roomy, **fields)
    uses: list[Callable[[], object]] = [
        lambda: roomy.lookup(address(1)),
        lambda: list(roomy.items()),
        lambda: list(roomy.leading("H")),
        lambda: roomy.update(address(1), rule(2)),
        lambda: roomy.update(addresses(range(1000)), rule(2) * 1000),
        lambda: roomy.delete(address(1)),
        lambda: roomy.max_entries,
        roomy.fit,
    ]
    for use in uses:
        with pytest.raises(Damaged, match="the maps hold what ndxdp did not write"):
            use()


# ---- several processes --------------------------------------------------------------------------


@pytest.fixture
def pinned(directory: Path) -> Iterator[AddressMap]:
    made = AddressMap.create(1_000_000)
    made.repin(directory)
    yield made
    made.close()


@contextlib.contextmanager
def opened(directory: Path, *, readonly: bool = False) -> Iterator[AddressMap]:
    found = AddressMap.open(directory, readonly=readonly)
    try:
        yield found
    finally:
        found.close()


def test_readers_need_no_right_to_write(pinned: AddressMap, directory: Path) -> None:
    pinned.update(address(1), rule(1))
    with opened(directory, readonly=True) as reader:
        check(reader, {address(1): rule(1)})
        assert reader.lookup(address(1)) == rule(1)
        assert reader.max_entries == 1_000_000
        with pytest.raises(OSError, match="Operation not permitted"):
            reader.update(address(2), rule(2))
        pinned.update(addresses(range(1000)), rule(2) * 1000)
        check(reader, dict.fromkeys(map(address, range(1000)), rule(2)))
        assert reader.lookup(address(999)) == rule(2)


def test_two_writers_in_turn(pinned: AddressMap, directory: Path) -> None:
    """Each finds what the other one has written, whoever has replaced the table."""
    with opened(directory) as other, opened(directory, readonly=True) as reader:
        both = (pinned, other)
        expected: dict[bytes, bytes] = {}
        for turn in range(12):
            some = range(turn * 100, turn * 100 + 100 + 2**turn)
            both[turn % 2].update(addresses(some), rule(turn) * len(some))
            expected |= dict.fromkeys(map(address, some), rule(turn))
            for each in (*both, reader):
                assert dict(each.items()) == expected
                assert each.lookup(address(turn)) == expected[address(turn)]
        both[0].delete(addresses(range(50, 10_000)))
        both[1].fit()
        for each in (*both, reader):
            check(each, {address(n): rule(0) for n in range(50)})


def test_a_writer_that_was_killed(
    pinned: AddressMap, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Go on with the pinned table where a writer was killed before the program got it."""
    pinned.update(addresses(range(60)), rule(1) * 60)
    with opened(directory) as killed:
        monkeypatch.setattr(killed, "_publish", lambda: None)
        killed._replace(1000)
        former, present = pinned._table.id, killed._table.id
    assert former != present
    assert pinned._published() == former
    with opened(directory) as other, opened(directory, readonly=True) as reader:
        check(reader, dict.fromkeys(map(address, range(60)), rule(1)))
        check(pinned, dict.fromkeys(map(address, range(60)), rule(1)))
        assert pinned._published() == former, "a reader has written"
        pinned.update(address(60), rule(1))
        assert pinned._published() == present
        for each in (pinned, other, reader):
            check(each, dict.fromkeys(map(address, range(61)), rule(1)))


def test_pins_that_were_removed(pinned: AddressMap, directory: Path) -> None:
    """Go on without a pin, and pin the table that the program has."""
    with opened(directory) as other:
        other.update(addresses(range(1000)), rule(1) * 1000)
        (directory / PIN).unlink()
        check(pinned, dict.fromkeys(map(address, range(1000)), rule(1)))
        pinned.update(address(1000), rule(1))
        (directory / PIN).unlink(missing_ok=True)
        pinned.pin(directory)
        check(other, dict.fromkeys(map(address, range(1001)), rule(1)))
        assert pinned._published() == other._table.id


def test_no_memory_for_a_larger_table(
    pinned: AddressMap, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leave the present table, its pin and its entries if the kernel has no memory."""
    pinned.update(addresses(range(60)), rule(1) * 60)
    create = bpf_maps.create

    def short(spec: MapSpec, inner_fd: int = 0) -> int:
        if spec.name == abi.TABLE.name:
            raise BpfError(errno.ENOMEM, "bpf_map_create")
        return create(spec, inner_fd)

    monkeypatch.setattr(bpf_maps, "create", short)
    with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        pinned.update(addresses(range(60, 1060)), rule(2) * 1000)
    check(pinned, dict.fromkeys(map(address, range(60)), rule(1)))
    with opened(directory) as other:
        check(other, dict.fromkeys(map(address, range(60)), rule(1)))
    assert {each.name for each in directory.iterdir()} == {"addresses", PIN}


def test_no_rule_is_changed_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what was written before the table had to grow, and say so."""
    before = holes(AddressSet.of([address(n) for n in range(60)]))
    more = holes(AddressSet.of([address(n) for n in range(60, 130)]))
    with Maps.create() as maps:
        maps.apply(Difference(before, Rules()), Rules())

        def short(self: AddressMap, count: int) -> None:
            raise BpfError(errno.ENOMEM, "bpf_map_create")

        monkeypatch.setattr(AddressMap, "_replace", short)
        with pytest.raises(Exception, match="Cannot allocate memory; no rule was changed"):
            maps.apply(Difference(more, Rules()), before)
        assert maps.rules() == before


# ---- the program --------------------------------------------------------------------------------


class Program:
    """The program in native mode on maps of its own; it counts, as for real frames."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps
        self.ifindex = socket.if_nametoindex(RECEIVER)
        maps.set_settings(Settings(HOST.mac, self.ifindex, 0, Mode.NATIVE, l3_ifindex=self.ifindex))
        self.fd = loader.load(Loader.PREBUILT, Mode.NATIVE, maps.fds)
        table = maps._maps["addresses"]
        assert isinstance(table, AddressMap)
        self.table = table

    def denied(self, target: bytes, times: int = 1) -> int:
        """Solicit a target so many times, and return how often that was denied."""
        frame = solicit(ROUTER, target, source=SOURCE, sllao=ROUTER)
        before = self.maps.reasons()[Reason.DENIED]
        context = struct.pack("=6I", 0, len(frame), 0, self.ifindex, 0, 0)
        bpf_programs.run_often(self.fd, frame, times, context)
        return self.maps.reasons()[Reason.DENIED] - before

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture
def program(directory: Path) -> Iterator[Program]:
    with pair(HOST.mac), Maps.create() as maps:
        maps.pin(directory)
        made = Program(maps)
        yield made
        made.close()


def holes(some: AddressSet) -> Rules:
    """Return rules that leave the frame of a solicitation unchanged, for many runs."""
    return Rules({Rule(Answer.NEVER): some})


def test_program_finds_collisions(program: Program) -> None:
    """The program finds each of as many addresses as one bucket can have, and no other one."""
    collide(program.table)
    keys = [colliding(n) for n in range(MOST_IN_A_BUCKET)]
    rules = holes(AddressSet.of(keys))
    program.maps.apply(Difference(rules, Rules()), Rules())
    assert len({*program.table._table.header().homes(b"".join(keys))}) == 1
    assert [program.denied(key) for key in keys] == [1] * len(keys)
    assert not program.denied(struct.pack(">4I", 0x20010DB8, 0, 0, 0))
    # The others stay while every second one is removed.
    program.maps.apply(Difference(Rules(), holes(AddressSet.of(keys[::2]))), rules)
    assert [program.denied(key) for key in keys] == [0, 1] * (len(keys) // 2)


def test_full_table_is_found(program: Program) -> None:
    """The program finds each address of a full table."""
    rng = random.Random(1)
    keys = [address(rng.getrandbits(64)) for _ in range(abi.MAX_ADDRESSES)]
    rules = holes(AddressSet.of(keys))
    program.maps.apply(Difference(rules, Rules()), Rules())
    assert program.maps.rules() == rules
    for key in rng.sample(keys, 5000):
        assert program.denied(key) == 1
        assert not program.denied(key[:8] + rng.randbytes(8))


@pytest.mark.parametrize("at_once", [1, 20_000], ids=["one by one", "at once"])
def test_found_while_others_change(program: Program, directory: Path, at_once: int) -> None:
    """Deny every solicitation of an address while another process changes, adds, and removes."""
    rng = random.Random(at_once)
    kept = [address(rng.getrandbits(64)) for _ in range(300)]
    others = [address(rng.getrandbits(64)) for _ in range(100_000 if at_once > 1 else 4_000)]
    maps = program.maps
    # In buckets with others, and some of them beyond their first one.
    first = holes(AddressSet.of(others[: len(others) // 2]))
    maps.apply(Difference(first, Rules()), Rules())
    maps.apply(Difference(holes(AddressSet.of(kept)), Rules()), first)
    expected = {*kept, *others}
    tables = _while_another_process(program, kept, lambda: _change(directory, others, at_once))
    assert tables > 1
    assert {key for key, _ in program.table.items()} == expected
    assert all(program.denied(key) for key in rng.sample(others, 100))


def _change(directory: Path, others: list[bytes], at_once: int) -> None:
    """Remove and add addresses; then make the table smaller and larger several times."""
    value = abi.RULE.pack(answer=Answer.NEVER, prefix_len=128)
    with Maps.open(directory) as maps:
        table = maps._maps["addresses"]
        maps._set_hints(AddressSet.of(others))
        for start in range(0, len(others), at_once):
            some = others[start : start + at_once]
            table.delete(b"".join(some))
            table.update(b"".join(some), value * len(some))
        for _ in range(3):
            table.delete(b"".join(others))
            maps.fit_addresses()
            for start in range(0, len(others), 2000):
                some = others[start : start + 2000]
                table.update(b"".join(some), value * len(some))


def _while_another_process(program: Program, kept: list[bytes], change: Callable[[], None]) -> int:
    """Solicit addresses while a process changes others; return how many tables were seen."""
    writer = os.fork()
    if not writer:
        try:
            change()
            os._exit(0)
        finally:
            os._exit(1)
    runs, ended, tables = 0, None, set()
    while ended is None or runs < len(kept):
        key = kept[runs % len(kept)]
        assert program.denied(key, 500) == 500, key.hex()
        tables.add(program.table._published())
        runs += 1
        pid, status = os.waitpid(writer, os.WNOHANG) if ended is None else (0, 0)
        ended = status if pid else ended
    assert ended == 0
    return len(tables)


def test_rule_of_a_prefix_stays_below_an_address(program: Program) -> None:
    """An address that is removed has the rule of its prefix again."""
    maps = program.maps
    wide = Rules(wider={Prefix(address(0), 64): Rule(Answer.NEVER)})
    maps.apply(Difference(wide, Rules()), Rules())
    one = Rules({Rule(Answer.LOCAL): AddressSet.of([address(1)])})
    maps.apply(Difference(one, Rules()), wide)
    assert [program.denied(address(n)) for n in (1, 2)] == [0, 1]
    maps.apply(Difference(Rules(), one), wide | one)
    assert [program.denied(address(n)) for n in (1, 2)] == [1, 1]


def test_a_rule_of_zeros(program: Program, directory: Path) -> None:
    """A rule whose fields are all zero is a rule: `never` for ::/0, of the first class."""
    program.maps.apply(
        Difference(Rules(wider={Prefix(bytes(16), 0): Rule(Answer.NEVER)}), Rules()), Rules()
    )
    prefixes, key = program.maps._maps["prefixes"], abi.PREFIX.pack(length=0)
    assert prefixes.lookup(key) == abi.RULE.pack(flags=abi.RuleFlag.PRESENT)
    assert program.denied(address(1)) == 1
    prefixes.update(key, bytes(abi.RULE.size))  # as a former layout has it
    former_layout._convert_prefixes(directory)
    assert prefixes.lookup(key) == abi.RULE.pack(flags=abi.RuleFlag.PRESENT)
    assert program.denied(address(1)) == 1
