"""Traced solicitations as lines of text, as JSON, and as records of a pcap file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import lru_cache

from ndxdp.observe import pcap
from ndxdp.observe.render import rule_data, rule_text
from ndxdp.observe.trace import Event
from ndxdp.printable import printable
from ndxdp.rules.address import address_text, mac_text
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule


def text_line(event: Event) -> str:
    """Return an event as a line of text, with its line feed; the time of day is local."""
    target = address_text(event.target) if event.target else "-"
    second, rest = divmod(event.time, 1_000_000_000)
    return (
        f"{_clock(second)}.{rest // 1000:06}  {event.interface}"
        f"  {address_text(event.source)} ({mac_text(event.mac)})  {target}"
        f"  {event.reason.label}  {_rule_text(event.prefix, event.rule)}\n"
    )


@lru_cache(maxsize=16)
def _clock(second: int) -> str:
    """Return the local time of day of a Unix time."""
    return time.strftime("%H:%M:%S", time.localtime(second))


@lru_cache(maxsize=1024)
def _rule_text(prefix: Prefix | None, rule: Rule | None) -> str:
    return printable(rule_text(prefix, rule)) if prefix and rule else "-"


def json_line(event: Event) -> str:
    """Return an event as a line of JSON, with its line feed; the time is UTC."""
    second, rest = divmod(event.time, 1_000_000_000)
    data = {
        "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))}.{rest:09}Z",
        "interface": event.interface,
        "source": address_text(event.source),
        "mac": mac_text(event.mac),
        "target": address_text(event.target) if event.target else None,
        "reason": event.reason.label,
        "rule": rule_data(event.prefix, event.rule) if event.prefix and event.rule else None,
        "length": event.length,
        "solicitation": event.frame.hex(),
        "advertisement": event.reply.hex() if event.reply else None,
    }
    return json.dumps(data) + "\n"


def pcap_records(event: Event) -> Iterator[bytes]:
    """Yield the pcap records of an event: the solicitation, and the answer if there is one."""
    yield pcap.record(event.time, event.frame, event.length)
    if event.reply:
        yield pcap.record(event.time, event.reply, len(event.reply))
