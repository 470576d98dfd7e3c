"""`ndxdp run`: the daemon, configured by options or by a file."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ndxdp.cli.diff import show_preview
from ndxdp.cli.interface import interface_argument
from ndxdp.cli.options import attaching, dry_run_option, verbosity
from ndxdp.cli.output import configure_log, echo
from ndxdp.cli.values import options_of, rule_of, rules_of, spec_of, trees
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.netlink import names
from ndxdp.rules.interface_name import check_interface
from ndxdp.rules.rule import RUN_ORIGIN
from ndxdp.sources.selector import ENGINE_SOCKET

if TYPE_CHECKING:
    from ndxdp.daemon.spec import DaemonSpec, InterfaceSpec
    from ndxdp.store.instance import Instance


@click.command()
@interface_argument()
@click.option(
    "-c",
    "--config",
    "file",
    metavar="FILE",
    help="Apply this configuration file; SIGHUP, or `ndxdp reload`, reads it again.",
)
@click.option(
    "-N",
    "--network",
    "networks",
    multiple=True,
    metavar="NETWORK",
    help="Answer for the containers on this Docker network; may be repeated.",
)
@click.option(
    "--announce/--no-announce",
    default=None,
    help="Announce addresses to the upstream router when they appear. Default: only with -N.",
)
@click.option(
    "--docker-socket",
    default=ENGINE_SOCKET,
    show_default=True,
    metavar="PATH",
    help="The socket of Docker or Podman, for -N.",
)
@attaching
@click.option(
    "--join",
    type=click.Choice(["auto", "never", "always"]),
    default="auto",
    show_default=True,
    help="Join the multicast groups of exact addresses, for switches that snoop MLD: only while an"
    " MLD querier is on the link (auto), never, or always.",
)
@click.option("--keep", is_flag=True, help="Leave the program attached when this process ends.")
@dry_run_option
@verbosity
def run(
    interface: str | None,
    file: str | None,
    networks: tuple[str, ...],
    announce: bool | None,
    docker_socket: str,
    answered: tuple[str, ...],
    excepted: tuple[str, ...],
    lists: tuple[IO[str], ...],
    answer: str,
    dev: tuple[str, ...],
    via: tuple[str, ...],
    force: bool,
    join: str,
    keep: bool,
    dry_run: bool,
    **how: Any,
) -> None:
    """Answer until interrupted: the daemon.

    Answer on one interface by these options, or on several by a configuration file. Follow changes
    of addresses, gateways and containers. `ndxdp install-service` makes a service of it.
    """
    from ndxdp import memory

    # OpenSSL takes 4 MB. asyncio works without it, and ndxdp uses no TLS.
    memory.import_without("ssl", "asyncio")
    memory.single_malloc_arena()
    memory.relax_gc()

    if file is not None:
        _refuse_other_options(interface)
        _run_file(file, dry_run=dry_run)
        return
    if interface is None:
        raise UsageError(
            "run needs an interface, or a configuration file",
            "as in ndxdp run eth0 -n PREFIX, or ndxdp run -c FILE",
        )
    _refuse_file(interface)
    from ndxdp.config.model import Announce
    from ndxdp.config.values import parse_socket
    from ndxdp.daemon import service
    from ndxdp.daemon.spec import DaemonSpec, InterfaceSpec
    from ndxdp.sources.selector import Selector

    check_interface(interface)
    engine = parse_socket(docker_socket)
    rules = rules_of(answered, excepted, lists, rule_of(answer, dev, via, RUN_ORIGIN), force=force)
    announcing = bool(networks) if announce is None else announce
    spec = InterfaceSpec(
        interface,
        options_of(**how),
        rules,
        join=join,
        keep=keep,
        insist=keep,
        detach=not keep,
        selectors=tuple(Selector(network=name) for name in networks),
        forced=frozenset(rules.wider if force else ()),
        announce=Announce(solicit_gateway=announcing, advertise=announcing),
    )
    if dry_run:
        _show(spec)
        return
    service.run(trees(), DaemonSpec([spec], engine), ready=_print_ready)


def _show(spec: InterfaceSpec) -> None:
    """Print what the daemon would change on an interface at its start."""
    from ndxdp.daemon.preview import starting
    from ndxdp.observe.preview_text import attach_summary

    preview = starting(trees(), spec)
    show_preview(preview, attach_summary(preview))


def _refuse_file(interface: str) -> None:
    """Raise UsageError if the interface that is named is a file."""
    if not names.index_of(interface) and Path(interface).is_file():
        raise UsageError(
            f"'{interface}' is a file, and run takes an interface",
            f"a configuration file follows -c: ndxdp run -c {interface}",
        )


def _refuse_other_options(interface: str | None) -> None:
    """Raise UsageError if the command line has options that belong into the configuration file."""
    context = click.get_current_context()
    given = [] if interface is None else [f"the interface {interface}"]
    given += [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.expose_value
        and parameter.name not in (None, "file", "interface", "dry_run")
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(
            f"-c FILE cannot be combined with other options: {', '.join(given)}",
            "set them in the file",
        )


def _run_file(file: str, *, dry_run: bool) -> None:
    """Run the daemon with a configuration file, or print what it would change."""
    from ndxdp.config import reader
    from ndxdp.daemon import service
    from ndxdp.daemon.spec import DaemonSpec

    def read() -> DaemonSpec:
        config = reader.load(file)
        shared = frozenset(config.shared_names)
        return DaemonSpec(
            [spec_of(each, shared=each.name in shared) for each in config.with_shared()],
            config.docker_socket,
            config.metrics,
            config.log_level,
            config.log_format,
            config.shares,
        )

    def configure(spec: DaemonSpec) -> None:
        configure_log(spec.log_level, spec.log_format)

    spec = read()
    if dry_run:
        _show_all(spec)
        return
    configure(spec)
    service.run(
        trees(),
        spec,
        ready=_print_ready,
        reread=read,
        set_log=configure,
        config=Path(file).absolute(),
    )


def _show_all(spec: DaemonSpec) -> None:
    """Print what the daemon would change on all interfaces, and what it would share."""
    from ndxdp.config.model import share_downstream, share_summary
    from ndxdp.daemon.uplinks import present_specs
    from ndxdp.netlink import links

    for table, specs in present_specs(spec.interfaces):
        for each in specs:
            if share_downstream(spec.shares, each.interface) and links.is_quiet(each.interface):
                echo(f"{each.interface}  would not be attached to: it has no MAC address")
                continue
            try:
                _show(each)
            except NdxdpError as error:  # the daemon would answer on the others, and try again
                echo(f"{each.interface}  would not be answered on yet: {error.message}")
        if not specs:
            echo(f"{table.interface}  matches no interface now")
    for share in spec.shares:
        echo(f"{share.upstream}  would be {'; '.join(share_summary(share))}")


def _print_ready(spec: InterfaceSpec, instance: Instance | None) -> None:
    """Print the line that begins with `ready`, for one interface."""
    from ndxdp.netlink.links import NO_MAC
    from ndxdp.session import modes

    if instance is None:
        _print_if_read(
            f"ready: {spec.interface} keeps its addresses; nothing is answered: {NO_MAC}"
        )
        return
    settings = instance.maps.settings()
    why = "; ".join(modes.format_refusals(modes.decode(settings.refusals)))
    mode = f"{settings.mode.label} mode" + (f" ({why})" if why else "")
    does = "is paused" if settings.paused else "answers"
    _print_if_read(f"ready: {spec.interface} {does} in {mode}, rules: {len(spec.rules)}")


def _print_if_read(line: str) -> None:
    """Print a line; if stdout has no reader any more, continue without output."""
    try:
        echo(line)
    except OSError as error:
        logging.getLogger(__name__).debug("cannot print: %s", error)
        # The buffer still holds the line, and Python would flush it at exit.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
