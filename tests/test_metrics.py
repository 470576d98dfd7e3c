"""Metrics: each counter against known packets, in each mode, and `status`."""

from __future__ import annotations

import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ndxdp.kernel.abi import MAX_SOLICITORS, Mode
from ndxdp.ndp.frame import source_of, target_of, untagged
from ndxdp.ndp.reason import Reason
from ndxdp.observe import metrics
from ndxdp.observe.metric_kinds import KINDS
from ndxdp.rules.difference import difference
from ndxdp.rules.prefix import parse_prefix
from ndxdp.rules.rule import UNCOUNTED
from ndxdp.rules.ruleset import Rules
from ndxdp.rules.table import Table
from ndxdp.session.detach import detach_interface
from ndxdp.session.request import AttachOptions, AttachRequest
from ndxdp.session.session import Session
from ndxdp.store.directories import Trees
from ndxdp.store.instance import open_pinned
from ndxdp.store.maps import Maps
from tests import test_program, test_userspace
from tests.fixtures import network
from tests.fixtures.network import (
    BEHIND,
    NDXDP,
    REPOSITORY,
    TARGET,
    UPLINK,
    Network,
    done,
    eventually,
    ndxdp,
    without_gateway,
)
from tests.fixtures.pair import RECEIVER, pair
from tests.fixtures.prometheus import parsed
from tests.packets import BURST, CASES, RULES, Case
from tests.packets import HOST as BENCH_HOST

DOCS = REPOSITORY / "docs"

# ---- counters: known packets, and their totals ---------------------------------------------------

Send = Callable[[Case, Reason], None]
"""A function that puts a case's frame on the link, and waits for the verdict with this reason."""


@contextmanager
def program_bench(mode: Mode, trees: Trees) -> Iterator[tuple[Callable[[Case], None], Send]]:
    with pair(BENCH_HOST.mac) as ends:
        request = AttachRequest(RECEIVER, options=AttachOptions(mode))
        Session.attach(trees, request).close()
        with open_pinned(trees.pins, RECEIVER) as instance:
            instance.maps.apply(difference(RULES, {}), Rules())
            bench = test_program.Bench(mode, ends, instance, instance.maps.settings())

            def set_up(case: Case) -> None:
                bench.set_up(case)
                if case.rate_exceeded:
                    for key, _ in list(instance.maps._maps["limiter"].items()):
                        instance.maps._maps["limiter"].delete(key)

            def send(case: Case, reason: Reason) -> None:
                ends.send(case.frame)
                assert any(ends.outcome(nothing=reason is Reason.RATE_LIMITED)) == (
                    reason is not Reason.RATE_LIMITED
                )

            yield set_up, send
        detach_interface(trees, RECEIVER)


@contextmanager
def userspace_bench(trees: Trees) -> Iterator[tuple[Callable[[Case], None], Send]]:
    with test_userspace.opened(trees) as bench:

        def set_up(case: Case) -> None:
            bench.set_up(case)
            if case.rate_exceeded:  # a changed rate makes the path forget the known MACs
                bench.path._limiter._spent.clear()

        def send(case: Case, reason: Reason) -> None:
            bench.put(case.frame)
            if reason.is_answer:
                assert bench.ends.reply() is not None

        yield set_up, send


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.label)
def test_counters_are_exact(mode: Mode, trees: Trees) -> None:
    """Count every case of the table exactly, some of them twice or three times."""
    bench = userspace_bench(trees) if mode is Mode.USERSPACE else program_bench(mode, trees)
    reasons, solicited, answered = Counter[str](), Counter[Any](), Counter[Any]()
    table = Table.of(RULES)

    def count(case: Case, reason: Reason) -> None:
        if reason is Reason.NOT_NS:
            return
        reasons[reason.label] += 1
        if reason > Reason.NO_RULE:
            found = table.lookup(target_of(untagged(case.frame)))
            assert found is not None
            key = RECEIVER, found[1].label, found[1].origin
            solicited[key] += 1
            answered[key] += reason.is_answer

    with bench as (set_up, send):
        for nth, case in enumerate(CASES):
            set_up(case)
            if case.rate_exceeded:
                before = case.reason
                if before in (Reason.RATE_LIMITED, Reason.GATEWAY_LIMITED):
                    is_dad = not any(source_of(untagged(case.frame)))
                    before = Reason.ANSWERED_DAD if is_dad else Reason.ANSWERED
                for _ in range(BURST):
                    send(case, before)
                    count(case, before)
            for _ in range(1 if case.rate_exceeded else 1 + nth % 3):
                send(case, case.reason)
                count(case, case.reason)
        samples = parsed(done("metrics"))
    assert len(reasons) >= 16
    expected = {(RECEIVER, each.label): reasons[each.label] for each in list(Reason)[1:]}
    assert samples["ndxdp_solicitations_total"] == expected
    total = reasons["answered"] + reasons["answered_dad"]
    assert samples["ndxdp_advertisements_total"] == {(RECEIVER, mode.label): total}
    for name, counted in (("solicitations", solicited), ("advertisements", answered)):
        shown = samples[f"ndxdp_group_{name}_total"]
        assert {key: value for key, value in shown.items() if value} == +counted
    by_source = Counter(rule.origin for rule in RULES.values())
    assert samples["ndxdp_rules"] == {(RECEIVER, source): n for source, n in by_source.items()}
    addresses = sum(prefix.length == 128 for prefix in RULES)
    assert samples["ndxdp_map_entries"][RECEIVER, "addresses"] == addresses
    assert samples["ndxdp_map_entries"][RECEIVER, "prefixes"] == len(RULES) - addresses
    modes = {(RECEIVER, each.label): float(each is mode) for each in Mode}
    assert samples["ndxdp_mode"] == modes
    if mode is Mode.USERSPACE:
        assert samples["ndxdp_socket_errors_total"] == {(RECEIVER,): 0}
    else:
        assert samples["ndxdp_driver_transmit_failures_total"] == {(RECEIVER,): 0}


def test_solicitors_over_the_rate_are_counted(attached: Network) -> None:
    with without_gateway():
        done("attach", UPLINK, "--rate", "0.01", "--burst", "2")
        shown = []
        for _ in range(3):
            shown.append(parsed(done("metrics"))["ndxdp_rate_limited_sources"][(UPLINK,)])
            attached.ask(TARGET, wait=0.2)
        shown.append(parsed(done("metrics"))["ndxdp_rate_limited_sources"][(UPLINK,)])
        assert shown == [0, 0, 1, 1]
        samples = parsed(done("metrics"))
        assert samples["ndxdp_limiter_sources"] == {(UPLINK,): 1}
        assert samples["ndxdp_limiter_max_sources"] == {(UPLINK,): MAX_SOLICITORS}


def test_a_scrape_reads_the_rule_classes_once(
    attached: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = Maps._packed_classes

    def counted(maps: Maps) -> dict[int, bytes]:
        reads.append(maps)
        return read(maps)

    monkeypatch.setattr(Maps, "_packed_classes", counted)
    assert b"ndxdp_group_solicitations_total" in metrics.Exposition(Trees()).text()
    assert len(reads) == 1


def test_rules_that_are_not_counted_have_no_series(net: Network, tmp_path: Path) -> None:
    file = tmp_path / "ndxdp.toml"
    table = "[[interface.prefix]]\nprefix = "
    file.write_text(
        f'[[interface]]\nname = "{UPLINK}"\n{table}"{BEHIND}"\n'
        + "".join(f'{table}"2001:db8:{n:x}::/64"\ncount = false\n' for n in range(1, 200))
    )
    run = net.run("-c", str(file))
    try:
        eventually(lambda: (UPLINK, "config") in parsed(done("metrics")).get("ndxdp_rules", {}))
        samples = parsed(done("metrics"))
        assert samples["ndxdp_rules"][UPLINK, "config"] == 200
        series = samples["ndxdp_group_solicitations_total"]
        assert [key for key in series if "config" in key] == [
            (UPLINK, str(parse_prefix(BEHIND)), "config")
        ]
        groups = network.status()["groups"]
        assert [each["rules"] for each in groups if each["label"] == UNCOUNTED] == [199]
    finally:
        run.end()
        done("detach", UPLINK)


def test_every_metric_is_explained() -> None:
    page = (DOCS / "monitoring.md").read_text()
    rows = re.findall(r"^\| `(ndxdp_\w+)` \| ([^|]*) \|", page, re.MULTILINE)
    documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert documented == {name: set(kind.labels) for name, kind in KINDS.items()}


# ---- status --------------------------------------------------------------------------------------


def test_status_shows_what_happens_now(attached: Network) -> None:
    with attached.solicited_continuously() as missed:
        text = done("status")
    assert missed == []
    found = re.search(r"answered  \d+ of \d+ solicitations, now (\S+)/s of (\S+)/s", text)
    assert found is not None
    assert 0 < float(found[1]) <= float(found[2])
    assert re.search(r"\d+ answered, now \S+/s$", text, re.MULTILINE)
    assert re.search(rf"{re.escape(BEHIND)} \(manual\), now \S+/s$", text, re.MULTILINE)


def test_status_watches(attached: Network) -> None:
    process = subprocess.Popen(
        [*NDXDP, "status", "--watch", "0.1"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        # A background process of a shell's script ignores SIGINT, and so would this one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += line.startswith(f"{UPLINK}  tc")
            if seen == 3:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 130
    refused = ndxdp("status", "--watch", "--json")
    assert (refused.code, len(refused.err.splitlines())) == (2, 2)


def test_status_warns(net: Network) -> None:
    done("attach", UPLINK, "--mode", "tc", "--max-addresses", "10", "-n", BEHIND)
    done("prefix", "add", *(f"2001:db8::d:0:0:{n:x}" for n in range(1, 8)))
    assert network.status()["warnings"] == [
        "the map of addresses is nearly full: it has room for 0 more;"
        f" `ndxdp attach {UPLINK} --max-addresses 16` makes room"
    ]
    done("attach", UPLINK, "--max-addresses", "16")
    assert network.status()["warnings"] == []
    done("detach", UPLINK)
