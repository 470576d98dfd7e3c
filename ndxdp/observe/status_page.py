"""Status page: the output of `ndxdp status` as one HTML page without scripts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from html import escape
from typing import Any

from ndxdp import __version__
from ndxdp.observe.status import Rates, Snapshot, answered, rates
from ndxdp.observe.status_text import (
    daemon_problems,
    headline,
    mode_refusals,
    multicast_text,
    per_second,
    since,
    unread_text,
    warnings,
    xdp_before,
)
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.runtime.report import Daemon, daemon_of

_REFRESH = 15  # seconds
_CLASSES_MAX = 20
"""Rows of the table of rule classes: the busiest classes are shown."""

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 46rem;
  padding: 0 1rem 2rem }
h1 { font-size: 1.2rem } h2 { font-size: 1.1rem; margin: 0 }
section { border: 1px solid #8888; border-radius: .5rem; margin: 1rem 0; padding: .75rem 1rem }
p { margin: .3rem 0 } .quiet { opacity: .75 }
.big { font-size: 1.6rem; font-variant-numeric: tabular-nums }
.good { color: light-dark(#0a6b2d, #6fdc8c) } .bad { color: light-dark(#b00020, #ff8a80) }
table { border-collapse: collapse; margin-top: .6rem; width: 100% }
th, td { border-top: 1px solid #8884; padding: .2rem .4rem; text-align: right;
  font-variant-numeric: tabular-nums }
th:first-child, td:first-child { overflow-wrap: anywhere; padding-left: 0; text-align: left }
"""


def html(before: Snapshot, after: Snapshot, state: DaemonStatus | None, listening: str) -> str:
    """Return the page.

    Args:
        before: A snapshot, taken a moment earlier, for the rates.
        after: The snapshot to show.
        state: The status of the daemon that serves the page; None if another process does.
        listening: The address where the page is served.
    """
    body = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><title>ndxdp</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="refresh" content="{_REFRESH}">',
        f"<style>{_STYLE}</style></head><body>",
        f'<h1>ndxdp <span class="quiet">{escape(__version__)}</span></h1>',
    ]
    for name, data in after.data.items():
        body += _interface(data, rates(before, after, name))
    if not after.data:
        body.append("<section><p>ndxdp is attached to no interface.</p></section>")
    if after.error:
        body.append(f'<section><p class="bad">{escape(after.error.message)}</p></section>')
    if state:
        body += _daemon(state, after)
    else:
        for daemon in after.daemons:
            body += _report(daemon, after)
    body.append(f'<p class="quiet">{escape(listening)}, refreshed every {_REFRESH} s</p>')
    return "\n".join([*body, "</body></html>"])


def _interface(data: Mapping[str, Any], now: Rates | None) -> Iterator[str]:
    rules, reasons = data["rules"], data["reasons"]
    yield f"<section><h2>{escape(data['interface'])}</h2>"
    kind = "good" if data["attached"] and not data["paused"] else "bad"
    yield f'<p class="{kind}">{escape(headline(data))}'
    yield f"{'; paused: nothing is answered' if data['paused'] else ''}</p>"
    for refused in mode_refusals(data):
        yield f'<p class="quiet">not {escape(refused)}</p>'
    for sentence in xdp_before(data):
        yield f'<p class="quiet">{escape(sentence)}</p>'
    for warning in warnings(data):
        yield f'<p class="bad">{escape(warning)}</p>'
    if now:
        solicited = per_second(sum(now.by_reason.values()))
        yield f'<p><span class="big">{per_second(answered(now.by_reason))}</span>'
        yield f"answered of {solicited}</p>"
    yield f"<p>{_number(answered(reasons))} of {_number(sum(reasons.values()))}"
    last = data["last_answer"]
    yield f"solicitations answered in total{f', the last {since(last)}' if last else ''}</p>"
    sources = ", ".join(f"{source} {_number(n)}" for source, n in rules["by_source"].items())
    limit = _number(rules["max_addresses"])
    yield f"<p>Rules: {_number(rules['addresses'])} addresses of {limit},"
    yield f"{_number(rules['prefixes'])} prefixes"
    yield f"{escape(f' (by {sources})' if sources else '')}</p>"
    if data["rate"]:
        yield f"<p>Limit: {data['rate']:g} answers/s for one soliciting MAC</p>"
    multicast = multicast_text(data["multicast"])
    if multicast:
        yield f"<p>Multicast: {escape(multicast)}</p>"
    yield f'<p class="quiet">from {escape(data["mac"])}, {escape(data["link_local"])}</p>'
    by_reason = now.by_reason if now else {}
    yield from _table(
        ("Reason", "now", "total"),
        (
            (reason, per_second(by_reason.get(reason, 0)), _number(count))
            for reason, count in sorted(reasons.items(), key=lambda item: -item[1])
            if count
        ),
    )
    classes = [each for each in data["groups"] if each["solicited"] and each["rules"]]
    classes.sort(key=lambda each: -each["solicited"])
    by_class = now.by_class if now else {}
    yield from _table(
        ("Rule", "now", "solicited", "answered"),
        (
            (
                f"{each['label']} ({each['source']})",
                per_second(by_class.get((each["source"], each["label"]), 0)),
                _number(each["solicited"]),
                _number(each["answered"]),
            )
            for each in classes[:_CLASSES_MAX]
        ),
    )
    yield "</section>"


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield a table, or nothing if it has no rows."""
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    if not cells:
        return
    yield f"<table><tr>{''.join(f'<th>{escape(title)}</th>' for title in titles)}</tr>"
    yield from (f"<tr>{row}</tr>" for row in cells)
    yield "</table>"


def _daemon(state: DaemonStatus, after: Snapshot) -> Iterator[str]:
    yield "<section><h2>Daemon</h2>"
    read = datetime.fromtimestamp(state.reloaded).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    yield f"<p>Configuration read at {read}</p>"
    if state.docker_connected and state.docker_connected():
        yield '<p class="good">The container engine is connected</p>'
    yield from _problems(daemon_of(state), after)
    for name, status in list(state.interfaces.items()):
        for gateway in status.gateways() if status.gateways else []:
            seen = "never" if gateway.seen is None else f"{gateway.seen:.0f} s ago"
            kind = "bad" if gateway.silent else "good"
            yield f'<p class="{kind}">A gateway on {escape(name)} answered {seen}</p>'
        if status.announced:
            sent = _number(status.announced().sent)
            yield f"<p>Announcements on {escape(name)}: {sent}</p>"
    yield "</section>"


def _report(daemon: Daemon, after: Snapshot) -> Iterator[str]:
    """Yield a section on a daemon that is another process, from its report."""
    of = f": {escape(daemon.config)}" if daemon.config else ""
    yield f"<section><h2>Daemon {daemon.pid}{of}</h2>"
    yield from _problems(daemon, after)
    yield "</section>"


def _problems(daemon: Daemon, after: Snapshot) -> Iterator[str]:
    for problem in daemon_problems(daemon):
        yield f'<p class="bad">{escape(problem[0].upper() + problem[1:])}</p>'
    for each in daemon.interfaces:
        name, why = each["interface"], each["unanswered"]
        if why:
            yield f'<p class="quiet">Nothing is answered on {escape(name)}: {escape(why)}</p>'
        elif name not in after.data:
            yield f'<p class="bad">{escape(f"{name} is {unread_text(each)}")}</p>'


def _number(count: float) -> str:
    return f"{count:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
