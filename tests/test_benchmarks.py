"""That the benchmarks run, and check what they count. What they measure is no matter here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_userspace_beside_ndppd(privacy: None, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    # In namespaces of its own, not in the tests'.
    elsewhere = {
        name: value for name, value in os.environ.items() if not name.startswith("NDXDP_LAB")
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.userspace", "--output", str(figures)),
            *("--seconds", "0.5", "--repeats", "1", "--rate", "20000"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=elsewhere,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (turn,) = json.loads(figures.read_text())["turns"]
    for name in ("ndppd", "ndxdp"):
        assert set(turn[name]["sample"]) == {"good"}, turn
    assert f"{turn['ratio']:.2f}" in done.stdout
