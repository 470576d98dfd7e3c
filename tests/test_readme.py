"""The README's commands work as shown, and the pages of docs/ name everything that exists."""

from __future__ import annotations

import ast
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ndxdp.ndp.reason import Reason
from ndxdp.observe import render
from tests.fixtures.documented import json_of, shape
from tests.fixtures.tap import tap

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
DOCS = REPOSITORY / "docs"
PAGES = [
    page
    for pattern in ("*.md", "docs/**/*.md", "*/README.md")
    for page in sorted(REPOSITORY.glob(pattern))
]

# The machine that the README shows. Its NIC is a tap, whose driver runs XDP.
INTERFACE = "eth0"
NETWORK = f"""
link set {INTERFACE} address 52:54:00:12:34:56
link set {INTERFACE} addrgenmode none
link set {INTERFACE} up
address add fe80::5054:ff:fe12:3456/64 dev {INTERFACE} nodad
address add 2001:db8:0:1::2/64 dev {INTERFACE} nodad
route add default via fe80::1 dev {INTERFACE}
"""
NDXDP = str(REPOSITORY / ".venv" / "bin" / "ndxdp")


class Step(NamedTuple):
    """A block of commands, and the output that the README shows below it, if any."""

    commands: list[str]
    shown: str | None


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def steps() -> list[Step]:
    found: list[Step] = []
    for language, text in blocks(README):
        if language == "sh":
            lines = (line.partition(" #")[0].strip() for line in text.splitlines())
            found.append(Step([line for line in lines if line], None))
        elif language == "text":
            assert found, "output without a command"
            found[-1] = found[-1]._replace(shown=text)
    return found


def run(command: list[str], *, timeout: float = 60) -> str:
    """Run a command in the repository, which must succeed; return stdout."""
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_until_ready(command: list[str]) -> str:
    """Run a command until its `ready` line, then end it as Ctrl-C does; return stdout."""
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("ready"), f"{shlex.join(command)}\n{first}"
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0
    return first + rest


def normal(output: str) -> str:
    """Replace the ids of programs, the only part that changes."""
    return re.sub(r"program \d+", "program N", output)


@pytest.fixture
def machine(privacy: None) -> Iterator[None]:
    with tap(INTERFACE):
        batch = ["ip", "-6", "-batch", "-"]
        subprocess.run(batch, input=NETWORK, text=True, check=True)
        yield
        subprocess.run([NDXDP, "-q", "detach", INTERFACE], capture_output=True)


def test_the_readmes_commands_work(machine: None) -> None:
    seen = 0
    for step in steps():
        output = ""
        for line in step.commands:
            command = shlex.split(line)
            seen += 1
            if command[0] == "make":
                run(["make", "--dry-run", *command[1:]])
            elif command[0] == ".venv/bin/ndxdp":
                is_run = command[1] == "run"
                output += run_until_ready(command) if is_run else run(command)
            else:
                pytest.fail(f"no way is known to try: {line}")
        if step.shown is not None:
            assert normal(output) == normal(step.shown)
    assert seen >= 8
    assert run([NDXDP, "status"]) == "ndxdp is attached to no interface\n"


def test_demo(privacy: None) -> None:
    assert "As expected:" in run([sys.executable, "lab/demo.py"], timeout=120)


def test_json_has_the_fields_that_are_documented(machine: None) -> None:
    prefix = "2001:db8:0:1:c::"
    run([NDXDP, "attach", INTERFACE, "-n", f"{prefix}/80", "--except", f"{prefix}dead"])
    for command, more in (("status", ()), ("prefix list", ()), ("explain", (f"{prefix}10",))):
        printed = json.loads(run([NDXDP, *command.split(), *more, "--json"]))
        assert shape(printed) == shape(json_of(command)), command


def test_the_dry_runs_that_are_shown(machine: None) -> None:
    """Run the commands of docs/commands.md, with the first one done in between."""
    section = (DOCS / "commands.md").read_text().partition("\n## Before a change")[2]
    (block,) = re.findall(r"^```console\n(.*?)^```$", section.partition("\n## ")[0], re.M | re.S)
    shown = [(each.partition("\n")) for each in block.removeprefix("# ").split("\n# ")]
    assert len(shown) == 3
    for line, _, output in shown:
        words = line.split()
        assert (words[0], words[-1]) == ("ndxdp", "--dry-run")
        assert run([NDXDP, *words[1:]]).strip() == output.strip()
        if words[1] == "attach":
            run([NDXDP, *words[1:-1]])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_have_targets(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^a-z0-9 -]", "", title.lower()) for title in titles]
            assert anchor in (title.replace(" ", "-") for title in anchors), (
                f"{page.name}: {target}"
            )


def test_every_reason_is_explained() -> None:
    table = (DOCS / "wire.md").read_text()
    named = re.findall(r"`([a-z_]+)`", table)
    missing = [reason.label for reason in list(Reason)[1:] if reason.label not in named]
    assert not missing
    assert set(render._MEANING) == set(Reason)


def test_every_error_is_explained() -> None:
    page = " ".join((DOCS / "errors.md").read_text().split())
    errors = {
        "NdxdpError",
        "UsageError",
        "ModeUnavailable",
        "InterfaceGone",
        "NotAttached",
        "Damaged",
    }
    missing = []
    for path in sorted(REPOSITORY.glob("ndxdp/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            if name_of(node.func) in {*errors, "complain"}:
                words = literal(node.args[0])
                if words and words not in page:
                    missing.append(f"{path.name}: {words}")
    assert not missing


def name_of(function: ast.expr) -> str:
    """Return the name of a called function or method."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def literal(message: ast.expr) -> str:
    """Return the longest constant part of a message; "" if it has no words."""
    constants = [
        node.value
        for node in ast.walk(message)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    longest = max(constants, key=len, default="").strip(" :,")
    return longest if " " in longest else ""
