"""Overlapping rules of ndppd, converted into rules of which the most specific applies. Pure.

ndppd collects all rules that match a target. If one of them is `static`, ndppd answers at once;
otherwise it solicits the target on the interfaces of all these rules. So a converted rule has to
include what the wider rules around it add.
"""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.convert.draft import DraftInterface, Note
from ndxdp.rules.interface_name import DEV_MAX
from ndxdp.rules.prefix import Prefix, mask

METHODS = ("iface", "auto", "static")
"""Methods, each of which answers in at least all cases of the former one."""

_ANSWERS = {"iface": "neighbour", "auto": "neighbour", "static": "always"}
"""With auto, too, ndppd solicits: on the interface by which the route leaves."""


class Method(NamedTuple):
    """The method of a rule, the interfaces to solicit on, and the line of the rule."""

    name: str
    interfaces: tuple[str, ...]
    line: int


def both(first: Method, second: Method) -> Method:
    """Return the method that answers whenever one of the two does."""
    if first.name == second.name == "iface":
        new = tuple(name for name in second.interfaces if name not in first.interfaces)
        # A rule with more than DEV_MAX interfaces is refused later, so that the rest can be cut.
        interfaces = (first.interfaces + new)[: DEV_MAX + 1]
        return Method("iface", interfaces, second.line if new else first.line)
    return max(first, second, key=lambda method: METHODS.index(method.name))


def apply_methods(interface: DraftInterface, methods: dict[Prefix, Method]) -> None:
    """Set answer and dev of each rule.

    Args:
        interface: The interface with its rules.
        methods: The method that each rule names itself, by prefix.
    """
    lengths = sorted({prefix.length for prefix in methods}, reverse=True)
    for rule in interface.rules:
        own = whole = methods[rule.prefix]
        for length in lengths:
            if length < rule.prefix.length:
                around = methods.get(Prefix(mask(rule.prefix.address, length), length))
                whole = both(whole, around) if around else whole
        rule.answer, rule.dev = _ANSWERS[whole.name], whole.interfaces
        if (whole.name, whole.interfaces) != (own.name, own.interfaces):
            rule.notes.append(
                Note(own.line, f"in ndppd the wider rule in line {whole.line} also answers here")
            )
    if all(rule.answer != "neighbour" for rule in interface.rules):
        interface.deadline = None
