"""The `ndxdp` command: arguments, printing, exit codes.

0: done. 1: it could not be done. 2: the words of the command were wrong. Every foreseeable error
is one sentence and a hint on stderr, and has changed nothing.
"""

from __future__ import annotations

import errno
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from ndxdp import __version__, ndp, policy
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.ndp import Answer, NaSource, Profile
from ndxdp.policy import MANUAL_SOURCE, RUN_SOURCE, Prefix, Rule, Rules

if TYPE_CHECKING:
    from ndxdp.instance import Instance
    from ndxdp.kernel.pins import PinTree
    from ndxdp.responder import Options

_F = TypeVar("_F", bound=Callable[..., Any])

_MODES = ("native", "generic", "tc")
_LOADERS = ("prebuilt", "bcc")


def main() -> None:
    """Entry point: run the command, turn errors into a sentence and an exit code."""
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
        code = _fail(_from_os(error), error)
    sys.exit(code)


def _fail(error: NdxdpError, cause: BaseException | None = None) -> int:
    click.echo(f"ndxdp: {error.message}", err=True)
    if error.hint:
        click.echo(f"  hint: {error.hint}", err=True)
    logging.getLogger(__name__).debug("cause: %r", cause or error.__cause__)
    return error.exit_code


def _from_os(error: OSError) -> NdxdpError:
    said = str(error).partition("] ")[2] or str(error)  # without Python's "[Errno 28] "
    what = f"{error.filename}: {error.strerror}" if error.filename else said
    if error.errno in (errno.EPERM, errno.EACCES):
        return NdxdpError(
            f"not permitted ({what})", "run this as root, or with CAP_BPF and CAP_NET_ADMIN"
        )
    return NdxdpError(what, "--debug names the call")


# ---- options that commands share ----------------------------------------------------------------


def _set_verbosity(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if not value:
        return
    logger = logging.getLogger("ndxdp")
    if parameter.name == "debug":
        logger.setLevel(logging.DEBUG)
    elif logger.level != logging.DEBUG:
        logger.setLevel(logging.INFO if parameter.name == "verbose" else logging.ERROR)


def _verbosity(command: _F) -> _F:
    for names, text in (
        (("--debug",), "Say everything, the kernel verifier's log included."),
        (("-q", "--quiet"), "Say errors only."),
        (("-v", "--verbose"), "Say what is done."),
    ):
        command = click.option(
            *names,
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set_verbosity,
            help=text,
        )(command)
    return command


def _attaching(command: _F) -> _F:
    for option in (
        click.option(
            "--max-addresses",
            type=click.IntRange(1, 1 << 24),
            metavar="N",
            help="Room for so many exact addresses (131072).",
        ),
        click.option(
            "--burst",
            type=click.IntRange(1, 1_000_000),
            default=100,
            metavar="N",
            show_default=True,
            help="Answers at once before --rate counts.",
        ),
        click.option(
            "--rate",
            type=click.FloatRange(0, 1e9),
            metavar="N",
            help="Answers per second to one soliciting MAC; the rest is dropped.",
        ),
        click.option(
            "--loader",
            type=click.Choice(_LOADERS),
            default="prebuilt",
            show_default=True,
            help="The shipped program, or compiled here by bcc.",
        ),
        click.option(
            "--mode",
            type=click.Choice(_MODES),
            help="Where to answer: XDP in the driver (the default), generic XDP, or tc ingress.",
        ),
        click.option(
            "--file",
            "lists",
            type=click.File("r"),
            multiple=True,
            metavar="FILE",
            help="A list of prefixes to answer for, one a line; - for stdin.",
        ),
        click.option(
            "--except",
            "excepted",
            multiple=True,
            metavar="PREFIX",
            help="Never answer for this prefix.",
        ),
        click.option(
            "-n",
            "--prefix",
            "answered",
            multiple=True,
            metavar="PREFIX",
            help="Answer for this prefix or address.",
        ),
    ):
        command = option(command)
    return command


def _interface_option(command: _F) -> _F:
    return click.option(
        "-i", "--interface", metavar="IFACE", help="Needed where several are attached."
    )(command)


def _options(
    mode: str | None, loader: str, rate: float | None, burst: int, max_addresses: int | None
) -> Options:
    from ndxdp.kernel.abi import Mode
    from ndxdp.kernel.loader import Loader
    from ndxdp.responder import Options

    # The kernel's side counts in ns, 64 bits of them.
    if rate and not burst * 1e9 / rate < 1 << 62:  # nan, too
        raise UsageError(f"--rate {rate:g} with --burst {burst} is no rate", "0 is no limit")
    return Options(Mode[mode.upper()] if mode else None, Loader(loader), rate, burst, max_addresses)


def _rules(
    answered: Iterable[str],
    excepted: Iterable[str],
    lists: Iterable[IO[str]],
    rule: Rule,
) -> Rules:
    rules = policy.compile_rules(answered, excepted, rule=rule)
    for stream in lists:
        name = "stdin" if stream.name == "<stdin>" else Path(stream.name).name
        try:
            more = policy.rules_of_lines(stream, name, rule)
        except UnicodeDecodeError:
            raise UsageError(f"{name} is not a text file", "one prefix a line") from None
        twice = next((prefix for prefix in more if prefix in rules), None)
        if twice is not None:
            raise UsageError(f"{name}: {twice} is given twice", "name every prefix once")
        rules |= more
    return rules


def _tree() -> PinTree:
    from ndxdp.kernel.pins import PinTree

    bpffs: str = click.get_current_context().find_root().params["bpffs"]
    return PinTree(Path(bpffs))


def _open(interface: str | None) -> tuple[PinTree, Instance]:
    """The named interface's instance, or the only one there is."""
    from ndxdp.instance import open_instance

    tree = _tree()
    tree.check()
    if interface is None:
        attached = tree.interfaces()
        if not attached:
            raise NdxdpError("ndxdp is attached to no interface", "ndxdp attach IFACE")
        if len(attached) > 1:
            raise UsageError(f"several are attached: {', '.join(attached)}", "name one with -i")
        interface = attached[0]
    return tree, open_instance(tree, interface)


def _print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2))


# ---- commands -----------------------------------------------------------------------------------


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
@_verbosity
def cli(bpffs: str) -> None:
    """Answer IPv6 Neighbor Solicitations, in the kernel, for what is behind this host."""
    logging.basicConfig(stream=sys.stderr, format="ndxdp: %(message)s")


@cli.command()
@click.argument("interface", metavar="IFACE")
@_attaching
@_verbosity
def attach(
    interface: str,
    answered: tuple[str, ...],
    excepted: tuple[str, ...],
    lists: tuple[IO[str], ...],
    **how: Any,
) -> None:
    """Answer on IFACE until `ndxdp detach`; no process stays.

    On an attached interface this renews the program without losing a frame, and adds to its
    rules.
    """
    from ndxdp import responder

    rules = _rules(answered, excepted, lists, Rule(source=MANUAL_SOURCE))
    options = _options(**how)
    responder.attach_interface(_tree(), interface, options, rules).close()


@cli.command()
@click.argument("interface", metavar="IFACE")
@_verbosity
def detach(interface: str) -> None:
    """Stop answering on IFACE and leave it as it was found."""
    from ndxdp import responder

    responder.detach_interface(_tree(), interface)


@cli.command()
@click.option("-i", "--interface", required=True, metavar="IFACE", help="Where to answer.")
@_attaching
@click.option("--keep", is_flag=True, help="Go on answering after this process.")
@_verbosity
def run(
    interface: str,
    answered: tuple[str, ...],
    excepted: tuple[str, ...],
    lists: tuple[IO[str], ...],
    keep: bool,
    **how: Any,
) -> None:
    """Answer on IFACE until interrupted, in step with its addresses and gateways."""
    from ndxdp import daemon

    rules = _rules(answered, excepted, lists, Rule(source=RUN_SOURCE))

    def ready(instance: Instance) -> None:
        mode = instance.maps.settings().mode.label
        click.echo(f"ready: {interface} answers for {len(rules)} rules, {mode} mode")

    daemon.run(_tree(), interface, _options(**how), rules, keep=keep, ready=ready)


@cli.command()
@click.argument("interface", metavar="[IFACE]", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_verbosity
def status(interface: str | None, as_json: bool) -> None:
    """Show what is attached, its rules, and what became of the solicitations."""
    from ndxdp import render
    from ndxdp.instance import open_instance

    tree = _tree()
    tree.check()
    found, failed = [], None
    for name in tree.interfaces() if interface is None else [interface]:
        try:
            with open_instance(tree, name) as instance:
                found.append(render.status_data(instance, is_held=tree.is_held(name)))
        except NdxdpError as error:  # the others are shown all the same
            failed = error
    if as_json:
        _print_json({"version": __version__, "interfaces": found})
    elif not found and not failed:
        click.echo("ndxdp is attached to no interface")
    for data in [] if as_json else found:
        for line in render.status_text(data):
            click.echo(line)
    if failed:
        raise failed


@cli.command()
@click.argument("target")
@_interface_option
@click.option(
    "--from", "source", default="fe80::1", show_default=True, metavar="ADDRESS", help="Who asks."
)
@click.option(
    "--mac", default="02:00:00:00:00:01", show_default=True, metavar="MAC", help="The asking MAC."
)
@click.option("--dad", is_flag=True, help="As Duplicate Address Detection, from ::.")
@click.option("--unicast", is_flag=True, help="To the target itself, as a NUD probe.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_verbosity
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
    from ndxdp import instance as instances
    from ndxdp import render

    address, asking = policy.parse_address(target), policy.parse_mac(mac)
    soliciting = ndp.UNSPECIFIED if dad else policy.parse_address(source)
    tree, instance = _open(interface)
    with instance:
        own = instance.maps.settings().mac
        frame = ndp.solicit(
            asking,
            address,
            source=soliciting,
            destination=address if unicast else None,
            eth_destination=own if unicast else None,
            sllao=None if soliciting == ndp.UNSPECIFIED else asking,
        )
        explanation = instances.explain(tree, instance, frame)
    if as_json:
        _print_json(render.explanation_data(explanation))
        return
    for line in render.explanation_text(explanation):
        click.echo(line)


@cli.group()
def prefix() -> None:
    """Change or show the rules of an attached interface."""


@prefix.command("add")
@click.argument("prefixes", nargs=-1, metavar="[PREFIX]...")
@_interface_option
@click.option(
    "--file",
    "lists",
    type=click.File("r"),
    multiple=True,
    metavar="FILE",
    help="A list of prefixes, one a line; - for stdin.",
)
@click.option(
    "--answer", type=click.Choice(["always", "never"]), default="always", show_default=True
)
@click.option(
    "--na-source",
    default="target",
    show_default=True,
    metavar="SOURCE",
    help="Source of the answers: target, link-local, or an address.",
)
@click.option("--router/--no-router", default=True, show_default=True, help="The R flag.")
@click.option("--override/--no-override", default=False, show_default=True, help="The O flag.")
@click.option(
    "--dad",
    type=click.Choice(["defend", "ignore"]),
    default="defend",
    show_default=True,
    help="Duplicate Address Detection for the prefix.",
)
@click.option("--lladdr", metavar="MAC", help="Advertise this MAC, not the interface's.")
@_verbosity
def prefix_add(
    prefixes: tuple[str, ...],
    interface: str | None,
    lists: tuple[IO[str], ...],
    answer: str,
    na_source: str,
    router: bool,
    override: bool,
    dad: str,
    lladdr: str | None,
) -> None:
    """Add rules: all of them, or none."""
    from ndxdp.instance import add_rules

    profile = Profile(
        _na_source(na_source),
        router,
        override,
        dad == "defend",
        policy.parse_mac(lladdr) if lladdr else None,
    )
    rule = Rule(Answer[answer.upper()], profile, MANUAL_SOURCE)
    rules = _rules(prefixes, (), lists, rule)
    _need_some(rules)
    tree, instance = _open(interface)
    with instance:
        add_rules(tree, instance, rules)


@prefix.command("del")
@click.argument("prefixes", nargs=-1, metavar="[PREFIX]...")
@_interface_option
@click.option(
    "--file",
    "lists",
    type=click.File("r"),
    multiple=True,
    metavar="FILE",
    help="A list of prefixes, one a line; - for stdin.",
)
@click.option("--all", "all_of_them", is_flag=True, help="All rules of the source.")
@click.option(
    "--source",
    default=MANUAL_SOURCE,
    show_default=True,
    help="Whose rules: sources do not delete each other's by accident.",
)
@_verbosity
def prefix_del(
    prefixes: tuple[str, ...],
    interface: str | None,
    lists: tuple[IO[str], ...],
    all_of_them: bool,
    source: str,
) -> None:
    """Remove rules: all of them, or none."""
    from ndxdp.instance import delete_rules

    named: list[Prefix] | None = list(_rules(prefixes, (), lists, Rule()))
    if all_of_them:
        if named:
            raise UsageError("--all and prefixes exclude each other", "give one of them")
        named = None
    else:
        _need_some(named)
    tree, instance = _open(interface)
    with instance:
        delete_rules(tree, instance, named, source)


@prefix.command("list")
@_interface_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_verbosity
def prefix_list(interface: str | None, as_json: bool) -> None:
    """Show the rules, as the kernel has them."""
    from ndxdp import render

    _, instance = _open(interface)
    with instance:
        rules = sorted(instance.maps.rules().items())
    if as_json:
        _print_json([render.rule_data(*item) for item in rules])
        return
    for item in rules:
        click.echo(render.rule_text(*item))


def _na_source(text: str) -> NaSource | bytes:
    known = {source.value: source for source in NaSource}
    if text in known:
        return known[text]
    address = policy.parse_address(text)
    if address == ndp.UNSPECIFIED or address[0] == 0xFF:
        raise UsageError(f"'{text}' is no source that a host can have", "it must be a unicast one")
    return address


def _need_some(prefixes: Any) -> None:
    if not prefixes:
        raise UsageError("no prefix is given", "name one, or give a list with --file")
