"""Presentation of the figures: goals, the tables of docs/performance.md, pictures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import plot, saturation
from benchmarks.wire import SPREAD

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

_SHARES = ("p50", "p99", "p99.9")
_ONE, _MILLION = "1 address", "1 000 000 addresses"
_SOLICITED = ("ns", "some_ns")  # of rules.by_number(): all rules are solicited, or SPREAD of them
_PROGRAMS = {"nothing": "none", "pass": "one that passes every frame"}


class Goal(NamedTuple):
    """A required value and the figure of each round. at_least: larger is better."""

    name: str
    limit: float
    figures: list[float]
    at_least: bool = False
    unit: str = ""

    @property
    def text(self) -> str:
        """The goal as text, such as `≥ 0.85`."""
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}{self.unit}"

    @property
    def met(self) -> bool:
        """Return True if three of four rounds meet the goal, so that no lucky round decides."""
        low, high = quartiles(self.figures)
        return low >= self.limit if self.at_least else high <= self.limit

    def row(self) -> list[str]:
        """Return the cells of the goal's row: name, goal, median, quartiles and verdict."""
        if not self.figures:
            return [self.name, self.text, "not measured", "", ""]
        low, high = quartiles(self.figures)
        middle = f"{statistics.median(self.figures):.4g}{self.unit}"
        verdict = "met" if self.met else "**not met**"
        return [self.name, self.text, middle, f"{low:.4g} to {high:.4g}", verdict]


def quartiles(figures: Sequence[float]) -> tuple[float, float]:
    """Return the quartiles; of fewer than three figures the minimum and the maximum."""
    if len(figures) < 3:
        return min(figures), max(figures)
    first, _, third = statistics.quantiles(figures, n=4, method="inclusive")
    return first, third


def goals(found: dict[str, Any]) -> list[Goal]:
    """Return every goal that the figures can decide."""
    curves, latency = found["curves"], found["latency"]
    others = found["others"]
    rules = found["rules"]
    daemons = found["daemon"]
    worst = max(others, key=lambda kind: _median(others[kind], "added"))
    mode, _, frame = worst.partition(", ")
    exact = (
        [a / b for a, b in zip(rules[_MILLION]["ns"], rules[_ONE]["ns"], strict=True)]
        if _MILLION in rules
        else []
    )
    million, few = daemons.get("1000000", []), daemons["10000"]
    return [
        Goal(
            "native: answers per second, relative to the bare reflector",
            0.85,
            _column(found["native/reflector"], "ratio"),
            at_least=True,
        ),
        Goal(
            "native: answers per second, relative to ndppd",
            25,
            [
                saturation.best(ours) / saturation.best(theirs)
                for ours, theirs in zip(curves["native"], curves["ndppd"], strict=True)
            ],
            at_least=True,
        ),
        Goal(
            "tc: answers per second, relative to the kernel's proxy_ndp",
            1.5,
            _column(found["tc/proxy_ndp"], "ratio"),
            at_least=True,
        ),
        Goal(
            "userspace: sustained answers per second, relative to ndppd",
            2.2,
            _column(found["userspace/ndppd"], "ratio"),
            at_least=True,
        ),
        Goal(
            f"{mode}: time added to a frame that is not a solicitation ({frame})",
            5,
            _column(others[worst], "added"),
            unit=" ns",
        ),
        Goal("time per solicitation with 1 000 000 addresses, relative to 1 address", 3, exact),
        Goal(
            "kernel memory for 1 000 000 addresses",
            48,
            [rules[_MILLION]["kernel_MB"]] if _MILLION in rules else [],
            unit=" MB",
        ),
        Goal("time to load 1 000 000 addresses", 4, _column(million, "load_s"), unit=" s"),
        Goal(
            "time to reload an unchanged file of 1 000 000 addresses, without reading it",
            1,
            _column(million, "beyond_reading_s"),
            unit=" s",
        ),
        *(
            Goal(
                f"native: p99 latency at {when}, relative to the kernel for its own address",
                1.0,
                [
                    ours[key]["p99"] / theirs[key]["p99"]
                    for ours, theirs in zip(latency["native"], latency["own address"], strict=True)
                ],
            )
            for key, when in (("1000/s", "1 000/s"), ("half", "half of the maximum rate"))
        ),
        Goal(
            "resident memory with 1 000 000 addresses",
            120,
            _column(million, "resident_MB"),
            unit=" MB",
        ),
        Goal("resident memory with 10 000 addresses", 40, _column(few, "resident_MB"), unit=" MB"),
        *(
            Goal(
                f"{limited} with a limit: a router's solicitations that a flood leaves unanswered",
                0,
                _column(found["scan"][f"{limited}, limit"], "lost"),
            )
            for limited in ("native", "tc")
        ),
    ]


def _column(rounds: Iterable[dict[str, float]], name: str) -> list[float]:
    return [one[name] for one in rounds]


def _median(rounds: Iterable[dict[str, float]], name: str) -> float:
    return statistics.median(_column(rounds, name))


# ---- text ---------------------------------------------------------------------------------------


def text(found: dict[str, Any]) -> str:
    """Return all tables, as Markdown."""
    machine = found["machine"]
    return "\n".join(
        [
            f"Measured on {found['date']}: {machine['cpu']}, {machine['cpus']} CPUs,"
            f" {machine['memory_GB']} GB, Linux {machine['kernel']}"
            f" ({'virtual' if machine['virtual'] else 'no virtual machine'}), load average"
            f" {machine['load']} before; clang {machine['clang']}, Python {machine['python']}.\n",
            _table(
                ("measured", "goal", "median", "quartiles", "result"),
                [goal.row() for goal in goals(found)],
            ),
            "\n**Answers per second**, at the rate of solicitations at which the responder answers"
            " most:\n",
            _table(
                ("responder", "median", "minimum", "maximum", "relative to ndppd"), _speeds(found)
            ),
            "\n**Latency** in µs, at 1 000 solicitations per second and at half of the rate that"
            " the responder can answer:\n",
            _table(
                (
                    "responder",
                    *(f"1 000/s: {share}" for share in _SHARES),
                    "half of the rate",
                    *(f"half: {share}" for share in _SHARES),
                ),
                _latencies(found),
            ),
            "\n**Cost of a frame that is not a solicitation**, in ns: the time of an empty program,"
            " and the time that ndxdp adds:\n",
            _table(("mode, frame", "empty program", "ndxdp adds", "quartiles"), _others(found)),
            f"\nA solicitation takes {_median(found['solicitation'], 'native'):.0f} ns longer than"
            " with an empty program; with the bare reflector, it takes"
            f" {_median(found['solicitation'], 'reflector'):.0f} ns longer.\n",
            "**UDP packets per second that the host forwards**, by the program on its interface:\n",
            _table(("program", "median", "relative to no program"), _forwarding(found)),
            "\n**Cost of a solicitation by the number of rules**, in ns: median and quartiles if"
            f" all rules are solicited in random order, and if {_count(SPREAD)} of them are:\n",
            _table(
                (
                    "rules",
                    "time to attach",
                    "kernel memory",
                    "all solicited",
                    f"{_count(SPREAD)} solicited",
                ),
                _rules(found),
            ),
            "\n**The daemon with addresses from a file**: time to load and reload, and memory:\n",
            _table(
                (
                    "addresses",
                    "to load",
                    "of that, to read the file",
                    "to reload",
                    "resident memory",
                    "peak memory",
                ),
                _daemons(found),
            ),
            f"\nndppd with 10 000 addresses has {found['ndppd']['resident_MB']} MB resident.\n",
            "**Solicitations during a change of the responder**,"
            f" at {_count(found['upkeep_rate'])} per second:\n",
            _table(("mode: change", "sent", "unanswered"), _upkeep(found)),
            "\n**A scanning flood beside a legitimate router**:\n",
            _table(
                (
                    "responder",
                    "flood of solicitations",
                    "answers",
                    "the router's solicitations",
                    "of these, unanswered",
                ),
                _scan(found),
            ),
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _count(number: float) -> str:
    return f"{number:,.0f}".replace(",", " ")


def _speeds(found: dict[str, Any]) -> Iterable[list[str]]:
    bests = {
        name: [saturation.best(points) for points in rounds]
        for name, rounds in found["curves"].items()
    }
    base = statistics.median(bests["ndppd"])
    for name, figures in bests.items():
        middle = statistics.median(figures)
        numbers = [_count(number) for number in (middle, min(figures), max(figures))]
        yield [name, *numbers, f"{middle / base:.3g}"]


def _latencies(found: dict[str, Any]) -> Iterable[list[str]]:
    for name, rounds in found["latency"].items():
        row = [name]
        for key in ("1000/s", "half"):
            if key == "half":
                row.append(f"{_count(statistics.median(one[key]['rate'] for one in rounds))}/s")
            row += [
                f"{statistics.median(one[key][share] for one in rounds):.3g}" for share in _SHARES
            ]
        yield row


def _others(found: dict[str, Any]) -> Iterable[list[str]]:
    for kind, rounds in found["others"].items():
        low, high = quartiles(_column(rounds, "added"))
        yield [
            kind,
            f"{_median(rounds, 'empty'):.1f}",
            f"{_median(rounds, 'added'):+.1f}",
            f"{low:+.1f} to {high:+.1f}",
        ]


def _forwarding(found: dict[str, Any]) -> Iterable[list[str]]:
    rounds = found["forwarding"]
    for name in rounds[0]:
        shares = [one[name] / one["nothing"] for one in rounds]
        program = _PROGRAMS.get(name, name)
        yield [program, _count(_median(rounds, name)), f"{statistics.median(shares):.2f}"]


def _rules(found: dict[str, Any]) -> Iterable[list[str]]:
    for name, one in found["rules"].items():
        quarters = ((statistics.median(one[kind]), *quartiles(one[kind])) for kind in _SOLICITED)
        yield [
            name,
            f"{one['attach_s']:.2f} s",
            f"{one['kernel_MB']} MB",
            *(f"{middle:.0f} ({low:.0f} to {high:.0f})" for middle, low, high in quarters),
        ]


def _daemons(found: dict[str, Any]) -> Iterable[list[str]]:
    for count, rounds in found["daemon"].items():
        seconds = [f"{_median(rounds, name):.2f} s" for name in ("load_s", "read_s", "reload_s")]
        megabytes = [f"{_median(rounds, name):.0f} MB" for name in ("resident_MB", "most_MB")]
        yield [_count(int(count)), *seconds, *megabytes]


def _upkeep(found: dict[str, Any]) -> Iterable[list[str]]:
    for what, rounds in found["upkeep"].items():
        yield [what, *(_count(sum(_column(rounds, name))) for name in ("sent", "lost"))]


def _scan(found: dict[str, Any]) -> Iterable[list[str]]:
    for what, rounds in found["scan"].items():
        asked, lost = (sum(_column(rounds, name)) for name in ("asked", "lost"))
        rates = [f"{_count(_median(rounds, name))}/s" for name in ("flood", "answers")]
        yield [what, *rates, _count(asked), f"{lost:.0f} ({lost / asked * 100:.1f} %)"]


def put_into(page: Path, tables: str) -> None:
    """Write tables between the page's markers."""
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}")


# ---- pictures -----------------------------------------------------------------------------------


def pictures(found: dict[str, Any]) -> dict[str, str]:
    """Return the SVG pictures by name."""
    shares = {1.0: "p50", 2.0: "p99", 4.0: "p99.9"}
    rules = {
        name: (one["rules"], statistics.median(one["ns"])) for name, one in found["rules"].items()
    }
    return {
        "saturation": plot.lines(
            "Answers against solicitations",
            ("solicitations per second", "answers per second"),
            {name: _points(rounds) for name, rounds in found["curves"].items()},
        ),
        "latency": plot.lines(
            "From a solicitation to its answer, at 1 000 a second",
            ("share of the answers", "µs"),
            {
                name: [
                    (x, statistics.median(one["1000/s"][share] for one in rounds))
                    for x, share in shares.items()
                ]
                for name, rounds in found["latency"].items()
            },
            shares,
        ),
        "rules": plot.lines(
            "A solicitation against the number of rules",
            ("rules", "ns"),
            {
                "exact addresses": [p for name, p in rules.items() if "address" in name],
                "prefixes": [p for name, p in rules.items() if "prefix" in name],
            },
        ),
    }


def _points(rounds: list[list[dict[str, float]]]) -> list[tuple[float, float]]:
    """Return the medians of the points that every round has."""
    return sorted(
        (
            statistics.median(point["offered"] for point in points),
            statistics.median(point["answered"] for point in points),
        )
        for points in zip(*rounds, strict=False)
    )
