"""Serving until an interrupt, for the commands `run` and `share`."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from ndxdp.cli.diff import show_preview
from ndxdp.cli.output import echo
from ndxdp.cli.values import trees
from ndxdp.errors import NdxdpError

if TYPE_CHECKING:
    from ndxdp.daemon.spec import DaemonSpec, InterfaceSpec
    from ndxdp.store.instance import Instance


def save_memory() -> None:
    """Keep the daemon small. Call this before asyncio is imported."""
    from ndxdp import memory

    # OpenSSL takes 4 MB. asyncio works without it, and ndxdp uses no TLS.
    memory.import_without("ssl", "asyncio")
    memory.single_malloc_arena()
    memory.relax_gc()


def show(spec: InterfaceSpec) -> None:
    """Print what the daemon would change on an interface at its start."""
    from ndxdp.daemon.preview import starting
    from ndxdp.observe.preview_text import attach_summary

    preview = starting(trees(), spec)
    show_preview(preview, attach_summary(preview))


def show_all(spec: DaemonSpec) -> None:
    """Print what the daemon would change on all interfaces, and what it would share."""
    from ndxdp.config.model import share_downstream, share_summary
    from ndxdp.daemon.uplinks import present_specs
    from ndxdp.netlink import links

    for table, specs in present_specs(spec.interfaces):
        for each in specs:
            if share_downstream(spec.shares, each.interface) and links.is_quiet(each.interface):
                echo(f"{each.interface}  would not be attached to: it has no MAC address")
                continue
            try:
                show(each)
            except NdxdpError as error:  # the daemon would answer on the others, and try again
                echo(f"{each.interface}  would not be answered on yet: {error.message}")
        if not specs:
            echo(f"{table.interface}  matches no interface now")
    for share in spec.shares:
        echo(f"{share.upstream}  would be {'; '.join(share_summary(share))}")


def print_ready(spec: InterfaceSpec, instance: Instance | None) -> None:
    """Print the line that begins with `ready`, for one interface."""
    from ndxdp.netlink.links import NO_MAC
    from ndxdp.session import modes

    if instance is None and spec.shared:
        _print_if_read(
            f"ready: {spec.interface} is shared: its hosts are those that the kernel has routes for"
        )
        return
    if instance is None:
        _print_if_read(
            f"ready: {spec.interface} keeps its addresses; nothing is answered: {NO_MAC}"
        )
        return
    settings = instance.maps.settings()
    why = "; ".join(modes.format_refusals(modes.decode(settings.refusals)))
    mode = f"{settings.mode.label} mode" + (f" ({why})" if why else "")
    does = "is paused" if settings.paused else "answers"
    rules = f"rules: {len(spec.rules)}" + (", and those of its share" if spec.shared else "")
    _print_if_read(f"ready: {spec.interface} {does} in {mode}, {rules}")


def _print_if_read(line: str) -> None:
    """Print a line; if stdout has no reader any more, continue without output."""
    try:
        echo(line)
    except OSError as error:
        logging.getLogger(__name__).debug("cannot print: %s", error)
        # The buffer still holds the line, and Python would flush it at exit.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
