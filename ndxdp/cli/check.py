"""`ndxdp check`: read a configuration file and summarize it."""

from __future__ import annotations

import logging

import click

from ndxdp.cli.options import config_file, verbosity
from ndxdp.cli.output import echo


@click.command()
@config_file("The configuration file.")
@verbosity
def check(path: str) -> None:
    """Check a configuration file, and summarize it.

    Print a line for each interface; change nothing.
    """
    from ndxdp.config import reader
    from ndxdp.config.model import summary
    from ndxdp.daemon import preflight

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
