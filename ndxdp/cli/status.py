"""`ndxdp status`: the attached interfaces, and the problems of daemons."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ndxdp import __version__
from ndxdp.cli.interface import interface_argument
from ndxdp.cli.options import json_option, verbosity
from ndxdp.cli.output import echo, print_json
from ndxdp.cli.values import trees
from ndxdp.errors import UsageError

if TYPE_CHECKING:
    from ndxdp.observe.status import Snapshot


@click.command()
@interface_argument()
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1, max=86400),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Refresh every SECONDS (default 2) until interrupted.",
)
@json_option
@verbosity
def status(interface: str | None, watch: float | None, as_json: bool) -> None:
    """Show what is attached, and its counts.

    Show the rules and the verdicts on solicitations for each interface. The command counts for one
    second to show present rates; with --json it does not.
    """
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
            }
        )
    else:
        for before, snapshot in snapshots(trees(), interface, watch or 1.0):
            if watch and sys.stdout.isatty():
                click.clear()
            _show(before, snapshot)
            if not watch or snapshot.error:
                break
    if snapshot.error:
        raise snapshot.error


def _show(before: Snapshot, after: Snapshot) -> None:
    """Print a snapshot; the rates are the differences from the snapshot before."""
    from ndxdp.observe.status import rates
    from ndxdp.observe.status_text import daemon_problems, kept_text, status_text, unread_text
    from ndxdp.runtime import publications

    if not after.data and not after.kept and not after.unread and not after.error:
        echo("ndxdp is attached to no interface")
    for name, data in after.data.items():
        for line in status_text(data, rates(before, after, name)):
            echo(line)
        if name in after.kept:
            echo(f"  addresses {kept_text(after.kept[name])}")
    for name, kept in after.kept.items():
        if name not in after.data:
            echo(f"{name}  nothing is answered{kept.unanswered and f': {kept.unanswered}'}")
            echo(f"  addresses {kept_text(kept)}")
    for name, reported in after.unread.items():
        echo(f"{name}  {unread_text(reported)}")
    for daemon in after.daemons:
        problems = list(daemon_problems(daemon))
        if problems:
            echo(f"daemon {daemon.pid}" + (f", {daemon.config}" if daemon.config else ""))
        for problem in problems:
            echo(f"  WARNING   {problem}")
    for exporter in publications.exporters():
        echo(f"metrics at {exporter}")
