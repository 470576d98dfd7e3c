"""Overview of all interfaces: the table and the problems that `ndxdp status` begins with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ndxdp.observe.share_text import problem_lines
from ndxdp.observe.status import Snapshot, answered, rates
from ndxdp.observe.status_text import daemon_problems, headline, per_second, unread_text, warnings
from ndxdp.rules.interface_name import natural_order
from ndxdp.runtime.report import Daemon
from ndxdp.store.lifetimes import Kept

HEADINGS = ("interface", "state", "mode", "rules", "answers/s", "warnings")
ANSWERING = "answering"
_STARTING = "starting"
_NOTHING = "-"


class Row(NamedTuple):
    """The line of one interface in the overview; each value is text.

    Attributes:
        interface: The name.
        state: `answering`, or the reason in a few words why the interface does not.
        mode: The mode; "-" if the interface has none.
        rules: The number of rules; "-" if it is not known.
        answers: Answers per second; "-" if they are not known.
        warnings: The number of warnings; "-" without one.
    """

    interface: str
    state: str
    mode: str = _NOTHING
    rules: str = _NOTHING
    answers: str = _NOTHING
    warnings: str = _NOTHING


def names(snapshot: Snapshot) -> list[str]:
    """Return the interfaces of a snapshot in natural order, also those that could not be read."""
    return sorted({*snapshot.data, *snapshot.kept, *snapshot.unread}, key=natural_order)


def rows(before: Snapshot, after: Snapshot) -> Iterator[Row]:
    """Yield a row for each interface; the rates are the differences from the snapshot before."""
    for name in names(after):
        if name in after.data:
            yield _row(before, after, name)
        elif name in after.kept:
            yield Row(name, "not answering")
        else:
            found = state_of_unread(after.unread[name])
            yield Row(name, found, warnings=_NOTHING if found == _STARTING else "1")


def _row(before: Snapshot, after: Snapshot, name: str) -> Row:
    data, now = after.data[name], rates(before, after, name)
    rules, found = data["rules"], _warnings(data)
    return Row(
        name,
        state(data),
        data["mode"],
        str(rules["addresses"] + rules["prefixes"]),
        per_second(answered(now.by_reason)) if now else _NOTHING,
        str(len(found)) if found else _NOTHING,
    )


def state(data: Mapping[str, Any]) -> str:
    """Return `answering`, or in a few words why an interface does not answer."""
    if not data["attached"]:
        return "not attached"
    if data["paused"]:
        return "paused"
    return "in another namespace" if data["in_other_namespace"] else ANSWERING


def state_of_unread(reported: Mapping[str, Any]) -> str:
    """Return the state of an interface of which only its daemon's report could be read."""
    if reported.get("answered"):
        return ANSWERING
    return "not answering" if reported["problem"] else _STARTING


def problems(snapshot: Snapshot) -> Iterator[str]:
    """Yield the lines about each daemon, then the problems of each interface."""
    for daemon in snapshot.daemons:
        expected = [each for each in daemon.interfaces if not each["unanswered"]]
        count = sum(bool(each.get("answered")) for each in expected)
        interfaces = "interface" if len(expected) == 1 else "interfaces"
        yield f"{_name(daemon)}: answers on {count} of {len(expected)} {interfaces}"
        yield from _warning_lines(daemon_problems(daemon))
    yield from problems_of_shares(snapshot)
    for name in names(snapshot):
        if name in snapshot.data:
            found = _warnings(snapshot.data[name])
            if found:
                yield name
            yield from _warning_lines(found)
        elif name in snapshot.kept:
            yield unanswered_text(snapshot.kept[name])
        else:
            yield f"{name}  {unread_text(snapshot.unread[name])}"


def problems_of_daemons(snapshot: Snapshot) -> Iterator[str]:
    """Yield the name and the problems of each daemon that has a problem."""
    for daemon in snapshot.daemons:
        found = list(daemon_problems(daemon))
        if found:
            yield _name(daemon)
        yield from _warning_lines(found)


def problems_of_shares(snapshot: Snapshot) -> Iterator[str]:
    """Yield the name and the problems of each share that has a problem."""
    for share in snapshot.shares:
        found = list(problem_lines(share))
        if found:
            yield f"share {share.report.upstream}"
        yield from found


def _warnings(data: Mapping[str, Any]) -> list[str]:
    """Return the warnings about an interface; one that is not attached is one of them."""
    return [*([] if data["attached"] else [headline(data)]), *warnings(data)]


def _warning_lines(sentences: Iterable[str]) -> Iterator[str]:
    return (f"  WARNING   {sentence}" for sentence in sentences)


def _name(daemon: Daemon) -> str:
    return f"daemon {daemon.pid}" + (f", {daemon.config}" if daemon.config else "")


def unanswered_text(kept: Kept) -> str:
    """Describe an interface on which nothing is answered, and addresses are kept deprecated."""
    return f"{kept.interface}  nothing is answered" + (
        f": {kept.unanswered}" if kept.unanswered else ""
    )
