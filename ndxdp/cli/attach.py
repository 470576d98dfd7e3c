"""`ndxdp attach`, `detach`, `pause` and `resume`: answering on one interface, without a daemon."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from ndxdp.cli.diff import show_preview
from ndxdp.cli.interface import interface_argument
from ndxdp.cli.options import attaching, dry_run_option, json_option, verbosity
from ndxdp.cli.output import print_json
from ndxdp.cli.terminal_progress import show_progress
from ndxdp.cli.values import one_of, options_of, rule_of, rules_of, trees
from ndxdp.errors import NdxdpError, NotAttached, UsageError
from ndxdp.rules.pausing import name_of
from ndxdp.rules.prefix import parse_prefix
from ndxdp.rules.rule import MANUAL_ORIGIN, OWNED_LABELS

if TYPE_CHECKING:
    from ndxdp.session.preview import Preview
    from ndxdp.session.request import AttachRequest
    from ndxdp.store.directories import Trees
    from ndxdp.store.maps import Maps

log = logging.getLogger(__name__)

_F = TypeVar("_F", bound=Callable[..., Any])


@click.command()
@interface_argument(required=True)
@attaching
@dry_run_option
@json_option
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
    dry_run: bool,
    as_json: bool,
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
    both = trees()
    preview = (
        _preview(both, request, dry_run=dry_run, as_json=as_json) if dry_run or as_json else None
    )
    if dry_run:
        return
    with Session.attach(both, request) as session:
        settings = session.maps.settings()
        warn_of_neighbours(interface, settings.l3_ifindex, rules)
        if preview is not None:
            _print_done(preview, session.maps)


def _preview(both: Trees, request: AttachRequest, *, dry_run: bool, as_json: bool) -> Preview:
    """Return what an attach would change; print it if that is all to do."""
    from ndxdp.observe.preview_text import attach_summary, preview_data
    from ndxdp.session.attach_preview import attaching as preview_of

    preview = preview_of(both, request)
    if dry_run and as_json:
        print_json(preview_data(preview, dry_run=True))
    elif dry_run:
        show_preview(preview, attach_summary(preview))
    return preview


def _print_done(preview: Preview, maps: Maps) -> None:
    """Print as JSON what an attach has changed, of which there is a preview."""
    from dataclasses import replace

    from ndxdp.netlink import links
    from ndxdp.observe.preview_text import preview_data
    from ndxdp.session import modes
    from ndxdp.session.preview import state

    settings = maps.settings()
    link = links.find_link(preview.interface)
    done = replace(
        preview,
        after=state(settings, maps.max_entries("addresses"), link),
        desired=maps.rules(),
        modes=(settings.mode,),
        refusals=tuple(modes.decode(settings.refusals)),
        notes=(),
    )
    print_json(preview_data(done, dry_run=False))


@click.command()
@interface_argument()
@click.option("--all", "every", is_flag=True, help="Detach from every interface.")
@click.option(
    "--missing-ok", is_flag=True, help="Exit with 0 even if ndxdp is not attached to IFACE."
)
@dry_run_option
@verbosity
def detach(interface: str | None, every: bool, missing_ok: bool, dry_run: bool) -> None:
    """Stop answering on IFACE, and remove its rules.

    Detach the program, and restore the former state of the interface. `ndxdp pause` keeps both.
    """
    from ndxdp.observe import status as statuses
    from ndxdp.runtime import report
    from ndxdp.session.detach import detach_interface

    if (interface is None) is not every:
        raise UsageError("detach needs either IFACE or --all", "as in ndxdp detach eth0")
    both = trees()
    detach_from = _show_detach if dry_run else detach_interface
    if not dry_run:
        report.remove_stale(both.files.root)
    if interface is not None:
        try:
            detach_from(both, interface)
        except NotAttached:
            if not missing_ok:
                raise
        return
    failed = []
    for name in statuses.interfaces(both):
        try:
            detach_from(both, name)
        except NdxdpError as error:  # continue with the other interfaces
            failed.append(error)
    if failed:
        also = tuple(error.message for error in failed[1:])
        raise NdxdpError(failed[0].message, failed[0].hint, also)


def _show_detach(both: Trees, interface: str) -> None:
    """Print what a detach would change."""
    from ndxdp.observe.preview_text import detach_summary
    from ndxdp.session.detach_preview import detaching

    preview = detaching(both, interface)
    show_preview(preview, detach_summary(preview))


def _selecting(command: _F) -> _F:
    """Give a command --class and -n, which select rules."""
    for option in (
        click.option(
            *("-n", "--prefix", "prefixes"),
            multiple=True,
            metavar="PREFIX",
            help="Only what is answered for this prefix or address; may be repeated.",
        ),
        click.option(
            *("--class", "labels"),
            multiple=True,
            metavar="LABEL",
            help="Only the rules that `ndxdp status` counts under this label; may be repeated.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@interface_argument(required=True)
@_selecting
@dry_run_option
@verbosity
def pause(
    interface: str, labels: tuple[str, ...], prefixes: tuple[str, ...], dry_run: bool
) -> None:
    """Stop answering on IFACE until `ndxdp resume`.

    Keep the program, its counters and its rules, across restarts of the daemon as well. With
    --class or -n, stop answering by these rules only, also by those that are added later.
    """
    _set_paused(interface, _names(labels, prefixes), paused=True, dry_run=dry_run)


@click.command()
@interface_argument(required=True)
@_selecting
@dry_run_option
@verbosity
def resume(
    interface: str, labels: tuple[str, ...], prefixes: tuple[str, ...], dry_run: bool
) -> None:
    """Answer on IFACE again, after `ndxdp pause`.

    A running daemon announces the addresses, so that the router uses this host at once. What was
    paused with --class or -n is resumed with the same options.
    """
    _set_paused(interface, _names(labels, prefixes), paused=False, dry_run=dry_run)


def _names(labels: tuple[str, ...], prefixes: tuple[str, ...]) -> list[str]:
    """Return the names of what --class and -n select."""
    if "" in labels:
        raise UsageError("--class is empty", "ndxdp status --json shows the labels of the rules")
    found = [name_of(label) for label in labels]
    if set(found) & set(OWNED_LABELS):
        raise UsageError(
            "the addresses of the host and its gateway are never answered for",
            "name another class: ndxdp status --json shows them",
        )
    return [*found, *(str(parse_prefix(text)) for text in prefixes)]


def _set_paused(interface: str, names: list[str], *, paused: bool, dry_run: bool) -> None:
    """Pause or resume an interface, or what is selected of it."""
    from ndxdp.session import rule_changes

    tree, name = one_of(interface)
    verb = "pause" if paused else "resume"
    if not names:
        if dry_run:
            preview = rule_changes.preview_paused(tree, name, paused=paused)
            show_preview(preview, f"{verb} answering on {name}")
            return
        rule_changes.set_paused(tree, name, paused=paused)
        left = [] if paused else rule_changes.still_paused(tree, name)
        if left:
            log.warning("%s: still paused: %s", name, ", ".join(left))
        return
    if dry_run:
        preview, unknown = rule_changes.preview_names(tree, name, names, paused=paused)
        show_preview(preview, f"{verb} rules on {name}")
    else:
        unknown = rule_changes.set_names_paused(tree, name, names, paused=paused)
    for each in sorted(unknown) if paused else ():
        log.warning("%s: no rule has the class '%s' yet", name, each)
