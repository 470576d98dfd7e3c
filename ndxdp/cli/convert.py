"""`ndxdp convert`: a configuration file from that of another responder."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ndxdp.cli.options import json_option, verbosity
from ndxdp.cli.output import print_json
from ndxdp.errors import NdxdpError, UsageError

if TYPE_CHECKING:
    from ndxdp.convert.width import Host
    from ndxdp.netlink.onlink import BehindRoute
    from ndxdp.rules.prefix import Prefix


@click.command()
@click.argument("paths", metavar="[FILE]...", nargs=-1)
@click.option("--ndpresponder", "line", metavar="ARGS", help="Convert this ndpresponder command.")
@click.option("--ndp-proxy-go", "proxy", metavar="ARGS", help="Convert this ndp-proxy-go command.")
@click.option("-o", "--output", metavar="FILE", help="Write to FILE instead of stdout.")
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
@json_option
@verbosity
def convert(
    paths: tuple[str, ...],
    line: str | None,
    proxy: str | None,
    output: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Convert the configuration of another responder.

    Print the configuration file that corresponds to that of ndppd, to OpenWrt's /etc/config/dhcp
    with its relays (and /etc/config/network), to a unit or rc.conf of ndp-proxy-go, or to a command
    line. Messages on stderr, and comments in the file, name what has no counterpart. `ndxdp check
    FILE` shows what the result means here.
    """
    from ndxdp.config import reader
    from ndxdp.convert import files, ndp_proxy_go, ndppd, ndpresponder
    from ndxdp.files import atomic

    if bool(paths) + (line is not None) + (proxy is not None) != 1:
        raise UsageError(
            "convert needs either files, --ndpresponder or --ndp-proxy-go",
            "as in ndxdp convert ndppd.conf",
        )
    if line is not None:
        origin, draft = "ndpresponder's arguments", ndpresponder.convert(line, _this_host())
    elif proxy is not None:
        origin, draft = "ndp-proxy-go's arguments", ndp_proxy_go.convert(proxy)
    else:
        origin = " and ".join(paths)
        draft = files.convert([(path, ndppd.read(path)) for path in paths], _this_host())
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

    @functools.cache
    def routes() -> list[BehindRoute]:
        return onlink.routes_behind(frozenset())

    def leads(prefix: Prefix, name: str) -> bool | None:
        with contextlib.suppress(NdxdpError, OSError):
            link = links.find_link(name)
            if link is not None:
                return any(
                    route.ifindex == link.ifindex
                    and (route.prefix.covers(prefix) or prefix.covers(route.prefix))
                    for route in routes()
                )
        return None

    local: set[Prefix] = set()
    uplinks: set[str] = set()
    with contextlib.suppress(OSError), Fib() as fib:
        local = fib.local_prefixes()
        uplinks = {socket.if_indextoname(route.ifindex) for route in fib.default_routes()}
    narrow = frozenset(prefix for prefix in local if prefix.length < 128)
    return Host(on_link, narrow, leads, frozenset(uplinks))
