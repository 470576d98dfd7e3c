"""Templates of verdicts: decisions about solicitations that differ only in their target. Pure.

A router that searches for many addresses sends one frame again and again, with another target. For
two such targets of one rule, decision.judge() gives the same reason, and answers that differ only
in the target and the checksum. Judge makes a template of one such verdict and fills it in for the
next solicitations, which takes less than half as long as a decision.

Templates are made of the frames that judge() has read and built, and know neither policy nor
checksums: sums of the words are differences to the ones of those frames. Everything that is not
this simple gets no template: DAD, unicast, rules that depend on the kernel's tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.ndp.decision import Admit, Lapsed, Match, Refuse, Verdict, judge
from ndxdp.ndp.frame import (
    NA_FRAME_LEN,
    NA_LEN,
    destination_of,
    eth_destination_of,
    eth_source_of,
    pack_advertisement,
    payload_length_of,
    source_of,
    unpack_advertisement,
    unpack_by_target,
)
from ndxdp.ndp.message import Host, fixed_source
from ndxdp.ndp.profile import Answer
from ndxdp.ndp.reason import Reason

TEMPLATES_MAX = 1024
"""How many templates a Judge has. Each takes about 1 KB."""

_FRAME_LEN = NA_FRAME_LEN
"""The length of a solicitation with one option of 8 bytes, which is that of an answer."""

_LEARNED = (Reason.ANSWERED, Reason.NO_RULE, Reason.DENIED, Reason.EXPIRED)

_ANSWERED, _LAPSED = Reason.ANSWERED, Reason.LAPSED
_from_bytes = int.from_bytes

Judged = tuple[Reason, bytes | None, Match | None]
"""The fields of a Verdict: making an object of that class takes longer than building the answer."""


class _Answer(NamedTuple):
    """The part that all answers by one template share.

    Attributes:
        words: The sum of the words that are the same, modulo 65535.
        targets: How often the target is among the words.
        source: The source; None for the target.
        before: Everything before the source.
        middle: Everything from the destination to the code.
        flags: The word with the flags.
        tllao: The option.
        macs: The source MAC of the solicitations, and the MAC that is answered.
        leased: The rule is leased; the clock is read for each answer.
    """

    words: int
    targets: int
    source: bytes | None
    before: bytes
    middle: bytes
    flags: bytes
    tllao: bytes
    macs: tuple[bytes, bytes]
    leased: bool


class _Template(NamedTuple):
    """The verdict about the solicitations of one shape.

    Attributes:
        words: The sum of the words that are the same, modulo 65535.
        verdict: The verdict about a solicitation that is not answered.
        answer: The answer to one that is; None if it is not.
    """

    words: int
    verdict: Verdict
    answer: _Answer | None


class Judge:
    """Judges frames like decision.judge(), by templates where it can.

    The arguments of one Judge do not change: for other rules or settings, make another one.
    """

    def __init__(
        self,
        host: Host,
        match: Callable[[bytes], Match | None],
        admit: Admit | None,
        refuse: Refuse | None,
        lapsed: Lapsed | None = None,
    ) -> None:
        """Make a judge without templates. The arguments are those of decision.judge().

        `match` returns the same object for all targets of a rule.
        """
        self._host, self._match, self._admit, self._refuse = host, match, admit, refuse
        self._lapsed = lapsed
        self._templates: dict[tuple[bytes, bytes, bytes, int, bytes, int], _Template] = {}

    def judge(self, frames: list[bytes]) -> list[Judged]:
        """Judge frames, each as decision.judge() does, in their order.

        At most one template is made, so that frames of ever new shapes cost little more than
        without templates.
        """
        find, match, admit = self._templates.get, self._match, self._admit
        lapsed = self._lapsed
        is_learning = True
        verdicts: list[Judged] = []
        for frame in frames:
            if len(frame) != _FRAME_LEN:
                verdicts.append(self._decide(frame))
                continue
            mac, low, head, group, code, checksum, reserved, target, option = unpack_by_target(
                frame
            )
            rule = match(target)
            template = find((mac, head, code, reserved, option, id(rule)))
            if template is None:
                verdicts.append(self._learn(frame) if is_learning else self._decide(frame))
                is_learning = False
                continue
            words, verdict, answer = template
            number = _from_bytes(target, "big")
            # validate() refuses some targets, which begin with 0 or 0xFF.
            if (
                low != group
                or not 0 < target[0] < 0xFF
                or (words + checksum + _from_bytes(low, "big") + number) % 0xFFFF
            ):
                verdicts.append(self._decide(frame))
            elif answer is None:
                verdicts.append(verdict)
            elif answer.leased and (lapsed is None or lapsed()):
                verdicts.append((_LAPSED, None, rule))
            elif admit is not None and (against := admit(*answer.macs)) is not None:
                verdicts.append((against, None, rule))
            else:
                words, targets, source, before, middle, flags, tllao, _, _ = answer
                checksum = -(words + targets * number) % 0xFFFF
                source = source or target
                reply = pack_advertisement(before, source, middle, checksum, flags, target, tllao)
                verdicts.append((_ANSWERED, reply, rule))
        return verdicts

    def _decide(self, frame: bytes) -> Verdict:
        return judge(frame, self._host, self._match, self._admit, self._refuse, self._lapsed)

    def _learn(self, frame: bytes) -> Verdict:
        """Judge a frame, and make a template of the verdict if it is simple."""
        verdict = self._decide(frame)
        reason, reply, rule = verdict
        destination = destination_of(frame)
        if (
            reason in _LEARNED
            and (rule is None or rule.answer in (Answer.ALWAYS, Answer.NEVER))
            and payload_length_of(frame) == NA_LEN
            and eth_destination_of(frame) == b"\x33\x33" + destination[12:]
            and destination[0] == 0xFF
            and source_of(frame) != UNSPECIFIED
        ):
            mac, low, head, _, code, checksum, reserved, target, option = unpack_by_target(frame)
            number = _from_bytes(target, "big")
            words = -(_from_bytes(low, "big") + checksum + number) % 0xFFFF
            answer = None
            if reply is not None:
                assert rule is not None
                source = fixed_source(self._host, rule.profile)
                targets = 2 if source is None else 1
                before, _, middle, checksum, flags, _, tllao = unpack_advertisement(reply)
                same = (-checksum - targets * number) % 0xFFFF
                macs = eth_source_of(frame), eth_destination_of(reply)
                answer = _Answer(
                    same, targets, source, before, middle, flags, tllao, macs, rule.leased
                )
            if len(self._templates) >= TEMPLATES_MAX:
                del self._templates[next(iter(self._templates))]
            key = mac, head, code, reserved, option, id(rule)
            self._templates[key] = _Template(words, verdict, answer)
        return verdict
