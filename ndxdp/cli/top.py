"""`ndxdp top`: who solicits most, and for which targets."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ndxdp.cli.interface import interfaces_argument
from ndxdp.cli.options import json_option, verbosity
from ndxdp.cli.output import echo, print_json
from ndxdp.cli.ranges import Number, WholeNumber
from ndxdp.cli.table import print_table
from ndxdp.cli.terminal_progress import notice
from ndxdp.cli.tracing import follow, named_or_attached
from ndxdp.cli.values import trees
from ndxdp.rules.address import address_text, mac_text

if TYPE_CHECKING:
    from ndxdp.observe.heavy_hitters import HeavyHitter, HeavyHitters
    from ndxdp.observe.trace import Event


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

    names = named_or_attached(interfaces)
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
        follow(tracer, stop, began + seconds, count, lambda: False)
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
