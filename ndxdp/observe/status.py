"""Status of every interface at one moment, as data for `ndxdp status` and the status page."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ndxdp.errors import Damaged, NdxdpError, NotAttached
from ndxdp.kernel import bpf_programs
from ndxdp.ndp.reason import Reason
from ndxdp.netlink.netns import netns
from ndxdp.observe import shares, status_warnings
from ndxdp.observe.shares import ShareStatus
from ndxdp.rules.address import address_text, mac_text
from ndxdp.rules.interface_name import natural_order
from ndxdp.runtime import publications, report
from ndxdp.runtime.daemon_status import CareStatus
from ndxdp.runtime.report import Daemon
from ndxdp.session import modes
from ndxdp.store import lifetimes
from ndxdp.store.directories import Tree, Trees
from ndxdp.store.instance import Instance, KernelInstance, Place, open_instance
from ndxdp.store.lifetimes import Kept


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Status of all interfaces, or of one, at one moment.

    Attributes:
        time: Seconds of CLOCK_MONOTONIC.
        data: The status of each interface, as returned by status_data().
        error: The last error of an interface that could not be read.
        kept: Interfaces with addresses that are kept deprecated.
        daemons: The reports of the daemons of this network namespace.
        shares: The shares of this network namespace.
    """

    time: float
    data: dict[str, dict[str, Any]]
    error: NdxdpError | None = None
    kept: dict[str, Kept] = field(default_factory=dict)
    daemons: list[Daemon] = field(default_factory=list)
    shares: list[ShareStatus] = field(default_factory=list)

    @property
    def reported(self) -> dict[str, dict[str, Any]]:
        """The daemons' reports on interfaces that are not in `data`."""
        return {
            each["interface"]: each
            for daemon in self.daemons
            for each in daemon.interfaces
            if each["interface"] not in self.data
        }

    @property
    def unread(self) -> dict[str, dict[str, Any]]:
        """The daemons' reports on interfaces that answer, or should, and that are not in `data`."""
        return {name: each for name, each in self.reported.items() if not each["unanswered"]}

    def counters(self) -> Snapshot:
        """Return a snapshot that has only what rates() needs of an earlier one."""
        return Snapshot(
            self.time,
            {
                name: {"reasons": data["reasons"], "groups": data["groups"]}
                for name, data in self.data.items()
            },
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """Solicitations per second between two snapshots of an interface.

    Attributes:
        by_reason: Rate of each reason.
        by_class: Rate of each rule class, by its origin and label.
    """

    by_reason: dict[str, float]
    by_class: dict[tuple[str, str], float]


def take_snapshot(trees: Trees, interface: str | None = None) -> Snapshot:
    """Read the status of all interfaces, or of one.

    Raises:
        NdxdpError: Nothing could be read.
    """
    found: dict[str, dict[str, Any]] = {}
    failed = None
    kept, daemons = _kept(trees), reports(trees, interface)
    shared = shares.read(trees.files.root, report.daemons(trees.files.root, netns()), interface)
    reported = {each["interface"]: each for one in daemons for each in one.interfaces}
    names = [interface] if interface is not None else []
    if interface is not None:
        kept = {name: each for name, each in kept.items() if name == interface}
    else:
        try:
            names = interfaces(trees)
        except NdxdpError as error:
            if not daemons and not shared:
                raise
            failed = error
    for name in names:
        try:
            if name in kept and not trees.have(name):
                continue  # ndxdp keeps its addresses, and has no pins or files of it
            found[name] = _read(trees, name, reported.get(name, {}))
        except NdxdpError as error:  # the other interfaces are shown all the same
            # Nothing is attached to a downstream interface without MACs.
            if interface is None or not shared or not isinstance(error, NotAttached):
                failed = error
    return Snapshot(time.monotonic(), found, failed, kept, daemons, shared)


def snapshots(
    trees: Trees, interface: str | None, seconds: float
) -> Iterator[tuple[Snapshot, Snapshot]]:
    """Yield pairs of consecutive snapshots, taken `seconds` apart, endlessly.

    The first pair comes within a second, or at once if no interface has counters.
    """
    before, pause = take_snapshot(trees, interface), min(seconds, 1.0)
    while True:
        if before.data:
            time.sleep(pause)
        after = take_snapshot(trees, interface)
        yield before, after
        if not after.data:
            time.sleep(seconds)
        before, pause = after, seconds


def _read(trees: Trees, interface: str, reported: Mapping[str, Any]) -> dict[str, Any]:
    tree = trees.of(interface)
    try:
        return _read_in(tree, interface, reported)
    except (Damaged, NotAttached, FileNotFoundError):
        # While a daemon changes from pins to files or back, both exist, and one of them is whole.
        other = trees.files if tree is trees.pins else trees.pins
        if not os.path.isdir(other.path(interface)):
            raise
    return _read_in(other, interface, reported)


def _read_in(tree: Tree, interface: str, reported: Mapping[str, Any]) -> dict[str, Any]:
    with open_instance(tree, interface, readonly=True) as instance:
        return status_data(instance, is_locked=tree.is_locked(interface), reported=reported)


def reports(trees: Trees, interface: str | None = None) -> list[Daemon]:
    """Return the reports of this namespace's daemons; for one interface, their part about it."""
    here = report.daemons(trees.files.root, netns())
    if interface is None:
        return here
    concerned = [
        each._replace(interfaces=[one for one in each.interfaces if one["interface"] == interface])
        for each in here
    ]
    return [each for each in concerned if each.interfaces]


def interfaces(trees: Trees) -> list[str]:
    """Return the interfaces on which ndxdp answers, or whose addresses it keeps deprecated.

    `eth2` comes before `eth10`.

    Raises:
        NdxdpError: There are none, and BPF file systems are not available.
    """
    kept = _kept(trees)
    try:
        found = trees.interfaces()
    except NdxdpError:
        if not kept:
            raise
        found = []
    return sorted({*found, *kept}, key=natural_order)


def _kept(trees: Trees) -> dict[str, Kept]:
    found = lifetimes.kept(trees.files.root)
    return {each.interface: each for each in found if each.deprecate or each.deprecated}


def kept_data(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return `addresses` of `ndxdp status --json` (docs/commands.md)."""
    return [
        {
            "interface": each.interface,
            "running": each.running,
            "answered": name in snapshot.data,
            "why_unanswered": each.unanswered,
            "preferred": list(each.preferred),
            "deprecate": list(each.deprecate),
            "deprecated": [address_text(address) for address in each.deprecated],
        }
        for name, each in snapshot.kept.items()
    ]


def rates(before: Snapshot, after: Snapshot, interface: str) -> Rates | None:
    """Return the rates between two snapshots of an interface.

    None if the first snapshot has no such interface, or if its counters were reset since.
    """
    then, now = before.data.get(interface), after.data[interface]
    took = after.time - before.time
    if then is None or took <= 0:
        return None
    classes = {(each["source"], each["label"]): each["solicited"] for each in then["groups"]}
    more = {reason: count - then["reasons"][reason] for reason, count in now["reasons"].items()}
    if min(more.values()) < 0:
        return None
    return Rates(
        {reason: count / took for reason, count in more.items()},
        {
            key: max(each["solicited"] - classes.get(key, 0), 0) / took
            for each in now["groups"]
            for key in [(each["source"], each["label"])]
        },
    )


def status_data(
    instance: Instance, *, is_locked: bool, reported: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the status of one interface, as printed by `ndxdp status --json` (docs/commands.md).

    Args:
        instance: The interface's maps.
        is_locked: A process has locked the interface's directory.
        reported: What the interface's daemon reports of the interface; None without a daemon.
    """
    reported = reported or {}
    maps = instance.maps
    settings = maps.settings()
    rules = maps.rule_count()
    program = loader = None
    if isinstance(instance, KernelInstance):
        info = bpf_programs.info_of(instance.prog_fd)
        program, loader = {"id": info.id, "tag": info.tag}, "bcc" if settings.bcc else "prebuilt"
    limits = {name: maps.max_entries(name) for name in ("addresses", "prefixes")}
    counts = maps.class_counts(rules)
    place = instance.place(settings, is_locked=is_locked)
    care = publications.care(instance.interface)
    before = instance.programs_before()
    return {
        "interface": instance.interface,
        "attached": place is not Place.NOWHERE,
        "in_other_namespace": place is Place.ELSEWHERE,
        "problem": reported.get("problem", ""),
        "mode": settings.mode.label,
        "steps_down": [
            {"mode": mode.label, "why": why} for mode, why in modes.decode(settings.refusals)
        ],
        "loader": loader,
        "program": program,
        "programs_before": None if before is None else [each._asdict() for each in before],
        "socket": maps.socket_counts(),
        "held_by": "run" if is_locked else "pins",
        "ifindex": settings.ifindex,
        "mac": mac_text(settings.mac),
        "link_local": address_text(settings.link_local),
        "paused": settings.paused,
        "paused_rules": maps.paused_names(rules),
        "rate": settings.limits.each.per_second,
        "burst": settings.burst,
        "interface_rate": settings.limits.total.per_second,
        "gateway_rate": settings.limits.gateway.per_second,
        "rules": {
            "addresses": rules.addresses,
            "prefixes": rules.prefixes,
            "max_addresses": limits["addresses"],
            "max_prefixes": limits["prefixes"],
            "by_source": rules.by_origin,
        },
        "reasons": {reason.label: count for reason, count in maps.reasons().items()},
        "resolver": maps.resolved()._asdict(),
        "gateway_care": _care_data(care, instance.interface),
        "multicast": reported.get("multicast"),
        "last_answer": _moment(max((each.last_answer or 0 for each in counts), default=0)),
        "groups": [each._asdict() | {"last_answer": _moment(each.last_answer)} for each in counts],
        "warnings": [
            *status_warnings.of_interface(instance, settings, rules, limits, care, place),
            *status_warnings.of_programs_before(instance, before or [], is_locked=is_locked),
        ],
    }


def _care_data(care: CareStatus | None, interface: str) -> dict[str, Any] | None:
    if care is None:
        return None
    source = address_text(care.source) if care.source and not care.why else None
    return {"source": source, "why": care.explain(interface) or None}


def _moment(monotonic: int | None) -> str | None:
    """Convert a time of CLOCK_MONOTONIC, in ns, to a date and time; None for never."""
    if not monotonic:
        return None
    moment = datetime.now(UTC) - timedelta(microseconds=(time.monotonic_ns() - monotonic) / 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def answered(counts: Mapping[str, float]) -> float:
    """Return the number of answered solicitations among counts by reason."""
    return sum(counts[reason.label] for reason in Reason if reason.is_answer)
