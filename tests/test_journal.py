"""Priorities of lines in systemd's journal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_journal_gets_priorities(tmp_path: Path) -> None:
    file = tmp_path / "stderr"
    with file.open("w") as stream:
        status = os.fstat(stream.fileno())
        for journal in (f"{status.st_dev}:{status.st_ino}", "1:1"):
            subprocess.run(
                [sys.executable, "-m", "ndxdp", "check", "-c", tmp_path / "nowhere"],
                stderr=stream,
                env=os.environ | {"JOURNAL_STREAM": journal},
            )
    lines = file.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "<3>ndxdp",
        "<3>  hint",
        "ndxdp",
        "  hint",
    ]


@pytest.mark.parametrize(("form", "start"), [("text", ""), ("json", "{")])
def test_lines_of_the_daemon_have_priorities(tmp_path: Path, form: str, start: str) -> None:
    code = (
        "import logging, sys; from ndxdp.cli.output import configure_log, start_log\n"
        "start_log(); configure_log('debug', sys.argv[1]); log = logging.getLogger('ndxdp.x')\n"
        "log.error('a\\nb'); log.warning('c'); log.info('d'); log.debug('e')"
    )
    file = tmp_path / "stderr"
    with file.open("w") as stream:
        status = os.fstat(stream.fileno())
        subprocess.run(
            [sys.executable, "-c", code, form],
            stderr=stream,
            env=os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
            check=True,
        )
    lines = file.read_text().splitlines()
    assert [line[:3] for line in lines] == ["<3>", "<4>", "<6>", "<7>"]
    assert all(line[3:].startswith(start) for line in lines)


FOREIGN = "web\n<0>ndxdp: all is lost\r\x1b[2J\x9b31m\u202e\x07"
"""A malicious name of a container."""


@pytest.mark.parametrize("level", ["error", "warning", "info"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_foreign_names_make_no_line_and_move_no_cursor(form: str, level: str) -> None:
    code = (
        "import logging, sys; from ndxdp.cli.output import configure_log, start_log\n"
        f"start_log(); configure_log('debug', '{form}'); log = logging.getLogger('ndxdp.x')\n"
        f"log.{level}('%s has gone', sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, FOREIGN], capture_output=True, text=True)
    assert done.stderr.endswith("\n")
    assert done.stderr[:-1].isprintable()
    assert "all is lost" in done.stderr


def test_further_lines_are_for_debugging_and_indented() -> None:
    code = (
        "import logging; from ndxdp.cli.output import configure_log, start_log\n"
        "start_log(); configure_log('debug', 'text'); log = logging.getLogger('ndxdp.x')\n"
        "log.debug('0: (b7) r0 = 0\\n1: (95)\\x1b exit')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "ndxdp: 0: (b7) r0 = 0\n  1: (95)\\x1b exit\n"


def test_commands_print_foreign_names_in_one_line(tmp_path: Path) -> None:
    directory = tmp_path / "a\n\x1b[31mb"
    directory.mkdir()
    (directory / "ndxdp.toml").write_text(
        "[[interface]]\nname = 'eth0'\n[[interface.docker]]\n"
        'network_label = "a=\\u001b[31m\\nx"\n'
    )
    command = [sys.executable, "-m", "ndxdp", "check", "-c", str(directory / "ndxdp.toml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    first, second = done.stdout.split("\n")[:2]
    assert first.startswith(str(tmp_path))
    assert first.endswith("/a\\n\\x1b[31mb/ndxdp.toml: good")
    assert "a=\\x1b[31m\\nx" in second
    assert "\x1b" not in done.stdout + done.stderr
