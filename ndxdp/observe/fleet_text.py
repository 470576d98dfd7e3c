"""This host's part in shared addresses, as text: lines of `ndxdp status`, problems, the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_REFUSED_MAX = 5  # refused values
_MEMBERS_MAX = 8  # names of members in a line


def fleet_problems(fleet: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence on each problem of a host with its shared addresses.

    Args:
        fleet: The host's part, as the report of its daemon has it (ndxdp.runtime.report.Daemon).
    """
    if fleet["problem"]:
        yield f"this host answers for no shared address: {fleet['problem']}"
    for segment in fleet["segments"]:
        name = segment["segment"]
        if segment["problem"] and segment["problem"] != fleet["problem"]:
            yield f"segment {name}: this host is no member: {segment['problem']}"
        if segment["unheld"]:
            part = f"{segment['unheld']} of {segment['shared']}"
            yield f"segment {name}: nobody answers for {part} shared addresses"
    for each in fleet.get("rivals_seen") or ():
        yield (
            f"another node, {each['mac']}, advertises {each['address']}, too, which this host"
            " answers for"
        )
    shown = fleet["refused_values"][:_REFUSED_MAX]
    for each in shown:
        yield f"etcd: {each['key']} is refused: {each['reason']}"
    if fleet["refused"] > len(shown):
        yield f"etcd: {fleet['refused'] - len(shown)} more values of shared addresses are refused"


def fleet_lines(fleet: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of `ndxdp status` on the shared addresses of a host's segments."""
    yield f"shared addresses  {headline(fleet)}"
    for segment in fleet["segments"]:
        yield f"  segment   {segment['segment']}: {segment_text(segment)}"


def headline(fleet: Mapping[str, Any]) -> str:
    """Describe a host's part: how many addresses it answers for, and whether it is drained."""
    shared, held = (sum(each[key] for each in fleet["segments"]) for key in ("shared", "held"))
    text = f"held by this host {held} of {shared}"
    if fleet["drained"]:
        text += "; drained: it gives up all, and takes none, until `ndxdp fleet undrain`"
    if not fleet["connected"]:
        text += "; as they were when etcd was last reached"
    return text


def segment_text(segment: Mapping[str, Any]) -> str:
    """Describe a segment: its members, and who answers for its shared addresses."""
    members = segment["members"]
    names = f" ({', '.join(members)})" if 0 < len(members) <= _MEMBERS_MAX else ""
    words = [
        *([] if segment["joined"] else ["this host is no member"]),
        f"members {len(members)}{names}",
        f"shared {segment['shared']}",
        f"held by this host {segment['held']}",
        *([f"held by nobody {segment['unheld']}"] if segment["unheld"] else []),
    ]
    return ", ".join(words)
