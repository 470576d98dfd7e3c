"""`ndxdp explain`: the verdict on a test solicitation."""

from __future__ import annotations

import click

from ndxdp.cli.interface import Named, exists, interface_before
from ndxdp.cli.options import json_option, verbosity
from ndxdp.cli.output import echo, print_json
from ndxdp.cli.values import one_of
from ndxdp.errors import UsageError
from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_address, parse_mac

_SILENCE = 3
"""The exit code of --exit-code where there is no answer; 1 and 2 are those of errors."""


@click.command()
@interface_before("TARGET")
@click.option(
    "--from",
    "source",
    default="fe80::1",
    show_default=True,
    metavar="ADDRESS",
    help="Source address of the solicitation.",
)
@click.option(
    "--mac",
    default="02:00:00:00:00:01",
    show_default=True,
    metavar="MAC",
    help="Source MAC of the solicitation.",
)
@click.option("--dad", is_flag=True, help="Solicit from ::, as Duplicate Address Detection does.")
@click.option("--unicast", is_flag=True, help="Solicit the target by unicast, as a NUD probe does.")
@click.option(
    "--exit-code",
    "by_code",
    is_flag=True,
    help="Exit with 3 if there is no answer.",
)
@json_option
@verbosity
def explain(
    named: Named,
    source: str,
    mac: str,
    dad: bool,
    unicast: bool,
    by_code: bool,
    as_json: bool,
) -> int:
    """Show whether ndxdp answers for an address, and why.

    Run a test solicitation for the address TARGET through the loaded program. The solicitation is
    not sent or counted, and uses no rate. IFACE is needed if ndxdp is attached to several
    interfaces.
    """
    from ndxdp.observe import render
    from ndxdp.store import explanation as explanations

    address, solicitor = parse_address(_target(named)), parse_mac(mac)
    from_address = UNSPECIFIED if dad else parse_address(source)

    def solicitation(own: bytes) -> bytes:
        return solicit(
            solicitor,
            address,
            source=from_address,
            destination=address if unicast else None,
            eth_destination=own if unicast else None,
            sllao=None if from_address == UNSPECIFIED else solicitor,
        )

    explanation = explanations.explain(*one_of(named.interface), solicitation)
    if as_json:
        print_json(render.explanation_data(explanation))
    else:
        for line in render.explanation_text(explanation):
            echo(line)
    return _SILENCE if by_code and explanation.reply is None else 0


def _target(named: Named) -> str:
    """Return the one target of a command line."""
    interface, words = named
    if len(words) == 1:
        return words[0]
    if len(words) > 1:
        raise UsageError(
            f"explain takes one target, and {len(words)} are named: {', '.join(words)}",
            "run it once for each",
        )
    if interface is None:
        raise UsageError("TARGET is missing", "as in ndxdp explain eth0 2001:db8::1")
    if not exists(interface):
        return interface  # a target that is no address
    raise UsageError(
        f"TARGET is missing: '{interface}' is an interface",
        f"the target follows the interface, as in ndxdp explain {interface} 2001:db8::1",
    )
