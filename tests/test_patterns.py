"""`name = "tap*"`: which interfaces match, and the work of an event, without a kernel."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from ndxdp.daemon.link_index import LinkIndex
from ndxdp.daemon.matching import Matching
from ndxdp.netlink.link_monitor import Changes
from ndxdp.netlink.link_names import NamedLink
from ndxdp.netlink.links import NO_MAC
from ndxdp.rules.interface_pattern import Patterns
from tests.fixtures.stillness import Stillness, spec
from tests.fixtures.work import work

# ---- names, without a kernel ---------------------------------------------------------------------


def test_the_first_pattern_wins_and_a_name_wins_over_it() -> None:
    patterns = Patterns(["tap1?", "tap*", "tap3", "wan", "eth[0-3]", "*x"])
    for name, expected in {
        "tap10": "tap1?",
        "tap1": "tap*",
        "tap3": "",
        "eth3": "eth[0-3]",
        "eth4": "",
        "eth4x": "*x",
        "lo": "",
    }.items():
        assert patterns.first(name) == expected
    assert patterns.first("tap1", ["enp3s0", "wan"]) == "", "wan is another name of tap1"
    assert patterns.first("tap1", ["enp3s0"]) == "tap*"
    assert patterns.all_matching("tap10x") == ["tap*", "*x"]
    assert not Patterns(["eth0"])
    assert Patterns(["eth0"]).first("eth0") == ""


def link(ifindex: int, name: str, *altnames: str, has_mac: bool = True) -> NamedLink:
    return NamedLink(ifindex, name, altnames, has_mac)


def changed(
    matching: Matching, links: dict[int, NamedLink | None]
) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Update; return index and name of the instances that have ended and begun."""
    ended, begun = matching.update(links)
    return [(each.ifindex, each.name) for each in ended], [
        (each.ifindex, each.name) for each in begun
    ]


def test_links_that_come_go_and_change_their_names() -> None:
    matching = Matching([spec("tap*"), spec("tap9"), spec("wan")])
    assert changed(matching, {1: link(1, "tap1"), 2: link(2, "tap2"), 3: link(3, "eth0")}) == (
        [],
        [(1, "tap1"), (2, "tap2")],
    )
    assert matching.instances["tap1"].spec.pattern == "tap*"
    assert changed(matching, {1: link(1, "tap1"), 3: None}) == ([], [])
    # Two interfaces swap their names in one burst.
    assert changed(matching, {1: link(1, "tap2"), 2: link(2, "tap1")}) == (
        [(1, "tap1"), (2, "tap2")],
        [(1, "tap2"), (2, "tap1")],
    )
    # One is deleted, and another one gets its name.
    assert changed(matching, {4: link(4, "tap1"), 2: None}) == ([(2, "tap1")], [(4, "tap1")])
    assert (matching.name_of(2), matching.name_of(4)) == ("", "tap1")
    # A message about an interface that is deleted is late.
    assert changed(matching, {5: link(5, "tap1")}) == ([(4, "tap1")], [(5, "tap1")])
    assert changed(matching, {4: None}) == ([], [])
    assert changed(matching, {5: link(5, "tap9")}) == ([(5, "tap1")], [])
    assert changed(matching, {1: link(1, "tap2", "wan")}) == ([(1, "tap2")], [])
    assert not matching.instances
    assert changed(matching, {1: link(1, "tap2")}) == ([], [(1, "tap2")])
    ended, begun = matching.replace({6: link(6, "tap6")})
    assert [each.name for each in ended] == ["tap2"]
    assert [each.name for each in begun] == ["tap6"]


def test_what_cannot_be_answered_on_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Log one line for each, and for each one again after it was deleted."""
    caplog.set_level(logging.INFO)
    matching = Matching([spec("*")])
    unusable = {
        1: link(1, "lo")._replace(is_loopback=True),
        2: link(2, "wg0", has_mac=False),
        3: link(3, "odd*"),
        4: link(4, "no\ufffd"),
    }
    for _ in range(3):
        assert changed(matching, {**unusable}) == ([], [])
    assert [record.message for record in caplog.records] == [
        "lo matches '*', and is left alone: it is the loopback interface",
        f"wg0 matches '*', and is left alone: {NO_MAC}",
        "odd* matches '*', and is left alone: no configuration can contain its name",
        "no\ufffd matches '*', and is left alone: no configuration can contain its name",
    ]
    changed(matching, {2: None})
    changed(matching, {2: unusable[2]})
    assert len(caplog.records) == 5
    assert changed(matching, {2: link(2, "wg0")}) == ([], [(2, "wg0")])


def test_the_index_of_links() -> None:
    index = LinkIndex[str]()
    index.assign("a", frozenset({1, 2}))
    index.assign("b", frozenset({2, 3}))
    assert index.of([2]) == {"a", "b"}
    assert index.of([1, 3, 7]) == index.all() == {"a", "b"}
    index.assign("a", frozenset({3}))
    assert index.of([1]) == set()
    assert index.of([3]) == {"a", "b"}
    for name in "ab":
        index.assign(name, frozenset())
    assert index.all() == set()
    assert not index._followers


# ---- the work of an event ------------------------------------------------------------------------


def test_absent_names_cost_nothing_when_links_come_and_go() -> None:
    """A burst of 1000 foreign links costs the same with 5 absent names and patterns and 500."""

    async def cost(count: int, matching: int) -> int:
        still = Stillness()
        absent = [spec(f"absent{number}") for number in range(count)]
        patterns = [spec(f"no{number}x*") for number in range(count)]
        still.uplinks.begin([*absent, *patterns, spec("tap*")])
        before = {number: link(number, f"tap{number}") for number in range(1, matching + 1)}
        still.take({**before})
        for number in before:
            still.made[f"tap{number}"].follow(number)
        await asyncio.sleep(0)
        coming = {number: link(number, f"veth{number:x}") for number in range(5000, 6000)}
        going: dict[int, NamedLink | None] = dict.fromkeys(coming)
        for each in still.made.values():
            each.notified.clear()

        def burst() -> None:
            still.take({**coming})
            still.take(going)

        spent = work(burst)
        assert not any(each.notified for each in still.made.values())
        await still.end()
        return spent

    few, many, answered = (asyncio.run(cost(*numbers)) for numbers in ((5, 0), (500, 0), (5, 500)))
    assert few == many == answered


def test_only_the_uplinks_that_a_change_concerns_are_notified() -> None:
    async def main() -> None:
        still = Stillness()
        still.uplinks.begin([spec(f"eth{number}") for number in range(101)])
        for number in range(100):
            still.made[f"eth{number}"].follow(number + 1)
        await asyncio.sleep(0)
        still.take({7: link(7, "eth6")})
        still.uplinks.network_changed(Changes({8}), frozenset({9}))
        notified = {name: each.notified for name, each in still.made.items() if each.notified}
        assert notified == {
            "eth6": ["network", "name"],
            "eth7": ["network"],
            "eth8": ["interrupted"],
        }
        still.uplinks.network_changed(Changes(anything=True), frozenset())
        absent = still.made["eth100"]
        assert all(each.notified for each in still.made.values() if each is not absent)
        assert not absent.notified
        still.uplinks.network_changed(Changes(anything=True, lost=True), frozenset())
        assert absent.notified
        await still.end()

    asyncio.run(main())


def test_an_instance_waits_for_the_end_of_its_predecessor() -> None:
    """A renamed interface, and a new one of the same name, are answered on once they are free."""

    async def main() -> None:
        still = Stillness()
        still.uplinks.begin([spec("tap*")])
        still.take({1: link(1, "tap1")})
        first = still.made["tap1"]
        first.hold.clear()
        await asyncio.sleep(0)
        still.take({1: link(1, "tap2"), 2: link(2, "tap1"), 3: link(3, "tap3")})
        assert still.present() == {"tap3"}
        assert set(still.status.interfaces) == {"tap3"}
        assert first.spec.detach
        assert all(still.uplinks.is_wanted(name) for name in ("tap1", "tap2", "tap3"))
        await asyncio.sleep(0.01)
        assert still.present() == {"tap3"}
        still.take({2: None})
        first.hold.set()
        await asyncio.sleep(0.01)
        assert still.present() == {"tap2", "tap3"}
        still.take({1: None, 3: None})
        await asyncio.sleep(0.01)
        assert not still.present()
        assert not still.uplinks.is_wanted("tap2")
        assert not still.uplinks._occupied
        still.uplinks.stop()
        still.take({4: link(4, "tap4")})
        assert not still.present(), "the daemon is ending"
        await still.end()

    asyncio.run(main())


class _Arriving:
    """An uplink's entry, beside which another one appears when it is read."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self._entries, self._entry = entries, entries["tap0"]

    @property
    def uplink(self) -> object:
        self._entries["tap2"] = self._entry
        return self._entry.uplink


def test_another_thread_may_iterate_while_an_uplink_starts() -> None:
    async def main() -> None:
        still = Stillness()
        still.uplinks.begin([spec("tap0"), spec("tap1")])
        entries: dict[str, Any] = still.uplinks._entries
        before = dict(entries)
        entries["tap0"] = _Arriving(entries)
        assert still.present() == {"tap0", "tap1"}
        entries.clear()
        entries.update(before)
        await still.end()

    asyncio.run(main())
