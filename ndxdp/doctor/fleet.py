"""Shared addresses of an interface's segments: whether exactly one host answers for each."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ndxdp.config import reader
from ndxdp.config.model import Config, Interface
from ndxdp.doctor import etcd
from ndxdp.doctor.finding import Finding, failure, note, warning
from ndxdp.doctor.subject import Subject
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.fleet.keys import DRAINED
from ndxdp.fleet.unheld import why_unheld
from ndxdp.netlink.addresses import OwnAddress
from ndxdp.netlink.netns import netns
from ndxdp.observe import status
from ndxdp.rules.address import address_text
from ndxdp.rules.interface_pattern import Patterns
from ndxdp.rules.prefix import Prefix, parse_prefix
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime import fleet_report
from ndxdp.runtime.fleet_report import SharedAddressEntry
from ndxdp.runtime.report import Daemon
from ndxdp.sources import etcd_client
from ndxdp.sources.answers import Endpoint
from ndxdp.sources.etcd_settings import Etcd
from ndxdp.sources.selector import rules_of
from ndxdp.store.directories import Trees

log = logging.getLogger(__name__)

_NAMED_MAX = 3  # addresses or hosts that a finding names
_PATIENCE = 0.5  # seconds after which the next member of etcd is asked, too
_RENEWALS = 3  # in a lease
_GUARD_MIN, _GUARD_PART = 0.25, 10  # the daemon stops answering so much earlier: s, 1/part

_DAD_FAILED = 0x08  # IFA_F_DADFAILED: the kernel does not answer for such an address


@dataclass(frozen=True, slots=True)
class Facts:
    """The shared addresses of an interface's segments, and what else could answer for them.

    Attributes:
        interface: The interface.
        above: The interface that has its addresses.
        host: The name of this host in etcd.
        lease: The length of this host's lease in seconds.
        fleet: The daemon's part, as its report has it.
        segments: The segments of the interface.
        only: Those of them that no other interface of the host has.
        answered: The daemon answers on the interface, and the interface has carrier.
        entries: The shared addresses of these segments.
        own: The addresses of the interface.
        local: By origin, the rules of this host's own file and containers.
        drained: The hosts that are drained; None if etcd does not tell.
        round_trips: By member of etcd that answers, the seconds from a request to its answer.
        config: The path of the configuration file.
        named: The number of members of etcd that the file names.
        cluster: The number of members that etcd has; 0 if it does not tell.
    """

    interface: str
    above: str
    host: str
    lease: int
    fleet: dict[str, Any]
    segments: tuple[str, ...]
    only: frozenset[str]
    answered: bool
    entries: list[SharedAddressEntry]
    own: list[OwnAddress]
    local: dict[str, Rules] = field(default_factory=dict)
    drained: frozenset[str] | None = None
    round_trips: dict[str, float] = field(default_factory=dict)
    config: str = ""
    named: int = 0
    cluster: int = 0


def gather(
    subject: Subject, members: etcd.Facts | None, containers: Iterable[Endpoint]
) -> Facts | None:
    """Collect the facts; return None if the interface's daemon has no part in shared addresses.

    Args:
        subject: The interface.
        members: What was found out about etcd; None if that failed.
        containers: The addresses of the containers on this host.

    Raises:
        NdxdpError: The configuration file of the daemon cannot be read.
    """
    for daemon in status.reports(subject.trees, subject.name):
        if daemon.fleet is None or daemon.config is None:
            continue
        config = reader.load(daemon.config)
        table = _table_of(config, subject.name)
        if table is None or config.etcd is None:
            continue
        others = [each.segments for each in config.interfaces if each is not table]
        round_trips = members.round_trips if members else {}
        entries = _entries(subject.trees, table.segments)
        asks = bool(round_trips) and not all(entry.holder for entry in entries)
        return Facts(
            subject.name,
            subject.above,
            config.etcd.host,
            int(daemon.fleet.get("lease") or config.etcd.lease),
            daemon.fleet,
            table.segments,
            frozenset(table.segments).difference(*others),
            _is_answered(daemon) and subject.link.operational,
            entries,
            subject.addresses,
            {"config": table.rules, "docker": rules_of(containers, table.docker)},
            _drained(config.etcd) if asks else None,
            round_trips,
            daemon.config,
            len(config.etcd.endpoints),
            max(members.cluster.values(), default=0) if members else 0,
        )
    return None


def _table_of(config: Config, interface: str) -> Interface | None:
    """Return the table of an interface: that of its name, else that of a pattern."""
    tables = {table.name: table for table in config.interfaces}
    return tables.get(interface) or tables.get(Patterns(tables).first(interface))


def _drained(settings: Etcd) -> frozenset[str] | None:
    """Return the hosts that are drained; None if etcd does not tell."""
    beginning = f"{settings.root}{DRAINED}/"
    try:
        found = etcd_client.run(
            settings,
            lambda client: client.call(lambda store: store.below(beginning), patience=_PATIENCE),
        )
    except NdxdpError as error:
        log.debug("cannot read which hosts are drained: %s", error)
        return None
    return frozenset(item.key.decode(errors="replace").removeprefix(beginning) for item in found)


def _is_answered(daemon: Daemon) -> bool:
    return any(each.get("answered") for each in daemon.interfaces)


def _entries(trees: Trees, segments: tuple[str, ...]) -> list[SharedAddressEntry]:
    """Return the shared addresses of segments, as the daemon that runs knows them."""
    namespace = netns()
    found = fleet_report.read(trees.files.root, namespace)
    if found is None or not fleet_report.is_running(found, status.reports(trees)):
        return []
    return [entry for entry in found.addresses if entry.segment in segments]


def judge(facts: Facts) -> list[Finding]:
    """Return findings about shared addresses that nobody, or more than one node, answers for."""
    found = [*_membership(facts), *_round_trips(facts), *_spare_members(facts)]
    if facts.fleet["connected"]:
        found += _unheld(facts)
    found += [*_own_addresses(facts), *_local_rules(facts), *_rivals(facts)]
    if facts.entries and not found:
        held = sum(entry.holder == facts.host for entry in facts.entries)
        found.append(note(f"this host answers for {held} of {len(facts.entries)} shared addresses"))
    return found


def _membership(facts: Facts) -> Iterable[Finding]:
    """Yield findings about this host's lease and its membership in the segments."""
    fleet = facts.fleet
    problem = fleet["problem"]
    if problem and any(segment["held"] for segment in fleet["segments"]):
        yield warning(
            f"the last request about shared addresses failed: {problem}",
            "this host answers for what it holds while its lease lasts, and takes nothing else",
            "ndxdp status",
        )
    elif problem and facts.entries:
        yield failure(
            f"this host answers for no shared address: {problem}",
            "other hosts take the addresses, if they reach etcd",
            "ndxdp status",
        )
    elif problem:
        yield note(f"this host takes no part in shared addresses: {problem}")
    if fleet["drained"]:
        yield note(
            "this host is drained: it answers for no shared address, and takes none",
            "",
            "ndxdp fleet undrain",
        )
    for segment in fleet["segments"]:
        name = segment["segment"]
        if name not in facts.segments:
            continue
        if segment["joined"] and name in facts.only and not facts.answered:
            yield failure(
                f"this host is a member of the segment {name}, and does not answer on"
                f" {facts.interface}",
                "it takes shared addresses that it does not answer for",
                "ndxdp status",
            )
        why = segment["problem"]
        if not segment["joined"] and facts.answered and not fleet["drained"] and not problem:
            is_named_twice = "another host has the name" in why
            yield warning(
                f"this host is no member of the segment {name}{f': {why}' if why else ''}",
                "it takes none of its shared addresses"
                + (
                    ": give each host a name of its own, by `host` in [etcd]"
                    if is_named_twice
                    else ""
                ),
                f"editor {facts.config}" if is_named_twice else "ndxdp status",
            )


def _round_trips(facts: Facts) -> Iterable[Finding]:
    """Yield findings about members of etcd that answer late for the lease."""
    if not facts.entries:
        return
    guard = max(_GUARD_MIN, facts.lease / _GUARD_PART)
    due = facts.lease / _RENEWALS
    for name, seconds in facts.round_trips.items():
        if seconds < due:
            continue
        cure = f"editor {facts.config}" if facts.config else ""
        what = (
            f"{name} answers after {seconds:.1f} s; the lease of {facts.lease} s is renewed every"
        )
        what += f" {due:.1f} s"
        if seconds >= facts.lease - due - guard:
            why = "the lease lapses before it is renewed: set a longer `lease` in [etcd]"
            yield failure(what, why, cure)
        else:
            why = "one late answer more, and the lease lapses: set a longer `lease` in [etcd]"
            yield warning(what, why, cure)


def _spare_members(facts: Facts) -> Iterable[Finding]:
    """Yield a finding if one member of etcd that fails ends the answers."""
    if not facts.entries or facts.named > 1 or not facts.cluster:
        return
    if facts.cluster == 1:
        yield note(
            "etcd has one member: if that fails, no host answers for shared addresses",
            "a cluster of three members outlives the failure of one",
        )
    else:
        yield warning(
            f"the file names one of the {facts.cluster} members of etcd",
            "if that member fails, this host answers for no shared address",
            f"editor {facts.config}",
        )


def _unheld(facts: Facts) -> Iterable[Finding]:
    """Yield a finding for each reason why nobody answers for addresses."""
    members = {each["segment"]: frozenset(each["members"]) for each in facts.fleet["segments"]}
    reasons: dict[str, list[SharedAddressEntry]] = defaultdict(list)
    for entry in facts.entries:
        if not entry.holder:
            alive = members.get(entry.segment, frozenset())
            able = alive - (facts.drained or frozenset())
            reasons[entry.problem or why_unheld(entry.hosts, able, alive)].append(entry)
    for reason, entries in reasons.items():
        yield failure(
            f"nobody answers for {_named(entries)}{f': {reason}' if reason else ''}",
            ""
            if reason
            else "a host that may take it is alive: it does so within a few seconds, or its log"
            " says why not",
            "ndxdp fleet status",
        )


def _own_addresses(facts: Facts) -> Iterable[Finding]:
    """Yield a finding for each address of the interface itself that is shared.

    The kernel answers for it by itself, whoever holds it, and after the end of the lease.
    """
    shared = _by_length(facts.entries)
    for own in facts.own:
        if own.flags & _DAD_FAILED or own.link_local:
            continue
        entry = next(
            (
                found
                for length, some in shared.items()
                if (found := some.get(Prefix.around(own.address, length)))
            ),
            None,
        )
        if entry is None:
            continue
        text = address_text(own.address)
        if _text(entry) == text:
            cure = f"ip -6 address delete {text}/{own.length} dev {facts.above}"
            why = "the kernel answers for it, whichever host holds it, and ndxdp does not"
        else:
            cure = "ndxdp fleet list"
            why = "another host that holds the prefix answers for this host's own address"
        yield failure(f"{facts.above} has {text} itself, of the shared {_text(entry)}", why, cure)


def _local_rules(facts: Facts) -> Iterable[Finding]:
    """Yield a finding for each origin of this host that has rules for shared prefixes, too."""
    for origin, rules in facts.local.items():
        both = [entry for entry in facts.entries if (found := _prefix(entry)) and found in rules]
        if both:
            where = f"in {facts.config}" if origin == "config" else "of a container"
            yield warning(
                f"{_named(both)} {'has' if len(both) == 1 else 'have'} a rule {where}, too",
                "without etcd at its start, this host answers by that rule, whichever host holds"
                " the address",
                f"editor {facts.config}",
            )


def _rivals(facts: Facts) -> Iterable[Finding]:
    """Yield a finding for each address that another MAC was heard to answer for."""
    macs: dict[str, list[str]] = defaultdict(list)
    for each in facts.fleet.get("rivals_seen", ()):
        macs[each["address"]].append(each["mac"])
    for text in list(macs)[:_NAMED_MAX]:
        yield failure(
            f"{_some(macs[text])} has advertised {text}, which this host answers for",
            "routers send packets to the one that they heard last; a second host has the address,"
            " or a rule for it",
            "",
        )


def _by_length(
    entries: Iterable[SharedAddressEntry],
) -> dict[int, dict[Prefix, SharedAddressEntry]]:
    """Return the addresses by the length of their prefix and the prefix, the longest first."""
    found: dict[int, dict[Prefix, SharedAddressEntry]] = defaultdict(dict)
    for entry in entries:
        prefix = _prefix(entry)
        if prefix is not None:
            found[prefix.length][prefix] = entry
    return dict(sorted(found.items(), reverse=True))


def _prefix(entry: SharedAddressEntry) -> Prefix | None:
    try:
        return parse_prefix(entry.prefix)
    except UsageError:  # written by another version
        return None


def _text(entry: SharedAddressEntry) -> str:
    """Return the prefix as commands write it: a single address without a length; "" without."""
    return str(_prefix(entry) or entry.prefix)


def _named(entries: list[SharedAddressEntry]) -> str:
    return _some(
        [f"{_text(entry)} ({entry.key})" if entry.prefix else entry.key for entry in entries]
    )


def _some(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(names[:_NAMED_MAX])
    return f"{shown} and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else shown
