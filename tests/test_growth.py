"""Cost in proportion: work on sets of rules is counted, not timed."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest

from ndxdp.cli.values import rules_of
from ndxdp.config import reader
from ndxdp.errors import UsageError
from ndxdp.kernel import abi
from ndxdp.ndp.profile import Answer
from ndxdp.observe import render
from ndxdp.rules import breadth
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.capacity import Capacity
from ndxdp.rules.difference import Difference, difference, mark_owned, merge
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import CONFIG_ORIGIN, Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.store import sorted_runs
from ndxdp.store.backends import TableFile
from ndxdp.store.maps import Maps
from tests.fixtures.work import assert_in_proportion

_EACH = 10


def address(number: int) -> bytes:
    return b"\x20\x01\x0d\xb8" + number.to_bytes(12, "big")


def lists(count: int, origin: str = CONFIG_ORIGIN, *, mixed: bool = False) -> Rules:
    """So many rules of a few addresses each, side by side or mixed with each other."""

    def of_list(number: int) -> AddressSet:
        every = range(_EACH)
        if mixed:
            return AddressSet.of(address(number + n * count) for n in every)
        return AddressSet.of(address(number * _EACH + n) for n in every)

    return Rules({Rule(origin=origin, label=str(n)): of_list(n) for n in range(count)})


def tables(key: str, values: list[str]) -> str:
    head = '[[interface]]\nname = "eth0"\n'
    return head + "".join(f'[[interface.prefix]]\n{key} = "{value}"\n' for value in values)


def config_of_prefixes(count: int, path: Path) -> Callable[[], object]:
    text = tables("prefix", [f"2001:db8::{n:x}" for n in range(count)])
    return lambda: reader.parse(text, "it.toml")


def config_of_lists(count: int, path: Path) -> Callable[[], object]:
    for n in range(count):
        (path / f"l{n}").write_text("".join(f"2001:db8:{m:x}::{n:x}\n" for m in range(_EACH)))
    text = tables("file", [f"l{n}" for n in range(count)])
    return lambda: reader.parse(text, str(path / "it.toml"))


def config_with_duplicates(count: int, path: Path) -> Callable[[], object]:
    text = tables("prefix", [f"2001:db8::{n // 2:x}" for n in range(count)])

    def read() -> None:
        with pytest.raises(UsageError):
            reader.parse(text, "it.toml")

    return read


def command_line(count: int, path: Path) -> Callable[[], object]:
    def named(number: int) -> StringIO:
        stream = StringIO("".join(f"2001:db8:{m:x}::{number:x}\n" for m in range(_EACH)))
        stream.name = f"l{number}"
        return stream

    return lambda: rules_of((), (), [named(n) for n in range(count)], Rule())


@pytest.mark.parametrize(
    "prepare", [config_of_prefixes, config_of_lists, config_with_duplicates, command_line]
)
def test_reading_is_in_proportion(
    prepare: Callable[[int, Path], Callable[[], object]], tmp_path: Path
) -> None:
    assert_in_proportion(lambda count: prepare(count, tmp_path))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    "operate",
    [
        lambda a, b: a | b,
        lambda a, b: a.without(b),
        lambda a, b: a.restricted_to(b),
        lambda a, b: a.different_from(b),
        lambda a, b: a.equivalent_in(b),
        lambda a, b: list(a.paired_with(b)),
        lambda a, b: Rules.union([Rules({rule: some}) for rule, some in a.exact.items()]),
        lambda a, b: difference(a, b).applied_to(b),
        lambda a, b: merge(a, b),
        lambda a, b: mark_owned(dict.fromkeys(a, "own"), b),
        lambda a, b: Capacity().shortage(a, b),
        lambda a, b: breadth.at_neighbours(a, b.addresses),
    ],
)
def test_rules_of_many_lists_are_compared_in_proportion(
    operate: Callable[[Rules, Rules], object], mixed: bool
) -> None:
    def prepare(count: int) -> Callable[[], object]:
        ours, theirs = lists(count, mixed=mixed), lists(count, "manual", mixed=mixed)
        return lambda: operate(ours, theirs)

    assert_in_proportion(prepare)


@pytest.mark.parametrize("few", [1, 3])
def test_few_addresses_are_looked_up(few: int) -> None:
    """The work on a few rules beside a list does not depend on the list's length."""

    def prepare(count: int) -> Callable[[], object]:
        every = Rules({Rule(label="list"): AddressSet.of(map(address, range(count)))})
        some = Rules({Rule(Answer.NEVER): AddressSet.of(address(n * 7) for n in range(few))})
        prefixes = [Prefix(each, 128) for each in some.addresses]
        return lambda: (
            every.without(some),
            every.restricted_to(some),
            some.restricted_to(every),
            every.at(prefixes),
            every | some,
            list(every.paired_with(some)),
        )

    assert_in_proportion(prepare, 20_000)


def test_a_file_is_written_once_for_all_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In userspace mode a change of a table replaces its file."""
    written: list[Path] = []
    write = TableFile._write

    def counted(self: TableFile, entries: object) -> None:
        written.append(self._path)
        write(self, entries)  # type: ignore[arg-type]

    monkeypatch.setattr(TableFile, "_write", counted)
    rules = lists(abi.MAX_RULE_CLASSES // 2)
    with Maps.create_files(tmp_path) as maps:
        maps.apply(Difference(rules, Rules()), Rules())
        assert maps.rules() == rules
    assert len(written) == 1


# ---- listing ------------------------------------------------------------------------------------


@pytest.fixture(params=["kernel", "files"])
def maps(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Maps]:
    """Yield empty maps, in the kernel or in files."""
    with Maps.create() if request.param == "kernel" else Maps.create_files(tmp_path) as made:
        yield made


def test_rules_are_listed_in_order(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_runs, "_RUN", 70)
    monkeypatch.setattr(sorted_runs, "_CHUNK", 9)
    wider = {Prefix(address(n << 32), length): Rule() for n in range(99) for length in (32, 96)}
    for rules in (
        Rules(),
        Rules(wider={Prefix(bytes(16), 0): Rule()}),
        lists(30),
        lists(9) | wider,
    ):
        maps.apply(difference(rules, maps.rules()), maps.rules())
        assert list(maps.in_order(lambda rule: True)) == sorted(rules.pairs())
        one = rules.where(lambda rule: rule.label == "7")
        assert list(maps.in_order(lambda rule: rule.label == "7")) == sorted(one.pairs())
        listed = [render.rule_data(*item) for item in sorted(rules.pairs())]
        written = "".join(render.rules_json(maps.in_order(lambda rule: True)))
        assert written == json.dumps(listed, indent=2) + "\n"
        texts = [render.rule_text(*item) for item in sorted(rules.pairs())]
        assert list(render.rules_text(maps.in_order(lambda rule: True))) == texts


def test_a_list_is_not_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times as many rules take no more memory of this process."""
    monkeypatch.setattr(sorted_runs, "_RUN", 5_000)

    def peak(count: int) -> int:
        every = Rules({Rule(): AddressSet.of(map(address, range(count)))})
        with Maps.create() as maps:
            maps.apply(Difference(every, Rules()), Rules())
            tracemalloc.start()
            try:
                assert sum(1 for _ in render.rules_json(maps.in_order(lambda rule: True))) > count
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    assert peak(100_000) < 1.5 * peak(25_000)
