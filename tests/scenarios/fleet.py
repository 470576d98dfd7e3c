"""The long test of shared addresses: `make test-fleet`.

    python -m tests.scenarios.fleet [--minutes MINUTES] [--seed SEED] [FAULT ...]

Hosts and a cluster of etcd, and one fault after another at random. A router solicits every shared
address 100 times a second, and notes which MAC each answer has. Prints a line for each fault, and a
table at the end. Ends with 1 after a double answer, or if a fault has cost more than it may. Runs
in namespaces of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from lab import private
from lab.commands import LabError, exit_code
from lab.fleet import KEYS, ROUTER, SEGMENT, Fleet, shared_address
from lab.holder_log import HolderLog, holder_log
from lab.judge import Judge
from lab.verdict import Double, Report, unexplained
from tests.fixtures.network import NDXDP
from tests.scenarios.fleet_faults import FAULTS, ORDERLY, SLACK, Bound, Faults, Outcome

ADDRESSES, RATE = 20, 100
LEASE = 5
RESTART = "kill -9, start at once"
_SHOWN = 20  # double answers and problems that are printed


@exit_code
def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.fleet")
    parser.add_argument("--minutes", type=float, default=30, help="default 30")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="default: a new one")
    parser.add_argument("--hosts", type=int, default=5, help="default 5")
    parser.add_argument("--members", type=int, default=5, help="members of etcd; default 5")
    parser.add_argument("--mode", default="tc", help="how the hosts answer; default tc")
    parser.add_argument("--lease", type=int, default=LEASE, help=f"seconds; default {LEASE}")
    parser.add_argument("--output", type=Path, help="a file for the figures, as JSON")
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=", ".join(FAULTS))
    arguments = parser.parse_args()
    if unknown := set(arguments.faults) - set(FAULTS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    if not private.inside():
        words = ["--seed", arguments.seed, *sys.argv[1:]]
        return private.run([sys.executable, "-m", "tests.scenarios.fleet", *words])
    print(f"seed {arguments.seed}", flush=True)
    chance = random.Random(arguments.seed)
    native = arguments.mode == "native"
    with Fleet(NDXDP, hosts=arguments.hosts, members=arguments.members, native=native) as fleet:
        fleet.configure(mode=arguments.mode, lease=arguments.lease)
        share_all(fleet)
        with holder_log(fleet.etcd, f"{KEYS}holders/{SEGMENT}/") as log:
            fleet.start()
            fleet.settle(60)
            addresses = [shared_address(number) for number in range(1, ADDRESSES + 1)]
            with Judge(ROUTER, addresses, RATE) as judge:
                faults = Faults(fleet, judge, arguments.lease, chance)
                outcomes = run(fleet, judge, faults, log, chance, arguments)
                report = judge.report()
                wrong = unexplained(report, acquisitions(fleet, log))
    print_table(outcomes, report, arguments.lease)
    if arguments.mode == "userspace":  # the process answers, so that its restart is a gap
        outcomes = [each for each in outcomes if each.fault != RESTART]
    wrong += faults_of(outcomes, report.doubles, arguments.lease)
    for text in wrong[:_SHOWN]:
        print(f"fault: {text}")
    if arguments.output:
        figures = {"seed": arguments.seed, "outcomes": outcomes, "doubles": report.doubles}
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if wrong else 0


def share_all(fleet: Fleet) -> None:
    """Write the shared addresses: a third has preferences, a third of them gets them back."""
    names = [host.name for host in fleet.hosts]
    for number in range(1, ADDRESSES + 1):
        more: dict[str, Any] = {}
        if number % 3:
            start = number % len(names)
            more["hosts"] = [*names[start:], *names[:start]]
        if number % 3 == 1:
            more["failback"] = True
        fleet.share(number, **more)


def run(
    fleet: Fleet,
    judge: Judge,
    faults: Faults,
    log: HolderLog,
    chance: random.Random,
    arguments: argparse.Namespace,
) -> list[Outcome]:
    """Make faults until the time is over; return the outcomes."""
    outcomes: list[Outcome] = []
    names = arguments.faults or [*FAULTS]
    weights = [FAULTS[name][2] for name in names]
    began = time.monotonic()
    waiting = list(names)  # each one once, and then at random
    chance.shuffle(waiting)
    doubles = 0
    while (now := time.monotonic()) < began + arguments.minutes * 60:
        name = waiting.pop() if waiting else chance.choices(names, weights)[0]
        try:
            outcome = faults.make(name)
        except LabError as error:
            print_logs(fleet)
            outcome = Outcome(name, [], [], [], [f"{name}: {error}"])
            outcomes.append(outcome)
            break
        found = judge.report(time.monotonic()).doubles
        if len(found) > doubles:
            outcome.problems.append(f"{len(found) - doubles} double answers")
            doubles = len(found)
        outcomes.append(outcome)
        print(f"{now - began:6.0f} s  {describe(outcome)}", flush=True)
        if outcome.problems:
            print_logs(fleet)
            recent = [e for e in log.events if e.time > now]
            for event in recent[-60:]:
                print(f"    {event.time:.3f} {event.name} {event.host or '-'}", flush=True)
    return outcomes


def acquisitions(fleet: Fleet, log: HolderLog) -> list[tuple[str, str]]:
    """Return the address and the MAC of each time when a host became a holder."""
    found: list[tuple[str, str]] = []
    holders: dict[str, str] = {}
    for event in log.events:
        if event.host and (event.created or event.host != holders.get(event.name)):
            found.append((event.address, fleet.host(event.host).mac))
        holders[event.name] = event.host
    return found


def print_logs(fleet: Fleet) -> None:
    """Print the ends of the daemons' logs."""
    for host in fleet.hosts:
        for line in host.log().splitlines()[-12:]:
            print(f"    {host.name}: {line}", flush=True)


def describe(outcome: Outcome) -> str:
    """Return a line about a fault."""
    parts = [outcome.fault]
    if outcome.takeovers:
        parts.append(f"taken over after {max(outcome.takeovers):.2f} s at most")
    if outcome.silences:
        parts.append(f"silent for {max(outcome.silences):.3f} s at most")
    if outcome.others:
        gap = max(outcome.others, key=lambda each: each.seconds)
        between = f"{gap.before or 'nobody'} and {gap.after or 'nobody'}"
        parts.append(
            f"{len(outcome.others)} GAPS of others, {gap.target} was silent for"
            f" {gap.seconds:.3f} s, {gap.begin:.1f} s after the fault, between {between}"
        )
    return ", ".join([*parts, *outcome.problems])


def faults_of(outcomes: list[Outcome], doubles: list[Double], lease: float) -> list[str]:
    """Return a sentence for each thing that makes the run a failure."""
    wrong = [
        f"double answer for {each.target}: {' and '.join(each.macs)}, sent {each.sent:.3f},"
        f" answered {each.at:.3f}"
        for each in doubles
    ]
    for outcome in outcomes:
        wrong += [f"{outcome.fault}: {problem}" for problem in outcome.problems]
        bound = FAULTS[outcome.fault][1]
        worst = max(outcome.silences, default=0.0)
        slowest = max(outcome.takeovers, default=0.0)
        if bound is Bound.TAKEOVER and slowest > lease + SLACK:
            wrong.append(f"{outcome.fault}: taken over after {slowest:.2f} s")
        if bound is Bound.ORDERLY and worst > ORDERLY:
            wrong.append(f"{outcome.fault}: silent for {worst:.3f} s")
        if bound is Bound.NOTHING and worst:
            wrong.append(f"{outcome.fault}: silent for {worst:.3f} s")
        if bound is not Bound.NONE and outcome.others:
            worst = max(gap.seconds for gap in outcome.others)
            wrong.append(f"{outcome.fault}: others silent for {worst:.3f} s")
    return wrong


def print_table(outcomes: list[Outcome], report: Report, lease: float) -> None:
    """Print a line for each kind of fault."""
    print(f"\n{'fault':<24} {'times':>5}  {'taken over, s':>14}  {'silent, s':>14}  may")
    print(f"{'':<24} {'':>5}  {'p50':>6} {'max':>7}  {'p50':>6} {'max':>7}")
    for name in FAULTS:
        some = [outcome for outcome in outcomes if outcome.fault == name]
        if not some:
            continue
        takeovers = [each for outcome in some for each in outcome.takeovers]
        silences = [each for outcome in some for each in outcome.silences]
        figures = f"{_pair(takeovers)}  {_pair(silences)}"
        print(f"{name:<24} {len(some):>5}  {figures}  {_may(FAULTS[name][1], lease)}")
    print(f"solicitations: {report.sent}, answered: {report.answered}")
    print(f"double answers: {len(report.doubles)}", flush=True)


def _pair(values: list[float]) -> str:
    if not values:
        return f"{'-':>6} {'-':>7}"
    return f"{statistics.median(values):>6.3f} {max(values):>7.3f}"


def _may(bound: Bound, lease: float) -> str:
    texts = {
        Bound.TAKEOVER: f"be taken over after {lease + SLACK:g} s",
        Bound.ORDERLY: f"be silent for {ORDERLY:g} s",
        Bound.NOTHING: "lose nothing",
        Bound.NONE: "",
    }
    return texts[bound]


if __name__ == "__main__":
    sys.exit(main())
