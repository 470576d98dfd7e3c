"""AnyIP: prefixes that a `local` route delivers to this host itself, without forwarding."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from ndxdp.doctor.finding import Finding, failure, note
from ndxdp.ndp.profile import Answer
from ndxdp.netlink.fib import Fib, RouteType
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules

log = logging.getLogger(__name__)

_QUERIES_MAX = 16  # route queries, one for each prefix
_EXACT_MAX = 4096  # addresses of one rule that are checked; the others are assumed to be alike
_ANSWERED_HERE = ("ALWAYS", "LOCAL")
"""Answers that ndxdp gives for packets that end at this host."""

_NAMED_MAX = 3  # prefixes in a finding


@dataclass(frozen=True, slots=True)
class Delivery:
    """Destination of packets for the prefixes that ndxdp answers for, by the kernel's routes.

    Attributes:
        here: Answered prefixes that end at this host; without any rules, all local prefixes.
        nowhere: Prefixes of `local` rules without a local route.
        needs_forwarding: An answered prefix leads to another host, or nothing is answered.
        forwarded: A prefix of an `always` rule that leads to another host, None without one.
    """

    here: tuple[Prefix, ...] = ()
    nowhere: tuple[Prefix, ...] = ()
    needs_forwarding: bool = True
    forwarded: Prefix | None = None


def gather(rules: Rules, ifindex: int) -> Delivery:
    """Compare rules with the kernel's local routes.

    Args:
        rules: The rules of the interface.
        ifindex: The interface by which packets arrive.
    """
    answered = rules.where(lambda rule: rule.answer is not Answer.NEVER and not rule.owned)
    try:
        with Fib() as fib:
            local = _Local(fib, ifindex)
            return _delivery(answered, local) if answered else _unruled(local)
    except OSError as error:  # no netlink: the check of the routes reports it
        log.debug("cannot read the local routes: %s", error)
        return Delivery()


def _unruled(local: _Local) -> Delivery:
    """Return the delivery without any rules: local routes show which prefixes AnyIP needs."""
    here = tuple(sorted(prefix for prefix in local.prefixes if prefix.length < 128))
    return Delivery(here, needs_forwarding=not here)


def _delivery(answered: Rules, local: _Local) -> Delivery:
    here: list[Prefix] = []
    nowhere: list[Prefix] = []
    elsewhere: list[tuple[Prefix, Rule]] = []
    for prefix, rule in sorted(_some_of(answered), key=lambda item: item[0]):
        if rule.answer.name not in _ANSWERED_HERE:  # `routed`, `neighbour`
            elsewhere.append((prefix, rule))
        elif local.has(prefix):
            here.append(prefix)
        elif rule.answer is Answer.ALWAYS:
            elsewhere.append((prefix, rule))
        elif not local.is_within(prefix):
            nowhere.append(prefix)
    wide = (
        prefix
        for prefix, rule in elsewhere
        if rule.answer is Answer.ALWAYS and not rule.dynamic and prefix.length < 128
    )
    return Delivery(tuple(here), tuple(nowhere), bool(elsewhere), next(wide, None))


def _some_of(rules: Rules) -> Iterable[tuple[Prefix, Rule]]:
    yield from rules.wider.items()
    for rule, addresses in rules.exact.items():
        for address in islice(addresses, _EXACT_MAX):
            yield Prefix(address, 128), rule


class _Local:
    """Local routes of the kernel, with a bounded number of queries."""

    def __init__(self, fib: Fib, ifindex: int) -> None:
        self.prefixes = fib.local_prefixes()
        self._fib, self._ifindex = fib, ifindex
        networks = [ipaddress.IPv6Network(prefix) for prefix in self.prefixes]
        self._merged = {
            Prefix(network.network_address.packed, network.prefixlen)
            for network in ipaddress.collapse_addresses(networks)
        }
        self._lengths = sorted({prefix.length for prefix in self._merged})
        self._left = _QUERIES_MAX

    def has(self, prefix: Prefix) -> bool:
        """Return whether the kernel delivers all of a prefix to this host."""
        for length in self._lengths:
            if length <= prefix.length and Prefix.around(prefix.address, length) in self._merged:
                return True
        if prefix.length == 128 or not self._left:
            return False
        # The route may be in another table than `local`.
        self._left -= 1
        last = int.from_bytes(prefix.address, "big") | (1 << (128 - prefix.length)) - 1
        entry = self._fib.route(last.to_bytes(16, "big"), self._ifindex, matched=True)
        covers = entry.prefix is not None and entry.prefix.length <= prefix.length
        return entry.type is RouteType.LOCAL and covers

    def is_within(self, prefix: Prefix) -> bool:
        """Return whether the kernel delivers a part of a prefix to this host."""
        return any(
            local.length >= prefix.length and Prefix.around(local.address, prefix.length) == prefix
            for local in self._merged
        )


def cure(prefix: Prefix) -> str:
    """Return the command that makes the kernel deliver a prefix to this host."""
    return f"ip -6 route add local {prefix} dev lo"


def judge(delivery: Delivery) -> list[Finding]:
    """Return a failure for each local route that is missing, and a note about the others."""
    found = []
    wide = [prefix for prefix in delivery.here if prefix.length < 128]
    shown = wide or list(delivery.here)
    if shown:
        some = ", ".join(map(str, shown[:_NAMED_MAX]))
        more = f" and {len(shown) - _NAMED_MAX} more" if len(shown) > _NAMED_MAX else ""
        verb = "are" if len(shown) > 1 else "is"
        label = "AnyIP: " if wide else ""
        there = " there" if delivery.needs_forwarding else ""
        what = f"{label}{some}{more} {verb} delivered to this host"
        found.append(note(f"{what}; forwarding is not needed{there}"))
    found += [
        failure(
            f"there is no local route for {prefix}: its `local` rule answers nothing",
            "without the route the kernel does not deliver packets for the prefix to this host",
            cure(prefix),
        )
        for prefix in delivery.nowhere
    ]
    return found
