"""Tables [[share]]: one prefix on both sides of this host."""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.config.model import EXPIRE, MAX_HOSTS, Share, hosts_per_mac
from ndxdp.config.toml_table import Table
from ndxdp.config.values import parse_interface
from ndxdp.errors import UsageError
from ndxdp.ndp.address import V4_MAPPED
from ndxdp.rules.breadth import LINK_LOCAL, WIDEST
from ndxdp.rules.interface_name import DEV_MAX, INTERFACE_MAX, check_interface, is_pattern
from ndxdp.rules.interface_pattern import overlap
from ndxdp.rules.prefix import Prefix, parse_target

ADVERTISED = "advertised"
"""The value of `prefixes` for the on-link prefixes that the routers advertise."""

ROUTER_ADVERTISEMENTS = ("relay", "off")

HOSTS_MOST = 65536
"""The upper bound of `max_hosts` and `max_hosts_per_mac`."""

EXPIRE_RANGE = (10, 86400)
"""Bounds of `expire`, in seconds."""


class _Place(NamedTuple):
    """An interface, a pattern of interfaces or a prefix, and the key that names it.

    Attributes:
        table: The [[share]].
        key: `upstream`, `downstream` or `prefixes`.
        where: The path of the key or the element of its array, below the table.
        value: The name, the pattern or the prefix.
    """

    table: Table
    key: str
    where: tuple[str | int, ...]
    value: str | Prefix

    def complain(self, message: str, hint: str) -> None:
        """Note a problem of this place."""
        self.table.complain(message, hint, *self.where)

    @property
    def first(self) -> str:
        """The line of this place, for a hint of a second one."""
        return f"line {self.table.line(*self.where)} has it first"


def read_shares(root: Table) -> tuple[Share, ...]:
    """Read all [[share]] of a file, and complain about shares that contradict each other."""
    shares: list[Share] = []
    before: list[_Place] = []
    for table in root.tables("share"):
        share, places = _read(table)
        for place in places:
            _refuse_second(place, before)
        before += places
        shares.append(share)
    return tuple(shares)


def _read(table: Table) -> tuple[Share, list[_Place]]:
    """Return the share of a table, and the places where it names interfaces and prefixes."""
    table.require("upstream", 'upstream = "eth0"')
    upstream = table.parsed("upstream", _name) or ""
    places = [_Place(table, "upstream", ("upstream",), upstream)] if upstream else []
    downstream = _downstream(table, upstream)
    places += downstream
    prefixes = _prefixes(table)
    places += prefixes
    relay = table.choice("router_advertisements", ROUTER_ADVERTISEMENTS, "relay") == "relay"
    most = table.integer("max_hosts", 1, HOSTS_MOST) or MAX_HOSTS
    per_mac = table.integer("max_hosts_per_mac", 1, HOSTS_MOST) or hosts_per_mac(most)
    if per_mac > most:
        table.complain(
            f"{per_mac} hosts for one MAC are more than the {most} of max_hosts",
            "choose a smaller number, or raise max_hosts",
            "max_hosts_per_mac",
        )
    expire = table.number("expire", *EXPIRE_RANGE) or EXPIRE
    return (
        Share(
            upstream,
            tuple(str(place.value) for place in downstream),
            tuple(place.value for place in prefixes if isinstance(place.value, Prefix)),
            relay,
            most,
            per_mac,
            expire,
        ),
        places,
    )


# ---- interfaces ---------------------------------------------------------------------------------


def _name(text: str) -> str:
    """Return the name of one interface; raise UsageError for other texts."""
    check_interface(text)
    if len(text.encode()) > INTERFACE_MAX:
        raise UsageError(
            f"'{text}' is longer than {INTERFACE_MAX} bytes, so it is an alternative name",
            "a share needs the interface's own name: ip -br link",
        )
    return text


def _member(text: str) -> str:
    """Return the name of one interface, or a pattern; raise UsageError for other texts."""
    return parse_interface(text) if is_pattern(text) else _name(text)


def _downstream(table: Table, upstream: str) -> list[_Place]:
    """Return the downstream interfaces and patterns of a share."""
    example = 'downstream = ["lan0", "br-*"]'
    table.require("downstream", example)
    parsed = table.parsed_all("downstream", _member)
    if table.is_empty("downstream"):
        table.complain(
            "this names no interface behind this host", f"write it as in {example}", "downstream"
        )
    found: dict[str, _Place] = {}
    for number, name in parsed:
        place = _Place(table, "downstream", ("downstream", number), name)
        if name == upstream:
            place.complain(
                f"{name} is the upstream of this share",
                "name the interfaces behind this host; a pattern never matches the upstream",
            )
        elif name in found:
            place.complain(f"{name} is given twice", found[name].first)
        else:
            found[name] = place
    # Rules of a share name all its interfaces (`dev`).
    if len(" ".join((upstream, *found)).encode(errors="replace")) > DEV_MAX:
        table.complain(
            f"the interfaces of one share take more than {DEV_MAX} bytes",
            'use patterns, as in "br-*"',
            "downstream",
        )
    return list(found.values())


def _refuse_second(place: _Place, before: list[_Place]) -> None:
    """Complain if an earlier share has an interface or a prefix of this one."""
    for other in before:
        if isinstance(place.value, Prefix) or isinstance(other.value, Prefix):
            problem = _second_prefix(place, other)
        else:
            problem = _second_name(place, place.value, other, other.value)
        if problem:
            place.complain(*problem)
            return


def _second_name(place: _Place, name: str, other: _Place, first: str) -> tuple[str, str] | None:
    """Return the sentence and the hint if two shares may have one interface."""
    if place.key == other.key == "upstream":
        if name != first:
            return None
        hint = f"{other.first}: name all interfaces behind this host in one share"
        return f"{name} is the upstream of two shares", hint
    if not overlap(first, name):
        return None
    if place.key == other.key:
        both = name if name == first else f"an interface that matches {name} and {first}"
        hint = f"line {other.table.line(*other.where)} has {first}: an interface is behind one"
        return f"{both} would be downstream in two shares", f"{hint} upstream only"
    up, down = (name, first) if place.key == "upstream" else (first, name)
    matches = "" if up == down else f", which {down} matches,"
    return (
        f"{up}{matches} would be upstream in one share, and downstream in another",
        f"see line {other.table.line(*other.where)}: a proxy behind a proxy may loop"
        " (RFC 4389 section 4.1.3.3); name every interface in one share",
    )


# ---- prefixes -----------------------------------------------------------------------------------


def parse_shared(text: str) -> Prefix:
    """Parse a prefix that a link can have; raise UsageError for other texts."""
    if text == ADVERTISED:
        raise UsageError(
            f"'{ADVERTISED}' cannot be combined with prefixes",
            f'write prefixes = "{ADVERTISED}", without brackets, or prefixes alone',
        )
    prefix = parse_target(text)
    if prefix.length >= LINK_LOCAL.length and LINK_LOCAL.covers(prefix):
        raise UsageError(
            f"{prefix} is link-local: each link has it, and no host forwards to it",
            "leave it out",
        )
    if prefix.length == 128:
        raise UsageError(
            f"{prefix} is one address, not the prefix of a link",
            "write the prefix of the link, as in 2001:db8::/64",
        )
    if prefix.length < WIDEST:
        raise UsageError(
            f"{prefix} is too wide for the prefix of a link: it is shorter than /{WIDEST}",
            "write the prefix of the link, as in 2001:db8::/64",
        )
    if prefix.length >= 96 and prefix.address[:12] == V4_MAPPED:
        raise UsageError(f"{prefix} is IPv4-mapped: no link has it", "leave it out")
    return prefix


def _prefixes(table: Table) -> list[_Place]:
    """Return the prefixes of a share; none if it shares those that are advertised."""
    hint = f'write prefixes = "{ADVERTISED}", or an array of prefixes'
    if table.is_string("prefixes"):
        word = table.string("prefixes")
        if word != ADVERTISED:
            table.complain(f"'{word}' is neither {ADVERTISED} nor an array", hint, "prefixes")
        return []
    parsed = table.parsed_all("prefixes", parse_shared)
    if table.is_empty("prefixes"):
        table.complain("this names no prefix", hint, "prefixes")
    found: list[_Place] = []
    for number, prefix in parsed:
        place = _Place(table, "prefixes", ("prefixes", number), prefix)
        problem = next(filter(None, (_overlap(place, other) for other in found)), None)
        if problem:
            place.complain(*problem)
        else:
            found.append(place)
    return found


def _overlap(place: _Place, other: _Place) -> tuple[str, str] | None:
    """Return the sentence and the hint if two prefixes of a share overlap."""
    prefix, first = place.value, other.value
    if not (isinstance(prefix, Prefix) and isinstance(first, Prefix)):
        return None
    if prefix == first:
        return f"{prefix} is given twice", other.first
    wide, narrow = (prefix, first) if prefix.covers(first) else (first, prefix)
    if not wide.covers(narrow):
        return None
    return (
        f"{wide} contains {narrow}, another prefix of this share",
        "name each prefix once, with the length that the link's has",
    )


def _second_prefix(place: _Place, other: _Place) -> tuple[str, str] | None:
    """Return the sentence and the hint if two shares have addresses in common."""
    if _overlap(place, other) is None:
        return None
    return (
        f"{place.value} is in two shares",
        f"line {other.table.line(*other.where)} has {other.value}: an address lives in one share",
    )
