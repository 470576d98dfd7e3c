"""Packed address sets, compared with Python's own sets, small and large."""

from __future__ import annotations

import random

import pytest

from ndxdp.rules.address_set import EMPTY, AddressSet

SIZES = (0, 1, 5, 300, 5000, 20_000)


def some(rng: random.Random, count: int, varying: int) -> set[bytes]:
    """Return random addresses that differ in their last `varying` bytes."""
    return {bytes(16 - varying) + rng.randbytes(varying) for _ in range(count)}


@pytest.mark.parametrize("many", SIZES)
@pytest.mark.parametrize("few", SIZES)
@pytest.mark.parametrize("varying", [1, 2, 16])
def test_same_results_as_sets(few: int, many: int, varying: int) -> None:
    rng = random.Random(few * 31 + many)
    a, b = some(rng, few, varying), some(rng, many, varying)
    b |= set(rng.sample(sorted(a), len(a) // 2))
    ours, theirs = AddressSet.of(a), AddressSet.of(b)
    assert list(ours) == sorted(a)
    assert (len(ours), bool(ours)) == (len(a), bool(a))
    for made, expected in (
        (ours | theirs, a | b),
        (ours - theirs, a - b),
        (theirs - ours, b - a),
        (ours & theirs, a & b),
        (ours | ours, a),
        (ours - ours, set()),
    ):
        assert list(made) == sorted(expected)
        assert made == AddressSet.of(expected)
    for address in (*rng.sample(sorted(b), min(20, len(b))), bytes(16), b"\xff" * 16):
        assert (address in ours) is (address in a)


def test_endings() -> None:
    rng = random.Random(5)
    every = some(rng, 3000, 2) | {rng.randbytes(16) for _ in range(50)}
    packed = AddressSet.of(every)
    endings = {address[13:] for address in every}
    for ending in (*endings, *(rng.randbytes(3) for _ in range(99)), bytes(3), b"\xff" * 3):
        assert packed.has_ending(ending) is (ending in endings)
    assert not EMPTY.has_ending(bytes(3))


def test_is_packed() -> None:
    one, two = bytes(15) + b"\1", bytes(15) + b"\2"
    assert AddressSet(two + one + two).packed == one + two
    assert AddressSet(bytearray(two + one)) == AddressSet.of([one, two])
    assert EMPTY.packed == b""
    assert repr(AddressSet(one)) == f"AddressSet.of([{one!r}])"
    assert len({AddressSet(one), AddressSet(one), AddressSet(two)}) == 2
    assert one[:15] not in AddressSet(one)
    assert "1" not in AddressSet(one)


def test_the_same_address_many_times() -> None:
    assert list(AddressSet(bytes(16) * 10_000)) == [bytes(16)]


def test_operations_without_effect_make_no_copy() -> None:
    """Return the same object if an operation changes nothing: a million addresses take 16 MB."""
    many, other = AddressSet.of(some(random.Random(0), 5000, 4)), AddressSet(b"\xff" * 16)
    assert many - other is many
    assert many - EMPTY is many
    assert many | EMPTY is many
    assert EMPTY | many is many
