"""The benchmarks run, and check the answers that they count. Their figures do not matter here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ipaddress import IPv6Address
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from xml.etree import ElementTree

import pytest

from benchmarks import growth, growth_page, report, wire
from benchmarks.__main__ import CURVES
from benchmarks.contestants import CONTESTANTS
from benchmarks.growing import exponent
from ndxdp.ndp.message import Host, Solicitation, advertise
from ndxdp.ndp.profile import Profile
from ndxdp.rules.address import parse_mac

REPOSITORY = Path(__file__).resolve().parent.parent


def run(name: str, figures: Path, *words: str) -> str:
    """Run a benchmark, which must succeed, in namespaces of its own."""
    elsewhere = {
        name: value for name, value in os.environ.items() if not name.startswith("NDXDP_LAB")
    }
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}".rstrip("."), "--output", str(figures), *words],
        capture_output=True,
        text=True,
        timeout=600,  # of a hang: on a busy machine it takes minutes
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


def test_starting(privacy: None, tmp_path: Path) -> None:
    """Time each part of a start, and add the parts up."""
    figures = tmp_path / "figures.json"
    printed = run("starting", figures, "3")
    (parts,) = json.loads(figures.read_text()).values()
    *each, together = parts.values()
    assert together == pytest.approx(sum(each))
    assert parts["loading: mostly the verifier"] > parts["other calls of libbpf"] > 0
    assert all(name in printed for name in parts)


def test_everything(privacy: None, tmp_path: Path) -> None:
    """Fill each table, check each answer and omit no measurement."""
    figures = tmp_path / "figures.json"
    printed = run("", figures, "--test")
    found = json.loads(figures.read_text())
    for name in CURVES:
        (points,) = found["curves"][name]
        checked = sum(point["checked"] for point in points)
        assert max(point["answered"] for point in points) > 0, points
        assert (checked > 0) == (name != "reflector"), points
    assert found["native/reflector"][0]["ratio"] > 0
    assert all(one["lost"] == 0 for one in found["scan"]["native, limit"])
    assert {what for what in found["upkeep"] if what.startswith("native")} == {
        f"native: {what}" for what in ("reload", "restart", "kill and start", "upgrade")
    }
    assert printed.strip() == report.text(found).strip()
    for name, picture in report.pictures(found).items():
        drawn = figures.with_name(f"figures-{name}.svg").read_text()
        assert drawn == picture
        assert ElementTree.fromstring(drawn).tag.endswith("svg")


def test_the_page_shows_the_figures() -> None:
    """Show the figures of the last full run in docs/performance.md, unedited."""
    found = json.loads((REPOSITORY / "benchmarks" / "results" / "bench.json").read_text())
    assert not found["quick"]
    page = (REPOSITORY / "docs" / "performance.md").read_text()
    shown = page.partition(report.BEGIN)[2].partition(report.END)[0]
    assert shown.strip() == report.text(found).strip()
    for name, picture in report.pictures(found).items():
        assert (REPOSITORY / "benchmarks" / "results" / f"bench-{name}.svg").read_text() == picture


def test_the_page_of_growth_shows_the_figures() -> None:
    """Show the figures of the last `make bench-growth` in docs/scale.md, unedited."""
    found = json.loads(growth.RESULTS.read_text())
    assert list(found["curves"]) == [curve.name for curve in growth.CURVES]
    page = (REPOSITORY / "docs" / "scale.md").read_text()
    shown = page.partition(report.BEGIN)[2].partition(report.END)[0]
    assert shown.strip() == growth_page.text(found).strip()
    picture = growth_page.picture(found)
    assert growth.RESULTS.with_suffix(".svg").read_text() == picture
    assert ElementTree.fromstring(picture).tag.endswith("svg")


def test_a_wrong_answer_stops_the_benchmark() -> None:
    """Stop at an answer with one wrong bit."""
    target = IPv6Address("2001:db8::7").packed
    right = wire.advertisement(target, wire.FLOOD, source=target, flags=0xC0)
    link = SimpleNamespace(targets=[target])
    counts = wire.Counts(1, 1, 0, 0, 0, 0)
    native = CONTESTANTS["native"]
    assert native.check(wire.Flood(1, 1, 0, counts, [right]), cast(wire.Wire, link)) == 1
    for bit in range(len(right) * 8):
        wrong = (int.from_bytes(right, "big") ^ 1 << bit).to_bytes(len(right), "big")
        with pytest.raises(SystemExit):
            native.check(wire.Flood(1, 1, 0, counts, [wrong]), cast(wire.Wire, link))


def test_the_expected_answer_is_that_of_ndp() -> None:
    """Expect the bytes that ndp encodes; the benchmarks encode them independently."""
    target, mac = IPv6Address("2001:db8::7").packed, parse_mac("02:00:00:00:01:00")
    solicited = Solicitation(IPv6Address("fe80::100").packed, target, mac, mac)
    host = Host(parse_mac(wire.HOST_MAC))
    wanted = wire.advertisement(target, wire.FLOOD, source=target, flags=0xC0)
    assert advertise(solicited, host, Profile()) == wanted


def test_bars() -> None:
    at_least = report.Goal("", 2, [1.9, 2.1, 2.2, 2.3], at_least=True)
    assert at_least.met
    assert not at_least._replace(figures=[1.9, 1.9, 2.2, 2.3]).met
    at_most = report.Goal("", 2, [1.9, 2.0, 2.0, 3.0])
    assert not at_most.met
    assert at_most._replace(figures=[1.9, 1.9, 1.9, 2.0]).met
    assert "not measured" in at_most._replace(figures=[]).row()


def test_growth(privacy: None, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    printed = run("growth", figures, "--most", "10", "--only", "one beside")
    found = json.loads(figures.read_text())["curves"]
    assert set(found) == {curve.name for curve in growth.CURVES if "one beside" in curve.name}
    for name, by_size in found.items():
        assert name in printed
        assert set(by_size["10"]) >= {"command s", "peak MB", "daemon s"}
        assert by_size["10"]["command s"] > 0


def test_exponents() -> None:
    sizes = (10, 100, 1_000, 10_000)
    assert exponent(sizes, [0.2, 0.2, 0.21, 0.21], "s") == 0
    assert exponent(sizes, [0.2, 0.3, 1.2, 10.2], "s") == pytest.approx(1)
    assert exponent(sizes, [20, 20, 25, 520], "MB") == pytest.approx(2)
    assert exponent(sizes[:2], [0.2, 9], "s") == 0


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


def test_groups(privacy: None, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    short = ("--groups", "0", "300", "--packets", "10", "--rounds", "1")
    printed = run("groups", figures, *short)
    found = json.loads(figures.read_text())["counts"]
    assert [each["groups"] for each in found] == [0, 300]
    assert "   300 groups:" in printed


def test_tracing(privacy: None, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    printed = run("tracing", figures, "--runs", "1000", "--rounds", "1")
    (one,) = json.loads(figures.read_text())["rounds"]
    assert {"off", "sampled", "on", "unread"} <= set(one)
    assert "no tracer" in printed
