"""The check of a configuration against this host, as it is now, for `ndxdp check`."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ndxdp.config.model import Interface, Share, share_downstream
from ndxdp.errors import NdxdpError
from ndxdp.kernel.abi import MAX_ADDRESSES, MAX_DEVS, MAX_RULE_CLASSES
from ndxdp.rules import breadth
from ndxdp.rules.capacity import Capacity
from ndxdp.rules.difference import merge_owned
from ndxdp.rules.interface_name import FEWER_DEVS, is_pattern, matching_dev
from ndxdp.rules.interface_pattern import Patterns
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.ruleset import Rules

if TYPE_CHECKING:
    from ndxdp.netlink.link_names import NamedLink
    from ndxdp.netlink.links import Link


_SHOWN = 8  # names of interfaces that a line shows
_WARNED = 3  # interfaces of one pattern that are warned of


class Present(NamedTuple):
    """The interfaces of this host that a table of the configuration is for, as it is now.

    Attributes:
        table: The table.
        interfaces: The table for each interface that matches, if its name is a pattern; otherwise
            the table itself.
        left_alone: The interfaces that match, and which ndxdp cannot work on.
        taken: The interfaces that match, and which another table is for.
    """

    table: Interface
    interfaces: tuple[Interface, ...]
    left_alone: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the table, perhaps a pattern."""
        return self.table.name

    @property
    def is_pattern(self) -> bool:
        """True if the name is a pattern."""
        return is_pattern(self.name)

    @property
    def names(self) -> list[str]:
        """The names of the interfaces."""
        return [interface.name for interface in self.interfaces]

    def words(self) -> Iterator[str]:
        """Yield which interfaces match, for a line of `ndxdp check`."""
        if self.is_pattern:
            names = self.names
            yield f"matches now: {_some(names)}" if names else "matches no interface now"
            if self.left_alone:
                yield f"leaves alone: {_some(self.left_alone)}"

    def warnings(self) -> Iterator[tuple[str, str]]:
        """Yield sentences with hints: on rules that `run` would leave out, on a useless pattern."""
        warned = 0
        for interface in self.interfaces or (self.table,):
            if warned == _WARNED:
                yield f"the other interfaces of '{self.table.name}' were not checked", ""
                break
            found = list(left_out(interface))
            warned += bool(found)
            yield from found
        if self.taken and not self.interfaces:
            yield (
                f"'{self.table.name}' matches only interfaces that other tables are for:"
                f" {_some(self.taken)}",
                "of several patterns the first one in the file wins",
            )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def present(interfaces: Sequence[Interface]) -> Iterator[Present]:
    """Yield the present interfaces of each table."""
    patterns = Patterns(interface.name for interface in interfaces)
    ours_of: dict[str, list[NamedLink]] = {}
    taken_of: dict[str, list[str]] = {}
    if patterns:
        from ndxdp.netlink.link_names import present_links

        with contextlib.suppress(OSError):  # a sandbox without netlink
            for link in present_links().values():
                first = patterns.first(link.name, link.altnames)
                ours_of.setdefault(first, []).append(link)
                for pattern in patterns.all_matching(link.name):
                    if pattern != first:
                        taken_of.setdefault(pattern, []).append(link.name)
    for table in interfaces:
        if not is_pattern(table.name):
            yield Present(table, (table,))
            continue
        keeps_addresses = bool(table.addresses.deprecate) and not table.has_rules
        usable: list[str] = []
        left_alone: list[str] = []
        for link in ours_of.get(table.name, ()):
            why = link.unusable(keeps_addresses=keeps_addresses)
            (left_alone if why else usable).append(link.name)
        yield Present(
            table,
            tuple(replace(table, name=name) for name in usable),
            tuple(left_alone),
            tuple(taken_of.get(table.name, ())),
        )


def refused(interfaces: Iterable[Interface], shares: Sequence[Share] = ()) -> Iterator[str]:
    """Yield a sentence for each reason why `run` cannot answer on a present interface.

    Args:
        interfaces: The configured interfaces.
        shares: The shares, whose downstream interfaces need no MAC address.
    """
    from ndxdp.netlink import links
    from ndxdp.netlink.uplink_addresses import uplink_addresses

    names: dict[int, str] = {}
    for interface in interfaces:
        link = _link_of(interface.name)
        if link is None:
            continue
        first = names.setdefault(link.ifindex, interface.name)
        if first != interface.name:
            yield f"{first} and {interface.name} are one interface: put both into one table"
        elif not links.has_mac(link):
            shared = share_downstream(shares, interface.name) is not None
            yield from _without_mac(interface, shared=shared)
        else:
            yield from _too_many(interface, uplink_addresses(link).owned)
            yield from _too_many_devs(interface)


def _without_mac(interface: Interface, *, shared: bool) -> Iterator[str]:
    """Yield what `run` refuses on an interface without a MAC address; shared: it is in a share."""
    if interface.has_rules:
        yield (
            f"{interface.name} has no MAC address: `run` refuses its [[interface.prefix]],"
            " [[interface.docker]] and [[interface.etcd]]"
        )
    elif not interface.addresses.deprecate and not shared:
        yield f"{interface.name} has no MAC address, so no router solicits there"


def _too_many(interface: Interface, owned: Mapping[Prefix, str]) -> Iterator[str]:
    """Yield a sentence if the rules do not fit together with the owned addresses."""
    rules = merge_owned(interface.rules, Rules(), owned)
    rule_classes = MAX_RULE_CLASSES - len({selector.rule for selector in interface.docker})
    shortage = Capacity(
        interface.max_addresses or MAX_ADDRESSES, rule_classes=rule_classes
    ).shortage(rules, Rules())
    if shortage:
        error = shortage.error(in_file=True)
        yield f"{interface.name}: with the host's own, {error.message}: {error.hint}"


def _too_many_devs(interface: Interface) -> Iterator[str]:
    """Yield a sentence if the `dev` of all rules match too many of the present interfaces."""
    rules = (*interface.rules.distinct_rules, *(selector.rule for selector in interface.docker))
    sets = {rule.dev for rule in rules if rule.dev}
    if not sets or interface.mode == "userspace":  # userspace mode compares names
        return
    names = {name for _, name in socket.if_nameindex()}
    pairs = sum(len(matching_dev(names, dev)) for dev in sets)
    if pairs > MAX_DEVS:
        yield (
            f"{interface.name}: the {len(sets)} different `dev` match {pairs} interfaces in all,"
            f" more than the limit of {MAX_DEVS}: {FEWER_DEVS}"
        )


def left_out(interface: Interface) -> Iterator[tuple[str, str]]:
    """Yield a sentence and a hint for each rule that `run` would leave out.

    The link's present prefixes decide that.
    """
    rules, forced = interface.rules, interface.forced
    if not breadth.has_candidates(rules, forced):
        return
    from ndxdp.netlink import onlink

    link = _link_of(interface.name)
    if link is None:
        unsure = breadth.likely(rules, forced)
        if unsure:
            more = f" or one of {len(unsure) - 1} more is" if len(unsure) > 1 else " is"
            yield (
                f"{interface.name} is not here: not checked whether {unsure[0]}{more} on-link"
                " there, and `run` leaves out the rule",
                "",
            )
        return
    here = onlink.read((link.ifindex, link.master))
    for broad in breadth.covering(rules, here.prefixes, forced):
        behind = onlink.behind(broad.prefix, here.ifindexes)
        sentence = f"{broad.sentence(interface.name)}: `run` leaves this rule out"
        yield sentence, broad.hint(behind, in_file=True)


def unanswered(interface: Interface) -> str:
    """Return why nothing is answered on an interface whose addresses are kept; "" otherwise."""
    if not interface.addresses.deprecate or interface.has_rules:
        return ""
    from ndxdp.netlink import links

    if not links.is_quiet(interface.name):
        return ""
    return f"nothing is answered: {links.NO_MAC}"


def _link_of(name: str) -> Link | None:
    """Return the interface of this name; None if it is absent, or netlink is not available."""
    from ndxdp.netlink import links

    with contextlib.suppress(NdxdpError, OSError):  # a sandbox without netlink
        return links.find_link(name)
    return None
