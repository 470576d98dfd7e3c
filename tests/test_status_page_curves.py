"""The curves and pictures of the status page."""

from __future__ import annotations

import inspect
import math
import re
from contextlib import closing
from typing import Any

import pytest

from lab import screenshots
from ndxdp.config.model import Metrics
from ndxdp.observe import history, status
from ndxdp.observe.exporter import Exporter
from ndxdp.observe.history import History
from ndxdp.observe.page_parts import rate
from ndxdp.observe.sparkline import Curves, svg
from ndxdp.store.directories import Trees
from tests.fixtures import network
from tests.fixtures.network import BEHIND, REPOSITORY, UPLINK, Network, done, eventually
from tests.fixtures.prometheus import get
from tests.fixtures.shown_page import URL, html_of, interface

DOCS = REPOSITORY / "docs"

# ---- what a page has -----------------------------------------------------------------------------


@pytest.fixture
def data(attached: Network) -> dict[str, Any]:
    """Return the status of an attached interface, as a real one has it."""
    return status.take_snapshot(Trees()).data[UPLINK]


# ---- curves --------------------------------------------------------------------------------------


NAN = math.nan


def paths(drawn: str) -> list[str]:
    """Return the paths of a curve: the area, and the line."""
    return re.findall(r' d="([^"]*)"', drawn)


def test_a_curve_has_the_shape_of_its_values() -> None:
    area, line = paths(svg([0, 10, 5], "three", points=10))
    assert line == "M0,50 1,0 2,25"
    assert area == "M0,50L0,50 1,0 2,25 2,50Z"


def test_a_level_curve_is_short() -> None:
    assert paths(svg([0] * 144, "", points=144))[1] == "M0,50 143,50"


def test_a_gap_interrupts_a_curve() -> None:
    assert paths(svg([NAN, 4, 4, NAN, 2, NAN, 4, 0], "", points=10))[1] == (
        "M1,0 2,0M4,25 4,25M6,0 7,50"
    )


def test_the_largest_of_several_values_is_drawn() -> None:
    assert paths(svg([0, 0, 10, 0, NAN, 5], "", points=3))[1] == "M0,50 1,0 2,25"


@pytest.mark.parametrize("values", [[], [3], [NAN, 3, NAN], [NAN] * 9])
def test_no_curve_of_fewer_than_two_values(values: list[float]) -> None:
    assert svg(values, "", points=144) == ""


def test_the_page_shows_curves(data: dict[str, Any]) -> None:
    curves = Curves(5400, [1200, 0, 7], {"eth1": [3, NAN, 7], "gone": [1, 2, 3]})
    html = html_of([interface(data, "eth0", 7), interface(data, "eth1")], curves=curves)
    assert html.count("<svg") == 2
    assert f"Answers in the last 90 min, {rate(1200)} at most" in html
    early = html_of([interface(data, "eth0", 7)], curves=Curves(0, [], {}))
    assert "<svg" not in early


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Sampled:
    """A history of counters that a test sets, not those of interfaces."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: dict[str, int] = {}
        self.clock = Clock()
        self.history = History(Trees(), self.clock)
        monkeypatch.setattr(self.history, "_read", lambda: dict(self.counts))

    def after(self, seconds: float, **counts: int) -> None:
        """Let time pass, set the counters, and let the history take a sample if one is due."""
        self.clock.now += seconds
        self.counts = counts
        self.history.sample()

    def of(self, interface: str) -> list[float]:
        return list(self.history.curves().of[interface])


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Sampled:
    return Sampled(monkeypatch)


def test_samples_are_answers_per_second(sampled: Sampled) -> None:
    assert sampled.history.due_in() == 0
    sampled.after(0, eth0=100, eth1=5)
    assert sampled.history.due_in() == 10
    assert sampled.history.curves() == Curves(0, [], {})
    sampled.after(9.9, eth0=1000, eth1=5)  # not due yet
    assert sampled.history.curves().of == {}
    sampled.after(0.1, eth0=300, eth1=5)
    sampled.after(10, eth0=300, eth1=25)
    assert (sampled.of("eth0"), sampled.of("eth1")) == ([20, 0], [0, 2])
    assert sampled.history.curves().total == [20, 2]
    assert sampled.history.curves().seconds == 20


def test_counters_that_were_reset_start_again(sampled: Sampled) -> None:
    sampled.after(0, eth0=1000)
    sampled.after(10, eth0=30)
    assert sampled.of("eth0") == [3]


def test_interfaces_come_and_go(sampled: Sampled) -> None:
    sampled.after(0, eth0=0)
    sampled.after(10, eth0=10, eth1=7)
    sampled.after(10, eth0=20, eth1=27)
    known = sampled.of("eth1")
    assert (math.isnan(known[0]), known[1:]) == (True, [2])
    assert sampled.history.curves().total == [1, 3]
    sampled.after(10, eth1=27)
    assert set(sampled.history.curves().of) == {"eth1"}


def test_a_late_sample_stands_for_those_that_were_missed(sampled: Sampled) -> None:
    sampled.after(0, eth0=0)
    sampled.after(10, eth0=100)
    sampled.after(40, eth0=120)
    assert sampled.of("eth0") == [10, 0.5, 0.5, 0.5, 0.5]
    assert sampled.history.curves().seconds == 50
    for index in range(140):  # two of the next samples are halved, and one is missed
        sampled.after(20 if index == 138 else sampled.history.due_in(), eth0=120)
    assert abs(sampled.history.curves().seconds - (sampled.clock.now - 1000)) <= 20
    sampled.after(1e9, eth0=120)
    assert len(sampled.of("eth0")) < history.SAMPLES


def test_memory_is_bounded(sampled: Sampled) -> None:
    """Hold at most SAMPLES values for each interface, which reach back to the start or a day."""
    sampled.after(0, eth0=0)
    began, count, reached = sampled.clock.now, 0, []
    while sampled.clock.now < began + 3 * 86400:
        count += round(5 * sampled.history.due_in())
        sampled.after(sampled.history.due_in(), eth0=count)
        assert len(sampled.of("eth0")) < history.SAMPLES
        reached.append(sampled.history.curves().seconds - (sampled.clock.now - began))
        assert set(sampled.of("eth0")) == {5}
    assert reached[500] == 0  # all the time since the start
    assert 86400 < sampled.history.curves().seconds < 1.1 * 86400
    assert sampled.history.due_in() > 600


def test_neighbouring_samples_are_merged(sampled: Sampled) -> None:
    sampled.after(0, eth0=0)
    count = 0
    for index in range(history.SAMPLES):
        count += 10 * (index % 2) + 100 * (index > 100)
        sampled.after(10, eth0=count, **({"eth1": 0} if index >= 6 else {}))
    assert sampled.of("eth0")[:2] == [0.5, 0.5]
    assert sampled.of("eth0")[-1] == 10.5
    assert len(sampled.of("eth0")) == history.SAMPLES // 2
    known = sampled.of("eth1")
    assert [math.isnan(value) for value in known[:5]] == [True, True, True, False, False]


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample every 50 ms."""
    monkeypatch.setattr(history, "_SHORTEST", 0.05)


def test_the_exporter_samples_without_requests(attached: Network, brisk: None) -> None:
    with closing(Exporter(Trees())) as serving:
        serving.listen(Metrics())
        eventually(lambda: serving._history.curves().seconds > 0)
        assert attached.answers()
        eventually(lambda: max(serving._history.curves().total) > 0)
        assert set(serving._history.curves().of) == {UPLINK}
        assert "Curve of the answers" in get(URL)
        done("detach", UPLINK)
        eventually(lambda: not serving._history.curves().of)


def test_userspace_mode_is_sampled(net: Network, brisk: None) -> None:
    running = net.run("-i", UPLINK, "--mode", "userspace", "-n", BEHIND)
    sampler = History(Trees())
    sampler.sample()
    assert net.answers()

    def seen() -> bool:
        sampler.sample()
        return max(sampler.curves().total, default=0) > 0

    eventually(seen)
    running.end()


def test_what_cannot_be_read_is_not_sampled(attached: Network) -> None:
    (pins,) = network.PINS.glob(f"v*/{UPLINK}")
    clock = Clock()
    sampler = History(Trees(), clock)

    def sampled_names() -> set[str]:
        clock.now += 10
        sampler.sample()
        return set(sampler.curves().of)

    sampled_names()
    assert sampled_names() == {UPLINK}
    (pins / "reasons").rename(pins / "hidden")
    try:
        assert sampled_names() == set()
    finally:
        (pins / "hidden").rename(pins / "reasons")
    assert sampled_names() == {UPLINK}


# ---- pictures ------------------------------------------------------------------------------------


def test_pictures_are_small_and_shown() -> None:
    """Show each picture that `make screenshots` takes in a page of the documentation."""
    taken = re.findall(r'Picture\("(.*?)"', inspect.getsource(screenshots))
    pictures = {path.name: path.read_bytes() for path in (DOCS / "pictures").iterdir()}
    assert set(taken) == set(pictures)
    pages = "".join(path.read_text() for path in DOCS.glob("*.md"))
    for name, data in pictures.items():
        assert data.startswith(b"\x89PNG\r\n")
        assert len(data) <= screenshots.LARGEST
        assert f"](pictures/{name})" in pages
