"""`ndxdp convert`: a configuration file from that of another responder."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ndxdp.cli.options import json_option, verbosity
from ndxdp.cli.output import print_json
from ndxdp.errors import NdxdpError, UsageError

if TYPE_CHECKING:
    from ndxdp.convert.width import Host
    from ndxdp.rules.prefix import Prefix


@click.command()
@click.argument("path", metavar="[NDPPD.CONF]", required=False)
@click.option("--ndpresponder", "line", metavar="ARGS", help="Convert this ndpresponder command.")
@click.option("-o", "--output", metavar="FILE", help="Write to FILE instead of stdout.")
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
@json_option
@verbosity
def convert(
    path: str | None, line: str | None, output: str | None, force: bool, as_json: bool
) -> None:
    """Convert the configuration of ndppd or ndpresponder.

    Print the configuration file that corresponds to that of ndppd, or to a command line of
    ndpresponder. Messages on stderr, and comments in the file, name what has no counterpart.
    `ndxdp check FILE` shows what the result means here.
    """
    from ndxdp.config import reader
    from ndxdp.convert import ndppd, ndpresponder
    from ndxdp.files import atomic

    if path is not None and line is None:
        origin, draft = path, ndppd.convert(ndppd.read(path), path, _this_host())
    elif line is not None and path is None:
        origin, draft = "ndpresponder's arguments", ndpresponder.convert(line, _this_host())
    else:
        raise UsageError(
            "convert needs either a file or --ndpresponder", "as in ndxdp convert ndppd.conf"
        )
    text = draft.text(origin)
    try:
        reader.parse(text, output or "ndxdp.toml")
    except UsageError as error:
        raise NdxdpError(
            f"cannot convert {origin}: ndxdp refuses the result: {error.message}", error.hint
        ) from None
    warnings = draft.warnings(origin)
    if output is not None:
        atomic.write_text(Path(output), text, over=force)
    if as_json:
        print_json(
            {"origin": origin, "output": output, "configuration": text, "warnings": warnings}
        )
    elif output is None:
        click.echo(text, nl=False)
    for sentence in warnings:
        logging.getLogger("ndxdp").warning(sentence)


def _this_host() -> Host:
    """Return the on-link prefixes and local routes of this machine."""
    from ndxdp.convert.width import Host
    from ndxdp.netlink import links, onlink
    from ndxdp.netlink.fib import Fib

    def on_link(name: str) -> frozenset[Prefix] | None:
        with contextlib.suppress(NdxdpError, OSError):
            link = links.find_link(name)
            if link is not None:
                return onlink.read((link.ifindex, link.master)).prefixes or None
        return None

    local: set[Prefix] = set()
    with contextlib.suppress(OSError), Fib() as fib:
        local = fib.local_prefixes()
    return Host(on_link, frozenset(prefix for prefix in local if prefix.length < 128))
