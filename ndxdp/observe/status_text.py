"""Status of every interface as text: the sentences of `ndxdp status` and of the status page."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from ndxdp.hooks.hook_order import Program
from ndxdp.kernel.abi import Mode
from ndxdp.observe.fleet_text import fleet_problems
from ndxdp.observe.status import Rates, answered
from ndxdp.observe.units import elapsed
from ndxdp.rules.address import address_text
from ndxdp.runtime.report import Daemon
from ndxdp.session import modes
from ndxdp.session.modes import ModeRefusal
from ndxdp.store.lifetimes import Kept

_NOT_ATTACHED = "not attached: the interface was deleted, or the program was detached"
_ADDRESSES_MAX = 4  # in a line

_REFUSED_MAX = 5  # refused values of etcd

_CLASSES_MAX = 100
"""Lines of rule classes. If there are more classes, the busiest ones are shown."""


def daemon_problems(daemon: Daemon) -> Iterator[str]:
    """Yield a sentence on each problem of a daemon, except those of single interfaces."""
    if not daemon.reload["ok"]:
        yield (
            f"the daemon did not reload its configuration: {daemon.reload['error']}; the previous"
            " one is in force"
        )
    if daemon.exporter and daemon.exporter["problem"]:
        yield (
            f"the daemon does not serve metrics at {daemon.exporter['where']}:"
            f" {daemon.exporter['problem']}"
        )
    if daemon.docker and not daemon.docker["connected"]:
        yield "the container engine is disconnected; container rules are kept"
    if daemon.etcd:
        yield from _etcd_problems(daemon.etcd)
    if daemon.fleet:
        yield from fleet_problems(daemon.fleet)


def _etcd_problems(etcd: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence on each problem with etcd, or with the values there."""
    if not etcd["connected"]:
        why = f": {etcd['problem']}" if etcd["problem"] else ""
        yield f"etcd is disconnected{why}; its rules are kept"
    shown = etcd["refused_values"][:_REFUSED_MAX]
    for each in shown:
        yield f"etcd: {each['key']} is refused: {each['reason']}"
    if etcd["refused"] > len(shown):
        yield f"etcd: {etcd['refused'] - len(shown)} more values are refused"


def unread_text(reported: Mapping[str, Any]) -> str:
    """Describe an interface of which only its daemon's report could be read.

    Args:
        reported: The daemon's report on the interface.
    """
    problem = reported["problem"]
    if reported.get("answered"):
        state = "answering, but its state cannot be read"
        return f"{state}: {problem}" if problem else state
    return f"not answering: {problem}" if problem else "not answering yet"


def kept_text(kept: Kept) -> str:
    """Describe the addresses of an interface that ndxdp keeps deprecated."""
    shown = ", ".join(address_text(address) for address in kept.deprecated[:_ADDRESSES_MAX])
    more = len(kept.deprecated) - _ADDRESSES_MAX
    shown += f" and {more} more" if more > 0 else ""
    text = f"deprecated {len(kept.deprecated)}" + (f": {shown}" if shown else "")
    if kept.preferred:
        text += f"; preferred {', '.join(kept.preferred)}"
    if not kept.running:
        text += (
            "; no daemon keeps them deprecated:"
            f" `ndxdp detach {kept.interface}` restores their lifetimes"
        )
    return text


def since(moment: str) -> str:
    """Return how long ago a moment was: `3 s ago`, `5 min ago`."""
    passed = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    return f"{elapsed(passed)} ago"


def per_second(rate: float) -> str:
    """Format a rate: `12/s`, `0.33/s`."""
    return f"{rate:.0f}/s" if rate >= 9.95 else f"{rate:.2g}/s"


def headline(data: Mapping[str, Any]) -> str:
    """Describe mode and program of an interface, or say that it has none."""
    if not data["attached"]:
        return _NOT_ATTACHED
    text: str = data["mode"]
    if data["program"]:
        text += f", {data['loader']} program {data['program']['id']}"
    if data["in_other_namespace"]:
        text += ", in another network namespace"
    return text + (", locked by a running `ndxdp run`" if data["held_by"] == "run" else "")


def mode_refusals(data: Mapping[str, Any]) -> list[str]:
    """Return the better modes that are not available, each with the reason."""
    refused = [ModeRefusal(Mode[each["mode"].upper()], each["why"]) for each in data["steps_down"]]
    return modes.format_refusals(refused)


def xdp_before(data: Mapping[str, Any]) -> list[str]:
    """Return a sentence on each XDP program that sees frames before ndxdp.

    These are no warnings: an XDP program passes frames that do not concern it.
    """
    programs = [Program(**each) for each in data["programs_before"] or ()]
    return [
        f"{each} sees each frame first: ndxdp answers the solicitations that it passes"
        for each in programs
        if not each.is_rival
    ]


def warnings(data: Mapping[str, Any]) -> list[str]:
    """Return the problem that the daemon reports, and the warnings about the interface."""
    return [*([data["problem"]] if data["problem"] else []), *data["warnings"]]


def multicast_text(multicast: Mapping[str, Any] | None) -> str:
    """Describe the multicast groups of an interface's exact addresses; "" if there is no news.

    Args:
        multicast: The daemon's report on the groups (GroupStatus); None without a daemon.
    """
    if not multicast:
        return ""
    if multicast["join"] == "auto" and not multicast["joined"] and not multicast["left_out"]:
        return ""
    querier = {None: "not known yet", True: "present", False: "absent"}[multicast["querier"]]
    text = f"groups joined {multicast['joined']}"
    if multicast["left_out"]:
        text += f", left out {multicast['left_out']}"
    return f"{text} (join {multicast['join']}), MLD querier {querier}"


def status_text(data: Mapping[str, Any], now: Rates | None = None) -> Iterator[str]:
    """Yield the lines of `ndxdp status` on one interface.

    Args:
        data: The interface's status, as returned by status_data().
        now: Current rates; None if they are not known.
    """
    rules, reasons = data["rules"], data["reasons"]
    by_reason, by_class = (now.by_reason, now.by_class) if now else ({}, {})
    yield f"{data['interface']}  {headline(data)}"
    for warning in warnings(data):
        yield f"  WARNING   {warning}"
    if data["paused"]:
        yield "  paused: nothing is answered"
    if data["paused_rules"]:
        yield f"  paused: the rules of {', '.join(data['paused_rules'])}"
    for refused in mode_refusals(data):
        yield f"  not       {refused}"
    for sentence in xdp_before(data):
        yield f"  before    {sentence}"
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
            yield f"            {count:>10} {reason}{_now(by_reason.get(reason, 0))}"
    if any(data["resolver"].values()):
        counts = ", ".join(f"{key} {count}" for key, count in data["resolver"].items())
        yield f"  resolver  {counts}"
    if data["gateway_care"] and data["gateway_care"]["source"]:
        yield f"  gateway   solicited from {data['gateway_care']['source']}"
    multicast = multicast_text(data["multicast"])
    if multicast:
        yield f"  multicast {multicast}"
    if data["socket"] and any(data["socket"].values()):
        overflows, errors = data["socket"]["overflows"], data["socket"]["errors"]
        yield f"  socket    overflows {overflows}, errors {errors}"
    classes = [each for each in data["groups"] if each["solicited"] and each["rules"]]
    more = len(classes) - _CLASSES_MAX
    if more > 0:
        classes = heapq.nlargest(_CLASSES_MAX, classes, key=lambda each: each["solicited"])
    for each in classes:
        rate = by_class.get((each["source"], each["label"]), 0)
        yield (
            f"  class     {each['answered']:>10} of {each['solicited']} answered:"
            f" {each['label']} ({each['source']}){_now(rate)}"
        )
    if more > 0:
        yield f"  class     and {more} less busy ones: see `ndxdp status --json`"


def _now(rate: float) -> str:
    return f", now {per_second(rate)}" if rate else ""
