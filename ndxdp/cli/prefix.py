"""`ndxdp prefix`: changing and showing the rules of an attached interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from ndxdp.cli.diff import show_preview
from ndxdp.cli.group import Group
from ndxdp.cli.interface import Named, interface_argument, interface_before
from ndxdp.cli.options import (
    answering,
    dry_run_option,
    force_option,
    json_option,
    list_files,
    verbosity,
)
from ndxdp.cli.output import print_parts
from ndxdp.cli.terminal_progress import show_progress
from ndxdp.cli.values import one_of, rule_of, rules_of
from ndxdp.errors import NotAttached, UsageError
from ndxdp.ndp.profile import Profile
from ndxdp.printable import printable
from ndxdp.rules.address import parse_mac
from ndxdp.rules.rule import MANUAL_ORIGIN, Rule, parse_origin, parse_source
from ndxdp.rules.ruleset import Rules

if TYPE_CHECKING:
    from ndxdp.session.preview import Preview

_F = TypeVar("_F", bound=Callable[..., Any])


@click.group(cls=Group)
def prefix() -> None:
    """Change or show the rules of an attached interface.

    A change is in force at once, with and without a daemon. The rules of a configuration file are
    changed in the file: `ndxdp reload` applies it.
    """


def _adding(command: _F) -> _F:
    """Give a command the arguments and options of `add` and `replace`."""
    for option in (
        verbosity,
        dry_run_option,
        force_option,
        click.option(
            "--origin",
            default=MANUAL_ORIGIN,
            show_default=True,
            metavar="NAME",
            help="Origin of the rules: a name that you choose, to find and delete them by.",
        ),
        answering,
        list_files("Add each prefix in this file, one per line; - for stdin."),
        interface_before("[PREFIX]..."),
    ):
        command = option(command)
    return command


@prefix.command("add")
@_adding
def prefix_add(**words: Any) -> None:
    """Add rules: either all of them or none.

    IFACE is needed if ndxdp is attached to several interfaces. A prefix that has the same rule
    already keeps it, even if it has another origin. A prefix that has a different rule is an error:
    `ndxdp prefix replace` changes it.
    """
    _add(**words)


@prefix.command("replace")
@_adding
def prefix_replace(**words: Any) -> None:
    """Add or change rules: either all of them or none.

    IFACE is needed if ndxdp is attached to several interfaces. A different rule of the same origin
    is changed; one of another origin is an error.
    """
    _add(**words, replacing=True)


def _add(
    named: Named,
    lists: tuple[IO[str], ...],
    answer: str,
    dev: tuple[str, ...],
    via: tuple[str, ...],
    na_source: str,
    router: bool,
    override: bool,
    dad: str,
    lladdr: str | None,
    origin: str,
    force: bool,
    dry_run: bool,
    *,
    replacing: bool = False,
) -> None:
    from ndxdp.session.rule_changes import add_rules, preview_addition

    show_progress()
    profile = Profile(
        parse_source(na_source),
        router,
        override,
        dad == "defend",
        parse_mac(lladdr) if lladdr else None,
    )
    rule = rule_of(answer, dev, via, parse_origin(origin, writes=True), profile)
    rules = rules_of(named.words, (), lists, rule, force=force)
    _require_some(rules, named)
    where = one_of(named.interface)
    if dry_run:
        _show(preview_addition(*where, rules, replacing=replacing, force=force))
    else:
        add_rules(*where, rules, replacing=replacing, force=force)


def _show(preview: Preview) -> None:
    """Print what would change."""
    from ndxdp.observe.preview_text import rules_summary

    show_preview(preview, rules_summary(preview))


@prefix.command("del")
@interface_before("[PREFIX]...")
@list_files("Delete the rule of each prefix in this file, one per line; - for stdin.")
@click.option("--all", "every", is_flag=True, help="Delete all rules of the origin.")
@click.option(
    "--origin",
    "--source",
    "origin",
    default=MANUAL_ORIGIN,
    show_default=True,
    metavar="NAME",
    help="Delete rules of this origin only.",
)
@click.option(
    "--missing-ok",
    is_flag=True,
    help="Exit with 0 even if a prefix has no rule of the origin, or ndxdp is not attached.",
)
@dry_run_option
@verbosity
def prefix_del(
    named: Named,
    lists: tuple[IO[str], ...],
    every: bool,
    origin: str,
    missing_ok: bool,
    dry_run: bool,
) -> None:
    """Delete rules: either all that are named or none.

    IFACE is needed if ndxdp is attached to several interfaces. `ndxdp prefix list` shows the rules
    with their origins.
    """
    from ndxdp.session.rule_changes import delete_rules, preview_deletion

    show_progress()
    chosen = parse_origin(origin)
    rules: Rules | None = rules_of(named.words, (), lists, Rule())
    if every:
        if rules:
            raise UsageError("--all and prefixes cannot be combined", "give either of them")
        rules = None
    else:
        _require_some(rules, named)
    try:
        where = one_of(named.interface)
        if dry_run:
            _show(preview_deletion(*where, rules, chosen, missing_ok=missing_ok))
        else:
            delete_rules(*where, rules, chosen, missing_ok=missing_ok)
    except NotAttached:
        if not missing_ok:
            raise


@prefix.command("list")
@interface_argument()
@click.option("--origin", metavar="NAME", help="Show rules of this origin only. Default: all.")
@json_option
@verbosity
def prefix_list(interface: str | None, origin: str | None, as_json: bool) -> None:
    """Show the rules of an interface, with their origins.

    IFACE is needed if ndxdp is attached to several interfaces.
    """
    from ndxdp.observe import render
    from ndxdp.rules.pausing import is_marker
    from ndxdp.store.instance import open_instance

    show_progress()
    chosen = None if origin is None else parse_origin(origin)
    with open_instance(*one_of(interface)) as instance:
        rules = instance.maps.in_order(lambda rule: chosen in (None, rule.origin))
        shown = ((prefix, rule) for prefix, rule in rules if not is_marker(prefix))
        if as_json:
            print_parts(render.rules_json(shown), "rules")
        else:
            lines = (f"{printable(line)}\n" for line in render.rules_text(shown))
            print_parts(lines, "rules")


def _require_some(rules: Rules | None, named: Named) -> None:
    """Raise UsageError if no prefix is given."""
    if not rules:
        where = "" if named.interface is None else f" for the interface '{named.interface}'"
        raise UsageError(f"no prefix is given{where}", "name one, or give a list with --file")
