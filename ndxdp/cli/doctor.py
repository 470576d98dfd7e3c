"""`ndxdp doctor`: findings about the host, printed, and their exit code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from ndxdp.cli.interface import interface_argument
from ndxdp.cli.options import json_option, verbosity
from ndxdp.cli.output import echo, print_json
from ndxdp.cli.ranges import Number
from ndxdp.cli.terminal_progress import notice
from ndxdp.cli.values import trees
from ndxdp.errors import NdxdpError
from ndxdp.sources.selector import ENGINE_SOCKET

if TYPE_CHECKING:
    from ndxdp.doctor.examination import Section

_WATCHED = 10.0
"""Seconds; a router that gets no answer solicits again twice within two seconds."""


@click.command()
@interface_argument()
@json_option
@click.option(
    "--docker-socket",
    default=ENGINE_SOCKET,
    show_default=True,
    metavar="PATH",
    help="The socket of Docker or Podman.",
)
@click.option("--probe", is_flag=True, help="Solicit routers and gateways, which takes longer.")
@click.option(
    "--watch",
    type=Number(0, 3600),
    metavar="S",
    help="Watch for S seconds whether answers arrive. Default: 10 with --probe, otherwise 0.",
)
@verbosity
def doctor(
    interface: str | None, as_json: bool, docker_socket: str, probe: bool, watch: float | None
) -> int:
    """Find out why IPv6 does not work here.

    Print what is wrong on this host, why it matters, and the command that repairs it; change
    nothing. Without IFACE, examine the attached interfaces, or those with a default route.

    Exit code: 0 all is well, 1 warnings, 2 failures.
    """
    from ndxdp.doctor import examination, interfaces
    from ndxdp.doctor.finding import exit_code

    both = trees()
    names = [interface] if interface is not None else interfaces.to_examine(both)
    watching = (_WATCHED if probe else 0) if watch is None else watch
    takes_long = probe or watching > 0
    with notice("soliciting and watching") if takes_long else contextlib.nullcontext():
        examined = {
            name: _examined(
                examination.examine(name, both, docker_socket, probing=probe, watching=watching),
                named=interface is not None,
            )
            for name in names
        }
    code = exit_code(
        finding for sections in examined.values() for each in sections for finding in each.findings
    )
    if as_json:
        print_json({"exit_code": code, "interfaces": [_data(*item) for item in examined.items()]})
        return code
    for name, sections in examined.items():
        _show(name, sections)
    echo(_summary(code, examined.values()))
    return code


def _summary(code: int, examined: Iterable[list[Section]]) -> str:
    """Return the last line, which limits "all is well" if a check could not be done."""
    if code:
        return ("", "there are warnings", "there are failures")[code]
    levels = {finding.level.value for each in examined for _, some in each for finding in some}
    return "all is well, as far as could be seen" if "unseen" in levels else "all is well"


def _examined(sections: Iterator[Section], *, named: bool) -> list[Section]:
    """Return the sections of one interface.

    Args:
        sections: The examination, which raises an error if the interface cannot be examined.
        named: The user named this interface, so that the error is the command's.
    """
    from ndxdp.doctor.examination import Section
    from ndxdp.doctor.finding import failure

    try:
        return list(sections)
    except NdxdpError as error:
        if named:
            raise
        return [Section("link", [failure(error.message, error.hint, "")])]


def _data(name: str, sections: list[Section]) -> dict[str, object]:
    """Return the findings of an interface for --json."""
    return {
        "interface": name,
        "findings": [
            {
                "check": check,
                "level": finding.level.value,
                "what": finding.what,
                "why": finding.why,
                "cure": finding.cure,
            }
            for check, findings in sections
            for finding in findings
        ],
    }


def _show(name: str, sections: list[Section]) -> None:
    """Print a line for each finding, and below it why it matters and the repairing command."""
    echo(name)
    for _, findings in sections:
        for level, what, why, cure in findings:
            label = {"unseen": "not seen"}.get(level.value, level.value)
            echo(f"  {label + ':':9} {what}")
            if why:
                echo(f"            {why}")
            if cure:
                echo(f"            $ {cure}")
