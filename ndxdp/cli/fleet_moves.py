"""`ndxdp fleet move`, `drain` and `undrain`: which host answers for shared addresses."""

from __future__ import annotations

import logging

import click

from ndxdp.cli.fleet_options import Connection, asked, connected
from ndxdp.cli.options import verbosity
from ndxdp.cli.output import echo
from ndxdp.cli.ranges import Number
from ndxdp.cli.terminal_progress import show_progress

log = logging.getLogger("ndxdp")

_LISTED_MAX = 5


@click.command("move")
@click.argument("name", metavar="SEGMENT/NAME")
@click.argument("host", metavar="HOST")
@click.option(
    "--timeout",
    type=Number(0.1, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up after SECONDS; the address then stays where it is.",
)
@connected
@verbosity
def fleet_move(name: str, host: str, timeout: float, etcd: Connection) -> None:
    """Move a shared address to another host.

    The host that holds the address releases it, and HOST acquires it; the command waits until HOST
    answers for it. HOST must be a live member of the segment. It keeps the address until it fails
    or is drained, also if another host is preferred.
    """
    from ndxdp.config.etcd_tables import parse_name
    from ndxdp.inventory import moving
    from ndxdp.inventory.rule_key import parse_address_name

    segment, address = parse_address_name(name)
    parse_name(host, "host")
    found = asked(etcd, lambda keys: moving.move(keys, segment, address, host, timeout))
    if found.former == host:
        echo(f"{host} holds {segment}/{address} ({found.prefix}) already")
        return
    before = f", {found.former} before" if found.former else ", nobody before"
    echo(f"{host} holds {segment}/{address} ({found.prefix}) after {found.seconds:.2f} s{before}")


@click.command("drain")
@click.argument("host", metavar="[HOST]", required=False)
@click.option(
    "--timeout",
    type=Number(0.1, 3600),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up waiting when the host has given up nothing for SECONDS; it stays drained.",
)
@connected
@verbosity
def fleet_drain(host: str | None, timeout: float, etcd: Connection) -> None:
    """Have a host give up all shared addresses, and take none.

    HOST is this host by default: the `host` of [etcd]. The command waits until the host holds
    nothing. It stays drained, also over restarts, until `ndxdp fleet undrain`.
    """
    from ndxdp.inventory import moving

    show_progress()
    settings = etcd.settings()
    name = _host(host, settings.host)
    found = asked(settings, lambda keys: moving.drain(keys, name, timeout))
    took = f", {found.released} before; that took {found.seconds:.2f} s" if found.released else ""
    echo(f"{name} is drained: it holds nothing{took}")
    if not found.is_member:
        log.warning("%s is no member of any segment now", name)
    for each in found.unheld[:_LISTED_MAX]:
        log.warning("nobody holds %s (%s): %s", each.key, each.wanted.prefix, each.problem)
    if len(found.unheld) > _LISTED_MAX:
        log.warning("nobody holds %d more: ndxdp fleet status", len(found.unheld) - _LISTED_MAX)


@click.command("undrain")
@click.argument("host", metavar="[HOST]", required=False)
@connected
@verbosity
def fleet_undrain(host: str | None, etcd: Connection) -> None:
    """Let a drained host take shared addresses again.

    HOST is this host by default: the `host` of [etcd].
    """
    from ndxdp.inventory import moving

    settings = etcd.settings()
    name = _host(host, settings.host)
    was_drained = asked(settings, lambda keys: moving.undrain(keys, name))
    echo(f"{name} may take shared addresses again" if was_drained else f"{name} is not drained")


def _host(named: str | None, own: str) -> str:
    """Return the host that is named, or this one."""
    from ndxdp.config.etcd_tables import parse_name

    return own if named is None else parse_name(named, "host")
