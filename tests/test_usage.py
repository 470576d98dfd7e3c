"""`--help`, `ndxdp help`, its examples, and the errors of a command line."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ndxdp.cli import examples, usage
from ndxdp.cli.group import SECTIONS
from ndxdp.cli.main import cli
from ndxdp.errors import NdxdpError
from tests.fixtures.network import call, done, ndxdp
from tests.fixtures.terminal import on_terminal


def commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield each command and each group with its name, such as `prefix add`."""
    for name, command in group.commands.items():
        full = f"{above} {name}".strip()
        yield full, command
        if isinstance(command, click.Group):
            yield from commands(command, full)


COMMANDS = dict(commands(cli))
LINES = [
    (name, line) for name, each in examples.EXAMPLES.items() for _, line in each if line
]  # with `ndxdp` for the group of all commands


# ---- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_each_help_has_examples_of_its_command(name: str) -> None:
    text = done(*name.split(), "--help")
    section = text.partition("\n  Examples:\n")[2]
    assert f"\n    ndxdp {name}" in section
    for line in examples.lines_of(name):
        assert f"    {line}\n" in section
    assert done("help", *name.split()) == text


def test_examples_are_of_commands_that_exist() -> None:
    assert set(examples.EXAMPLES) == {"ndxdp", *COMMANDS}


@pytest.mark.parametrize(("name", "line"), LINES)
def test_each_example_can_be_parsed(
    name: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Parse the words of an example as the command does, up to its function."""
    program, *words = shlex.split(line)
    if program == "systemctl":
        assert words == ["enable", "--now", "ndxdp"]
        return
    assert program == "ndxdp"
    reached = []
    for full, command in COMMANDS.items():
        if not isinstance(command, click.Group):
            monkeypatch.setattr(command, "callback", lambda full=full, **_: reached.append(full))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guests.txt").write_text("2001:db8::1\n")
    (tmp_path / "keys.json").write_text("{}")
    cli.main(words, prog_name="ndxdp", standalone_mode=False)
    assert len(reached) == 1
    parent, _, _ = name.rpartition(" ")
    assert name == "ndxdp" or reached[0].startswith(parent or name)


def test_the_list_has_every_command_once_by_its_purpose() -> None:
    text = done("--help")
    listed = [name for names in SECTIONS.values() for name in names if name in cli.commands]
    assert sorted(listed) == sorted(cli.commands), "a new command belongs into a section"
    sections = text.partition("\nAnswer:\n")[2].partition("\n  Examples:")[0]
    shown = [line.split()[0] for line in sections.splitlines() if line.startswith("  ")]
    assert shown == listed
    for line in sections.splitlines():
        assert not line.endswith("..."), "the first sentence fits"
    assert done("help") == text


def test_limits_are_in_words() -> None:
    text = "".join(done(*name.split(), "--help") for name in COMMANDS)
    assert "<=" not in text
    assert "[1 to 1000000]" in text
    assert "[at least 1]" in text
    assert "RANGE" not in text


def test_help_without_a_command_is_an_error_with_a_hint() -> None:
    result = ndxdp()
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: ndxdp [OPTIONS] COMMAND")


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "sentence", "hint"),
    [
        ("statsu", "ndxdp has no command 'statsu'", "did you mean 'status'?"),
        ("xyzzy", "ndxdp has no command 'xyzzy'", "see: ndxdp --help"),
        ("prefix delete", "ndxdp prefix has no command 'delete'", "did you mean 'del'?"),
        ("help prefix lst", "ndxdp prefix has no command 'lst'", "did you mean 'list'?"),
        ("help pause more", "ndxdp pause has no command 'more'", "see: ndxdp pause --help"),
        ("--vers", "ndxdp has no option '--vers'", "did you mean '--version' or '--verbose'?"),
        ("attach eth0 --mod tc", "ndxdp attach has no option '--mod'", "did you mean '--mode'?"),
        (
            "status --color always",
            "ndxdp status has no option '--color'",
            "write it before the command: ndxdp --color … status",
        ),
        (
            "prefix add --xyz",
            "ndxdp prefix add has no option '--xyz'",
            "see: ndxdp prefix add --help",
        ),
        (
            "attach eth0 --mode natve",
            "--mode: 'natve' is not one of 'auto', 'native', 'generic', 'tc', 'userspace'",
            "did you mean 'native'?",
        ),
        ("--color blue status", "--colour: 'blue' is not one of", "see: ndxdp --help"),
        (
            "attach",
            "ndxdp attach needs the argument IFACE",
            "as in: ndxdp attach eth0 -n 2001:db8:0:1:c::/80",
        ),
        ("pause", "ndxdp pause needs the argument IFACE", "as in: ndxdp pause eth0"),
        ("pause eth0 eth1", "ndxdp pause takes no further word: eth1", "[OPTIONS] IFACE"),
        ("attach eth0 --rate", "option '--rate' needs a value", "ndxdp attach --help"),
        ("attach eth0 --rate x", "--rate: 'x' is not a number", "ndxdp attach --help"),
        ("attach eth0 --burst 1.5", "--burst: '1.5' is not a whole number", "ndxdp attach --help"),
        ("attach eth0 --burst 0", "--burst: 0 is not in the range 1 to 1000000", "attach --help"),
        ("trace --count 0", "--count: 0 is not at least 1", "ndxdp trace --help"),
        ("status --watch 0", "--watch: 0.0 is not in the range 0.1 to 86400", "status --help"),
        ("status --json=yes", "option '--json' does not take a value", "ndxdp status --help"),
        ("attach eth0 --file /nowhere", "--file: '/nowhere': No such file", "attach --help"),
    ],
    ids=str,
)
def test_an_error_is_a_sentence_and_a_hint(line: str, sentence: str, hint: str) -> None:
    result = ndxdp(*line.split())
    assert (result.code, result.out) == (2, "")
    lines = result.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"ndxdp: {sentence}")
    assert lines[1].startswith("  hint: ")
    assert hint in lines[1]


def test_an_error_of_click_without_a_context_keeps_its_words() -> None:
    converted: NdxdpError = usage.in_our_form(click.UsageError("Something else is wrong."))
    assert (converted.message, converted.hint, converted.exit_code) == (
        "something else is wrong",
        "see: ndxdp --help",
        2,
    )


def test_an_error_on_a_terminal_has_colours_and_no_further_lines() -> None:
    shown = on_terminal("statsu")
    assert shown == (
        2,
        "\x1b[31mndxdp:\x1b[0m ndxdp has no command 'statsu'\n"
        "\x1b[36m  hint:\x1b[0m did you mean 'status'?\n",
    )
    assert not on_terminal("statsu", env={"NO_COLOR": "1"}).has_colours


def test_the_name_is_ndxdp_however_it_was_called() -> None:
    result = call(sys.executable, "-m", "ndxdp", "status", "--nonsense")
    assert result.err == (
        "ndxdp: ndxdp status has no option '--nonsense'\n  hint: see: ndxdp status --help\n"
    )
