"""The series of rule classes in the metrics: bounded in number, and never decreasing."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ndxdp.config import reader
from ndxdp.daemon import preflight
from ndxdp.kernel import abi
from ndxdp.ndp.profile import Answer
from ndxdp.observe import class_series
from ndxdp.observe.class_series import OTHER
from ndxdp.observe.status_text import status_text
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import UNCOUNTED, Rule
from ndxdp.rules.ruleset import Rules
from ndxdp.store.directories import Trees
from ndxdp.store.instance import open_instance
from ndxdp.store.maps import Maps
from ndxdp.store.records import ENDED
from tests.fixtures.network import (
    UPLINK,
    Network,
    done,
    eventually,
    ndxdp,
    sh,
    status,
)
from tests.fixtures.prometheus import get, parsed, promtool
from tests.test_rule_classes import address, maps, of_labels, write

__all__ = ["maps"]

_FIRST = abi.FIRST_RULE_CLASSES
_URL = "http://[::1]:9877/metrics"


def count(maps: Maps, *slots: int, times: int = 1) -> None:
    """Count solicitations in slots, as the program does; none of them is answered."""
    counters = maps.slots("group_counters")
    for slot in slots:
        value = bytearray(counters.lookup(slot) or bytes(counters.value_size))
        struct.pack_into("=Q", value, 0, struct.unpack_from("=Q", value)[0] + times)
        counters.update([(slot, bytes(value))])


def shared(maps: Maps) -> int:
    """Return the counter of the shared series."""
    series, _ = class_series.read(maps, maps.rule_count(), all_classes=False)
    (found,) = [each for each in series if each.source == OTHER]
    return found.solicited


def test_classes_beyond_the_first_share_a_series(maps: Maps) -> None:
    write(maps, of_labels(range(_FIRST + 10)))
    count(maps, 0, _FIRST - 1, _FIRST, _FIRST + 9)
    counted = maps.rule_count()
    series, others = class_series.read(maps, counted, all_classes=False)
    assert others == 10
    assert len(series) == _FIRST + 1
    assert [each[:3] for each in series if each.source == OTHER] == [(OTHER, OTHER, 2)]
    assert sum(each.solicited for each in series) == 4
    every, none = class_series.read(maps, counted, all_classes=True)
    assert none == 0
    assert len(every) == _FIRST + 10
    assert sum(each.solicited for each in every) == 4


def test_few_classes_share_nothing(maps: Maps) -> None:
    write(maps, of_labels(range(_FIRST)))
    series, others = class_series.read(maps, maps.rule_count(), all_classes=False)
    assert (len(series), others) == (_FIRST, 0)
    assert OTHER not in {each.source for each in series}


def test_the_shared_counter_never_decreases(maps: Maps) -> None:
    """Keep the counts of classes beyond the first when other classes take their slots."""
    most = _FIRST + 20
    expected = 0
    for turn in range(4):
        write(maps, of_labels(range(turn * 10_000, turn * 10_000 + most)))
        assert shared(maps) == expected
        used = [slot for slot in maps.rule_count().by_slot if slot >= _FIRST]
        count(maps, *used, times=turn + 1)
        expected += len(used) * (turn + 1)
        assert shared(maps) == expected
        write(maps, of_labels(range(turn * 10_000, turn * 10_000 + _FIRST)))
        assert shared(maps) == expected
    assert expected > 100
    assert [data for data in maps._packed_classes().values() if data == ENDED] == [ENDED]
    assert all("(ended)" not in each for each in maps.class_counts())


def test_classes_that_are_not_counted_share_no_series(maps: Maps) -> None:
    uncounted = {
        Prefix(address(n << 64), 64): Rule(Answer.ALWAYS, origin=f"o{n}", label=UNCOUNTED)
        for n in range(_FIRST + 5)
    }
    write(maps, Rules(wider=uncounted))
    count(maps, _FIRST, _FIRST + 1)
    assert shared(maps) == 0
    assert class_series.read(maps, maps.rule_count(), all_classes=False)[1] == 0
    write(maps, Rules())
    write(maps, of_labels(range(50_000, 50_000 + _FIRST + 5)))
    assert shared(maps) == 0
    assert _FIRST in maps.rule_count().by_slot
    count(maps, _FIRST)
    assert shared(maps) == 1


def test_the_capacity_of_rule_classes(maps: Maps) -> None:
    assert maps.max_entries("groups") == abi.MAX_RULE_CLASSES


def config(tmp_path: Path, count: int, mode: str, metrics: str = "") -> Path:
    """Write a configuration with a rule class for each of `count` prefixes."""
    file = tmp_path / "ndxdp.toml"
    file.write_text(
        f'[metrics]\n{metrics}\n[[interface]]\nname = "{UPLINK}"\nmode = "{mode}"\n'
        'on_stop = "detach"\n'
        + "".join(
            f'[[interface.prefix]]\nprefix = "2001:db8:{n:x}::/64"\n' for n in range(1, count + 1)
        )
    )
    return file


@pytest.mark.parametrize("mode", ["generic", "userspace"])
def test_a_scrape_is_bounded(net: Network, tmp_path: Path, mode: str) -> None:
    """Serve a limited number of series; serve all of them when the configuration says so."""
    file = config(tmp_path, _FIRST + 9, mode)
    run = net.run("-c", str(file))
    try:
        tree = Trees().files if mode == "userspace" else Trees().pins
        with open_instance(tree, UPLINK) as instance:
            slots = {each.label: n for n, each in instance.maps.rule_classes().items()}
        near = next(each for each, slot in slots.items() if slot < _FIRST and "::/64" in each)
        far = next(each for each, slot in slots.items() if slot >= _FIRST)
        asked = "ndxdp_group_solicitations_total"
        for turn in (1, 2):
            assert net.answers(far.replace("::/64", f"::{turn}"))
            assert net.answers(near.replace("::/64", f"::{turn}"))
            eventually(
                lambda turn=turn: parsed(get(_URL))[asked][UPLINK, OTHER, OTHER] == turn  # type: ignore[misc]
            )
            text = get(_URL)
            samples = parsed(text)
            assert len(samples[asked]) == _FIRST + 1
            assert samples[asked][UPLINK, near, "config"] == turn
            assert (UPLINK, far, "config") not in samples[asked]
            assert samples["ndxdp_group_advertisements_total"][UPLINK, OTHER, OTHER] == turn
            assert (UPLINK, OTHER, OTHER) in samples["ndxdp_group_last_answer_timestamp_seconds"]
        assert samples["ndxdp_group_others"] == {(UPLINK,): len(slots) - _FIRST}
        assert samples["ndxdp_map_entries"][UPLINK, "groups"] == len(slots)
        assert samples["ndxdp_map_max_entries"][UPLINK, "groups"] == abi.MAX_RULE_CLASSES
        assert promtool("check", "metrics", stdin=text).code == 0
        assert len(parsed(done("metrics"))[asked]) == _FIRST + 1
        assert len(parsed(done("metrics", "--all-classes"))[asked]) == len(slots)

        config(tmp_path, _FIRST + 9, mode, "all_classes = true")
        done("reload", "-c", str(file))
        samples = parsed(get(_URL))
        assert samples[asked][UPLINK, far, "config"] == 2
        assert (UPLINK, OTHER, OTHER) not in samples[asked]
        assert samples["ndxdp_group_others"] == {(UPLINK,): 0}
    finally:
        run.end()


def test_status_shows_the_busiest_classes(attached: Network) -> None:
    """Limit the lines of rule classes, and show how many are left out."""
    data = status()
    data["groups"] = [
        {"source": "config", "label": f"list {n}", "solicited": n, "answered": 0, "rules": 1}
        for n in range(5_000)
    ]
    lines = [line for line in status_text(data) if line.startswith("  class ")]
    assert len(lines) == 101
    assert "list 4999 (config)" in lines[0]
    assert lines[-1] == "  class     and 4899 less busy ones: see `ndxdp status --json`"
    data["groups"] = data["groups"][:101]
    lines = [line for line in status_text(data) if line.startswith("  class ")]
    assert len(lines) == 100
    assert "list 1 (config)" in lines[0]


# ---- the maps that depend on the host ------------------------------------------------------------


def test_entries_of_the_maps_are_counted(attached: Network) -> None:
    with open_instance(Trees().pins, UPLINK) as instance:
        maps = instance.maps
        maps.set_on_link([address(n) for n in range(20_000 - 4_000)])
        samples = parsed(done("metrics"))
        expected = {name: len(list(maps._maps[name].items())) for name in _HOST}
    for name, entries in expected.items():
        assert samples["ndxdp_map_entries"][UPLINK, name] == entries
        limit = (abi.MAPS | abi.HASHES)[name].max_entries
        assert samples["ndxdp_map_max_entries"][UPLINK, name] == limit
    assert expected["on_link"] == 16_000


_HOST = ("dev_sets", "vias", "locals", "on_link")


def test_too_many_interfaces_for_dev(net: Network, tmp_path: Path) -> None:
    """Warn before and when the sets of output interfaces match more than the map holds."""
    names = [f"many{n}" for n in range(280)]
    tables = "".join(
        f'[[interface.prefix]]\nprefix = "2001:db8:{n:x}::/64"\nanswer = "routed"\n'
        f'dev = ["many*", "none{n}"]\n'
        for n in range(1, 236)
    )
    file = tmp_path / "ndxdp.toml"
    file.write_text(f'[[interface]]\nname = "{UPLINK}"\non_stop = "detach"\n{tables}')
    assert "many" not in ndxdp("check", str(file)).err
    pairs = [(names[n], names[n + 1]) for n in range(0, len(names), 2)]
    added = "".join(f"link add {one} type veth peer name {two}\n" for one, two in pairs)
    sh("ip", "-batch", "-", stdin=added)
    try:
        limit = f"the limit of {abi.MAX_DEVS}"
        entries = len(names) * 235
        assert entries > abi.MAX_DEVS
        checked = ndxdp("check", str(file))
        assert f"the 235 different `dev` match {entries} interfaces in all" in checked.err
        assert limit in checked.err
        assert "fewer different sets" in checked.err
        run = net.run("-c", str(file))
        ended = run.end()
        assert f"cannot write all of {entries} entries to the map 'vias'" in ended.err
        assert "hint: name fewer different sets of interfaces in `dev`" in ended.err
        file.write_text(file.read_text().replace("on_stop", 'mode = "userspace"\non_stop'))
        assert limit not in ndxdp("check", str(file)).err
        file.write_text(file.read_text().replace('"many*", ', ""))
        assert not list(preflight.refused(reader.load(str(file)).interfaces))
    finally:
        sh("ip", "-batch", "-", stdin="".join(f"link del {one}\n" for one, _ in pairs))
