"""`ndxdp init`: a first configuration file, proposed for this host."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ndxdp.cli import check
from ndxdp.cli.interface import interfaces_argument
from ndxdp.cli.options import json_option, verbosity
from ndxdp.cli.output import echo, print_json
from ndxdp.cli.values import trees
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.printable import printable
from ndxdp.sources.selector import ENGINE_SOCKET

if TYPE_CHECKING:
    from ndxdp.proposal.facts import Host
    from ndxdp.proposal.plan import Plan
    from ndxdp.proposal.steps import Installation

_CONFIG = "/etc/ndxdp/ndxdp.toml"
_SYSCTL = "/etc/sysctl.d/60-ndxdp.conf"


@click.command()
@interfaces_argument
@click.option(
    "-o",
    "--output",
    default=_CONFIG,
    show_default=True,
    metavar="FILE",
    help="The configuration file; - prints it, and writes nothing.",
)
@click.option(
    "--sysctl",
    "sysctl_path",
    default=_SYSCTL,
    show_default=True,
    metavar="FILE",
    help="The file for sysctls.",
)
@click.option("--no-sysctl", is_flag=True, help="Write no file for sysctls.")
@click.option("-y", "--yes", is_flag=True, help="Write without asking.")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@click.option(
    "--docker-socket",
    metavar="PATH",
    help=f"The socket of Docker or Podman. Default: {ENGINE_SOCKET}, or Podman's if there is none.",
)
@json_option
@verbosity
def init(
    interfaces: tuple[str, ...],
    output: str,
    sysctl_path: str,
    no_sysctl: bool,
    yes: bool,
    force: bool,
    docker_socket: str | None,
    as_json: bool,
) -> int:
    """Propose a configuration for this host.

    Look at the uplink, the IFACE of the IPv6 default route, and at the networks behind this host.
    Propose a configuration file with narrow rules, and the sysctls that they need; show both, ask,
    and write them. Change nothing else.
    """
    from ndxdp.proposal import plan as plans
    from ndxdp.proposal import settings, steps, survey, text

    prints = output == "-" or as_json
    if not prints and not yes and not sys.stdin.isatty():
        raise UsageError(
            "init asks before it writes, and its stdin is no terminal",
            "--yes writes without asking, -o - only prints",
        )
    if not no_sysctl:
        _check_sysctl_path(sysctl_path, output)
    host = survey.look(interfaces, trees(), docker_socket or "")
    plan = plans.propose(host, default_socket=ENGINE_SOCKET, sysctl_file=sysctl_path)
    configuration = "" if plan.is_empty else text.configuration(plan)
    sysctls = settings.text(plan.settings, sysctl_path) if plan.settings and not no_sysctl else ""
    if as_json:
        print_json(text.data(host, plan, configuration, sysctls))
        return 1 if plan.is_empty else 0
    _show_found(host, plan, err=output == "-")
    if plan.is_empty:
        raise plans.nothing(host)
    _check(configuration, output)
    if output == "-":
        click.echo(configuration, nl=False)
        _show_file(sysctl_path, sysctls, err=True)
        return 0
    texts = {Path(output): configuration}
    if sysctls:
        texts[Path(sysctl_path)] = sysctls
    if not _write(texts, yes=yes, force=force):
        echo("nothing was written")
        return 1
    check.report(output)
    echo("next:")
    for command in steps.commands(
        host, plan, _installation(output), sysctl_path if sysctls else ""
    ):
        echo(f"  {command}")
    return 0


def _check_sysctl_path(path: str, output: str) -> None:
    """Raise UsageError if the sysctls cannot have this file."""
    if path == "-":
        raise UsageError(
            "--sysctl - names no file",
            "-o - prints both files, and --no-sysctl leaves this one out",
        )
    if output != "-" and Path(path).resolve() == Path(output).resolve():
        raise UsageError(
            f"-o and --sysctl name the same file {path}",
            "name another file, or leave the sysctls out: --no-sysctl",
        )


def _show_found(host: Host, plan: Plan, *, err: bool) -> None:
    """Print what was found, and the notes on the proposal."""
    from ndxdp.proposal import text

    echo("found on this host:", err=err)
    for line in text.found(host):
        echo(f"  {line}", err=err)
    for sentence in plan.notes:
        echo(f"  note: {sentence}", err=err)


def _show_file(path: str | Path, text: str, *, err: bool = False) -> None:
    if text:
        click.echo(err=err)
        echo(f"---- {path}", err=err)
        for line in text.splitlines():
            echo(line, err=err)


def _check(configuration: str, path: str) -> None:
    """Raise NdxdpError if `ndxdp check` would refuse the configuration."""
    from ndxdp.config import reader

    try:
        reader.parse(configuration, path)
    except UsageError as error:
        raise NdxdpError(
            f"cannot propose a configuration: ndxdp refuses it: {error.message}", error.hint
        ) from None


# ---- writing ------------------------------------------------------------------------------------


def _write(texts: dict[Path, str], *, yes: bool, force: bool) -> bool:
    """Show the files, ask, and write them; return False if the user does not want them.

    Raises:
        NdxdpError: A file exists, and may not be replaced without a question; or a file cannot be
            written. Nothing was written then.
        click.Abort: The user interrupted the question.
    """
    from ndxdp.proposal import writing

    old = {path: writing.present(path) for path in texts}
    changed = {path: text for path, text in texts.items() if text != old[path]}
    for path in changed:
        writing.check_writable(path)
    replaced = [path for path in changed if old[path] is not None and not _is_example(old[path])]
    if replaced and yes and not force:
        raise NdxdpError(f"{replaced[0]} exists already", "--force overwrites it")
    for path, text in texts.items():
        if path not in changed:
            click.echo()
            echo(f"unchanged: {path}")
        elif path in replaced:
            _show_file(path, "\n".join(_difference(old[path] or "", text)))
        else:
            _show_file(path, text)
    if changed and not yes and not _is_wanted(list(changed), replaced):
        return False
    if changed:
        writing.write_all(changed)
    for path in changed:
        echo(f"wrote {path}")
    return True


def _is_wanted(changed: list[Path], replaced: list[Path]) -> bool:
    """Ask whether to write the files."""
    deeds = [
        (verb, some)
        for verb, some in (
            ("write", [each for each in changed if each not in replaced]),
            ("replace", replaced),
        )
        if some
    ]
    question = " and ".join(f"{verb} {' and '.join(map(str, some))}" for verb, some in deeds)
    click.echo()
    try:
        return click.confirm(printable(f"{question[0].upper()}{question[1:]}?"))
    except click.Abort:
        click.echo(err=True)
        echo("nothing was written", err=True)
        raise


def _is_example(text: str | None) -> bool:
    """Return True for the example of the Debian package, in which everything is commented out."""
    from ndxdp import systemd_unit

    return text == systemd_unit.example()


def _difference(old: str, new: str) -> Iterator[str]:
    import difflib

    return difflib.unified_diff(old.splitlines(), new.splitlines(), "now", "proposed", lineterm="")


def _installation(path: str) -> Installation:
    """Return how this host runs ndxdp with a configuration file."""
    from ndxdp import systemd_unit
    from ndxdp.observe import status
    from ndxdp.proposal.steps import Installation

    config = Path(path).absolute()
    return Installation(
        str(config),
        is_default=config == systemd_unit.CONFIG,
        systemd=Path("/run/systemd/system").is_dir(),
        has_unit=systemd_unit.is_installed(config),
        runs=any(each.config == str(config) for each in status.reports(trees())),
    )
