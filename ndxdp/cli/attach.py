"""`ndxdp attach`, `detach`, `pause` and `resume`: answering on one interface, without a daemon."""

from __future__ import annotations

from typing import IO, Any

import click

from ndxdp.cli.interface import interface_argument
from ndxdp.cli.options import attaching, verbosity
from ndxdp.cli.terminal_progress import show_progress
from ndxdp.cli.values import one_of, options_of, rule_of, rules_of, trees
from ndxdp.errors import NdxdpError, NotAttached, UsageError
from ndxdp.rules.rule import MANUAL_ORIGIN


@click.command()
@interface_argument(required=True)
@attaching
@verbosity
def attach(
    interface: str,
    answered: tuple[str, ...],
    excepted: tuple[str, ...],
    lists: tuple[IO[str], ...],
    answer: str,
    dev: tuple[str, ...],
    via: tuple[str, ...],
    force: bool,
    **how: Any,
) -> None:
    """Answer on IFACE until `ndxdp detach`.

    IFACE is the interface that faces the upstream router. No process remains, and a reboot ends it:
    for permanent use, see `ndxdp help run`. On an attached interface, renew the program without
    losing a frame, and add rules. `ndxdp status` shows the result.
    """
    from ndxdp import memory
    from ndxdp.session.link_check import warn_of_neighbours
    from ndxdp.session.request import AttachRequest
    from ndxdp.session.session import Session

    show_progress()

    memory.relax_gc()
    rules = rules_of(
        answered, excepted, lists, rule_of(answer, dev, via, MANUAL_ORIGIN), force=force
    )
    request = AttachRequest(interface, rules, options_of(**how), force=force)
    with Session.attach(trees(), request) as session:
        warn_of_neighbours(interface, session.maps.settings().l3_ifindex, rules)


@click.command()
@interface_argument()
@click.option("--all", "every", is_flag=True, help="Detach from every interface.")
@click.option(
    "--missing-ok", is_flag=True, help="Exit with 0 even if ndxdp is not attached to IFACE."
)
@verbosity
def detach(interface: str | None, every: bool, missing_ok: bool) -> None:
    """Stop answering on IFACE, and remove its rules.

    Detach the program, and restore the former state of the interface. `ndxdp pause` keeps both.
    """
    from ndxdp.observe import status as statuses
    from ndxdp.runtime import report
    from ndxdp.session import detach as detaching

    if (interface is None) is not every:
        raise UsageError("detach needs either IFACE or --all", "as in ndxdp detach eth0")
    both = trees()
    report.remove_stale(both.files.root)
    if interface is not None:
        try:
            detaching.detach_interface(both, interface)
        except NotAttached:
            if not missing_ok:
                raise
        return
    failed = []
    for name in statuses.interfaces(both):
        try:
            detaching.detach_interface(both, name)
        except NdxdpError as error:  # continue with the other interfaces
            failed.append(error)
    if failed:
        also = tuple(error.message for error in failed[1:])
        raise NdxdpError(failed[0].message, failed[0].hint, also)


@click.command()
@interface_argument(required=True)
@verbosity
def pause(interface: str) -> None:
    """Stop answering on IFACE until `ndxdp resume`.

    Keep the program, its counters and its rules, across restarts of the daemon as well.
    """
    from ndxdp.session.rule_changes import set_paused

    set_paused(*one_of(interface), paused=True)


@click.command()
@interface_argument(required=True)
@verbosity
def resume(interface: str) -> None:
    """Answer on IFACE again, after `ndxdp pause`.

    A running daemon announces the addresses, so that the router uses this host at once.
    """
    from ndxdp.session.rule_changes import set_paused

    set_paused(*one_of(interface), paused=False)
