"""What systemd's journal is told beside the words: how bad it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_journal_gets_priorities(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with said.open("w") as stream:
        status = os.fstat(stream.fileno())
        for journal in (f"{status.st_dev}:{status.st_ino}", "1:1"):
            subprocess.run(
                [sys.executable, "-m", "ndxdp", "check", "-c", tmp_path / "nowhere"],
                stderr=stream,
                env=os.environ | {"JOURNAL_STREAM": journal},
            )
    lines = said.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "<3>ndxdp",
        "<3>  hint",
        "ndxdp",
        "  hint",
    ]


@pytest.mark.parametrize(("form", "start"), [("text", ""), ("json", "{")])
def test_what_the_daemon_logs_has_them_too(tmp_path: Path, form: str, start: str) -> None:
    code = (
        "import logging, sys; from ndxdp.options import begin_log, set_log\n"
        "begin_log(); set_log('debug', sys.argv[1]); log = logging.getLogger('ndxdp.x')\n"
        "log.error('a\\nb'); log.warning('c'); log.info('d'); log.debug('e')"
    )
    said = tmp_path / "said"
    with said.open("w") as stream:
        status = os.fstat(stream.fileno())
        subprocess.run(
            [sys.executable, "-c", code, form],
            stderr=stream,
            env=os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
            check=True,
        )
    lines = said.read_text().splitlines()
    assert [line[:3] for line in lines if line[3:] != "b"] == ["<3>", "<4>", "<6>", "<7>"]
    assert all(line[3:].startswith(start) for line in lines)
