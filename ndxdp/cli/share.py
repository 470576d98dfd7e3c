"""`ndxdp share`: one prefix on both sides of this host, without a configuration file."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ndxdp.cli.interface import real_name
from ndxdp.cli.options import LOADERS, MODES, verbosity
from ndxdp.cli.output import configure_log
from ndxdp.cli.ranges import Number, WholeNumber
from ndxdp.cli.serving import print_ready, save_memory, show_all
from ndxdp.cli.values import spec_of, trees
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.netlink import names
from ndxdp.rules.interface_name import is_pattern

if TYPE_CHECKING:
    from ndxdp.config.model import Config, Share
    from ndxdp.daemon.spec import DaemonSpec

log = logging.getLogger("ndxdp")

_NAME = "share"
_PLACE = re.compile(rf"^{_NAME}:\d+: (?:share\[0\][^:]*: )?")
"""Where the reader found an error in the text that the command line stands for."""


@click.command()
@click.argument("upstream", metavar="UPSTREAM")
@click.argument("downstream", nargs=-1, required=True, metavar="DOWNSTREAM...")
@click.option(
    "-p",
    "--prefix",
    "prefixes",
    multiple=True,
    metavar="PREFIX",
    help="Share this prefix; may be repeated. Default: the on-link prefixes that the routers on"
    " UPSTREAM advertise.",
)
@click.option(
    "--relay/--no-relay",
    default=True,
    show_default=True,
    help="Relay router advertisements downstream, or not: another daemon sends them there.",
)
@click.option(
    "--max-hosts",
    type=WholeNumber(1, 65536),
    default=4096,
    show_default=True,
    metavar="N",
    help="Learn at most N addresses, a quarter of them of one MAC.",
)
@click.option(
    "--expire",
    type=Number(10, 86400),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="Forget an address without a sign of life for SECONDS.",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="Answer in the best mode that is available (auto), by XDP in the driver, by generic XDP,"
    " at tc ingress, or in userspace.",
)
@click.option(
    "--loader",
    type=click.Choice(LOADERS),
    default="prebuilt",
    show_default=True,
    help="Load the compiled program, or compile it on this host with bcc.",
)
@click.option("--dry-run", is_flag=True, help="Print what would change, as a diff; change nothing.")
@verbosity
def share(
    upstream: str,
    downstream: tuple[str, ...],
    prefixes: tuple[str, ...],
    relay: bool,
    max_hosts: int,
    expire: float,
    mode: str,
    loader: str,
    dry_run: bool,
) -> None:
    """Share one prefix with the hosts behind this one.

    Until interrupted, learn which hosts are behind the DOWNSTREAM interfaces, or behind those that
    match a pattern such as 'br-*', route to them, answer for them on both sides, and relay router
    advertisements. At the end, detach and remove the routes. For permanent use, write [[share]]
    into the configuration file.
    """
    save_memory()
    from ndxdp.daemon import service

    config = _config(
        upstream=real_name(upstream),
        downstream=[name if is_pattern(name) else real_name(name) for name in downstream],
        prefixes=list(prefixes) or "advertised",
        router_advertisements="relay" if relay else "off",
        max_hosts=max_hosts,
        expire=expire,
    )
    (shared,) = config.shares
    spec = _spec(config, mode, loader)
    if dry_run:
        show_all(spec)
        return
    configure_log("info", "text")
    _refuse_unusable(shared)
    _warn(shared)
    service.run(trees(), spec, ready=print_ready)


def _config(**keys: str | int | float | list[str]) -> Config:
    """Return the configuration with one [[share]].

    Raises:
        UsageError: A key of it is wrong.
    """
    from ndxdp.config import reader

    # A string of JSON is one of TOML.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]
    try:
        return reader.parse("\n".join(["[[share]]", *lines]), _NAME)
    except UsageError as error:
        hint = re.sub(r"^line \d+ .*", "name everything once", error.hint)
        also = tuple(_PLACE.sub("", sentence) for sentence in error.also)
        raise UsageError(_PLACE.sub("", error.message), hint, also) from None


def _spec(config: Config, mode: str, loader: str) -> DaemonSpec:
    """Return the daemon's task: each interface of the share, until the end of this process."""
    from ndxdp.daemon.spec import DaemonSpec
    from ndxdp.rules.rule import RUN_ORIGIN

    interfaces = [
        replace(
            spec_of(replace(each, mode=mode, loader=loader, on_stop="detach"), shared=True),
            origin=RUN_ORIGIN,
            keep=False,
        )
        for each in config.with_shared()
    ]
    return DaemonSpec(interfaces, shares=config.shares)


def _refuse_unusable(shared: Share) -> None:
    """Raise NdxdpError if the upstream interface is missing, or another daemon has an interface."""
    if not names.index_of(shared.upstream):
        raise NdxdpError(f"there is no interface '{shared.upstream}'", "see: ip -br link")
    for name in (shared.upstream, *shared.downstream):
        if not is_pattern(name):
            trees().of(name).refuse_if_locked(name)


def _warn(shared: Share) -> None:
    """Log what keeps the share from working on this host, with hints."""
    from ndxdp.daemon.share_preflight import at_start, present_shares

    (present,) = present_shares((shared,))
    for sentence, hint in (*present.warnings, *at_start(shared)):
        log.warning(sentence)
        log.warning("  hint: %s", hint)
