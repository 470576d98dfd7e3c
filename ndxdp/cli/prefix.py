"""`ndxdp prefix`: change and show the rules of an attached interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any, TypeVar

import click

from ndxdp.cli.options import (
    answering,
    echo,
    force_option,
    json_option,
    lists,
    one_interface,
    one_of,
    print_json,
    rules_of,
    verbosity,
    via_option,
)
from ndxdp.errors import NotAttached, UsageError
from ndxdp.ndp.profile import Profile
from ndxdp.rules.address import parse_mac
from ndxdp.rules.rule import MANUAL_ORIGIN, Rule, parse_origin, parse_source
from ndxdp.rules.ruleset import Rules

_F = TypeVar("_F", bound=Callable[..., Any])


@click.group()
def prefix() -> None:
    """Change or show the rules of an attached interface."""


def _adding(command: _F) -> _F:
    """Give a command the arguments of `add` and `replace`."""
    for option in (
        verbosity,
        force_option,
        click.option(
            "--origin",
            default=MANUAL_ORIGIN,
            show_default=True,
            metavar="NAME",
            help="Write the rules under this name of your choice.",
        ),
        click.option("--lladdr", metavar="MAC", help="Advertise this MAC, not the interface's."),
        click.option(
            "--dad",
            type=click.Choice(["defend", "ignore"]),
            default="defend",
            show_default=True,
            help="Duplicate Address Detection for the prefix.",
        ),
        click.option(
            "--override/--no-override", default=False, show_default=True, help="The O flag."
        ),
        click.option("--router/--no-router", default=True, show_default=True, help="The R flag."),
        click.option(
            "--na-source",
            default="target",
            show_default=True,
            metavar="SOURCE",
            help="Source of the answers: target, link-local, or an address.",
        ),
        via_option,
        click.option(
            "--answer",
            type=click.Choice(["always", "local", "routed", "neighbour", "never"]),
            default="always",
            show_default=True,
        ),
        lists("A list of prefixes, one a line; - for stdin."),
        one_interface,
        click.argument("prefixes", nargs=-1, metavar="[PREFIX]..."),
    ):
        command = option(command)
    return command


@prefix.command("add")
@_adding
def prefix_add(**words: Any) -> None:
    """Add rules: all of them, or none.

    A rule that is there already stays as it is, whoever wrote it; exit code 0. Another rule for
    the same prefix is an error.
    """
    _add(**words)


@prefix.command("replace")
@_adding
def prefix_replace(**words: Any) -> None:
    """Add rules, or change those of the origin that there are: all of them, or none."""
    _add(**words, replacing=True)


def _add(
    prefixes: tuple[str, ...],
    interface: str | None,
    lists: tuple[IO[str], ...],
    answer: str,
    via: tuple[str, ...],
    na_source: str,
    router: bool,
    override: bool,
    dad: str,
    lladdr: str | None,
    origin: str,
    force: bool,
    *,
    replacing: bool = False,
) -> None:
    from ndxdp.store.instance import add_rules

    profile = Profile(
        parse_source(na_source),
        router,
        override,
        dad == "defend",
        parse_mac(lladdr) if lladdr else None,
    )
    rule = answering(answer, via, parse_origin(origin, writes=True), profile)
    rules = rules_of(prefixes, (), lists, rule, force=force)
    _need_some(rules)
    add_rules(*one_of(interface), rules, replacing=replacing, force=force)


@prefix.command("del")
@click.argument("prefixes", nargs=-1, metavar="[PREFIX]...")
@one_interface
@lists("A list of prefixes, one a line; - for stdin.")
@click.option("--all", "all_of_them", is_flag=True, help="All rules of the origin.")
@click.option(
    "--origin",
    "--source",
    "origin",
    default=MANUAL_ORIGIN,
    show_default=True,
    metavar="NAME",
    help="Delete the rules of this origin; those of others stay.",
)
@click.option(
    "--missing-ok",
    is_flag=True,
    help="Exit code 0, too, where a prefix has no rule of the origin, or nothing is attached.",
)
@verbosity
def prefix_del(
    prefixes: tuple[str, ...],
    interface: str | None,
    lists: tuple[IO[str], ...],
    all_of_them: bool,
    origin: str,
    missing_ok: bool,
) -> None:
    """Remove rules: all of them, or none."""
    from ndxdp.store.instance import delete_rules

    source = parse_origin(origin)
    named: Rules | None = rules_of(prefixes, (), lists, Rule())
    if all_of_them:
        if named:
            raise UsageError("--all and prefixes exclude each other", "give one of them")
        named = None
    else:
        _need_some(named)
    try:
        delete_rules(*one_of(interface), named, source, missing_ok=missing_ok)
    except NotAttached:
        if not missing_ok:
            raise


@prefix.command("list")
@one_interface
@click.option("--origin", metavar="NAME", help="The rules of this origin only.")
@json_option
@verbosity
def prefix_list(interface: str | None, origin: str | None, as_json: bool) -> None:
    """Show the rules, as the kernel has them."""
    from ndxdp.observe import render
    from ndxdp.store.instance import open_instance

    source = None if origin is None else parse_origin(origin)
    with open_instance(*one_of(interface)) as instance:
        rules = instance.maps.rules()
    shown = sorted(rules.where(lambda rule: source in (None, rule.origin)).pairs())
    if as_json:
        print_json([render.rule_data(*item) for item in shown])
        return
    for item in shown:
        echo(render.rule_text(*item))


def _need_some(prefixes: Any) -> None:
    if not prefixes:
        raise UsageError("no prefix is given", "name one, or give a list with --file")
