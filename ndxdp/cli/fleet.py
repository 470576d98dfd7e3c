"""`ndxdp fleet`: the rules and shared addresses that etcd has, for all hosts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ndxdp.cli import fleet_changes, fleet_moves
from ndxdp.cli.fleet_options import Connection, asked, connected
from ndxdp.cli.group import Group
from ndxdp.cli.options import json_option, verbosity
from ndxdp.cli.output import echo, print_json, print_parts
from ndxdp.cli.table import print_table
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.printable import printable

if TYPE_CHECKING:
    from ndxdp.inventory.listing import Listed

_FEW = 20
"""Addresses that `fleet status` lists without being asked to."""


@click.group(cls=Group)
def fleet() -> None:
    """Show and change what many hosts answer for, in etcd.

    The commands read [etcd] of the configuration file, or --endpoint names a member of etcd. They
    need no daemon on this host, and no privilege but the right to use the keys.
    """


@fleet.command("status")
@click.argument("segments", nargs=-1, metavar="[SEGMENT]...")
@click.option("--addresses", is_flag=True, help="List all addresses, however many there are.")
@click.option("--all", "every", is_flag=True, help="Show all members, problems and moves.")
@json_option
@connected
@verbosity
def fleet_status(
    segments: tuple[str, ...], addresses: bool, every: bool, as_json: bool, etcd: Connection
) -> None:
    """Show who answers for which shared address, and what is wrong.

    For each segment, show its live members, how many addresses each of them holds, the addresses
    that nobody holds and why, values that are refused, and moves that wait. Up to 20 addresses are
    listed below.
    """
    from ndxdp.config.etcd_tables import parse_name
    from ndxdp.inventory import view_text

    names = [parse_name(each, "segment") for each in segments]
    view = asked(etcd, lambda keys: keys.view(names))
    unknown = [each for each in names if view.segment(each) is None]
    if unknown:
        raise NdxdpError(
            f"etcd has no shared address and no member of {unknown[0]}",
            "all segments: ndxdp fleet status",
        )
    if as_json:
        print_json(view_text.fleet_data(view))
        return
    now = time.time()
    for line in view_text.fleet_lines(view, now, every=every):
        echo(line)
    if not view.segments:
        echo("no shared address, and no host is a member of a segment")
    rows = list(view_text.rows(view, now))
    if rows and (addresses or len(rows) <= _FEW):
        echo("")
        print_table(view_text.HEADINGS, rows)


@fleet.command("list")
@click.argument("kind", type=click.Choice(["hosts", "shared"]), required=False)
@click.option("--host", metavar="HOST", help="List only the keys of one host.")
@click.option("--segment", metavar="SEGMENT", help="List only the keys of one segment.")
@json_option
@connected
@verbosity
def fleet_list(
    kind: str | None, host: str | None, segment: str | None, as_json: bool, etcd: Connection
) -> None:
    """List the keys of rules and shared addresses, with their values.

    `hosts` are the keys of rules that one host answers by, `shared` those of addresses that exactly
    one of several hosts answers for. Without either, both are listed. A value that the daemons
    refuse is marked.
    """
    from ndxdp.config.etcd_tables import parse_name
    from ndxdp.inventory.listing import read_listing

    if host is not None:
        parse_name(host, "host")
        if kind == "shared":
            raise UsageError(
                "--host is for the keys of hosts", "leave it out, or write: ndxdp fleet list hosts"
            )
        kind = "hosts"
    if segment is not None:
        parse_name(segment, "segment")
    found = asked(etcd, lambda keys: read_listing(keys, kind, host, segment))
    if as_json:
        print_parts(_json(found), "keys")
    elif not found:
        echo("there is no such key")
    else:
        print_parts((f"{_line(each)}\n" for each in found), "keys")


def _line(listed: Listed) -> str:
    refused = f"  [refused: {listed.refusal}]" if listed.refusal else ""
    return printable(f"{listed.key}  {listed.value.decode(errors='replace')}{refused}")


def _json(found: list[Listed]) -> Iterator[str]:
    before = "["
    for each in found:
        yield f"{before}\n  {json.dumps(_data(each))}"
        before = ","
    yield "\n]\n" if found else "[]\n"


def _data(listed: Listed) -> dict[str, Any]:
    try:
        value = json.loads(listed.value)
    except (ValueError, RecursionError):
        value = listed.value.decode(errors="replace")
    return {
        "key": listed.key.encode(errors="replace").decode(),
        "value": value,
        "refused": listed.refusal or None,
        "revision": listed.changed,
    }


for _command in (
    fleet_changes.fleet_put,
    fleet_changes.fleet_apply,
    fleet_changes.fleet_delete,
    fleet_moves.fleet_move,
    fleet_moves.fleet_drain,
    fleet_moves.fleet_undrain,
):
    fleet.add_command(_command)
