"""`python -m tests.reliability`: write the figures of fuzz and soak into docs/reliability.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = _REPOSITORY / "docs" / "reliability.md"
FUZZ, SOAK = (_REPOSITORY / "lab" / "results" / f"{name}.json" for name in ("fuzz", "soak"))
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"


def main() -> None:
    PAGE.write_text(page(PAGE.read_text()))


def page(text: str) -> str:
    """Return the page's text with the figures of the last runs in it."""
    before, _, rest = text.partition(BEGIN)
    parts = [about(json.loads(path.read_text())) for about, path in _PARTS if path.exists()]
    return before + BEGIN + "\n".join(parts) + END + rest.partition(END)[2]


def _fuzz(results: dict[str, Any]) -> str:
    about, found = results["about"], results["found"]
    frames = max(found["frames"].values())
    rows = [
        (f"frames, {mode} program", f"{count:,}".replace(",", " "))
        for mode, count in found["frames"].items()
    ]
    rows += [
        ("rule sets", _number(sum(last - first + 1 for first, last in found["done"]))),
        ("frames for the counters", _number(found["counted"])),
        ("frames that are answered", _share(_answers(found["reasons"]), frames)),
        ("reasons reached", str(len(found["reasons"]))),
        ("disagreements", str(len(found["wrong"]))),
    ]
    command = f"make fuzz FRAMES={frames} SEED={found['seed']}"
    return _table(command, about, rows)


def _soak(results: dict[str, Any]) -> str:
    rows = [
        ("seconds", _number(results["seconds"])),
        ("solicitations", _number(results["sent"])),
        ("answered", _number(results["answered"])),
        ("rightly not answered", _number(results["rightly_silent"])),
        ("wrong answers", str(results["wrong"])),
        ("answered twice", str(results["answered_twice"])),
        *((f"lost: {cause}", _number(count)) for cause, count in results["lost"].items()),
        ("lost without a cause", str(results["unexplained"])),
        ("changes", ", ".join(f"{name} {n}" for name, n in results["changes"].items())),
        ("processes of the daemon", str(results["processes"])),
        ("CPU of the daemon", f"{100 * results['cpu_seconds'] / results['seconds']:.1f} %"),
        ("lines in its log", _number(results["log_lines"])),
        ("tracebacks", str(results["tracebacks"])),
    ]
    for name, growth in results["growth"].items():
        if growth:
            unit = " kB" if name == "memory" else ""
            figures = (_number(round(growth[each])) for each in ("start", "median", "end"))
            start, median, end = figures
            rows.append((name, f"{start}{unit} at first, median {median}, {end} at the end"))
    command = f"make soak SECONDS={results['seconds']} SEED={results['seed']}"
    return _table(command, results, rows)


_PARTS = ((_fuzz, FUZZ), (_soak, SOAK))


def _table(command: str, about: dict[str, Any], rows: list[tuple[str, str]]) -> str:
    commit = f" of commit {about['commit']}" if "commit" in about else ""
    head = (
        f"`{command}`, on {about['date']}, ndxdp {about['version']}{commit}, "
        f"Linux {about['kernel']}, Python {about['python']}:"
    )
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join([head, "", "| | |", "|---|---|", *lines, ""])


def _answers(reasons: dict[str, int]) -> int:
    return sum(count for reason, count in reasons.items() if reason.startswith("answered"))


def _share(part: int, whole: int) -> str:
    return f"{_number(part)}, {100 * part / whole:.0f} %"


def _number(value: int) -> str:
    return f"{value:,}".replace(",", " ")


if __name__ == "__main__":
    main()
