"""`ndxdp status`: the attached interfaces, and the problems of daemons."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ndxdp import __version__
from ndxdp.cli.options import json_option, real_interface, verbosity
from ndxdp.cli.output import echo, print_json
from ndxdp.cli.values import trees
from ndxdp.errors import UsageError

if TYPE_CHECKING:
    from ndxdp.observe.status import Look


@click.command()
@click.argument("interface", metavar="[IFACE]", required=False, callback=real_interface)
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
    """Show what is attached, its rules, and the verdicts on solicitations.

    The command counts for one second to show present rates; with --json it does not.
    """
    from ndxdp.observe import status as statuses
    from ndxdp.runtime import publications

    if as_json and watch:
        raise UsageError(
            "--json and --watch cannot be combined", "repeat the command with --json instead"
        )
    if as_json:
        seen = statuses.look(trees(), interface)
        print_json(
            {
                "version": __version__,
                "interfaces": list(seen.data.values()),
                "addresses": statuses.kept_data(seen),
                "daemons": [daemon._asdict() for daemon in seen.daemons],
                "exporters": publications.exporters(),
            }
        )
    else:
        for before, seen in statuses.looks(trees(), interface, watch or 1.0):
            if watch and sys.stdout.isatty():
                click.clear()
            _show(before, seen)
            if not watch or seen.error:
                break
    if seen.error:
        raise seen.error


def _show(before: Look, after: Look) -> None:
    """Print a status; the rates are the differences from the status before."""
    from ndxdp.observe import status as statuses
    from ndxdp.runtime import publications

    if not after.data and not after.kept and not after.problems and not after.error:
        echo("ndxdp is attached to no interface")
    for name, data in after.data.items():
        for line in statuses.status_text(data, statuses.rates(before, after, name)):
            echo(line)
        if name in after.kept:
            echo(f"  addresses {statuses.kept_text(after.kept[name])}")
    for name, kept in after.kept.items():
        if name not in after.data:
            echo(f"{name}  nothing is answered{kept.unanswered and f': {kept.unanswered}'}")
            echo(f"  addresses {statuses.kept_text(kept)}")
    for name, problem in after.problems.items():
        echo(f"{name}  {statuses.unanswered_text(problem)}")
    for daemon in after.daemons:
        troubles = list(statuses.troubles(daemon))
        if troubles:
            echo(f"daemon {daemon.pid}" + (f", {daemon.config}" if daemon.config else ""))
        for trouble in troubles:
            echo(f"  WARNING   {trouble}")
    for exporter in publications.exporters():
        echo(f"metrics at {exporter}")
