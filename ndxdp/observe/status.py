"""How an interface fares: what `ndxdp status` and the exporter's page show."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ndxdp.errors import Damaged, NdxdpError, NotAttached
from ndxdp.hooks.hook_order import Program
from ndxdp.kernel import bpf_programs
from ndxdp.kernel.abi import Mode
from ndxdp.ndp.limiter import Rate
from ndxdp.ndp.reason import Reason
from ndxdp.netlink import vlan_offload
from ndxdp.netlink.netns import netns
from ndxdp.observe.render import address_text, mac_text
from ndxdp.rules import breadth
from ndxdp.rules.prefix import Prefix
from ndxdp.runtime import publications, report
from ndxdp.runtime.daemon_status import CareStatus
from ndxdp.runtime.report import Daemon
from ndxdp.session import modes
from ndxdp.session.modes import Step
from ndxdp.store import lifetimes
from ndxdp.store.directories import Tree, Trees
from ndxdp.store.instance import Instance, KernelInstance, Place, open_instance
from ndxdp.store.lifetimes import Kept
from ndxdp.store.records import RuleCount, Settings
from ndxdp.store.rule_changes import on_link

_NOT_ATTACHED = "not attached: the interface has gone, or the program was taken off"
_NEARLY_FULL = 0.9
_SHOWN = 4  # addresses in a line


@dataclass(frozen=True, slots=True)
class Look:
    """All interfaces at one moment.

    Attributes:
        time: Seconds of CLOCK_MONOTONIC.
        data: What there is of each interface, as status_data() has it.
        error: The last of those that could not be read.
        kept: Interfaces whose addresses are kept.
        daemons: The reports of the daemons of this network namespace.
    """

    time: float
    data: dict[str, dict[str, Any]]
    error: NdxdpError | None = None
    kept: dict[str, Kept] = field(default_factory=dict)
    daemons: list[Daemon] = field(default_factory=list)

    @property
    def problems(self) -> dict[str, str]:
        """Why daemons do not answer on interfaces that they are to answer on, by interface.

        "" where a daemon has not tried yet.
        """
        return {
            each["interface"]: each["problem"]
            for daemon in self.daemons
            for each in daemon.interfaces
            if each["interface"] not in self.data and not each["unanswered"]
        }


@dataclass(frozen=True, slots=True)
class Rates:
    """What was counted between two looks at an interface, per second: solicitations by reason,
    and by group (source, label) those that reached it."""

    by_reason: dict[str, float]
    by_group: dict[tuple[str, str], float]


def look(trees: Trees, interface: str | None = None) -> Look:
    """At all interfaces, or at one. NdxdpError if nothing can be looked at."""
    found: dict[str, dict[str, Any]] = {}
    failed = None
    kept, daemons = _kept(trees), reports(trees, interface)
    problems = {each["interface"]: each["problem"] for one in daemons for each in one.interfaces}
    names = [interface] if interface is not None else []
    if interface is not None:
        kept = {name: each for name, each in kept.items() if name == interface}
    else:
        try:
            names = interfaces(trees)
        except NdxdpError as error:
            if not daemons:
                raise
            failed = error
    for name in names:
        try:
            if name in kept and not trees.have(name):
                continue  # its addresses are all that there is
            found[name] = _data_of(trees, name, problems.get(name, ""))
        except NdxdpError as error:  # the others are shown all the same
            failed = error
    return Look(time.monotonic(), found, failed, kept, daemons)


def _data_of(trees: Trees, interface: str, problem: str) -> dict[str, Any]:
    tree = trees.of(interface)
    try:
        return _data_in(tree, interface, problem)
    except (Damaged, NotAttached, FileNotFoundError):
        # While a daemon goes from pins to files, or back, it has both, and one of them is whole.
        other = trees.files if tree is trees.pins else trees.pins
        if not os.path.isdir(other.path(interface)):
            raise
    return _data_in(other, interface, problem)


def _data_in(tree: Tree, interface: str, problem: str) -> dict[str, Any]:
    with open_instance(tree, interface, readonly=True) as instance:
        return status_data(instance, is_held=tree.is_locked(interface), problem=problem)


def reports(trees: Trees, interface: str | None = None) -> list[Daemon]:
    """Return the reports of this namespace's daemons; for one interface, their part of it."""
    here = report.daemons(trees.files.root, netns())
    if interface is None:
        return here
    concerned = [
        each._replace(interfaces=[one for one in each.interfaces if one["interface"] == interface])
        for each in here
    ]
    return [each for each in concerned if each.interfaces]


def troubles(daemon: Daemon) -> Iterator[str]:
    """Yield a sentence for each thing that is wrong with a daemon, interfaces aside."""
    if not daemon.reload["ok"]:
        yield (
            f"the configuration was not reloaded: {daemon.reload['error']}; that of before is in"
            " force"
        )
    if daemon.exporter and daemon.exporter["problem"]:
        yield (
            f"metrics are not served at {daemon.exporter['where']}: {daemon.exporter['problem']}"
        )
    if daemon.docker and not daemon.docker["connected"]:
        yield "the container engine is away: its containers' rules stay meanwhile"


def unanswered_text(problem: str) -> str:
    """Describe what is wrong with an interface of a daemon's of which nothing can be read.

    problem: As the daemon says; "" before its first attempt.
    """
    if problem.startswith("not in step"):
        return f"answered on, but its state cannot be read: {problem}"
    return f"not answered on{f': {problem}' if problem else ' yet'}"


def interfaces(trees: Trees) -> list[str]:
    """Return the interfaces that ndxdp answers on, or keeps the addresses of.

    NdxdpError if there are none and BPF has no place to be.
    """
    kept = _kept(trees)
    try:
        found = trees.interfaces()
    except NdxdpError:
        if not kept:
            raise
        found = []
    return sorted({*found, *kept})


def _kept(trees: Trees) -> dict[str, Kept]:
    found = lifetimes.kept(trees.files.root)
    return {each.interface: each for each in found if each.deprecate or each.deprecated}


def kept_data(look: Look) -> list[dict[str, Any]]:
    """Return what is kept of addresses, as `ndxdp status --json` gives it (docs/commands.md)."""
    return [
        {
            "interface": each.interface,
            "running": each.running,
            "answered": name in look.data,
            "why_unanswered": each.unanswered,
            "preferred": list(each.preferred),
            "deprecate": list(each.deprecate),
            "deprecated": [address_text(address) for address in each.deprecated],
        }
        for name, each in look.kept.items()
    ]


def kept_text(kept: Kept) -> str:
    """Describe what is kept of an interface's addresses, for people."""
    shown = ", ".join(address_text(address) for address in kept.deprecated[:_SHOWN])
    more = len(kept.deprecated) - _SHOWN
    shown += f" and {more} more" if more > 0 else ""
    said = f"deprecated {len(kept.deprecated)}" + (f": {shown}" if shown else "")
    if kept.preferred:
        said += f"; preferred {', '.join(kept.preferred)}"
    if not kept.running:
        said += (
            f"; no daemon keeps them so: `ndxdp detach {kept.interface}` restores their lifetimes"
        )
    return said


def looks(trees: Trees, interface: str | None, seconds: float) -> Iterator[tuple[Look, Look]]:
    """Two looks to compare, so many seconds apart, again and again. The first pair comes within a
    second, at once where there is nothing to count."""
    before, pause = look(trees, interface), min(seconds, 1.0)
    while True:
        if before.data:
            time.sleep(pause)
        after = look(trees, interface)
        yield before, after
        if not after.data:
            time.sleep(seconds)
        before, pause = after, seconds


def rates(before: Look, after: Look, interface: str) -> Rates | None:
    """None where the interface was not there, or counts began anew meanwhile."""
    then, now = before.data.get(interface), after.data[interface]
    took = after.time - before.time
    if then is None or took <= 0:
        return None
    groups = {(each["source"], each["label"]): each["solicited"] for each in then["groups"]}
    more = {reason: count - then["reasons"][reason] for reason, count in now["reasons"].items()}
    if min(more.values()) < 0:
        return None
    return Rates(
        {reason: count / took for reason, count in more.items()},
        {
            key: max(each["solicited"] - groups.get(key, 0), 0) / took
            for each in now["groups"]
            for key in [(each["source"], each["label"])]
        },
    )


def status_data(instance: Instance, *, is_held: bool, problem: str = "") -> dict[str, Any]:
    """Return what there is of one interface, as `ndxdp status --json` has it (docs/commands.md).

    Args:
        instance: The interface's maps.
        is_held: A process holds the interface.
        problem: Why the daemon does not answer there, or is not in step.
    """
    maps = instance.maps
    settings = maps.settings()
    rules = maps.rule_count()
    program = loader = None
    if isinstance(instance, KernelInstance):
        info = bpf_programs.info_of(instance.prog_fd)
        program, loader = {"id": info.id, "tag": info.tag}, "bcc" if settings.bcc else "prebuilt"
    limits = {name: maps.max_entries(name) for name in ("addresses", "prefixes")}
    counts = maps.class_counts(rules)
    place = instance.place(settings, is_locked=is_held)
    care = publications.care(instance.interface)
    before = instance.programs_before()
    return {
        "interface": instance.interface,
        "attached": place is not Place.NOWHERE,
        "in_other_namespace": place is Place.ELSEWHERE,
        "problem": problem,
        "mode": settings.mode.label,
        "steps_down": [
            {"mode": mode.label, "why": why} for mode, why in modes.unpack(settings.steps)
        ],
        "loader": loader,
        "program": program,
        "programs_before": None if before is None else [each._asdict() for each in before],
        "socket": maps.socket_counts(),
        "held_by": "run" if is_held else "pins",
        "ifindex": settings.ifindex,
        "mac": mac_text(settings.mac),
        "link_local": address_text(settings.link_local),
        "paused": settings.paused,
        "rate": _rate_of(settings.limits.each),
        "burst": settings.burst,
        "interface_rate": _rate_of(settings.limits.total),
        "gateway_rate": _rate_of(settings.limits.gateway),
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
        "last_answer": _moment(max((each.last_answer or 0 for each in counts), default=0)),
        "groups": [each._asdict() | {"last_answer": _moment(each.last_answer)} for each in counts],
        "warnings": [
            *_warnings(instance, settings, rules, limits, care, place),
            *_rivals(instance, before or [], is_held=is_held),
        ],
    }


def _rate_of(limit: Rate) -> float:
    """The times a second that a limit admits; 0 without one."""
    return 1e9 / limit.interval if limit.interval else 0


def _care_data(care: CareStatus | None, interface: str) -> dict[str, Any] | None:
    if care is None:
        return None
    source = address_text(care.source) if care.source and not care.why else None
    return {"source": source, "why": care.explain(interface) or None}


def _moment(monotonic: int | None) -> str | None:
    """ns of CLOCK_MONOTONIC, as the second that it was; None for never."""
    if not monotonic:
        return None
    moment = datetime.now(UTC) - timedelta(microseconds=(time.monotonic_ns() - monotonic) / 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def since(moment: str) -> str:
    """`3 s ago`, `5 min ago`."""
    passed = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed >= 2 * seconds:
            return f"{passed / seconds:.0f} {unit} ago"
    return f"{max(passed, 0):.0f} s ago"


def answered(counts: Mapping[str, float]) -> float:
    """Of what is counted by reason, that which was answered."""
    return sum(counts[reason.label] for reason in Reason if reason.is_answer)


def headline(data: Mapping[str, Any]) -> str:
    """Mode and program, or that there is none."""
    if not data["attached"]:
        return _NOT_ATTACHED
    said: str = data["mode"]
    if data["program"]:
        said += f", {data['loader']} program {data['program']['id']}"
    if data["in_other_namespace"]:
        said += ", in another network namespace"
    return said + (", held by a running ndxdp" if data["held_by"] == "run" else "")


def steps_down(data: Mapping[str, Any]) -> list[str]:
    """The better modes that could not be had, and why."""
    steps = [Step(Mode[step["mode"].upper()], step["why"]) for step in data["steps_down"]]
    return modes.told(steps)


def xdp_before(data: Mapping[str, Any]) -> list[str]:
    """Return a sentence on each XDP program that sees frames before ndxdp.

    These are no warnings: an XDP program lets pass what is none of its business.
    """
    programs = [Program(**each) for each in data["programs_before"] or ()]
    return [
        f"{each} sees each frame first: ndxdp answers what it lets pass"
        for each in programs
        if not each.is_rival
    ]


def warnings(data: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with an interface: what the daemon says, and what is seen of it."""
    return [*([data["problem"]] if data["problem"] else []), *data["warnings"]]


def per_second(rate: float) -> str:
    """`12/s`, `0.33/s`."""
    return f"{rate:.0f}/s" if rate >= 9.95 else f"{rate:.2g}/s"


def status_text(data: Mapping[str, Any], now: Rates | None = None) -> Iterator[str]:
    """The same for people, with what is going on at present."""
    rules, reasons = data["rules"], data["reasons"]
    by_reason, by_group = (now.by_reason, now.by_group) if now else ({}, {})
    yield f"{data['interface']}  {headline(data)}"
    for step in steps_down(data):
        yield f"  not       {step}"
    for sentence in xdp_before(data):
        yield f"  before    {sentence}"
    for warning in warnings(data):
        yield f"  WARNING   {warning}"
    if data["paused"]:
        yield "  paused: nothing is answered"
    yield f"  from      {data['mac']}  {data['link_local']}"
    sources = ", ".join(f"{source} {count}" for source, count in rules["by_source"].items())
    yield (
        f"  rules     addresses {rules['addresses']} of {rules['max_addresses']},"
        f" prefixes {rules['prefixes']}" + (f" (by {sources})" if sources else "")
    )
    if data["rate"]:
        limit = f"{data['rate']:g} answers/s, {data['burst']} at once"
        yield f"  limit     {limit} for one MAC"
    if data["interface_rate"]:
        yield f"  limit     {data['interface_rate']:g} answers/s in all"
    if data["rate"] or data["interface_rate"]:
        share = f"{data['gateway_rate']:g} answers/s" if data["gateway_rate"] else "no limit"
        yield f"  limit     {share} for each gateway"
    total = f"  answered  {answered(reasons)} of {sum(reasons.values())} solicitations"
    if now:
        solicited = per_second(sum(now.by_reason.values()))
        total += f", now {per_second(answered(now.by_reason))} of {solicited}"
    yield total
    if data["last_answer"]:
        yield f"  last      answered {since(data['last_answer'])}"
    for reason, count in reasons.items():
        if count:
            yield f"            {count:>10} {reason}{_rate(by_reason.get(reason, 0))}"
    if any(data["resolver"].values()):
        told = ", ".join(f"{key} {count}" for key, count in data["resolver"].items())
        yield f"  resolver  {told}"
    if data["gateway_care"] and data["gateway_care"]["source"]:
        yield f"  gateway   solicited from {data['gateway_care']['source']}"
    if data["socket"] and any(data["socket"].values()):
        overflows, errors = data["socket"]["overflows"], data["socket"]["errors"]
        yield f"  socket    overflows {overflows}, errors {errors}"
    for group in data["groups"]:
        if group["solicited"] and group["rules"]:
            rate = by_group.get((group["source"], group["label"]), 0)
            yield (
                f"  rule      {group['answered']:>10} of {group['solicited']} answered:"
                f" {group['label']} ({group['source']}){_rate(rate)}"
            )


def _rate(rate: float) -> str:
    return f", now {per_second(rate)}" if rate else ""


def _warnings(
    instance: Instance,
    settings: Settings,
    rules: RuleCount,
    limits: Mapping[str, int],
    care: CareStatus | None,
    place: Place,
) -> Iterator[str]:
    interface, device = instance.interface, instance.device()
    if place is Place.ELSEWHERE and interface in {name for _, name in socket.if_nameindex()}:
        yield (
            f"{interface} of this network namespace is not answered on, but that of another one:"
            " give each namespace a BPF file system of its own (--bpffs)"
        )
    if device not in (None, interface):
        yield (
            f"this interface is called {device} now: `ndxdp attach {device}` goes on under that"
            f" name, `ndxdp detach {interface}` ends it"
        )
        return
    if rules.prefixes:
        yield from _broad(instance, settings)
    by_xdp = place is Place.HERE and settings.mode in (Mode.NATIVE, Mode.GENERIC)
    if by_xdp and vlan_offload.vlans_on(interface):
        from ndxdp.netlink import links  # pyroute2: the other lines do without

        link = links.find_link(interface)
        hidden = vlan_offload.hidden_vlans(interface, link.kind) if link else []
        if hidden:
            yield (
                f"the VLAN tags of {', '.join(hidden)} are taken off before XDP sees them:"
                " answers may go to the wrong VLAN; attach in tc mode"
            )
    if settings.daemon_dead:
        age = (time.monotonic_ns() - settings.heartbeat) / 1e9
        yield f"no sign of life of the daemon for {age:.0f} s: containers are not answered for"
    if care and care.why:
        yield f"the gateway is not solicited: {care.explain(interface)}"
    for name, count in (("addresses", rules.addresses), ("prefixes", rules.prefixes)):
        if count > _NEARLY_FULL * limits[name]:
            yield f"there is room for {limits[name] - count} more {name} only"


def _broad(instance: Instance, settings: Settings) -> Iterator[str]:
    """Yield a warning for each rule that defends other nodes' addresses, or was left out for that.

    A rule with `dad = "ignore"` brings none: somebody has thought of it.
    """
    here: frozenset[Prefix] = frozenset()
    with contextlib.suppress(OSError):  # an exporter's sandbox may have no netlink
        here = on_link(settings).prefixes
    found = instance.maps.wider(breadth.candidates(here))
    for broad in breadth.find_all(found, here):
        if broad.rule.profile.defend:
            yield (
                f"{broad.sentence(instance.interface)}; by '{broad.rule.origin}',"
                f" see ndxdp doctor {instance.interface}"
            )
    for prefix, rule in sorted(found.wider.items()):
        if breadth.is_left_out(rule):
            yield (
                f"the rule for {prefix} is left out: it would answer for the other nodes on"
                f" {instance.interface}, too; see ndxdp doctor {instance.interface}"
            )


def _rivals(instance: Instance, before: list[Program], *, is_held: bool) -> Iterator[str]:
    """Yield a sentence on each program at tc that sees frames before ndxdp."""
    rivals = [program for program in before if program.is_rival]
    if not rivals:
        return
    cure = "no place before it is free"
    if instance.can_come_first():
        renewal = "a restart of ndxdp" if is_held else f"`ndxdp attach {instance.interface}`"
        cure = f"{renewal} puts ndxdp first"
    for program in rivals:
        yield f"{program} may take solicitations before ndxdp sees them; {cure}"
