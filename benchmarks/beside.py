"""Compare what the number of rules costs in two versions of ndxdp, which take turns. Needs root.

    python -m benchmarks.beside OTHER [--rounds 9] [--runs 400000] [--sets 1 1000]

OTHER is a clone of another version, in which `make build` has been run. The figures are the lower
quartiles, as other work on the machine only adds time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path

from benchmarks import rules
from benchmarks.wire import LINK, PREFIX, REPOSITORY, Wire, in_host, wire
from lab import private
from ndxdp.kernel import libbpf
from ndxdp.store.directories import Trees

PINS = Trees().pins.root
SETS = ("1 prefix", "1", "1000", "100000", "1000000", "100000 prefixes")


def main() -> int:
    """Measure each set of rules, and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="the other clone")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--runs", type=int, default=400_000, help="solicitations in each round")
    parser.add_argument("--sets", nargs="+", default=SETS, help="numbers of rules")
    arguments = parser.parse_args()
    if not private.inside():
        words = [sys.executable, "-m", "benchmarks.beside", str(arguments.other.resolve())]
        return private.run([*words, *sys.argv[2:]])
    clones = {"other": arguments.other, "this": REPOSITORY}
    with wire() as link, contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        for words in arguments.sets:
            count, _, prefixes = words.partition(" ")
            with contextlib.ExitStack() as programs:
                _compare(
                    link,
                    {
                        name: _program(programs, clone, folder, int(count), bool(prefixes))
                        for name, clone in clones.items()
                    },
                    words,
                    arguments,
                )
    return 0


def _program(
    opened: contextlib.ExitStack, clone: Path, folder: Path, count: int, prefixes: bool
) -> tuple[int, float, list[bytes]]:
    """Attach a clone's program with so many rules, and detach it again.

    Returns:
        The open program, the MB of its rules' maps, and a target for each rule.
    """
    targets: list[bytes] = []
    if prefixes and count == 1:
        options = ["-n", f"{PREFIX}/80"]
    else:
        targets = rules.write_rules(folder / "rules", count, prefixes)
        options = ["--file", str(folder / "rules")]
    options += ["--max-addresses", str(max(count + 1000, 131072))]
    python = str(clone / ".venv" / "bin" / "python")
    at = ["env", f"--chdir={clone}", python, "-m", "ndxdp", "-q"]
    in_host(*at, "attach", LINK, "--mode", "native", *options)
    (path,) = PINS.glob(f"v*/{LINK}")
    program = libbpf.get_pinned(str(path / "program"))
    opened.callback(os.close, program)  # its maps live as long
    memory = rules.memory(path)
    in_host(*at, "detach", LINK)
    return program, memory, targets


def _compare(
    link: Wire,
    programs: dict[str, tuple[int, float, list[bytes]]],
    name: str,
    arguments: argparse.Namespace,
) -> None:
    targets = programs["this"][2]
    if targets:
        link.ask(targets)
    else:
        link.spread(8192)
    taken: dict[str, list[float]] = {each: [] for each in programs}
    for turn in range(arguments.rounds):
        making = link.ns_per_run(link.program("pass"), arguments.runs)
        for each in sorted(programs, reverse=turn % 2 > 0):
            whole = link.ns_per_run(programs[each][0], arguments.runs)
            taken[each].append(whole - making)
    print(
        f"{name:16}",
        *(
            f"{each}: {sorted(found)[len(found) // 4]:6.1f} ns {programs[each][1]:6.2f} MB"
            for each, found in taken.items()
        ),
        sep="  ",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
