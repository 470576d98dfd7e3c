"""`ndxdp trace` and `ndxdp top`: solicitations and their verdicts, live."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import click

from ndxdp.cli.interface import interfaces_argument
from ndxdp.cli.options import json_option, verbosity
from ndxdp.cli.output import echo, print_json
from ndxdp.cli.ranges import Number, WholeNumber
from ndxdp.cli.table import print_table
from ndxdp.cli.terminal_progress import notice
from ndxdp.cli.values import trees
from ndxdp.errors import NdxdpError, UsageError, not_written
from ndxdp.ndp.reason import Reason
from ndxdp.printable import printable
from ndxdp.rules.address import address_text, mac_text, parse_address, parse_mac
from ndxdp.rules.interface_name import natural_order
from ndxdp.rules.prefix import Prefix, parse_prefix
from ndxdp.rules.rule import Rule

if TYPE_CHECKING:
    from ndxdp.observe.heavy_hitters import HeavyHitter, HeavyHitters
    from ndxdp.observe.trace import Event, Filter, Stop, Tracer
    from ndxdp.store.records import Traced

log = logging.getLogger(__name__)

_NICE = 10
"""Niceness of a tracer, so that a process that answers in userspace mode gets the CPU first."""


@click.command()
@interfaces_argument
@click.option(
    "--reason",
    "reasons",
    multiple=True,
    metavar="REASON",
    help="Show only solicitations with this reason, such as no_rule; `ndxdp status IFACE` shows the"
    " reasons that occur.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="PREFIX",
    help="Show only solicitations for targets in this prefix.",
)
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="ADDR|MAC",
    help="Show only solicitations from this address or MAC.",
)
@click.option(
    "--every",
    type=WholeNumber(1, (1 << 32) - 1),
    default=1,
    metavar="N",
    help="Trace one of N solicitations. Default: every one.",
)
@click.option("--count", type=WholeNumber(1), metavar="N", help="End after N solicitations.")
@click.option("--seconds", type=Number(0, 1e9), metavar="S", help="End after S seconds.")
@json_option
@click.option(
    "--pcap",
    "file",
    metavar="FILE",
    help="Also write solicitations and answers to FILE, for Wireshark; -: to stdout, instead of"
    " lines.",
)
@verbosity
def trace(
    interfaces: tuple[str, ...],
    reasons: tuple[str, ...],
    targets: tuple[str, ...],
    sources: tuple[str, ...],
    every: int,
    count: int | None,
    seconds: float | None,
    as_json: bool,
    file: str | None,
) -> None:
    """Show each solicitation, and why it was answered or not.

    Continue until interrupted, on all attached interfaces or on IFACE. --reason, --target and
    --from may be repeated: one value of each option that is given must match.
    """
    if file == "-" and as_json:
        raise UsageError("--json and --pcap - cannot be combined", "stdout takes either of them")
    wanted = _filter(reasons, targets, sources)
    from ndxdp.observe import pcap
    from ndxdp.observe.trace import Stop, Tracer

    stdout = sys.stdout.fileno()
    shown = 0
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    with (
        Stop() as stop,
        Tracer(trees(), _named(interfaces), every) as tracer,
        _pcap_file(file) as packets,  # after the tracer, whose error must not truncate the file
    ):
        tracer.wake_on(stdout, 0)  # POLLERR: the reader of a pipe, such as head, has ended

        def show(events: list[Event]) -> None:
            nonlocal shown
            chosen = [event for event in events if wanted.passes(event)]
            if count is not None:
                chosen = chosen[: count - shown]
            if not chosen:
                return
            if file != "-":
                line = _json_line if as_json else _line
                stop.write(stdout, "".join(map(line, chosen)).encode())
            if packets is not None and not stop.cut_short:
                records = b"".join(record for event in chosen for record in _records(event))
                with _writing(file):
                    stop.write(packets, records)
            if not stop.cut_short:
                shown += len(chosen)

        def enough() -> bool:
            return shown == count

        if packets is not None:
            with _writing(file):
                stop.write(packets, pcap.header())
        try:
            _follow(tracer, stop, deadline, show, enough)
        finally:
            _log_counts(tracer.counts(), shown, every)


@click.command()
@interfaces_argument
@click.option(
    "--seconds",
    type=Number(0.1, 1e9),
    default=5,
    show_default=True,
    metavar="S",
    help="Count for S seconds.",
)
@click.option(
    "--rows",
    type=WholeNumber(1, 1024),
    default=10,
    show_default=True,
    metavar="N",
    help="Show N sources, and as many targets.",
)
@json_option
@verbosity
def top(interfaces: tuple[str, ...], seconds: float, rows: int, as_json: bool) -> None:
    """Show who solicits most, and for which targets.

    Count the solicitations of each source, and those for each target, with their reasons, on all
    attached interfaces or on IFACE.
    """
    from ndxdp.observe.heavy_hitters import HeavyHitters
    from ndxdp.observe.trace import Stop, Tracer

    names = _named(interfaces)
    sources: dict[str, HeavyHitters[tuple[bytes, bytes]]] = {n: HeavyHitters() for n in names}
    targets: dict[str, HeavyHitters[bytes | None]] = {name: HeavyHitters() for name in names}

    def count(events: list[Event]) -> None:
        for event in events:
            sources[event.interface].add((event.source, event.mac), event.reason)
            targets[event.interface].add(event.target, event.reason)

    began = time.monotonic()
    with (
        Stop() as stop,
        Tracer(trees(), names) as tracer,
        notice(f"counting solicitations for {seconds:g} s"),
    ):
        tracer.wake_on(sys.stdout.fileno(), 0)
        _follow(tracer, stop, began + seconds, count, lambda: False)
        lasted = time.monotonic() - began
        counts = tracer.counts()
    if as_json:
        listed = [_top_data(name, sources[name], targets[name], rows) for name in names]
        print_json(
            {
                "seconds": round(lasted, 3),
                "seen": counts.seen,
                "lost": counts.lost,
                "interfaces": listed,
            }
        )
        return
    echo(f"{counts.seen} solicitations in {lasted:.1f} s, {counts.lost} of them lost")
    for name in names:
        echo("")
        echo(f"{name}  sources")
        _show(sources[name], rows, lambda key: f"{address_text(key[0])} ({mac_text(key[1])})")
        echo("")
        echo(f"{name}  targets")
        _show(targets[name], rows, lambda key: address_text(key) if key else "none")


def _top_data(
    name: str,
    sources: HeavyHitters[tuple[bytes, bytes]],
    targets: HeavyHitters[bytes | None],
    rows: int,
) -> dict[str, Any]:
    """Return the most frequent sources and targets of an interface for --json."""

    def counted(one: HeavyHitter[Any]) -> dict[str, Any]:
        reasons = {reason.label: count for reason, count in one.reasons.most_common()}
        return {"solicitations": one.total, "reasons": reasons}

    return {
        "interface": name,
        "sources": [
            {"source": address_text(one.key[0]), "mac": mac_text(one.key[1])} | counted(one)
            for one in sources.most(rows)
        ],
        "sources_error_bound": sources.error_bound,
        "targets": [
            {"target": address_text(one.key) if one.key else None} | counted(one)
            for one in targets.most(rows)
        ],
        "targets_error_bound": targets.error_bound,
    }


def _show(hitters: Any, rows: int, text: Callable[[Any], str]) -> None:
    """Print the most frequent keys, each with its count and reasons."""
    cells = [
        (
            str(one.total),
            text(one.key),
            ", ".join(f"{reason.label} {count}" for reason, count in one.reasons.most_common()),
        )
        for one in hitters.most(rows)
    ]
    if cells:
        width = max(len(name) for _, name, _ in cells)
        plain = (f"  {total:>9}  {name:<{width}}  {reasons}" for total, name, reasons in cells)
        print_table(("count", "address", "reasons"), cells, plain)
    if hitters.error_bound:
        echo(f"  none of the many others occurred more than {hitters.error_bound} times")


# ---- both commands ------------------------------------------------------------------------------


def _named(interfaces: tuple[str, ...]) -> list[str]:
    """Return the interfaces that are named; all attached ones if none is."""
    attached = sorted(trees().interfaces(), key=natural_order)
    found = list(dict.fromkeys(interfaces)) or attached
    if not found:
        raise NdxdpError("ndxdp is attached to no interface", "ndxdp attach IFACE")
    return found


def _follow(
    tracer: Tracer,
    stop: Stop,
    deadline: float,
    show: Callable[[list[Event]], None],
    enough: Callable[[], bool],
) -> None:
    """Show events until an end condition holds, and then the events that are still queued."""
    os.nice(_NICE)
    tracer.wake_on(stop.fileno(), select.POLLIN)
    while not (stop.requested or enough()) and (left := deadline - time.monotonic()) > 0:
        events, others = tracer.wait(left)
        show(events)
        if others:
            break
    show(tracer.finish())


# ---- filters ------------------------------------------------------------------------------------


def _filter(reasons: tuple[str, ...], targets: tuple[str, ...], sources: tuple[str, ...]) -> Filter:
    from ndxdp.observe.trace import Filter

    return Filter(
        frozenset(map(_reason, reasons)),
        tuple(map(parse_prefix, targets)),
        frozenset(
            parse_mac(text) if text.count(":") == 5 and "::" not in text else parse_address(text)
            for text in sources
        ),
    )


def _reason(label: str) -> Reason:
    """Return the reason of a label; raise UsageError, which names the nearest label."""
    known = {reason.label: reason for reason in list(Reason)[1:]}
    if label not in known:
        from difflib import get_close_matches

        near = get_close_matches(label, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"the reasons are {', '.join(known)}"
        raise UsageError(f"'{label}' is not a reason", hint)
    return known[label]


# ---- output -------------------------------------------------------------------------------------


def _line(event: Event) -> str:
    """Return an event as a line of text."""
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
    from ndxdp.observe.render import rule_text

    return printable(rule_text(prefix, rule)) if prefix and rule else "-"


def _json_line(event: Event) -> str:
    """Return an event as a line of JSON."""
    from ndxdp.observe.render import rule_data

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


def _records(event: Event) -> Iterator[bytes]:
    """Yield the pcap records of an event: the solicitation, and the answer if there is one."""
    from ndxdp.observe import pcap

    yield pcap.record(event.time, event.frame, event.length)
    if event.reply:
        yield pcap.record(event.time, event.reply, len(event.reply))


@contextlib.contextmanager
def _pcap_file(name: str | None) -> Iterator[int | None]:
    """Yield the descriptor of an open pcap file; None without a name."""
    if name is None:
        yield None
    elif name == "-":
        yield sys.stdout.fileno()
    else:
        with _writing(name):
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            yield fd
        finally:
            os.close(fd)


@contextlib.contextmanager
def _writing(name: str | None) -> Iterator[None]:
    """Turn an OSError of the block into the error that the file cannot be written."""
    try:
        yield
    except OSError as error:
        raise not_written(name, error) from error


def _log_counts(counts: Traced, shown: int, every: int) -> None:
    sampled = f", one of {every} examined" if every > 1 else ""
    log.warning(
        "solicitations: %d seen%s, %d shown, %d lost", counts.seen, sampled, shown, counts.lost
    )
