"""The overview of several interfaces in `ndxdp status`, in a pipe and on a terminal."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndxdp.cli import table
from ndxdp.observe import overview
from ndxdp.observe.status import Snapshot
from ndxdp.runtime import report
from tests.fixtures.network import (
    BEHIND,
    NDXDP,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    Running,
    call,
    done,
    eventually,
    ndxdp,
    remove_instance,
    sh,
)
from tests.fixtures.terminal import on_terminal

SECOND, TENTH = "up2", "up10"
MEASURING = "measuring the rates for a second"
CLEARED = "\r\x1b[K"


@pytest.fixture
def three(net: Network) -> Iterator[Network]:
    """Attach ndxdp to three interfaces, one of which is paused."""
    for name in (SECOND, TENTH):
        sh("ip", "link", "add", name, "up", "type", "veth", "peer", "name", f"{name}-end")
        sh("ip", "link", "set", f"{name}-end", "up")
    for name in (TENTH, UPLINK, SECOND):
        done("attach", name, "-n", BEHIND, "--mode", "tc")
    done("pause", TENTH)
    yield net
    for name in (SECOND, TENTH):
        sh("ip", "link", "delete", name)
        call(*NDXDP, "detach", "--missing-ok", name)
    remove_instance()


def cells(text: str) -> list[list[str]]:
    """Return the cells of the overview's lines, which end at the first blank line."""
    return [re.split(r" {2,}", line.strip()) for line in text.partition("\n\n")[0].splitlines()]


# ---- in a pipe -----------------------------------------------------------------------------------


def test_several_interfaces_have_a_line_each(three: Network) -> None:
    assert three.answers(TARGET)
    text = done("status")
    headings, *rows = cells(text)
    assert headings == ["interface", "state", "mode", "rules", "answers/s", "warnings"]
    assert [row[:3] for row in rows] == [
        [UPLINK, "answering", "tc"],
        [SECOND, "answering", "tc"],
        [TENTH, "paused", "tc"],
    ]
    for name, *_, rules, rate, warnings in rows:
        found = ndxdp("status", name, "--json").json()["interfaces"][0]
        assert int(rules) == found["rules"]["addresses"] + found["rules"]["prefixes"]
        assert (rate, warnings) == ("0/s", "-")
    assert "\x1b" not in text
    assert "answered" not in text, "the counts are details"


def test_details_are_there_for_one_or_for_all(three: Network) -> None:
    one = done("status", SECOND)
    assert one.startswith(f"{SECOND}  tc, prebuilt program ")
    assert cells(one)[0][0] == SECOND, "no table for one"
    every = done("status", "--details")
    assert every.startswith("interface  state")
    headlines = re.findall(r"^(\S+)  tc, prebuilt program ", every, re.MULTILINE)
    assert headlines == [UPLINK, SECOND, TENTH]
    assert every.count(" solicitations, now ") == 3


def test_json_is_in_natural_order(three: Network) -> None:
    shown = ndxdp("status", "--json").json()["interfaces"]
    assert [each["interface"] for each in shown] == [UPLINK, SECOND, TENTH]


def test_the_present_rate_is_shown(three: Network) -> None:
    with three.solicited_continuously() as missed:
        rows = {row[0]: row for row in cells(done("status"))}
    assert not missed
    assert rows[SECOND][4] == "0/s"
    assert re.fullmatch(r"[1-9]\d*(\.\d+)?/s", rows[UPLINK][4])


def test_problems_precede_numbers(three: Network, tmp_path: Path) -> None:
    """Show warnings below the table, those of the daemon first."""
    sh("ip", "link", "set", SECOND, "down")
    sh("ip", "link", "set", SECOND, "name", "moved0")
    try:
        file = tmp_path / "ndxdp.toml"
        socket = tmp_path / "docker.sock"
        file.write_text(
            f'[docker]\nsocket = "{socket}"\n'
            f'[[interface]]\nname = "{UPLINK}"\n[[interface.docker]]\nnetwork = "any"\n'
            '[[interface]]\nname = "nosuch0"\n[[interface.prefix]]\nprefix = "2001:db8:d::/80"\n'
        )
        with contextlib.closing(Running(("-c", str(file)), wait=False)) as daemon:
            eventually(lambda: "nosuch0  not answering" in done("status"), within=10)
            text = done("status", "--details")
            head, problems, *details = text.split("\n\n")
            assert [row[:2] for row in cells(head)][1:] == [
                ["nosuch0", "not answering"],
                [UPLINK, "answering"],
                [SECOND, "answering"],
                [TENTH, "paused"],
            ]
            assert [row[-1] for row in cells(head)][1:] == ["1", "-", "1", "-"]
            lines = problems.splitlines()
            assert lines[:2] == [
                f"daemon {daemon.process.pid}, {file}: answers on 1 of 2 interfaces",
                "  WARNING   the container engine is disconnected; container rules are kept",
            ]
            assert lines[2] == "nosuch0  not answering: there is no interface 'nosuch0'"
            assert lines[3] == SECOND
            assert lines[4].startswith("  WARNING   this interface is called moved0 now")
            assert len(details) == 4
            own = done("status", UPLINK)
            assert own.startswith(f"daemon {daemon.process.pid}, {file}\n  WARNING   the container")
            assert f"{UPLINK}  tc, prebuilt program" in own
            assert "locked by a running `ndxdp run`" in own
            assert daemon.end().code == 0
    finally:
        sh("ip", "link", "set", "moved0", "name", SECOND)


def test_an_interface_that_is_not_attached_is_a_problem(three: Network) -> None:
    sh("ip", "link", "delete", TENTH)
    try:
        head, problems = done("status").split("\n\n")
        assert cells(head)[-1][:2] == [TENTH, "not attached"]
        assert cells(head)[-1][-1] == "1"
        assert problems.startswith(f"{TENTH}\n  WARNING   not attached: the interface was deleted")
    finally:
        sh("ip", "link", "add", TENTH, "type", "veth", "peer", "name", f"{TENTH}-end")


def test_an_interface_that_is_starting_is_no_problem() -> None:
    """Count no warning for an interface whose daemon has not yet answered there."""
    each = {"interface": "eth1", "problem": "", "answered": False, "unanswered": ""}
    engine, metrics = None, None
    reload = {"begun": 0, "number": 0, "ok": True, "error": ""}
    daemon = report.Daemon(7, 1, None, [each], reload, metrics, engine)
    snapshot = Snapshot(1.0, {}, daemons=[daemon])
    (row,) = overview.rows(snapshot, snapshot)
    assert row[:2] + row[-1:] == ("eth1", "starting", "-")
    assert list(overview.problems(snapshot)) == [
        "daemon 7: answers on 0 of 1 interface",
        "eth1  not answering yet",
    ]


# ---- on a terminal -------------------------------------------------------------------------------


def test_a_terminal_gets_a_drawn_table_with_colours(three: Network) -> None:
    shown = on_terminal("status")
    assert shown.code == 0
    assert f"\x1b[32m{'answering':9}" in shown.text
    assert "\x1b[33mpaused" in shown.text
    before, _, table_text = shown.plain.rpartition(CLEARED)
    assert before == f"{CLEARED}ndxdp: {MEASURING} …"
    headings, rule, *rows = cells(table_text)
    assert headings[:2] == ["interface", "state"]
    assert set("".join(rule)) == {"─"}
    assert [row[:3] for row in rows] == [
        [UPLINK, "answering", "tc"],
        [SECOND, "answering", "tc"],
        [TENTH, "paused", "tc"],
    ]


@pytest.mark.parametrize(
    ("words", "env", "has_colours"),
    [
        ((), {"NO_COLOR": "1"}, False),
        ((), {"NO_COLOR": ""}, True),
        (("--color", "never"), {}, False),
        (("--color", "always"), {"NO_COLOR": "1"}, True),
        (("--colour=never",), {}, False),
    ],
)
def test_colours_can_be_chosen(
    three: Network, words: tuple[str, ...], env: dict[str, str], has_colours: bool
) -> None:
    shown = on_terminal(*words, "status", env=env)
    assert (shown.code, shown.has_colours) == (0, has_colours)
    assert TENTH in shown.plain


def test_a_simple_terminal_gets_no_control_characters(three: Network) -> None:
    shown = on_terminal("status", env={"TERM": "dumb"})
    assert shown.code == 0
    assert "\x1b" not in shown.text
    assert "\r" not in shown.text
    assert cells(shown.text)[0][0] == "interface"


def test_a_narrow_terminal_loses_nothing(three: Network) -> None:
    shown = on_terminal("status", columns=30)
    assert shown.code == 0
    for line in done("status").splitlines():
        assert re.search(r" +".join(map(re.escape, line.split())), shown.plain), line


def test_a_file_gets_no_notice_and_no_colour(three: Network, tmp_path: Path) -> None:
    """Show on the terminal that the command measures while a file gets the plain lines."""
    with (tmp_path / "out").open("wb") as file:
        shown = on_terminal("status", stdout=file.fileno())
    assert shown == (0, f"{CLEARED}ndxdp: {MEASURING} …{CLEARED}")
    assert (tmp_path / "out").read_text() == done("status")
    quiet = on_terminal("-q", "status", stdout=os.open(os.devnull, os.O_WRONLY))
    assert quiet == (0, "")


def test_warnings_have_colours(three: Network) -> None:
    sh("ip", "link", "set", SECOND, "down")
    sh("ip", "link", "set", SECOND, "name", "moved0")
    try:
        shown = on_terminal("status", SECOND)
    finally:
        sh("ip", "link", "set", "moved0", "name", SECOND)
    assert "\x1b[33m  WARNING\x1b[0m   this interface is called moved0 now" in shown.text
    failed = on_terminal("status", "nosuch0")
    assert failed.code == 1
    assert "\x1b[31mndxdp:\x1b[0m ndxdp is not attached to nosuch0" in failed.text
    assert "\x1b[36m  hint:\x1b[0m " in failed.text


def test_verdicts_and_findings_have_colours(three: Network) -> None:
    answered = on_terminal("explain", UPLINK, TARGET).text
    assert "\x1b[32mreason   answered\x1b[0m: the solicitor gets" in answered
    unanswered = on_terminal("explain", UPLINK, "2001:db8:1::7").text
    assert "\x1b[33mreason   no_rule\x1b[0m: no prefix covers" in unanswered
    found = on_terminal("doctor", TENTH)
    plain = ndxdp("doctor", TENTH).out
    assert ("  failure: " in plain, "  warning: " in plain) == (
        "\x1b[31m  failure:\x1b[0m " in found.text,
        "\x1b[33m  warning:\x1b[0m " in found.text,
    )
    assert found.has_colours
    assert "            $ " in plain
    assert "\x1b[36m            $ " in found.text


def test_a_diff_has_colours(three: Network) -> None:
    words = ("prefix", "replace", UPLINK, BEHIND, "--override", "--dry-run")
    plain = done(*words)
    _, removed, added = plain.splitlines()
    assert (removed[:2], added[:2]) == ("- ", "+ ")
    shown = on_terminal(*words).text
    assert f"\x1b[31m{removed}\x1b[0m\n\x1b[32m{added}\x1b[0m\n" in shown
    assert "\x1b[32m+ " in done("--color", "always", *words)
    assert not on_terminal(*words, env={"NO_COLOR": "1"}).has_colours


def test_top_draws_tables_on_a_terminal(three: Network) -> None:
    with three.solicited_continuously() as missed:
        shown = on_terminal("top", UPLINK, "--seconds", "1")
        plain = done("top", UPLINK, "--seconds", "0.5")
    assert not missed
    assert shown.plain.startswith(f"{CLEARED}ndxdp: counting solicitations for 1 s …{CLEARED}")
    sources, targets = re.findall(r"^count +address +reasons *\n─+\n((?:.+\n)+)", shown.plain, re.M)
    assert re.search(rf" {ROUTER_MAC}\) +answered [1-9]", sources.replace("(", " "))
    assert re.search(rf" {TARGET} +answered [1-9]", targets)
    assert "─" not in plain
    assert re.search(rf"^ +[1-9]\d*  {TARGET}  answered [1-9]", plain, re.M)


def test_without_rich_the_table_is_plain(three: Network) -> None:
    """Print the plain table on a terminal too where rich is not installed."""
    code = "import sys; sys.modules['rich'] = None; from ndxdp.cli.main import main; main()"
    shown = on_terminal("status", command=(sys.executable, "-c", code))
    assert shown.code == 0
    assert "─" not in shown.text
    assert shown.text.rpartition(CLEARED)[2] == done("status")


def test_columns_of_numbers_are_aligned_at_their_right() -> None:
    lines = list(table.aligned(("name", "count"), [("a", "7"), ("longer", "1234567")]))
    assert lines == ["name      count", "a             7", "longer  1234567"]
