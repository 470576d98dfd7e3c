"""`ndxdp check`: read a configuration file and summarize it."""

from __future__ import annotations

import logging

import click

from ndxdp.cli.options import verbosity
from ndxdp.cli.output import echo
from ndxdp.errors import UsageError

_FILE = "/etc/ndxdp/ndxdp.toml"


@click.command()
@click.argument("file", metavar="[FILE]", required=False)
@click.option("-c", "--config", "other", metavar="FILE", hidden=True, help="The same as FILE.")
@verbosity
def check(file: str | None, other: str | None) -> None:
    """Check a configuration file, and summarize it.

    Print a line for each interface, or all errors with their lines; change nothing. FILE is
    /etc/ndxdp/ndxdp.toml by default.
    """
    from ndxdp.config import reader
    from ndxdp.config.model import summary
    from ndxdp.daemon import preflight

    if None not in (file, other) and file != other:
        raise UsageError(f"two files are named: {file} and {other}", "check them one by one")
    path = next(each for each in (file, other, _FILE) if each is not None)
    config = reader.load(path)
    # A problem of one interface on this host is a warning: a service starts for the others.
    refused = list(preflight.refused(config.interfaces))
    for sentence in refused:
        logging.getLogger("ndxdp").warning(sentence)
    echo(f"{path}: good{', but `run` cannot do all of it here' if refused else ''}")
    for interface in config.interfaces:
        words = summary(interface, preflight.unanswered(interface))
        echo(f"{interface.name}  {'; '.join(words)}")
        preflight.warn_of_breadth(interface)
