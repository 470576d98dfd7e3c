"""The queue of guests: no interface and no MAC delays the others by more than one turn."""

from __future__ import annotations

import pytest

from ndxdp.upstream.fair_queue import FairQueue

Put = tuple[str, int, str]


def made(puts: list[Put]) -> FairQueue:
    queue = FairQueue()
    for name, ifindex, mac in puts:
        queue.put(name.encode(), ifindex, mac.encode())
    return queue


def drained(queue: FairQueue) -> list[str]:
    found: list[str] = []
    while (address := queue.take()) is not None:
        found.append(address.decode())
    return found


@pytest.mark.parametrize(
    ("puts", "order"),
    [
        pytest.param([], [], id="empty"),
        pytest.param([("a", 1, "m"), ("b", 1, "m")], ["a", "b"], id="in order"),
        pytest.param([("a", 1, "m"), ("a", 1, "m")], ["a"], id="once"),
        pytest.param(
            [("a", 1, "m"), ("b", 1, "m"), ("a", 1, "m")], ["a", "b"], id="keeps its place"
        ),
        pytest.param(
            [("a", 1, "m"), ("b", 1, "m"), ("a", 2, "m")], ["b", "a"], id="another interface"
        ),
        pytest.param(
            [("a", 1, "m"), ("b", 1, "m"), ("c", 1, "n")], ["a", "c", "b"], id="MACs take turns"
        ),
        pytest.param(
            [("a", 1, "m"), ("b", 1, "n"), ("c", 1, "o"), ("d", 2, "p")],
            ["a", "d", "b", "c"],
            id="interfaces take turns",
        ),
    ],
)
def test_order(puts: list[Put], order: list[str]) -> None:
    queue = made(puts)
    assert len(queue) == len(order)
    assert drained(queue) == order
    assert len(queue) == 0


def test_discard() -> None:
    queue = made([("a", 1, "m"), ("b", 1, "m"), ("c", 2, "m")])
    for name in (b"b", b"c", b"never"):
        queue.discard(name)
        assert name not in queue
    assert drained(queue) == ["a"]
    queue.put(b"a", 1, b"m")
    queue.clear()
    assert queue.take() is None


def test_a_flood_delays_nobody() -> None:
    """A guest with ten thousand addresses is first; each other one is announced in its turn."""
    puts = [(f"flood{number}", 1, "evil") for number in range(10_000)]
    queue = made([*puts, *((f"good{number}", 1, f"m{number}") for number in range(3))])
    assert [queue.take() for _ in range(4)] == [b"flood0", b"good0", b"good1", b"good2"]
