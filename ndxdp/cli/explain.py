"""`ndxdp explain`: the verdict on a test solicitation."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ndxdp.cli.interface import Named, exists, interface_before
from ndxdp.cli.options import json_option, verbosity
from ndxdp.cli.output import echo, print_json
from ndxdp.cli.values import one_of, trees
from ndxdp.errors import UsageError
from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_address, parse_mac

if TYPE_CHECKING:
    from ndxdp.observe.holders import Holding
    from ndxdp.observe.hosts import Host
    from ndxdp.store.records import Explained

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

    tree, interface = one_of(named.interface)
    explanation = explanations.explain(tree, interface, solicitation)
    host = _host(interface, address)
    holding = _holding(address, explanation.verdict)
    if as_json:
        from ndxdp.observe.holders import holding_data
        from ndxdp.observe.hosts import host_data

        data = render.explanation_data(explanation)
        holder = holding_data(holding) if holding else None
        print_json(data | {"host": host_data(host) if host else None, "holder": holder})
    else:
        for line in render.explanation_text(explanation):
            echo(line)
        if host:
            from ndxdp.observe.share_text import host_text

            by = "" if host.learned else ", by a route of another program"
            echo(f"host     {host_text(host, time.time())}{by}")
        if holding:
            from ndxdp.observe.holders import holding_text

            echo(f"holder   {holding_text(holding)}")
    return _SILENCE if by_code and explanation.reply is None else 0


def _host(interface: str, address: bytes) -> Host | None:
    """Return where an address lives, if the interface is in a share that has learned it."""
    from ndxdp.netlink.netns import netns
    from ndxdp.runtime import share_report

    reports = [
        each
        for each in share_report.reports(trees().files.root, netns())
        if interface in {link.interface for link in each.links}
    ]
    if not reports:
        return None
    from ndxdp.observe.hosts import read

    return next((each for each in read(reports) if each.address == address), None)


def _holding(address: bytes, verdict: Explained) -> Holding | None:
    """Return who answers for an address, if the rule for it is that of a shared address."""
    from ndxdp.observe import holders
    from ndxdp.rules.prefix import Prefix

    if verdict.rule is None or verdict.prefix_len is None:
        return None
    prefix = Prefix.around(address, verdict.prefix_len)
    return holders.find(trees().files.root, prefix, verdict.rule, verdict.reason.label)


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
