"""`ndxdp run`: the daemon, configured by options or by a file."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ndxdp.cli.interface import interface_argument
from ndxdp.cli.options import attaching, dry_run_option, verbosity
from ndxdp.cli.output import configure_log
from ndxdp.cli.serving import print_ready, save_memory, show, show_all
from ndxdp.cli.values import options_of, rule_of, rules_of, spec_of, trees
from ndxdp.errors import UsageError
from ndxdp.netlink import names
from ndxdp.rules.interface_name import check_interface
from ndxdp.rules.rule import RUN_ORIGIN
from ndxdp.sources.selector import ENGINE_SOCKET

if TYPE_CHECKING:
    from ndxdp.daemon.spec import DaemonSpec


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
    save_memory()
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
        show(spec)
        return
    service.run(trees(), DaemonSpec([spec], engine), ready=print_ready)


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
            config.etcd,
        )

    def configure(spec: DaemonSpec) -> None:
        configure_log(spec.log_level, spec.log_format)

    spec = read()
    if dry_run:
        show_all(spec)
        return
    configure(spec)
    service.run(
        trees(),
        spec,
        ready=print_ready,
        reread=read,
        set_log=configure,
        config=Path(file).absolute(),
    )
