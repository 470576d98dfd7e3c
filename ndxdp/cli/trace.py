"""`ndxdp trace`: solicitations and their verdicts, live."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

import click

from ndxdp.cli.interface import interfaces_argument
from ndxdp.cli.options import json_option, verbosity
from ndxdp.cli.ranges import Number, WholeNumber
from ndxdp.cli.tracing import follow, named_or_attached
from ndxdp.cli.values import trees
from ndxdp.errors import UsageError, not_written
from ndxdp.ndp.reason import Reason
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.rules.prefix import parse_prefix

if TYPE_CHECKING:
    from ndxdp.observe.trace import Event, Filter
    from ndxdp.store.records import Traced

log = logging.getLogger(__name__)


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
    from ndxdp.observe import event_text, pcap
    from ndxdp.observe.trace import Stop, Tracer

    stdout = sys.stdout.fileno()
    shown = 0
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    with (
        Stop() as stop,
        Tracer(trees(), named_or_attached(interfaces), every) as tracer,
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
                line = event_text.json_line if as_json else event_text.text_line
                stop.write(stdout, "".join(map(line, chosen)).encode())
            if packets is not None and not stop.cut_short:
                records = b"".join(chain.from_iterable(map(event_text.pcap_records, chosen)))
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
            follow(tracer, stop, deadline, show, enough)
        finally:
            _log_counts(tracer.counts(), shown, every)


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
