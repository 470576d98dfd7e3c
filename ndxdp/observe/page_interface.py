"""The part of the status page on one interface. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ndxdp.observe.page_parts import counted, facts, number, paragraph, part_of, rate, table
from ndxdp.observe.status import Rates, answered
from ndxdp.observe.status_text import (
    headline,
    mode_refusals,
    multicast_text,
    since,
    warnings,
    xdp_before,
)

_CLASSES_MAX = 20
"""Rows of the table of rule classes: the busiest classes are shown."""


def interface(data: Mapping[str, Any], now: Rates | None) -> Iterator[str]:
    """Yield what is known about an interface that could be read.

    Args:
        data: Its status, as returned by status_data().
        now: Its present rates; None if they are not known.
    """
    for warning in warnings(data):
        yield paragraph(warning, "bad")
    yield from facts(_facts(data, now))
    reasons = data["reasons"]
    by_reason, by_class = (now.by_reason, now.by_class) if now else ({}, {})
    yield from table(
        "Solicitations",
        ("reason", "now", "total"),
        (
            (reason, rate(by_reason.get(reason, 0)), number(count))
            for reason, count in sorted(reasons.items(), key=lambda item: -item[1])
            if count
        ),
    )
    classes = [each for each in data["groups"] if each["solicited"] and each["rules"]]
    classes.sort(key=lambda each: -each["solicited"])
    several = len(classes) > _CLASSES_MAX
    yield from table(
        f"The {_CLASSES_MAX} busiest rules of {number(len(classes))}" if several else "Rules",
        ("rule", "now", "solicited", "answered"),
        (
            (
                f"{each['label']} ({each['source']})",
                rate(by_class.get((each["source"], each["label"]), 0)),
                number(each["solicited"]),
                number(each["answered"]),
            )
            for each in classes[:_CLASSES_MAX]
        ),
    )


def _facts(data: Mapping[str, Any], now: Rates | None) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each fact about an interface."""
    reasons, rules = data["reasons"], data["rules"]
    yield "Mode", headline(data) + ("; paused: nothing is answered" if data["paused"] else "")
    for refused in mode_refusals(data):
        yield "Fallback", f"not {refused}"
    for sentence in xdp_before(data):
        yield "Order", sentence
    text = f"{number(answered(reasons))} of {counted(sum(reasons.values()), 'solicitation')}"
    if now:
        solicited = rate(sum(now.by_reason.values()))
        text += f", now {rate(answered(now.by_reason))} of {solicited}"
    last = data["last_answer"]
    yield "Answered", text + (f", the last {since(last)}" if last else "")
    addresses = part_of(rules["addresses"], rules["max_addresses"], "address", "addresses")
    text = f"{addresses}, {counted(rules['prefixes'], 'prefix', 'prefixes')}"
    sources = ", ".join(f"{source} {number(n)}" for source, n in rules["by_source"].items())
    yield "Rules", text + (f" (by {sources})" if sources else "")
    yield "Answers from", f"{data['mac']}, {data['link_local']}"
    yield from _limits(data)
    multicast = multicast_text(data["multicast"])
    if multicast:
        yield "Multicast", multicast
    if any(data["resolver"].values()):
        counts = ", ".join(f"{key} {number(count)}" for key, count in data["resolver"].items())
        yield "Resolver", counts
    if data["gateway_care"] and data["gateway_care"]["source"]:
        yield "Gateway", f"solicited from {data['gateway_care']['source']}"
    if data["socket"] and any(data["socket"].values()):
        yield "Socket", ", ".join(f"{key} {number(n)}" for key, n in data["socket"].items())


def _limits(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if data["rate"]:
        text = f"{data['rate']:g} answers/s for one soliciting MAC, {data['burst']} at once"
        yield "Limit", text
    if data["interface_rate"]:
        yield "Limit", f"{data['interface_rate']:g} answers/s in all"
    if data["gateway_rate"] and (data["rate"] or data["interface_rate"]):
        yield "Limit", f"{data['gateway_rate']:g} answers/s for each gateway"
