"""Detection of `always` rules that are too broad. Pure.

An `always` rule answers for every address of its prefix. If the prefix contains addresses of other
nodes on the uplink, ndxdp answers for these nodes as well and defends their own addresses against
them in Duplicate Address Detection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from ndxdp.errors import NdxdpError, UsageError
from ndxdp.ndp.address import is_link_local
from ndxdp.ndp.profile import Answer
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import LABEL_MAX, Rule, cut
from ndxdp.rules.ruleset import Rules

LINK_LOCAL = Prefix(b"\xfe\x80" + bytes(14), 10)

WIDEST = 32
"""Bits of the widest prefix that may be behind one host. A registry assigns a /32 to a provider: a
wider prefix contains networks of other providers."""

USUAL = 64
"""Bits of the on-link prefix of nearly every link (RFC 4291 section 2.5.4)."""

_LEFT_OUT = "left out: "
_EXAMPLES = 3  # narrower prefixes that a hint names


class BroadRule(NamedTuple):
    """An `always` rule that answers for other nodes.

    Attributes:
        prefix: The prefix of the rule.
        rule: The rule.
        covers: The on-link prefix of the uplink that the rule covers, or LINK_LOCAL; None for a
            rule that covers nearly every address.
    """

    prefix: Prefix
    rule: Rule
    covers: Prefix | None

    def sentence(self, interface: str = "") -> str:
        """Return why the rule is too broad; interface: the uplink that the rule covers."""
        rule = f"the always rule for {self.prefix}"
        if self.covers is None:
            return f"{rule} answers for nearly every address, those of other nodes too"
        if self.covers == LINK_LOCAL:
            return f"{rule} answers for link-local addresses, which no host forwards to"
        return (
            f"{rule} answers for the other nodes on {interface}, too: {self.covers} is on-link"
            " there"
        )

    def hint(self, behind: Iterable[Prefix] = (), *, in_file: bool = False) -> str:
        """Return a hint on how to write a narrower rule.

        Args:
            behind: The prefixes inside the rule's prefix that the host routes to networks behind.
            in_file: True if the rule is in the configuration file, not on a command line.
        """
        force = "force = true" if in_file else "--force"
        if self.covers == LINK_LOCAL:
            return f"leave it out; {force} adds it all the same"
        known = [str(each) for each in behind]
        narrower = "name the prefix of what is behind this host"
        if known:
            more = ", …" if len(known) > _EXAMPLES else ""
            narrower = f"name what is behind this host: {', '.join(known[:_EXAMPLES])}{more}"
        answer = 'answer = "neighbour" or "routed"' if in_file else "--answer neighbour or routed"
        return f"{narrower}; or {answer}, for no other node; {force} adds it all the same"

    def usage_error(self) -> UsageError:
        """Return the error for a rule that is too broad on every interface."""
        return UsageError(self.sentence(), self.hint())

    def error(self, interface: str, behind: Iterable[Prefix]) -> NdxdpError:
        """Return the error for a rule that covers an on-link prefix of an interface."""
        return NdxdpError(self.sentence(interface), self.hint(behind))


def anywhere(rules: Rules) -> Iterator[BroadRule]:
    """Yield the rules that are too broad on every interface, in no order."""
    for prefix, rule in rules.wider.items():
        if rule.answer is not Answer.ALWAYS:
            continue
        if is_link_local(prefix.address) and prefix.length >= LINK_LOCAL.length:
            yield BroadRule(prefix, rule, LINK_LOCAL)
        elif prefix.length < WIDEST:
            yield BroadRule(prefix, rule, None)
    for rule, addresses in rules.exact.items():
        if rule.answer is Answer.ALWAYS:
            for address in addresses.inside(LINK_LOCAL.address, LINK_LOCAL.length):
                yield BroadRule(Prefix(address, 128), rule, LINK_LOCAL)


def covering(
    rules: Rules, on_link: Iterable[Prefix], forced: Collection[Prefix] = ()
) -> Iterator[BroadRule]:
    """Yield the rules whose prefix contains an on-link prefix of the uplink.

    The time does not depend on the number of rules: at most 128 prefixes contain an on-link prefix.

    Args:
        rules: The rules.
        on_link: The prefixes that are on-link at the uplink.
        forced: The prefixes of rules that the user has confirmed (`force`).
    """
    found: set[Prefix] = set()
    for prefix in sorted(on_link):
        for around in _around(prefix):
            rule = rules.wider.get(around)
            if rule is None or rule.answer is not Answer.ALWAYS or around in forced:
                continue
            if around not in found:
                found.add(around)
                yield BroadRule(around, rule, prefix)


def _around(prefix: Prefix) -> Iterator[Prefix]:
    """Yield a prefix and all wider prefixes that contain it, the narrowest first."""
    for length in range(min(prefix.length, 127), -1, -1):
        yield Prefix.around(prefix.address, length)


def has_candidates(rules: Rules, forced: Collection[Prefix] = ()) -> bool:
    """Return True if a rule may be too broad, depending on the uplink."""
    return any(
        rule.answer is Answer.ALWAYS and prefix not in forced
        for prefix, rule in rules.wider.items()
    )


def likely(rules: Rules, forced: Collection[Prefix] = ()) -> list[Prefix]:
    """Return the prefixes of `always` rules that are as wide as a usual on-link prefix."""
    return sorted(
        prefix
        for prefix, rule in rules.wider.items()
        if rule.answer is Answer.ALWAYS and prefix.length <= USUAL and prefix not in forced
    )


def refuse_anywhere(rules: Rules) -> None:
    """Raise UsageError if a rule is too broad on every interface."""
    for broad in sorted(anywhere(rules), key=lambda broad: broad.prefix):
        raise broad.usage_error()


def find_all(rules: Rules, on_link: Iterable[Prefix]) -> list[BroadRule]:
    """Return the rules that are too broad at an uplink, each once, sorted by prefix."""
    found = {broad.prefix: broad for broad in covering(rules, on_link)}
    found |= {broad.prefix: broad for broad in anywhere(rules)}
    return [broad for _, broad in sorted(found.items())]


def at_neighbours(rules: Rules, neighbours: Iterable[bytes]) -> list[bytes]:
    """Return the neighbours (16 bytes each) whose address has an `always` rule of its own."""
    known = AddressSet.of(neighbours)
    return sorted(
        address
        for rule, addresses in rules.exact.items()
        if rule.answer is Answer.ALWAYS and not rule.owned
        for address in addresses & known
    )


def around_neighbours(rules: Rules, neighbours: Iterable[bytes]) -> dict[Prefix, list[bytes]]:
    """Return the neighbours (16 bytes each) that an `always` rule covers, by the rule's prefix.

    Neighbours whose address has a rule of its own are left out: see at_neighbours().
    """
    lengths = sorted({prefix.length for prefix in rules.wider}, reverse=True)
    exact = rules.addresses
    found: dict[Prefix, list[bytes]] = {}
    for address in neighbours:
        around = (Prefix.around(address, length) for length in lengths)
        prefix = next((each for each in around if each in rules.wider), None)
        if prefix and address not in exact and rules.wider[prefix].answer is Answer.ALWAYS:
            found.setdefault(prefix, []).append(address)
    return found


# ---- rules that the daemon leaves out -----------------------------------------------------------


def leave_out(rules: Rules, broad: Iterable[BroadRule]) -> Rules:
    """Return the rules with a `never` rule in place of each rule that is too broad."""
    return rules | {each.prefix: _left_out(each) for each in broad}


def _left_out(broad: BroadRule) -> Rule:
    label = cut(f"{_LEFT_OUT}{broad.prefix}", LABEL_MAX)
    return Rule(Answer.NEVER, origin=broad.rule.origin, label=label)


def is_left_out(rule: Rule) -> bool:
    """Return True for a `never` rule that leave_out() has made."""
    return rule.answer is Answer.NEVER and rule.label.startswith(_LEFT_OUT)


def candidates(on_link: Iterable[Prefix]) -> Callable[[int, bytes], bool]:
    """Return a fast test for prefixes that may be too broad, by length and address (16 bytes)."""
    around = {(each.length, each.address) for prefix in on_link for each in _around(prefix)}

    def test(length: int, address: bytes) -> bool:
        return length < WIDEST or (length, address) in around or is_link_local(address)

    return test
