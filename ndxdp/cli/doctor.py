"""`ndxdp doctor`: arguments, printing, exit code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from ndxdp.cli.options import echo, json_option, print_json, real_interface, trees, verbosity
from ndxdp.errors import NdxdpError

if TYPE_CHECKING:
    from ndxdp.doctor.examination import Section

_WATCHED = 10.0
"""Seconds: a router that gets no answer asks again twice within two of them."""


@click.command()
@click.argument("interface", metavar="[IFACE]", required=False, callback=real_interface)
@json_option
@click.option(
    "--docker-socket",
    default="/run/docker.sock",
    show_default=True,
    metavar="PATH",
    help="Where Docker or Podman listens.",
)
@click.option("--probe", is_flag=True, help="Solicit routers and gateways; takes longer.")
@click.option(
    "--watch",
    type=click.FloatRange(0, 3600),
    metavar="S",
    help="See whether answers arrive, for so long: 10 s with --probe, else 0.",
)
@verbosity
def doctor(
    interface: str | None, as_json: bool, docker_socket: str, probe: bool, watch: float | None
) -> int:
    """Say why IPv6 does not work on this host, and how to mend it. Changes nothing.

    Exit code: 0 all well, 1 warnings, 2 failures.
    """
    from ndxdp.doctor import examination
    from ndxdp.doctor.finding import exit_code

    both = trees()
    names = [interface] if interface is not None else examination.interfaces(both)
    watching = (_WATCHED if probe else 0) if watch is None else watch
    looked = {
        name: _examined(
            examination.examine(name, both, docker_socket, probing=probe, watching=watching),
            named=interface is not None,
        )
        for name in names
    }
    code = exit_code(
        finding for sections in looked.values() for each in sections for finding in each.findings
    )
    if as_json:
        print_json({"exit_code": code, "interfaces": [_data(*item) for item in looked.items()]})
        return code
    for name, sections in looked.items():
        _show(name, sections)
    echo(_summary(code, looked.values()))
    return code


def _summary(code: int, looked: Iterable[list[Section]]) -> str:
    """Return the last line, which names no host well of which a part could not be looked at."""
    if code:
        return ("", "there are warnings", "there are failures")[code]
    levels = {finding.level.value for each in looked for _, some in each for finding in some}
    return "all is well, as far as could be seen" if "unseen" in levels else "all is well"


def _examined(sections: Iterator[Section], *, named: bool) -> list[Section]:
    """Return what was found; of several interfaces one that cannot be looked at is a finding."""
    from ndxdp.doctor.examination import Section
    from ndxdp.doctor.finding import failure

    try:
        return list(sections)
    except NdxdpError as error:
        if named:
            raise
        return [Section("link", [failure(error.message, error.hint, "")])]


def _data(name: str, sections: list[Section]) -> dict[str, object]:
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
    """A line each; below what is wrong, why it matters and what mends it."""
    echo(name)
    for _, findings in sections:
        for level, what, why, cure in findings:
            said = {"unseen": "not seen"}.get(level.value, level.value)
            echo(f"  {said + ':':9} {what}")
            if why:
                echo(f"            {why}")
            if cure:
                echo(f"            $ {cure}")
