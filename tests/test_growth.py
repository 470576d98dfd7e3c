"""Cost in proportion: work on sets of rules is counted, not timed."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import click
import pytest

from ndxdp import progress
from ndxdp.cli import terminal_progress
from ndxdp.cli.terminal_progress import TerminalProgress, show_progress
from ndxdp.cli.values import rules_of
from ndxdp.config import reader
from ndxdp.daemon import reconcile
from ndxdp.daemon.rule_cache import RuleCache
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.kernel import abi, bpf_maps, libbpf
from ndxdp.ndp.profile import Answer
from ndxdp.netlink.fib import Fib
from ndxdp.observe import render
from ndxdp.rules import breadth
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.capacity import Capacity
from ndxdp.rules.difference import Difference, difference, mark_owned, merge
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import CONFIG_ORIGIN, MANUAL_ORIGIN, Rule
from ndxdp.rules.rule_lists import compile_rules
from ndxdp.rules.ruleset import Rules
from ndxdp.session.rule_changes import add_rules, delete_rules, set_paused
from ndxdp.session.session import Session
from ndxdp.store import handover, pins, sorted_runs
from ndxdp.store.directories import Trees
from ndxdp.store.handover import Inbox
from ndxdp.store.instance import open_pinned
from ndxdp.store.maps import Maps
from ndxdp.store.rule_file import RuleFile
from ndxdp.store.rule_format import Changes
from ndxdp.store.rule_tables import RuleTables
from tests.fixtures import network
from tests.fixtures.network import HOST, TARGET, UPLINK, Network
from tests.fixtures.work import assert_in_proportion

_EACH = 10


def address(number: int) -> bytes:
    return b"\x20\x01\x0d\xb8" + number.to_bytes(12, "big")


def lists(count: int, origin: str = CONFIG_ORIGIN, *, mixed: bool = False) -> Rules:
    """Make `count` rules of a few addresses each, whose addresses are contiguous or mixed."""

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
    """Do the same work on a few rules, independent of the length of the list beside them."""

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
    written: list[Changes] = []
    write = RuleFile.write

    def counted(self: RuleFile, changes: Changes) -> None:
        written.append(changes)
        write(self, changes)

    monkeypatch.setattr(RuleFile, "write", counted)
    rules = lists(abi.FIRST_RULE_CLASSES + 100)
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
    wider = {Prefix(address(n << 64), length): Rule() for n in range(99) for length in (64, 96)}
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


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_list_is_not_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_kernel: bool
) -> None:
    """Use no more memory of this process for four times as many rules."""
    monkeypatch.setattr(sorted_runs, "_RUN", 5_000)

    def peak(count: int) -> int:
        every = Rules({Rule(): AddressSet.of(map(address, range(count)))})
        path = tmp_path / str(count)
        path.mkdir()
        with Maps.create() if in_kernel else Maps.create_files(path) as maps:
            maps.apply(Difference(every, Rules()), Rules())
            tracemalloc.start()
            try:
                assert sum(1 for _ in render.rules_json(maps.in_order(lambda rule: True))) > count
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    assert peak(100_000) < 1.5 * peak(25_000)


def test_addresses_are_written_in_little_memory(maps: Maps) -> None:
    """Copy no rule for each address, and in the kernel make no list of them either."""
    count = 50_000
    every = Rules({Rule(): AddressSet.of(map(address, range(count)))})
    tracemalloc.start()
    try:
        maps.apply(Difference(every, Rules()), Rules())
        assert tracemalloc.get_traced_memory()[1] < count * (35 if maps.in_kernel else 200)
    finally:
        tracemalloc.stop()


def test_addresses_in_a_file_are_read_in_little_memory(tmp_path: Path) -> None:
    """Have a part of the entries of a file in memory, as bytes."""
    count, size = 100_000, 16 + abi.RULE.size
    every = Rules({Rule(): AddressSet.of(map(address, range(count)))})
    with Maps.create_files(tmp_path) as maps:
        maps.apply(Difference(every, Rules()), Rules())
        (addresses,) = maps.tables("addresses")
        tracemalloc.start()
        try:
            assert sum(1 for _ in addresses.items()) == count
            assert tracemalloc.get_traced_memory()[1] < count * size / 2
        finally:
            tracemalloc.stop()


def test_a_lookup_in_the_kernels_tables_is_small(privacy: None) -> None:
    """Allocate little for each, as malloc maps and unmaps memory for a buffer of 64 KB."""
    with Fib() as fib:
        fib.route(address(1), 1)  # what stays is allocated
        tracemalloc.start()
        try:
            fib.route(address(1), 1)
            fib.neighbour(1, address(1))
            assert 0 < tracemalloc.get_traced_memory()[1] < 20_000
        finally:
            tracemalloc.stop()


# ---- one rule among many ------------------------------------------------------------------------


def test_rules_are_looked_up_by_prefix(maps: Maps) -> None:
    wider = {Prefix(address(0), length): Rule(label=str(length)) for length in (0, 32, 96, 120)}
    every = lists(9) | wider
    maps.apply(Difference(every, Rules()), Rules())
    asked = [*every, *(Prefix(address(0), length) for length in range(129))]
    asked += [Prefix(address(1 << 70), 128), Prefix(address(1 << 70), 96)]
    assert maps.rules_at(asked) == every
    assert maps.rules_at(asked[:3]) == every.at(asked[:3]) == dict(list(every.items())[:3])
    assert maps.rules_at([]) == Rules()


def changes() -> Iterator[tuple[str, Rules, Rules]]:
    """Yield changes of maps with room for six addresses: a name, the old and the new rules."""
    there = lists(1) | {Prefix(address(0), 64): Rule(label="wide")}
    one, other = Prefix(address(0), 128), Prefix(address(99), 128)
    yield "another rule", there, Rules.of({one: Rule(label="new")})
    yield "one more", there, Rules.of({other: Rule(label="new")})
    yield "no room", lists(1) | Rules({Rule(): AddressSet(address(50))}), lists(2)
    classes = {
        Prefix(address(n << 32), 96): Rule(label=str(n)) for n in range(abi.MAX_RULE_CLASSES)
    }
    yield "no class", Rules(wider=classes), Rules.of({other: Rule(label="new")})


@pytest.mark.parametrize(("there", "writing"), [change[1:] for change in changes()])
@pytest.mark.parametrize("in_kernel", [True, False])
def test_few_rules_are_written_as_all_are(
    tmp_path: Path, in_kernel: bool, there: Rules, writing: Rules
) -> None:
    """Give the same result and the same error with only the changed rules as with all rules."""
    results: list[object] = []
    for write in (RuleTables.apply, RuleTables.apply_at):
        folder = tmp_path / write.__name__
        folder.mkdir()
        room = _EACH + 1
        made = Maps.create(room) if in_kernel else Maps.create_files(folder, room)
        with made as maps:
            maps.apply(Difference(there, Rules()), Rules())
            change = Difference(writing, Rules())
            present = there if write is RuleTables.apply else maps.rules_at(writing)
            try:
                write(maps, change, present)
                results.append("written")
            except NdxdpError as error:
                results.append((error.message, error.hint))
            results.append(maps.rules())
    assert results[:2] == results[2:]
    assert results[1] == (there | writing if results[0] == "written" else there)


def test_a_class_without_rules_is_reused_for_few_rules() -> None:
    classes = {
        Prefix(address(n << 32), 96): Rule(label=str(n)) for n in range(abi.MAX_RULE_CLASSES)
    }
    first = next(iter(classes))
    new = Rules.of({Prefix(address(7), 128): Rule(label="new")})
    with Maps.create() as maps:
        maps.apply(Difference(Rules(wider=classes), Rules()), Rules())
        maps.apply_at(Difference(Rules(), maps.rules_at([first])), maps.rules_at([first]))
        maps.apply_at(Difference(new, Rules()), maps.rules_at(new))
        del classes[first]
        assert maps.rules() == Rules(wider=classes) | new


def test_changed_rules_of_a_set() -> None:
    every = lists(5) | {Prefix(address(0), 64): Rule(label="wide")}
    names = [Prefix(address(3), 128), Prefix(address(0), 64), Prefix(address(900), 128)]
    for there in (
        Rules(),
        Rules.of(dict.fromkeys(names, Rule(label="1"))),
        Rules.of({names[0]: Rule(label="new"), names[1]: Rule(label="wider")}),
    ):
        kept = {prefix: rule for prefix, rule in every.items() if prefix not in names}
        assert every.changed_at(names, there) == kept | dict(there.items())
    assert len(every.addresses) == 5 * _EACH
    assert "addresses" not in vars(every.to_keep())
    assert every.to_keep() == every


@pytest.fixture
def unread(attached: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trees]:
    """Attach, and fail if anything reads all rules."""

    def read(self: Maps) -> Rules:
        raise AssertionError("all rules are read")

    with monkeypatch.context() as patch:
        patch.setattr(Maps, "rules", read)
        yield Trees()


def test_a_command_looks_its_rules_up(unread: Trees) -> None:
    one, other = compile_rules([TARGET, "2001:db8:7::/64"]), compile_rules([HOST])
    for _ in range(2):
        add_rules(unread.pins, UPLINK, one)
    add_rules(unread.pins, UPLINK, other)
    with pytest.raises(NdxdpError, match=rf"{TARGET} has a rule already: always, by 'manual'"):
        add_rules(unread.pins, UPLINK, compile_rules([], [TARGET]))
    add_rules(unread.pins, UPLINK, compile_rules([], [TARGET]), replacing=True)
    listed = network.rules()
    assert listed[TARGET]["answer"] == "never"
    assert (listed[HOST]["answer"], listed[HOST]["owned"]) == ("always", True)
    delete_rules(unread.pins, UPLINK, other, MANUAL_ORIGIN)
    with pytest.raises(NdxdpError, match="has no rule"):
        delete_rules(unread.pins, UPLINK, compile_rules(["2001:db8:9::9", TARGET]), MANUAL_ORIGIN)
    delete_rules(unread.pins, UPLINK, one, MANUAL_ORIGIN)
    assert set(network.rules()) == set(listed) - {str(prefix) for prefix in one}
    assert network.rules()[HOST]["origin"] == "host"


def test_a_daemon_looks_up_what_commands_have_changed(attached: Network) -> None:
    """Read all rules only in the first call; later calls have the same result as if they did."""
    tree = Trees().pins
    with Session(tree, open_pinned(tree, UPLINK)) as session, pytest.MonkeyPatch.context() as patch:
        read, reads = session.maps.rules, 0

        def counted() -> Rules:
            nonlocal reads
            reads += 1
            return read()

        patch.setattr(session.maps, "rules", counted)
        cache, one = RuleCache(session), compile_rules([TARGET])
        wide = compile_rules(["2001:db8:7::/64"])

        def replace() -> None:
            add_rules(tree, UPLINK, wide)
            delete_rules(tree, UPLINK, one, MANUAL_ORIGIN)

        changes: list[Callable[[], object]] = [
            lambda: None,
            lambda: add_rules(tree, UPLINK, one),
            lambda: None,
            replace,
            lambda: set_paused(tree, UPLINK, paused=True),
            lambda: delete_rules(tree, UPLINK, wide, MANUAL_ORIGIN),
            lambda: set_paused(tree, UPLINK, paused=False),
        ]
        for change in changes:
            change()
            assert reconcile.apply_rules(session, {}, cache=cache) == read()
            assert reads == 1
        add_rules(tree, UPLINK, one)  # of an address that has become the host's meanwhile
        owned = dict.fromkeys(one, "own")
        assert reconcile.apply_rules(session, owned, cache=cache)[next(iter(one))].owned
        tree.notify(UPLINK)  # by somebody who hands nothing over
        assert reads == 1
        assert reconcile.apply_rules(session, owned, cache=cache) == read()
        assert reads == 2


@pytest.mark.parametrize("change", ["touch", "silent", "many", "no queue", "another map"])
def test_a_daemon_reads_all_rules_if_any_may_have_changed(unread: Trees, change: str) -> None:
    inbox, directory = Inbox(), unread.pins.path(UPLINK)
    inbox.begin(directory)
    assert inbox.take(directory) == frozenset()
    queue = directory / handover.NAME
    if change == "touch":
        unread.pins.notify(UPLINK)
    elif change == "silent":  # the command was killed before its notification
        handover.announce(directory, [Prefix(address(1), 128)])
    elif change == "many":
        handover.announce(directory, list(lists(100)))
    elif change == "no queue":
        queue.unlink()
        handover.announce(directory, [Prefix(address(1), 128)])
        assert not queue.exists()
    else:
        queue.unlink()
        pins.pin(bpf_maps.create(abi.MAPS["settings"]), queue)
        handover.announce(directory, [Prefix(address(1), 128)])
    assert inbox.take(directory) is None
    inbox.begin(directory)
    assert inbox.take(directory) == frozenset()
    at = handover.announce(directory, [Prefix(address(1), 128)])
    unread.pins.notify(UPLINK, at)
    assert inbox.take(directory) == frozenset([Prefix(address(1), 128)])


def test_many_rules_are_removed_by_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Omit keys without an entry, because each would end a batch."""
    calls: list[str] = []
    call = libbpf.call

    def counted(name: str, *arguments: object) -> int:
        calls.append(name)
        return call(name, *arguments)

    every = lists(60) | {Prefix(address(n << 64), 96): Rule() for n in range(600)}
    others = Rules({Rule(): AddressSet.of([bytes(16), address(1 << 80), b"\xff" * 16])})
    with Maps.create() as maps:
        maps.apply(Difference(every, Rules()), Rules())
        monkeypatch.setattr("ndxdp.kernel.bpf_maps.call", counted)
        maps._remove(every | others)
        assert len(calls) < 20
        assert not maps.rules()
        maps._remove(every)
        assert not maps.rules()


# ---- progress -----------------------------------------------------------------------------------


def test_progress_is_a_line_that_ends() -> None:
    terminal, now = StringIO(), 0.0
    with progress.watched(TerminalProgress(terminal, lambda: now)):
        with progress.step("rules written", 1_000_000):
            progress.advance(10)
            assert terminal.getvalue() == ""
            now = 1.0
            with progress.step("others"):
                progress.advance(123_446)
            progress.advance(1)  # too soon
        assert terminal.getvalue() == "\r\x1b[Kndxdp: 123 456 of 1 000 000 rules written\r\x1b[K"
        progress.advance(1)
        with progress.step("rules \nread"):
            now = 2.0
            progress.advance(7)
    with progress.step("rules written"):
        progress.advance(1)
    assert terminal.getvalue().endswith("written\r\x1b[K\r\x1b[Kndxdp: 7 rules \\nread\r\x1b[K")


@pytest.mark.parametrize(
    ("terminal", "term", "level", "shown"),
    [
        (True, "xterm", logging.WARNING, True),
        (False, "xterm", logging.WARNING, False),
        (True, "dumb", logging.WARNING, False),
        (True, "xterm", logging.ERROR, False),
    ],
)
def test_progress_is_for_a_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, term: str, level: int, shown: bool
) -> None:
    stream = StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(terminal_progress, "_DELAY", -1)
    monkeypatch.setattr(logging.getLogger("ndxdp"), "level", level)
    with click.Context(click.Command("any")):
        show_progress()
        with progress.step("rules read"):
            progress.advance(1)
    assert bool(stream.getvalue()) is shown


def test_loading_listing_and_removing_advance(attached: Network, tmp_path: Path) -> None:
    """Show progress on a terminal; every step ends with the number of its rules."""
    (tmp_path / "list").write_text("".join(f"2001:db8:9::{n:x}\n" for n in range(5000)))
    program = (
        "import sys; from ndxdp import progress; from ndxdp.cli import main, terminal_progress\n"
        "terminal_progress._DELAY = terminal_progress._PERIOD = 0\n"
        "shown = lambda: progress.watched(terminal_progress.TerminalProgress(sys.stderr))\n"
        "with shown(): main.cli.main(['prefix', *sys.argv[1:]])\n"
    )

    def shown(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    added = shown("add", "--file", str(tmp_path / "list"))
    assert "4 096 lines of list read" in added
    assert "5 000 of 5 000 rules written" in added
    listed = shown("list")
    assert "rules read" in listed
    assert "rules printed" in listed
    assert "5 000 of 5 000 rules removed" in shown("del", "--file", str(tmp_path / "list"))
