"""The `ndxdp` command: arguments, printing, exit codes.

0: done. 1: it could not be done. 2: the words of the command were wrong. Every foreseeable error
is one sentence and a hint on stderr, and has changed nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ndxdp import __version__
from ndxdp.cli import trace
from ndxdp.cli.doctor import doctor
from ndxdp.cli.options import (
    answering,
    attaching,
    begin_log,
    config_file,
    echo,
    job_of,
    json_option,
    one_interface,
    one_of,
    options_of,
    print_json,
    real_interface,
    rules_of,
    set_log,
    to_journal,
    trees,
    verbosity,
)
from ndxdp.cli.prefix import prefix
from ndxdp.cli.reload import reload
from ndxdp.errors import NdxdpError, NotAttached, UsageError, from_os
from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_address, parse_mac
from ndxdp.rules.interface_name import check_interface
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import MANUAL_ORIGIN, RUN_ORIGIN

if TYPE_CHECKING:
    from ndxdp.convert.width import Host
    from ndxdp.observe.status import Look
    from ndxdp.store.instance import Instance


def main() -> None:
    """Entry point: run the command, turn errors into a sentence and an exit code."""
    _open_standard_files()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # unwind, and undo what is half done
    try:
        code = cli(standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except NdxdpError as error:
        code = _fail(error)
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    except OSError as error:
        code = _fail(from_os(error), error)
    sys.exit(code)


def _open_standard_files() -> None:
    """Open /dev/null in place of standard files that are closed.

    Otherwise a map or a socket gets the number of standard error, and what a library writes there.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def _fail(error: NdxdpError, cause: BaseException | None = None) -> int:
    priority = "<3>" if to_journal() else ""  # of an error
    echo(f"{priority}ndxdp: {error.message}", err=True)
    if error.hint:
        echo(f"{priority}  hint: {error.hint}", err=True)
    for sentence in error.also:
        echo(f"{priority}  also: {sentence}", err=True)
    logging.getLogger(__name__).debug("cause: %r", cause or error.__cause__)
    return error.exit_code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="ndxdp")
@click.option(
    "--bpffs",
    default="/sys/fs/bpf",
    show_default=True,
    envvar="NDXDP_BPFFS",
    metavar="DIR",
    help="The BPF file system that holds the pins.",
)
@click.option(
    "--run-directory",
    default="/run/ndxdp",
    show_default=True,
    envvar="NDXDP_RUN_DIRECTORY",
    metavar="DIR",
    help="What the userspace mode keeps in files.",
)
@verbosity
def cli(bpffs: str, run_directory: str) -> None:
    """Answer IPv6 Neighbor Solicitations, in the kernel, for what is behind this host."""
    begin_log()


@cli.command()
@click.argument("interface", metavar="IFACE", callback=real_interface)
@attaching
@verbosity
def attach(
    interface: str,
    answered: tuple[str, ...],
    excepted: tuple[str, ...],
    lists: tuple[IO[str], ...],
    answer: str,
    via: tuple[str, ...],
    force: bool,
    **how: Any,
) -> None:
    """Answer on IFACE until `ndxdp detach`; no process stays.

    On an attached interface this renews the program without losing a frame, and adds to its
    rules.
    """
    from ndxdp import memory
    from ndxdp.session import kernel_backend
    from ndxdp.store.instance import warn_of_neighbours

    memory.collect_seldom()
    rule = answering(answer, via, MANUAL_ORIGIN)
    rules = rules_of(answered, excepted, lists, rule, force=force)
    options = options_of(**how)
    with kernel_backend.attach_interface(
        trees(), interface, options, rules, force=force
    ) as instance:
        warn_of_neighbours(interface, instance.maps.settings().l3_ifindex, rules)


@cli.command()
@click.argument("interface", metavar="[IFACE]", required=False, callback=real_interface)
@click.option("--all", "all_of_them", is_flag=True, help="On every interface.")
@click.option(
    "--missing-ok", is_flag=True, help="Exit code 0, too, where ndxdp is not attached to IFACE."
)
@verbosity
def detach(interface: str | None, all_of_them: bool, missing_ok: bool) -> None:
    """Stop answering on IFACE and leave it as it was found."""
    from ndxdp.observe import status as statuses
    from ndxdp.runtime import report
    from ndxdp.session import detach as detaching

    if (interface is None) is not all_of_them:
        raise UsageError("detach needs one of IFACE and --all", "as in ndxdp detach eth0")
    both = trees()
    report.remove_stale(both.files.root)
    if interface is not None:
        try:
            detaching.detach_interface(both, interface)
        except NotAttached:
            if not missing_ok:
                raise
        return
    failed = []
    for name in statuses.interfaces(both):
        try:
            detaching.detach_interface(both, name)
        except NdxdpError as error:  # the others come off all the same
            failed.append(error)
    if failed:
        also = tuple(error.message for error in failed[1:])
        raise NdxdpError(failed[0].message, failed[0].hint, also)


@cli.command()
@click.option(
    "-i", "--interface", metavar="IFACE", callback=real_interface, help="Where to answer."
)
@click.option(
    "-c", "--config", "file", metavar="FILE", help="Do what this file says; SIGHUP reads it anew."
)
@click.option(
    "-N",
    "--network",
    "networks",
    multiple=True,
    metavar="NETWORK",
    help="Answer for the containers of this Docker network.",
)
@click.option(
    "--announce/--no-announce",
    default=None,
    help="Whether to announce addresses to the upstream when they appear; by default with -N only.",
)
@click.option(
    "--docker-socket",
    default="/var/run/docker.sock",
    show_default=True,
    metavar="PATH",
    help="Where Docker or Podman listens, for -N.",
)
@attaching
@click.option("--keep", is_flag=True, help="Go on answering after this process.")
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
    via: tuple[str, ...],
    force: bool,
    keep: bool,
    **how: Any,
) -> None:
    """Answer until interrupted, in step with addresses, gateways and containers."""
    from ndxdp import memory

    # OpenSSL is 4 MB. asyncio does without, as in a Python that has none; nobody here speaks TLS.
    memory.import_without("ssl", "asyncio")
    memory.one_heap()
    memory.collect_seldom()
    from ndxdp.config import reader
    from ndxdp.config.model import Announce
    from ndxdp.daemon import service as daemon
    from ndxdp.daemon.spec import Job, Work
    from ndxdp.netlink.links import NO_MAC
    from ndxdp.session import modes
    from ndxdp.sources.docker import Selector

    if (interface is None) == (file is None):
        raise UsageError("run needs one of --interface and --config", "-i IFACE, or -c FILE")

    def ready(job: Job, instance: Instance | None) -> None:
        if instance is None:
            _print_if_read(
                f"ready: {job.interface} keeps its addresses; nothing is answered: {NO_MAC}"
            )
            return
        settings = instance.maps.settings()
        why = "; ".join(modes.told(modes.unpack(settings.steps)))
        mode = f"{settings.mode.label} mode" + (f" ({why})" if why else "")
        does = "is paused" if settings.paused else "answers"
        _print_if_read(f"ready: {job.interface} {does} in {mode}, rules: {len(job.rules)}")

    if file is not None:
        # What the command line says of an interface has no place beside the file.
        context = click.get_current_context()
        given = [
            parameter.opts[0]
            for parameter in context.command.params
            if parameter.expose_value
            and parameter.name not in (None, "file")
            and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        ]
        if given:
            names = ", ".join(given)
            raise UsageError(f"-c FILE excludes other options: {names}", "write it into the file")
        path = file

        def read() -> Work:
            whole = reader.load(path)
            return Work(
                [job_of(each) for each in whole.interfaces],
                whole.docker_socket,
                whole.metrics,
                whole.log_level,
                whole.log_format,
            )

        def log_as(work: Work) -> None:
            set_log(work.log_level, work.log_format)

        work = read()
        log_as(work)
        daemon.run(
            trees(),
            work,
            ready=ready,
            reread=read,
            set_log=log_as,
            config=Path(path).absolute(),
        )
        return
    assert interface is not None
    check_interface(interface)
    engine = reader.parse_socket(docker_socket)
    rules = rules_of(answered, excepted, lists, answering(answer, via, RUN_ORIGIN), force=force)
    announcing = bool(networks) if announce is None else announce
    job = Job(
        interface,
        options_of(**how),
        rules,
        keep=keep,
        insist=keep,
        detach=not keep,
        selectors=tuple(Selector(network=name) for name in networks),
        forced=frozenset(rules.wider if force else ()),
        announce=Announce(solicit_gateway=announcing, advertise=announcing),
    )
    daemon.run(trees(), Work([job], engine), ready=ready)


def _print_if_read(line: str) -> None:
    """Print a line. Answering goes on when whoever read standard output has gone."""
    try:
        echo(line)
    except OSError as error:
        logging.getLogger(__name__).debug("not printed: %s", error)
        # What could not be written waits in a buffer, which would be flushed at exit.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)


@cli.command()
@click.argument("interface", metavar="IFACE", callback=real_interface)
@verbosity
def pause(interface: str) -> None:
    """Answer nothing on IFACE until `ndxdp resume`; counters and rules stay."""
    from ndxdp.store.instance import set_paused

    set_paused(*one_of(interface), paused=True)


@cli.command()
@click.argument("interface", metavar="IFACE", callback=real_interface)
@verbosity
def resume(interface: str) -> None:
    """Answer on IFACE again."""
    from ndxdp.store.instance import set_paused

    set_paused(*one_of(interface), paused=False)


@cli.command()
@config_file("The configuration file.")
@verbosity
def check(path: str) -> None:
    """Read a configuration file, and say what it means for each interface. Touches nothing."""
    from ndxdp.config import model as config
    from ndxdp.config import reader
    from ndxdp.daemon import preflight

    found = reader.load(path)
    # What is wrong with one interface of this host does not keep a service from the others.
    refused = list(preflight.refused(found.interfaces))
    for sentence in refused:
        logging.getLogger("ndxdp").warning(sentence)
    echo(f"{path}: good{', but `run` cannot do all of it here' if refused else ''}")
    for interface in found.interfaces:
        said = config.summary(interface, preflight.unanswered(interface))
        echo(f"{interface.name}  {'; '.join(said)}")
        preflight.warn_of_breadth(interface)


@cli.command("install-service")
@config_file("The configuration file; an example is put there if there is none.")
@click.option("--print", "only_print", is_flag=True, help="Show the unit; write nothing.")
@click.option("--force", is_flag=True, help="Overwrite a unit that was edited.")
@click.option(
    "--directory",
    default="/etc/systemd/system",
    show_default=True,
    metavar="DIR",
    help="Where systemd looks for units.",
)
@verbosity
def install_service(path: str, only_print: bool, force: bool, directory: str) -> None:
    """Write a systemd unit that does `run -c FILE` with this ndxdp. Starts nothing."""
    from ndxdp import systemd_unit

    config = Path(path).absolute()
    unit = systemd_unit.unit(systemd_unit.command(), config)
    if only_print:
        click.echo(unit, nl=False)
        return
    written = systemd_unit.install(unit, Path(directory), force=force)
    where = Path(directory) / systemd_unit.NAME
    echo(f"{'wrote' if written else 'as it was:'} {where}")
    if systemd_unit.install_example(config):
        echo(f"wrote {config}, an example: say there what to answer for")
    echo("next: systemctl daemon-reload; systemctl enable --now ndxdp")


@cli.command()
@click.argument("path", metavar="[NDPPD.CONF]", required=False)
@click.option("--ndpresponder", "line", metavar="ARGS", help="A command line of ndpresponder.")
@click.option("-o", "--output", metavar="FILE", help="Write there, not to stdout.")
@click.option("--force", is_flag=True, help="Even if that file is there already.")
@verbosity
def convert(path: str | None, line: str | None, output: str | None, force: bool) -> None:
    """Write a configuration file that does what another responder's does.

    What has no counterpart is said on stderr, and in comments.
    """
    from ndxdp.config import reader
    from ndxdp.convert import ndppd, ndpresponder
    from ndxdp.files import atomic

    if path is not None and line is None:
        origin, draft = path, ndppd.convert(ndppd.read(path), path, _this_host())
    elif line is not None and path is None:
        origin, draft = "ndpresponder's arguments", ndpresponder.convert(line, _this_host())
    else:
        raise UsageError(
            "convert needs one of a file and --ndpresponder", "as in ndxdp convert ndppd.conf"
        )
    text = draft.text(origin)
    try:
        reader.parse(text, output or "ndxdp.toml")
    except UsageError as error:
        raise NdxdpError(
            f"{origin} makes a file that ndxdp refuses: {error.message}", error.hint
        ) from None
    if output is None:
        click.echo(text, nl=False)
    else:
        atomic.write_text(Path(output), text, over=force)
    for sentence in draft.warnings(origin):
        logging.getLogger("ndxdp").warning(sentence)


def _this_host() -> Host:
    """Return what this machine knows of on-link prefixes and local routes."""
    from ndxdp.convert.width import Host
    from ndxdp.netlink import links, onlink
    from ndxdp.netlink.fib import Fib

    def on_link(name: str) -> frozenset[Prefix] | None:
        with contextlib.suppress(NdxdpError, OSError):
            link = links.find_link(name)
            if link is not None:
                return onlink.read((link.ifindex, link.master)).prefixes or None
        return None

    local: set[Prefix] = set()
    with contextlib.suppress(OSError), Fib() as fib:
        local = fib.local_prefixes()
    return Host(on_link, frozenset(each for each in local if each.length < 128))


@cli.command()
@click.argument("interface", metavar="[IFACE]", required=False, callback=real_interface)
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1, max=86400),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Go on, every 2 seconds or so many, until interrupted.",
)
@json_option
@verbosity
def status(interface: str | None, watch: float | None, as_json: bool) -> None:
    """Show what is attached, its rules, and what becomes of the solicitations.

    It counts for a second, to show what happens now; not so with --json.
    """
    from ndxdp.observe import status as statuses
    from ndxdp.runtime import registry

    if as_json and watch:
        raise UsageError("--json and --watch exclude each other", "run --json again and again")
    if as_json:
        seen = statuses.look(trees(), interface)
        print_json(
            {
                "version": __version__,
                "interfaces": list(seen.data.values()),
                "addresses": statuses.kept_data(seen),
                "daemons": [each._asdict() for each in seen.daemons],
                "exporters": registry.seen(),
            }
        )
    else:
        for before, seen in statuses.looks(trees(), interface, watch or 1.0):
            if watch and sys.stdout.isatty():
                click.clear()
            _show(before, seen)
            if not watch or seen.error:
                break
    if seen.error:
        raise seen.error


def _show(before: Look, after: Look) -> None:
    from ndxdp.observe import status as statuses
    from ndxdp.runtime import registry

    if not after.data and not after.kept and not after.problems and not after.error:
        echo("ndxdp is attached to no interface")
    for name, data in after.data.items():
        for line in statuses.status_text(data, statuses.rates(before, after, name)):
            echo(line)
        if name in after.kept:
            echo(f"  addresses {statuses.kept_text(after.kept[name])}")
    for name, kept in after.kept.items():
        if name not in after.data:
            echo(f"{name}  nothing is answered{kept.unanswered and f': {kept.unanswered}'}")
            echo(f"  addresses {statuses.kept_text(kept)}")
    for name, problem in after.problems.items():
        echo(f"{name}  {statuses.unanswered_text(problem)}")
    for daemon in after.daemons:
        troubles = list(statuses.troubles(daemon))
        if troubles:
            echo(f"daemon {daemon.pid}" + (f", {daemon.config}" if daemon.config else ""))
        for trouble in troubles:
            echo(f"  WARNING   {trouble}")
    for exporter in registry.seen():
        echo(f"metrics at {exporter}")


@cli.command()
@click.option(
    "--listen",
    default="[::1]:9877",
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Where to listen; [::]:9877 is every address.",
)
@click.option("--ipv6only", is_flag=True, help="Not for IPv4, where the address is [::].")
@verbosity
def exporter(listen: str, ipv6only: bool) -> None:
    """Serve metrics to Prometheus, and a status page, until interrupted.

    For interfaces that no daemon answers on: `run -c` does it by [metrics]. It needs no privilege
    but to read the pins.
    """
    from dataclasses import replace

    from ndxdp.config.reader import parse_listen
    from ndxdp.observe.exporter import Exporter

    ending = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    serving = Exporter(trees())
    serving.listen(replace(parse_listen(listen), ipv6only=ipv6only))
    echo(f"ready: {serving}")
    signal.sigwait(ending)
    serving.close()


@cli.command()
@verbosity
def metrics() -> None:
    """Print the metrics once, for the textfile collector of Prometheus' node_exporter."""
    from ndxdp.observe.metrics import Exposition

    both = trees()
    both.interfaces()  # an error is one here, where somebody reads it
    click.echo(Exposition(both, process=False).text(), nl=False)


cli.add_command(prefix)
cli.add_command(reload)
cli.add_command(trace.trace)
cli.add_command(trace.top)
cli.add_command(doctor)


@cli.command()
@click.argument("target")
@one_interface
@click.option(
    "--from", "source", default="fe80::1", show_default=True, metavar="ADDRESS", help="Who asks."
)
@click.option(
    "--mac", default="02:00:00:00:00:01", show_default=True, metavar="MAC", help="The asking MAC."
)
@click.option("--dad", is_flag=True, help="As Duplicate Address Detection, from ::.")
@click.option("--unicast", is_flag=True, help="To the target itself, as a NUD probe.")
@json_option
@verbosity
def explain(
    target: str,
    interface: str | None,
    source: str,
    mac: str,
    dad: bool,
    unicast: bool,
    as_json: bool,
) -> None:
    """Run a made-up solicitation for TARGET through the loaded program, and show the verdict.

    It is not sent, counted, or charged to a rate.
    """
    from ndxdp.observe import render
    from ndxdp.store import instance as instances

    address, asking = parse_address(target), parse_mac(mac)
    soliciting = UNSPECIFIED if dad else parse_address(source)

    def solicitation(own: bytes) -> bytes:
        return solicit(
            asking,
            address,
            source=soliciting,
            destination=address if unicast else None,
            eth_destination=own if unicast else None,
            sllao=None if soliciting == UNSPECIFIED else asking,
        )

    explanation = instances.explain(*one_of(interface), solicitation)
    if as_json:
        print_json(render.explanation_data(explanation))
        return
    for line in render.explanation_text(explanation):
        echo(line)
