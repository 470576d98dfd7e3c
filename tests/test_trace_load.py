"""Tracing under load, and the heavy hitters of `ndxdp top`."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from ndxdp.ndp.reason import Reason
from ndxdp.observe.heavy_hitters import HeavyHitters
from tests.fixtures import network
from tests.fixtures.network import (
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    eventually,
    ndxdp,
)
from tests.fixtures.traced import (
    OTHER,
    OTHER_MAC,
    Tracing,
    flood,
    in_mode,
    opened,
    seen,
    send,
    solicitation,
    trace_deadline,
)

MINUTE = 60_000_000_000

# ---- under load ----------------------------------------------------------------------------------


def test_answers_do_not_suffer(in_each_mode: Network, tmp_path: Path) -> None:
    """Lose no answer at 5 000 a second while each is traced.

    One flood of three must show it: other work on this machine may delay the process of userspace
    mode for longer than its socket's buffer lasts.
    """
    for _ in range(3):
        with (tmp_path / "lines").open("w+b") as lines:
            with Tracing("trace", stdout=lines.fileno()) as tracing:
                sent = flood(5000, 2)
                result = tracing.end()
            lines.seek(0)
            rows = sum(1 for _ in lines)
        total, shown, lost = seen(result)
        assert rows == shown == total - lost
        assert shown > 0
        if sent["unanswered"] == 0:
            break
    assert sent["unanswered"] == 0
    assert total == sent["sent"]


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_a_flood(net: Network, mode: str, tmp_path: Path) -> None:
    """Trace 20 000 a second, first with a running tracer, then with a stopped one.

    Lost events are counted, and the tracer's memory does not grow.
    """
    with in_mode(net, mode), (tmp_path / "lines").open("w+b") as lines:
        with Tracing("trace", stdout=lines.fileno()) as tracing:
            before = tracing.memory()
            sent = flood(20_000, 1)["sent"]
            tracing.process.send_signal(signal.SIGSTOP)
            keep_traced()
            sent += flood(20_000, 1)["sent"]
            tracing.process.send_signal(signal.SIGCONT)
            grown = tracing.memory() - before
            result = tracing.end()
        lines.seek(0)
        rows = sum(1 for _ in lines)
        counted = sum(network.status()["reasons"].values())
    total, shown, lost = seen(result)
    assert total == counted
    assert mode == "userspace" or total == sent  # its socket may overflow
    assert rows == shown == total - lost
    assert lost > 10_000, "the flood was too small"
    assert shown > 500
    assert grown < 4 << 20


def keep_traced() -> None:
    """Extend tracing by a minute on behalf of a stopped tracer."""
    with opened() as maps:
        maps.set_trace(time.monotonic_ns() + MINUTE)


def test_sampling_a_flood(on_tc: Network) -> None:
    """Sample on each CPU separately, so the number is approximate; all events are seen."""
    with Tracing("trace", "--every", "100") as tracing:
        sent = flood(5000, 1)
        result = tracing.end()
    total, shown, lost = seen(result)
    assert "one of 100 examined" in result.err
    assert total == sent["sent"]
    assert lost == 0
    assert abs(shown - total / 100) <= os.cpu_count()  # type: ignore[operator]


# ---- top's heavy hitters -------------------------------------------------------------------------


def test_top(in_each_mode: Network) -> None:
    frames = [solicitation(TARGET, ROUTER_MAC)] * 12 + [solicitation(OTHER, OTHER_MAC)] * 5
    with Tracing("top", "--seconds", "60") as tracing:
        for frame in frames:
            send(frame)
        eventually(lambda: sum(network.status()["reasons"].values()) == len(frames))
        result = tracing.end()
    assert (result.code, result.err) == (0, "")
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert lines[0].startswith("17 solicitations in ")
    assert lines[0].endswith(" s, 0 of them lost")
    who = ROUTER_LINK_LOCAL
    assert lines[1:] == [
        "",
        f"{UPLINK} sources",
        f"12 {who} ({ROUTER_MAC}) answered 12",
        f"5 {who} ({OTHER_MAC}) no_rule 5",
        "",
        f"{UPLINK} targets",
        f"12 {TARGET} answered 12",
        f"5 {OTHER} no_rule 5",
    ]


def test_top_ends_after_its_seconds(on_tc: Network) -> None:
    result = ndxdp("top", "--seconds", "0.2", "--rows", "1")
    assert result.code == 0
    assert result.out.startswith("0 solicitations in 0.")
    assert trace_deadline() == 0


def test_busiest_are_found_in_bounded_memory() -> None:
    """Find two frequent keys among 200 000 that come once; the bounds hold for every key."""
    rng = random.Random(4861)
    size = 256
    keys = [*range(200_000), *[-1] * 20_000, *[-2] * 10_000]
    rng.shuffle(keys)
    hitters: HeavyHitters[int] = HeavyHitters(size)
    largest = 0
    for key in keys:
        hitters.add(key, Reason.NO_RULE if key % 2 else Reason.ANSWERED)
        largest = max(largest, len(hitters))
    assert largest <= 2 * size + 1
    true = Counter(keys)
    most = hitters.most(10)
    assert [one.key for one in most[:2]] == [-1, -2]
    assert hitters.error_bound <= len(keys) / size
    for one in most:
        assert true[one.key] - hitters.error_bound <= one.total <= true[one.key]
        assert one.total == sum(one.reasons.values())
    assert most[0].reasons.keys() == {Reason.NO_RULE}


def test_few_keys_are_all_counted() -> None:
    hitters: HeavyHitters[str] = HeavyHitters(2)
    for key in "abacabad":
        hitters.add(key, Reason.ANSWERED)
    assert hitters.error_bound == 0
    assert [(one.key, one.total) for one in hitters.most(2)] == [("a", 4), ("b", 2)]
