"""Random frames: the kernel's programs and ndp.py must agree on each one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ndxdp.ndp.reason import Reason
from ndxdp.store.directories import Trees
from tests.fuzz.__main__ import compare_set
from tests.fuzz.comparison import MODES, Programs, programs
from tests.fuzz.frames import Frames, random_case
from tests.packets import BY_TABLES, CASES, HOST

SETS, SIZE = 30, 2_000
SEED = "4862"

_NOT_REACHED = {Reason.RATE_LIMITED, Reason.GATEWAY_LIMITED}  # no rate limit applies to a test run
_NOT_REACHED |= {Reason.RESIZE_FAILED, Reason.SEND_FAILED}
_NOT_REACHED |= BY_TABLES - {Reason.NO_ROUTE}


@pytest.fixture(scope="module")
def loaded(trees: Trees) -> Iterator[Programs]:
    with programs(trees) as made:
        yield made


def test_programs_agree(loaded: Programs) -> None:
    seen: Counter[str] = Counter()
    frames: Counter[str] = Counter()
    for number in range(SETS):
        found = compare_set(loaded, SEED, number, SIZE)
        assert not found.wrong, "\n".join(found.wrong)
        seen += Counter(found.reasons)
        frames += Counter(found.frames)
    assert {*seen} == {reason.label for reason in {*Reason} - _NOT_REACHED}, seen
    assert seen["answered"] + seen["answered_dad"] > SETS * SIZE // 10, seen
    assert all(frames[mode.label] > SETS * SIZE // 2 for mode in MODES), frames


def test_disagreements_are_found(loaded: Programs) -> None:
    """Find a wrong reply, a wrong reason and a wrong count."""
    rng = random.Random(SEED)
    case = replace(random_case(rng, HOST), host=HOST, expired=False, lapsed=False)
    loaded.set_up(case)
    frame = next(case.frame for case in CASES if case.reason is Reason.BAD_HOP_LIMIT)
    right = loaded.judge(frame)
    assert not [*loaded.disagreements(frame, right), *loaded.miscounts([(frame, right)])]
    wrong = right._replace(reason=Reason.BAD_CODE)
    assert len([*loaded.disagreements(frame, wrong)]) == len(MODES)
    assert len([*loaded.miscounts([(frame, wrong)])]) == len(MODES)
    answered = next(
        (each, verdict)
        for each in iter(Frames(rng, case).frame, None)
        if (verdict := loaded.judge(each)).reason is Reason.ANSWERED
    )
    reply = bytearray(answered[1].reply or b"")
    reply[-1] ^= 1
    assert [*loaded.disagreements(answered[0], answered[1]._replace(reply=bytes(reply)))]
