"""The holder of a shared address, by the report of the daemon on this host."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from ndxdp.netlink.netns import netns
from ndxdp.observe.hosts import moment
from ndxdp.observe.units import elapsed
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import SHARED_ORIGIN, Rule
from ndxdp.runtime import fleet_report, report
from ndxdp.runtime.fleet_report import FleetReport, SharedAddressEntry

_LAPSED = "lapsed"
"""The label of the reason for a rule whose lease has ended."""


class Holding(NamedTuple):
    """The holder of the address of a rule.

    Attributes:
        entry: The address in the report of the daemon; None if no report has it.
        host: The name of this host in etcd; "" without a report.
        written: time.time() of the report; 0 without one.
        is_running: The daemon that wrote the report is running.
        lapsed: This host holds the address, but its lease has ended.
    """

    entry: SharedAddressEntry | None
    host: str
    written: float
    is_running: bool
    lapsed: bool


def find(directory: Path, prefix: Prefix, rule: Rule, reason: str) -> Holding | None:
    """Return who answers for a shared address; None for a rule of another origin.

    Args:
        directory: The run directory.
        prefix: The prefix of the rule.
        rule: The rule that the verdict depends on.
        reason: The label of the verdict's reason.
    """
    if rule.origin != SHARED_ORIGIN:
        return None
    namespace, lapsed = netns(), reason == _LAPSED
    found = fleet_report.read(directory, namespace)
    if found is None:
        return Holding(None, "", 0, is_running=False, lapsed=lapsed)
    running = fleet_report.is_running(found, report.daemons(directory, namespace))
    entry = _entry(found, prefix, rule.label)
    return Holding(entry, found.host, found.written, running, lapsed)


def _entry(found: FleetReport, prefix: Prefix, segment: str) -> SharedAddressEntry | None:
    """Return the address with a prefix; of several, that of the segment, and one that is held."""
    text = str(prefix)
    entries = [each for each in found.addresses if each.prefix == text]
    return min(entries, key=lambda each: (each.segment != segment, not each.holder), default=None)


def holding_data(holding: Holding) -> dict[str, Any]:
    """Return `holder` of `ndxdp explain --json` (docs/json.md)."""
    entry = holding.entry
    return {
        "key": f"shared/{entry.key}" if entry else None,
        "host": entry.holder or None if entry else None,
        "here": bool(entry and entry.holder and entry.holder == holding.host),
        "since": moment(entry.since or None) if entry else None,
        "lapsed": holding.lapsed,
        "running": holding.is_running,
        "problem": entry.problem if entry else "",
    }


def holding_text(holding: Holding) -> str:
    """Describe who answers for a shared address: `vlan7/web is held by h2, since 3 h ago`."""
    entry, now = holding.entry, time.time()
    if entry is None:
        lapsed = "the lease of this host has lapsed; " if holding.lapsed else ""
        return f"{lapsed}no daemon on this host reports who answers for it"
    since = f", since {elapsed(now - entry.since)} ago" if entry.since else ""
    here = bool(entry.holder) and entry.holder == holding.host
    if not entry.holder:
        text = f"nobody holds {entry.key}" + (f": {entry.problem}" if entry.problem else "")
    elif here:
        text = f"{entry.key} is held by this host, {entry.holder}{since}"
        text += f": {entry.problem}" if entry.problem else ""
    else:
        text = f"{entry.key} is held by {entry.holder}{since}"
    if holding.lapsed:
        text = f"the lease of this host has lapsed; {text}"
    if not holding.is_running:
        age = elapsed(now - holding.written)
        text += f"; so it was {age} ago, when the daemon last reported: it does not run any more"
    return text
