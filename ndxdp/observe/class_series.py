"""The series of rule classes in the metrics: one of each kind for a class, or one for many.

A rule class stays in its slot as long as it has rules, and the first slots are used first. So the
classes in the first slots have series of their own, and all others share one: no count moves from
one series to another, and no counter decreases except at a start from zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ndxdp.rules.rule import UNCOUNTED
from ndxdp.store.maps import Maps
from ndxdp.store.records import ClassCount, RuleCount

OTHER = "(other)"
"""The labels `source` and `label` of the shared series. No origin of rules has parentheses."""


class ClassSeries(NamedTuple):
    """The values of one set of series.

    Attributes:
        source: The origin of the rules.
        label: The label of the rules.
        solicited: Solicitations that a rule of the classes matched.
        answered: How many of them were answered.
        last_answer: The time of the last answer, ns of CLOCK_MONOTONIC; 0 without one.
    """

    source: str
    label: str
    solicited: int
    answered: int
    last_answer: int


def read(maps: Maps, counted: RuleCount, *, all_classes: bool) -> tuple[list[ClassSeries], int]:
    """Return the series of an interface, and how many classes share one.

    Args:
        maps: The interface's maps.
        counted: The result of rule_count().
        all_classes: True if no classes share a series.
    """
    if all_classes:
        return _own(maps.class_counts(counted)), 0
    series = _own(maps.first_class_counts(counted))
    further = maps.further_count(counted)
    if further is None:
        return series, 0
    rest = (further.solicited, further.answered, further.last_answer or 0)
    return [*series, ClassSeries(OTHER, OTHER, *rest)], further.classes


def _own(counts: Iterable[ClassCount]) -> list[ClassSeries]:
    """Return a set of series for each origin and label; classes may differ in their profiles."""
    found: dict[tuple[str, str], ClassSeries] = {}
    for each in counts:
        # The series of a class end with its last rule.
        if not each.rules or each.label == UNCOUNTED:
            continue
        key = each.source, each.label
        before = found.get(key, ClassSeries(*key, 0, 0, 0))
        found[key] = ClassSeries(
            *key,
            before.solicited + each.solicited,
            before.answered + each.answered,
            max(before.last_answer, each.last_answer or 0),
        )
    return list(found.values())
