"""`ndxdp hosts`: the learned hosts of shares."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ndxdp.cli.group import Group
from ndxdp.cli.interface import Named, exists, interface_argument, interface_before
from ndxdp.cli.options import json_option, verbosity
from ndxdp.cli.output import echo, print_json
from ndxdp.cli.table import print_table
from ndxdp.cli.values import trees
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.rules.address import address_text, parse_address

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ndxdp.observe.hosts import Host

_LIST = "list"
_HEADINGS = ("address", "interface", "MAC", "learned", "last seen")
_NOTHING = "-"


class _Listing(Group):
    """The group of `ndxdp hosts`, which lists where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `list` before what is neither a command nor a request for help."""
        first = next((word for word in args if not word.startswith("-")), "")
        wants_help = bool(args) and args[0] in ctx.help_option_names
        completing = ctx.resilient_parsing and not args
        if first not in self.commands and not wants_help and not completing:
            args = [_LIST, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Offer the commands, and what `list` takes."""
        listing = self.commands[_LIST]
        inner = listing.make_context(_LIST, [], parent=ctx, resilient_parsing=True)
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            found += listing.shell_complete(inner, incomplete)
        else:
            for parameter in listing.params:
                if isinstance(parameter, click.Argument):
                    found += parameter.shell_complete(inner, incomplete)
        return list({each.value: each for each in found}.values())


@click.group(cls=_Listing)
def hosts() -> None:
    """List or forget the hosts that a share has learned.

    `ndxdp hosts`, `ndxdp hosts IFACE` and `ndxdp hosts --json` are short for `ndxdp hosts list` and
    what follows. The hosts are those that the kernel has a route of ndxdp's for, with or without a
    daemon.
    """


@hosts.command(_LIST)
@interface_argument()
@json_option
@verbosity
def hosts_list(interface: str | None, as_json: bool) -> None:
    """List the learned hosts, with their interfaces and MACs.

    The list also shows when each was learned, and last seen. IFACE is a downstream interface, or
    the upstream interface of a share. What the reports of the daemons do not have is `-`. On a
    link without MACs, the list has the addresses that the kernel has routes for.
    """
    from ndxdp.observe.hosts import host_data

    found = [each for each in _hosts() if interface in (None, each.interface, each.upstream)]
    if interface is not None and not found and not exists(interface):
        raise NdxdpError(f"there is no interface '{interface}'", "see: ip -br link")
    if as_json:
        print_json([host_data(each) for each in found])
    elif found:
        print_table(_HEADINGS, map(_row, found))
    else:
        echo("no host has been learned" + (f" on {interface}" if interface else ""))


@hosts.command("forget")
@interface_before("[ADDRESS]...")
@click.option("--all", "every", is_flag=True, help="Forget all hosts, or all on IFACE.")
@click.option("--missing-ok", is_flag=True, help="Exit with 0 even if an address is not learned.")
@click.option("--dry-run", is_flag=True, help="Print what would be forgotten; change nothing.")
@verbosity
def hosts_forget(
    named: Named,
    every: bool,
    missing_ok: bool,
    dry_run: bool,
) -> None:
    """Forget learned hosts: either all that are named or none.

    Remove the kernel's routes to the addresses, with IFACE only those that leave by this interface;
    a running daemon then forgets the hosts. It learns a host again at the host's next sign of life.
    """
    from ndxdp.observe.hosts import forget

    name, words = named
    if every == bool(words):
        where = f" for the interface '{name}'" if name else ""
        raise UsageError(
            "--all and addresses cannot be combined" if every else f"no address is given{where}",
            "give either of them" if every else "name one, or give --all; to list: ndxdp hosts",
        )
    wanted = set(map(parse_address, words))
    present = [each for each in _hosts() if name in (None, each.interface)]
    found = [each for each in present if (every and each.learned) or each.address in wanted]
    for host in found:
        if not host.learned:
            raise NdxdpError(
                f"the route to {address_text(host.address)} is not ndxdp's",
                f"to see whose: ip -6 route show {address_text(host.address)}",
            )
    missing = wanted - {each.address for each in found}
    if not missing_ok:
        _refuse(missing, name)
    if dry_run:
        for host in found:
            echo(f"- {address_text(host.address)} on {host.interface}")
        if not found:
            echo("nothing would be forgotten")
        return
    gone = forget(found)
    if not missing_ok and not every:
        _refuse({each.address for each in gone}, name)


def _refuse(missing: set[bytes], interface: str | None) -> None:
    """Raise NdxdpError if an address is not learned."""
    if missing:
        where = f" on {interface}" if interface else ""
        texts = ", ".join(map(address_text, sorted(missing)))
        which = "is no learned host" if len(missing) == 1 else "are no learned hosts"
        raise NdxdpError(f"{texts} {which}{where}", "list them: ndxdp hosts")


def _hosts() -> list[Host]:
    from ndxdp.netlink.netns import netns
    from ndxdp.observe.hosts import read
    from ndxdp.runtime import share_report

    return read(share_report.reports(trees().files.root, netns()))


def _row(host: Host) -> tuple[str, ...]:
    return (
        address_text(host.address),
        host.interface,
        host.mac or _NOTHING,
        _ago(host.since),
        _ago(host.seen),
    )


def _ago(moment: float | None) -> str:
    from ndxdp.observe.units import elapsed

    return _NOTHING if moment is None else f"{elapsed(time.time() - moment)} ago"
