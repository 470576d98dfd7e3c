"""`ndxdp install-service`: the systemd unit."""

from __future__ import annotations

from pathlib import Path

import click

from ndxdp.cli.options import config_file, verbosity
from ndxdp.cli.output import echo


@click.command("install-service")
@config_file("The configuration file; if it does not exist, write an example.")
@click.option("--print", "only_print", is_flag=True, help="Print the unit; write nothing.")
@click.option("--force", is_flag=True, help="Overwrite a unit that was edited.")
@click.option(
    "--directory",
    default="/etc/systemd/system",
    show_default=True,
    metavar="DIR",
    help="The directory of systemd's units.",
)
@verbosity
def install_service(path: str, only_print: bool, force: bool, directory: str) -> None:
    """Write a systemd unit for `run -c FILE`.

    The unit runs this ndxdp. The command starts nothing, and prints the next steps.
    """
    from ndxdp import systemd_unit

    config = Path(path).absolute()
    unit = systemd_unit.unit(systemd_unit.command(), config)
    if only_print:
        click.echo(unit, nl=False)
        return
    written = systemd_unit.install(unit, Path(directory), force=force)
    where = Path(directory) / systemd_unit.NAME
    echo(f"{'wrote' if written else 'unchanged:'} {where}")
    if systemd_unit.install_example(config):
        echo(f"wrote {config}, an example: edit it")
    echo("next: systemctl daemon-reload; systemctl enable --now ndxdp")
