"""That the benchmarks run, and check what they count. What they measure is no matter here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def run(name: str, figures: Path, *words: str) -> str:
    """A benchmark in namespaces of its own, not in the tests'; it has to succeed."""
    elsewhere = {
        name: value for name, value in os.environ.items() if not name.startswith("NDXDP_LAB")
    }
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--output", str(figures), *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=elsewhere,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_following(privacy: None, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    printed = run("following", figures, "--repeats", "1")
    found = json.loads(figures.read_text())["milliseconds"]
    assert len(found) == 12
    assert all(name in printed for name in found)


def test_userspace_beside_ndppd(privacy: None, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    words = ("--seconds", "0.5", "--repeats", "1", "--rate", "20000")
    printed = run("userspace", figures, *words)
    (turn,) = json.loads(figures.read_text())["turns"]
    for name in ("ndppd", "ndxdp"):
        assert set(turn[name]["sample"]) == {"good"}, turn
    assert f"{turn['ratio']:.2f}" in printed


def test_the_idle_daemon(privacy: None, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    short = ("--addresses", "50", "--idle", "0.5", "--settle", "0.5", "--starts", "1")
    printed = run("daemon", figures, *short)
    found = json.loads(figures.read_text())
    for name in ("python", "ndppd", "5, no engine", "50, no engine", "50, Docker"):
        one = found[name]
        assert one["processes"] == 1
        assert 1000 < one["proportional_kB"] <= one["resident_kB"]
        assert f"{one['resident_kB'] / 1024:.1f} MB resident" in printed
    assert found["50, Docker"]["idle_ticks"] <= 50
    (seconds,), (on_cpu,) = found["starts"]["s"], found["starts"]["cpu_s"]
    assert on_cpu > 0
    assert f"median {seconds * 1000:.0f} ms" in printed


def test_tracing(privacy: None, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    printed = run("tracing", figures, "--runs", "1000", "--rounds", "1")
    (one,) = json.loads(figures.read_text())["rounds"]
    assert {"off", "sampled", "on", "unread"} <= set(one)
    assert "nobody traces" in printed
