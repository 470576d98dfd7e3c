"""Status page: the output of `ndxdp status` as one HTML page without scripts. Pure."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from html import escape
from itertools import chain
from typing import Any, NamedTuple

from ndxdp import __version__
from ndxdp.observe.fleet_text import headline as headline_of_fleet
from ndxdp.observe.fleet_text import segment_text
from ndxdp.observe.overview import ANSWERING, state_of_unread
from ndxdp.observe.overview import state as state_of
from ndxdp.observe.page_choice import Choice
from ndxdp.observe.page_interface import interface
from ndxdp.observe.page_parts import counted, facts, number, paragraph, part_of, rate
from ndxdp.observe.page_share import shares
from ndxdp.observe.page_style import STYLE
from ndxdp.observe.shares import problems as problems_of_share
from ndxdp.observe.sparkline import Curves, svg
from ndxdp.observe.status import Rates, Snapshot, answered, rates
from ndxdp.observe.status_text import (
    daemon_problems,
    headline,
    kept_text,
    unread_text,
    warnings,
)
from ndxdp.observe.units import elapsed
from ndxdp.rules.interface_name import natural_order
from ndxdp.runtime.daemon_status import DaemonStatus, EtcdStatus
from ndxdp.runtime.report import Daemon, daemon_of

REFRESH = 15  # seconds
_DEFAULT = Choice()

_UNFOLDED_MAX = 4
"""Interfaces that may be unfolded: with more that are not idle, all are folded."""

_IDLE = 300.0
"""Seconds without an answer after which an interface is idle."""

_IDLE_MAX = 8
"""Idle interfaces that are shown among the others, each folded."""

_POINTS = 48  # of the curve of one interface among others
_ALL_POINTS = 144


class _Problem(NamedTuple):
    interface: str  # "" for the daemon
    text: str


@dataclass(frozen=True, slots=True)
class _View:
    """The contents of one page.

    Attributes:
        after: The snapshot to show, with the reports of the daemons to show.
        rates: The present rates of the interfaces for which they are known.
        state: The status of the daemon that serves the page; None if another process does.
        curves: The past; None if it is not known.
        choice: How the reader wants the page.
    """

    after: Snapshot
    rates: Mapping[str, Rates]
    state: DaemonStatus | None
    curves: Curves | None
    choice: Choice

    @property
    def names(self) -> list[str]:
        """The interfaces in natural order, also those that could not be read."""
        after = self.after
        return sorted({*after.data, *after.kept, *after.reported}, key=natural_order)


def html(
    before: Snapshot,
    after: Snapshot,
    state: DaemonStatus | None,
    listening: str,
    *,
    host: str = "",
    curves: Curves | None = None,
    choice: Choice = _DEFAULT,
) -> str:
    """Return the page.

    Args:
        before: A snapshot, taken a moment earlier, for the rates.
        after: The snapshot to show.
        state: The status of the daemon that serves the page; None if another process does.
        listening: The address where the page is served.
        host: The name of the host; "" to omit it.
        curves: The answers per second in the past; None if they are not known.
        choice: How the reader wants the page.
    """
    now = {name: found for name in after.data if (found := rates(before, after, name))}
    if state:
        after = replace(after, daemons=[daemon_of(state)])
    view = _View(after, now, state, curves, choice)
    view = replace(view, choice=choice.among(view.names))
    problems = list(_problems(view))
    place = f" on {host}" if host else ""
    title = f"{counted(len(problems), 'problem')}: " if problems else ""
    body = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(f"{title}ndxdp{place}")}',
        '</title><meta name="viewport" content="width=device-width, initial-scale=1">',
        _refresh(view.choice),
        f"<style>{STYLE}</style></head><body>",
        f"<header><h1>ndxdp <small>{escape(f'{__version__}{place}')}</small></h1></header><main>",
        *_summary(view, problems),
        *_problem_list(problems, view.choice),
        *_interfaces(view, Counter(each.interface for each in problems)),
        *shares(after.shares),
        *_daemons(view),
        "</main>",
        _footer(listening, view.choice),
    ]
    return "\n".join([*body, "</body></html>"])


# ---- the whole ----------------------------------------------------------------------------------


def _problems(view: _View) -> Iterator[_Problem]:
    """Yield what needs attention: first of the daemons, then of each interface."""
    for daemon in view.after.daemons:
        for text in daemon_problems(daemon):
            yield _Problem("", text[0].upper() + text[1:])
    if view.after.error:
        yield _Problem("", view.after.error.message)
    for share in view.after.shares:
        for text in problems_of_share(share):
            yield _Problem("", f"Share of {share.report.upstream}: {text}")
    for name in view.names:
        if name in view.after.data:
            data = view.after.data[name]
            if not data["attached"]:
                yield _Problem(name, headline(data))
            for text in warnings(data):
                yield _Problem(name, text)
        elif name in view.after.unread and _is_problem(view.after.unread[name]):
            yield _Problem(name, unread_text(view.after.unread[name]))
        status = view.state.interfaces.get(name) if view.state else None
        for gateway in status.gateways() if status and status.gateways else ():
            if gateway.silent:
                yield _Problem(name, "a gateway does not answer")


def _is_problem(reported: Mapping[str, Any]) -> bool:
    """Return False if an interface that could not be read is only starting."""
    return bool(reported["problem"] or reported.get("answered"))


def _summary(view: _View, problems: Sequence[_Problem]) -> Iterator[str]:
    data = view.after.data.values()
    answering = sum(state_of(each) == ANSWERING for each in data)
    paused = sum(each["attached"] and each["paused"] for each in data)
    if not view.names:
        nothing = "No interface can be read." if problems else "ndxdp is attached to no interface."
        yield f'<section class="panel">{paragraph(nothing)}</section>'
        return
    verdict = f"Answering on {part_of(answering, len(view.names), 'interface')}"
    verdict += f", {number(paused)} paused" if paused else ""
    verdict += f"; {counted(len(problems), 'problem')}" if problems else ""
    kind = "bad" if problems else "good" if answering == len(view.names) else "plain"
    yield '<section class="panel" aria-label="Summary">'
    yield paragraph(verdict, kind)
    reasons = [each["reasons"] for each in data]
    numbers = []
    if view.rates:
        by_reason = [each.by_reason for each in view.rates.values()]
        numbers += [
            ("answered now", rate(sum(map(answered, by_reason)))),
            ("solicited now", rate(sum(sum(each.values()) for each in by_reason))),
        ]
    if len(view.names) > 1:
        numbers += [
            ("answered in total", number(sum(map(answered, reasons)))),
            ("solicited in total", number(sum(sum(each.values()) for each in reasons))),
            (
                "rules",
                number(
                    sum(each["rules"][one] for each in data for one in ("addresses", "prefixes"))
                ),
            ),
        ]
    yield from facts(numbers, "numbers")
    if view.curves:
        yield from _figure(view.curves)
    yield "</section>"


def _figure(curves: Curves) -> Iterator[str]:
    drawn = svg(curves.total, "Curve of the answers per second", points=_ALL_POINTS)
    if not drawn:
        yield paragraph("The curve of the answers begins in a few seconds.", "quiet")
        return
    most = rate(max(curves.total))
    text = f"Answers in the last {elapsed(curves.seconds)}, {most} at most"
    yield f"<figure>{drawn}<figcaption>{escape(text)}</figcaption></figure>"


def _problem_list(problems: Sequence[_Problem], choice: Choice) -> Iterator[str]:
    if not problems:
        return
    yield '<section class="panel problems" aria-labelledby="problems">'
    yield f'<h2 id="problems" class="bad">{counted(len(problems), "problem").capitalize()}</h2><ul>'
    for name, text in problems:
        to = escape(choice.unfolding(name))
        link = f'<a href="{to}">{escape(name)}</a>: ' if name else ""
        yield f"<li>{link}{escape(text)}</li>"
    yield "</ul></section>"


def _refresh(choice: Choice) -> str:
    """Return the element that makes a browser load the page again.

    Without an address, a browser would not load a page again whose address has a fragment.
    """
    if not choice.refreshed:
        return ""
    to = escape(choice.address(refreshed=True))
    return f'<meta http-equiv="refresh" content="{REFRESH}; url={to}">'


def _footer(listening: str, choice: Choice) -> str:
    time = datetime.now().astimezone().strftime("%H:%M:%S %Z")
    every = f"every {REFRESH} s"
    text = f"{listening}, {time}" + (f", refreshed {every}" if choice.refreshed else "")
    to = escape(choice.address(refreshed=not choice.refreshed))
    link = f'<a href="{to}">{"Do not refresh" if choice.refreshed else f"Refresh {every}"}</a>'
    return f'<footer class="quiet"><p>{escape(text)}. {link}</p></footer>'


# ---- one interface ------------------------------------------------------------------------------


def _interfaces(view: _View, troubles: Mapping[str, int]) -> Iterator[str]:
    """Yield the interfaces; many that are idle are folded together."""
    names = view.names
    if len(names) == 1:
        yield f'<h2 id="on-{escape(names[0])}">{escape(names[0])}</h2><section class="panel">'
        yield from _body(view, names[0])
        yield "</section>"
        return
    if names:
        yield f"<h2>{counted(len(names), 'interface').capitalize()}</h2>"
    idle = [name for name in names if name not in troubles and _is_idle(view, name)]
    lively = [name for name in names if name not in idle]
    few, many = ([], idle) if len(idle) > _IDLE_MAX else (idle, [])
    for name in names:
        if name not in many:
            shown = name not in few and len(lively) <= _UNFOLDED_MAX
            yield from _interface(view, name, troubles.get(name, 0), shown=shown, idle=name in few)
    if many:
        shown = not view.choice.unfolded.isdisjoint(many)
        yield f'<details class="many"{" open" if shown else ""}>'
        yield f"<summary>{counted(len(many), 'idle interface')}</summary>"
        for name in many:
            yield from _interface(view, name, 0, shown=False, idle=True)
        yield "</details>"


def _interface(view: _View, name: str, problems: int, *, shown: bool, idle: bool) -> Iterator[str]:
    kept = name in view.choice.unfolded
    kind, opened = "idle" if idle else "lively", " open" if shown or kept else ""
    yield f'<details class="{kind}"{opened}>'
    yield from _row(view, name, problems)
    yield f'<div class="more" id="on-{escape(name)}">'
    if kept:
        to, label = view.choice.folding(name), "Do not keep this unfolded"
    else:
        to, label = view.choice.unfolding(name), "Keep this unfolded"
    if kept or not shown:
        yield f'<p class="quiet"><a href="{escape(to)}">{label}</a></p>'
    yield from _body(view, name)
    yield "</div></details>"


def _is_idle(view: _View, name: str) -> bool:
    """Return True if an interface could answer, and has not done so for a while."""
    data, now = view.after.data.get(name), view.rates.get(name)
    if data is None:
        return True
    if data["paused"] or (now and answered(now.by_reason)):
        return False
    last = data["last_answer"]
    if not last:
        return True
    return (datetime.now().astimezone() - datetime.fromisoformat(last)).total_seconds() > _IDLE


def _row(view: _View, name: str, problems: int) -> Iterator[str]:
    """Yield the line that is shown of a folded interface."""
    data, now = view.after.data.get(name), view.rates.get(name)
    if data:
        state = state_of(data)
    else:
        reported = view.after.reported.get(name)
        state = state_of_unread(reported) if reported else "not answering"
    kind = "bad" if problems else "good" if state == ANSWERING else "plain"
    words = [state, *([data["mode"]] if data and data["attached"] else [])]
    words += [counted(problems, "problem").replace(" ", "\N{NO-BREAK SPACE}")] if problems else []
    drawn = svg(view.curves.of.get(name, ()), "", points=_POINTS) if view.curves else ""
    yield f'<summary><h3>{escape(name)}</h3><span class="{kind}">{escape(", ".join(words))}</span>'
    present = rate(answered(now.by_reason)) if now else ""
    yield f'<span class="past">{drawn}</span><span class="rate">{present}</span></summary>'


def _body(view: _View, name: str) -> Iterator[str]:
    """Yield all that is known about an interface."""
    kept = view.after.kept.get(name)
    data = view.after.data.get(name)
    if data:
        yield from interface(data, view.rates.get(name))
    elif name in view.after.reported:
        reported = view.after.reported[name]
        why = reported["unanswered"]
        silent = f"Nothing is answered on {name}: {why}"
        text = silent if why else f"{name} is {unread_text(reported)}"
        yield paragraph(text, "plain" if why or not _is_problem(reported) else "bad")
    elif kept:
        yield paragraph("Nothing is answered" + (f": {kept.unanswered}" if kept.unanswered else ""))
    if kept:
        yield from facts([("Addresses", kept_text(kept))])


# ---- the daemons --------------------------------------------------------------------------------


def _daemons(view: _View) -> Iterator[str]:
    if view.state:
        yield '<section><h2>Daemon</h2><div class="panel">'
        yield from facts(chain(_daemon(view.state), _fleets(view.after.daemons)))
        yield "</div></section>"
    elif view.after.daemons:
        yield f"<section><h2>{'Daemons' if len(view.after.daemons) > 1 else 'Daemon'}</h2>"
        yield '<div class="panel">'
        processes = ((f"Process {each.pid}", _summary_of(each)) for each in view.after.daemons)
        yield from facts(chain(processes, _fleets(view.after.daemons)))
        yield "</div></section>"


def _summary_of(daemon: Daemon) -> str:
    """Describe a daemon that is another process, from its report."""
    about = f"{daemon.config}, " if daemon.config else ""
    return f"{about}{counted(len(daemon.interfaces), 'interface')}"


def _fleets(daemons: Sequence[Daemon]) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each fact about shared addresses."""
    for daemon in daemons:
        if daemon.fleet:
            yield "Shared addresses", headline_of_fleet(daemon.fleet)
            for segment in daemon.fleet["segments"]:
                yield f"Segment {segment['segment']}", segment_text(segment)


def _etcd(etcd: EtcdStatus) -> str:
    where = f"connected to {etcd.endpoint}" if etcd.connected else "disconnected"
    refused = f", {counted(etcd.refused, 'value')} refused" if etcd.refused else ""
    changed = ""
    if etcd.last_event is not None:
        changed = f", last change {elapsed(time.time() - etcd.last_event)} ago"
    return f"{where}, {counted(etcd.rules, 'rule')}{refused}{changed}"


def _daemon(state: DaemonStatus) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each fact about the daemon that serves the page."""
    read = datetime.fromtimestamp(state.reloaded).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    yield (
        "Configuration",
        f"read at {read}" + ("" if state.reload_ok else "; the last reload failed"),
    )
    if state.docker_connected:
        connected = state.docker_connected()
        yield "Containers", f"the engine is {'connected' if connected else 'disconnected'}"
    if state.etcd:
        yield "etcd", _etcd(state.etcd())
    for name, status in sorted(state.interfaces.items(), key=lambda item: natural_order(item[0])):
        for gateway in status.gateways() if status.gateways else []:
            seen = "never" if gateway.seen is None else f"{elapsed(gateway.seen)} ago"
            yield "Gateway", f"on {name}, answered {seen}"
        if status.announced:
            yield "Announced", f"{counted(status.announced().sent, 'frame')} on {name}"
