"""`ndxdp status`: the attached interfaces, and the problems of daemons."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import click

from ndxdp import __version__
from ndxdp.cli.interface import interface_argument
from ndxdp.cli.options import json_option, verbosity
from ndxdp.cli.output import echo, print_json
from ndxdp.cli.ranges import Number
from ndxdp.cli.table import print_table
from ndxdp.cli.terminal_progress import notice
from ndxdp.cli.values import trees
from ndxdp.errors import UsageError

if TYPE_CHECKING:
    from ndxdp.observe.status import Snapshot


@click.command()
@interface_argument()
@click.option(
    "--watch",
    type=Number(min=0.1, max=86400),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Refresh every SECONDS (default 2) until interrupted.",
)
@click.option(
    "--details",
    is_flag=True,
    help="Show everything about each interface, even if there are several.",
)
@json_option
@verbosity
def status(interface: str | None, watch: float | None, details: bool, as_json: bool) -> None:
    """Show where ndxdp answers, its problems and its counts.

    With several interfaces, show a line for each, and all problems. With IFACE, --details, or a
    single interface, show the mode, the rules, and the number of solicitations by reason. Show
    the shares and their learned hosts, too. The command measures the rates for one second; with
    --json it does not.
    """
    from ndxdp.observe.shares import share_data
    from ndxdp.observe.status import kept_data, snapshots, take_snapshot
    from ndxdp.runtime import publications

    if as_json and watch:
        raise UsageError(
            "--json and --watch cannot be combined", "repeat the command with --json instead"
        )
    if as_json:
        snapshot = take_snapshot(trees(), interface)
        print_json(
            {
                "version": __version__,
                "interfaces": list(snapshot.data.values()),
                "addresses": kept_data(snapshot),
                "daemons": [daemon._asdict() for daemon in snapshot.daemons],
                "exporters": publications.exporters(),
                "shares": [share_data(share) for share in snapshot.shares],
            }
        )
    else:
        pairs = snapshots(trees(), interface, watch or 1.0)
        with notice("measuring the rates for a second"):
            first = next(pairs)
        for before, snapshot in chain([first], pairs):
            if watch and sys.stdout.isatty():
                click.clear()
            _show(before, snapshot, details=details)
            if not watch or snapshot.error:
                break
    if snapshot.error:
        raise snapshot.error


def _show(before: Snapshot, after: Snapshot, *, details: bool) -> None:
    """Print a snapshot; the rates are the differences from the snapshot before.

    Args:
        before: An earlier snapshot.
        after: The snapshot to print.
        details: Show everything of each interface, also if there are several.
    """
    from ndxdp.observe import overview
    from ndxdp.observe.fleet_text import fleet_lines
    from ndxdp.observe.share_text import share_text
    from ndxdp.runtime import publications

    names = overview.names(after)
    fleets = [daemon.fleet for daemon in after.daemons if daemon.fleet]
    if not names and not after.shares and not after.error:
        echo("ndxdp is attached to no interface")
    if len(names) > 1:
        print_table(overview.HEADINGS, overview.rows(before, after))
        _print_block(overview.problems(after))
        for name in names if details else ():
            _print_block(_details(before, after, name))
        for share in after.shares:
            _print_block(share_text(share, warn=False))
        for fleet in fleets:
            _print_block(fleet_lines(fleet))
    else:
        for line in chain(
            overview.problems_of_daemons(after),
            *(_details(before, after, name) for name in names),
            *map(share_text, after.shares),
            *map(fleet_lines, fleets),
        ):
            echo(line)
    for exporter in publications.exporters():
        echo(f"metrics at {exporter}")


def _print_block(lines: Iterable[str]) -> None:
    """Print lines below a blank one, or nothing if there are no lines."""
    for number, line in enumerate(lines):
        if number == 0:
            echo("")
        echo(line)


def _details(before: Snapshot, after: Snapshot, name: str) -> Iterator[str]:
    """Yield the lines about one interface."""
    from ndxdp.observe.overview import unanswered_text
    from ndxdp.observe.status import rates
    from ndxdp.observe.status_text import kept_text, status_text, unread_text

    if name in after.data:
        yield from status_text(after.data[name], rates(before, after, name))
    elif name in after.kept:
        yield unanswered_text(after.kept[name])
    if name in after.kept:
        yield f"  addresses {kept_text(after.kept[name])}"
    if name in after.unread:
        yield f"{name}  {unread_text(after.unread[name])}"
