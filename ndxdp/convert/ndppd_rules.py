"""Rules of ndppd that overlap, as rules of which only the most specific counts. Pure.

ndppd collects all rules that match a target: one `static` among them answers at once; otherwise
the target is asked for on the interfaces of all the others. So a rule of ours has to say what the
wider ones around it would have added.
"""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.convert.draft import DraftInterface, Note
from ndxdp.rules.interface_name import DEV_MAX
from ndxdp.rules.prefix import Prefix, mask

METHODS = ("iface", "auto", "static")
"""A later one answers at least whenever an earlier one does."""

_ANSWERS = {"iface": "neighbour", "auto": "neighbour", "static": "always"}
"""With auto ndppd solicits, too, on whichever interface the route leads to."""


class Method(NamedTuple):
    """How a rule answers. ways: interfaces to ask on. line: of the rule that says so."""

    name: str
    ways: tuple[str, ...]
    line: int


def both(first: Method, second: Method) -> Method:
    """What answers whenever one of the two does."""
    if first.name == second.name == "iface":
        new = tuple(way for way in second.ways if way not in first.ways)
        # More than fit into a rule are refused in the end, so that these few stand for all.
        ways = (first.ways + new)[: DEV_MAX + 1]
        return Method("iface", ways, second.line if new else first.line)
    return max(first, second, key=lambda method: METHODS.index(method.name))


def settle(interface: DraftInterface, methods: dict[Prefix, Method]) -> None:
    """Set answer and via of each rule. methods: what each rule says itself, by prefix."""
    lengths = sorted({prefix.length for prefix in methods}, reverse=True)
    for rule in interface.rules:
        own = whole = methods[rule.prefix]
        for length in lengths:
            if length < rule.prefix.length:
                around = methods.get(Prefix(mask(rule.prefix.address, length), length))
                whole = both(whole, around) if around else whole
        rule.answer, rule.via = _ANSWERS[whole.name], whole.ways
        if (whole.name, whole.ways) != (own.name, own.ways):
            rule.notes.append(
                Note(own.line, f"in ndppd the wider rule in line {whole.line} answers here, too")
            )
    if all(rule.answer != "neighbour" for rule in interface.rules):
        interface.deadline = None
