"""`python -m tests.fuzz`: millions of random frames through the programs and through ndp.py.

The frames come in sets: each set has rules and settings of its own. One process for each CPU, in
namespaces of its own, compares one set after the other. The numbers of the complete sets are
written to a file after each, so that an interrupted run continues where it stopped. The frames of a
set depend only on the seed and the set's number: `--only NUMBER` compares one set again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import platform
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from lab import private
from ndxdp import __version__
from ndxdp.store.directories import Trees
from tests.fuzz.comparison import MODES, Programs, programs
from tests.fuzz.frames import Frames, random_case
from tests.packets import HOST

FRAMES = 10_000_000
PER_SET = 5_000
_COUNTED = 250  # frames of each set that are run a second time, for the counters
_SHOWN = 3  # disagreements of a set that are printed
_PROGRESS = 10  # seconds between two lines

_REPOSITORY = Path(__file__).resolve().parents[2]
_STATE = _REPOSITORY / "build" / "fuzz.json"


@dataclass
class Found:
    """The frames compared so far, and the disagreements found.

    Attributes:
        done: Numbers of the sets that are complete.
        frames: Number of frames by mode.
        reasons: Number of frames by the reason that ndp.py gives.
        counted: Number of frames that were run a second time, for the counters.
        seconds: Seconds of all processes together.
        wrong: Disagreements, as text.
    """

    seed: str
    done: list[int] = field(default_factory=list)
    frames: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    counted: int = 0
    seconds: float = 0
    wrong: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read the results of an earlier run; None if there are none."""
        try:
            found = json.loads(path.read_text())["found"]
        except FileNotFoundError:
            return None
        runs = (range(first, last + 1) for first, last in found.pop("done"))
        return cls(**found, done=[number for run in runs for number in run])

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.new")
        about = {
            "date": time.strftime("%Y-%m-%d"),
            "version": __version__,
            "kernel": platform.release(),
            "python": platform.python_version(),
        }
        found = asdict(self) | {"done": _runs(self.done)}
        new.write_text(json.dumps({"about": about, "found": found}, indent=1) + "\n")
        new.replace(path)

    def add(self, other: Found) -> None:
        """Add the results of a process on one set."""
        self.done = sorted([*self.done, *other.done])
        self.frames = dict(Counter(self.frames) + Counter(other.frames))
        self.reasons = dict(sorted((Counter(self.reasons) + Counter(other.reasons)).items()))
        self.counted += other.counted
        self.seconds = round(self.seconds + other.seconds, 2)
        self.wrong += other.wrong


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Return the first and the last of each run of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"default {FRAMES}")
    parser.add_argument("--seed", help="default: that of the run in --output, else a new one")
    parser.add_argument(
        "--output", type=Path, default=_STATE, help="file of the sets that are done"
    )
    parser.add_argument("--only", type=int, metavar="NUMBER", help="compare this set alone")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return _work(arguments.seed)
    known = Found.read(arguments.output)
    if arguments.only is not None:
        seed = arguments.seed or (known and known.seed)
        if not seed:
            parser.error("--only needs --seed")
        return _report(_compare_all(Found(seed), [arguments.only], 1, None))
    if known is None or arguments.seed not in (None, known.seed):
        known = Found(arguments.seed or secrets.token_hex(4))
    sets = -(-arguments.frames // PER_SET)
    left = sorted({*range(sets)} - {*known.done})
    print(f"seed {known.seed}: {len(left)} of {sets} sets of {PER_SET} frames to go", flush=True)
    return _report(_compare_all(known, left, arguments.processes, arguments.output))


def _report(found: Found) -> int:
    per_mode = ", ".join(f"{count} by the {mode} program" for mode, count in found.frames.items())
    print(f"seed {found.seed}, frames compared: {per_mode or 'none'}")
    for reason, count in sorted(found.reasons.items(), key=lambda item: -item[1]):
        print(f"{reason:>16} {count:>10}")
    print(f"disagreements: {len(found.wrong)}")
    return 1 if found.wrong else 0


# ---- the processes ------------------------------------------------------------------------------


def _compare_all(found: Found, sets: list[int], processes: int, output: Path | None) -> Found:
    """Compare all the sets; write `found` to `output` after each."""
    numbers, lock, started = iter(sets), threading.Lock(), time.monotonic()
    next_line = started + _PROGRESS
    ended = 0

    def keep(result: Found) -> None:
        nonlocal ended, next_line
        found.add(result)
        if output:
            found.write(output)
        ended += 1
        for text in result.wrong:
            print(text, flush=True)
        now = time.monotonic()
        if now > next_line:
            next_line = now + _PROGRESS
            rate = ended * PER_SET / (now - started)
            print(f"{ended} of {len(sets)} sets, {rate:.0f} frames/s", flush=True)

    def run_one() -> None:
        worker = _start_worker(found.seed)
        assert worker.stdin is not None
        assert worker.stdout is not None
        with worker:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    worker.stdin.close()
                    return
                worker.stdin.write(f"{number}\n")
                worker.stdin.flush()
                line = worker.stdout.readline()
                if not line:
                    raise SystemExit(f"the process that compared set {number} has ended")
                with lock:
                    keep(Found(**json.loads(line)))

    with ThreadPoolExecutor(processes) as pool:
        for each in [pool.submit(run_one) for _ in range(min(processes, len(sets)))]:
            each.result()
    return found


def _start_worker(seed: str) -> subprocess.Popen[str]:
    """Start a process that compares the sets whose numbers it reads, and ends with its input."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz", "--work", "--seed", seed],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_REPOSITORY,
    )


def _work(seed: str) -> int:
    if not private.inside():
        return private.run([sys.executable, "-m", "tests.fuzz", "--work", "--seed", seed])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends, and with it the input
    logging.disable()
    with programs(Trees()) as loaded:
        for line in sys.stdin:
            print(json.dumps(asdict(compare_set(loaded, seed, int(line)))), flush=True)
    return 0


def compare_set(loaded: Programs, seed: str, number: int, size: int = PER_SET) -> Found:
    """Compare the frames of one set; `number` is the set's."""
    started = time.monotonic()
    rng = random.Random(f"{seed}/{number}")
    case = random_case(rng, HOST)
    loaded.set_up(case)
    frames = Frames(rng, case)
    judged = [(frame, loaded.judge(frame)) for frame in (frames.frame() for _ in range(size))]
    wrong = [
        f"set {number}: {disagreement}"
        for disagreement in itertools.islice(
            (each for pair in judged for each in loaded.disagreements(*pair)), _SHOWN
        )
    ]
    wrong += [f"set {number}: {text}" for text in loaded.miscounts(judged[:_COUNTED])]
    return Found(
        seed,
        [number],
        {
            mode.label: sum(loaded.by_mode[mode].takes(frame) for frame, _ in judged)
            for mode in MODES
        },
        dict(Counter(verdict.reason.label for _, verdict in judged)),
        min(size, _COUNTED),
        time.monotonic() - started,
        wrong,
    )


if __name__ == "__main__":
    sys.exit(main())
