"""What the commands' arguments have in common: options, and what is made of their words."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from ndxdp.errors import NdxdpError, NotAttached, UsageError
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.netlink import names
from ndxdp.printable import printable
from ndxdp.rules import breadth
from ndxdp.rules.interface_name import parse_dev
from ndxdp.rules.rule import CONFIG_ORIGIN, Rule
from ndxdp.rules.rule_lists import compile_rules, rules_of_lines
from ndxdp.rules.ruleset import Rules

if TYPE_CHECKING:
    from ndxdp.config.model import Interface, Label
    from ndxdp.daemon.spec import Job
    from ndxdp.session.request import Options
    from ndxdp.store.directories import Tree, Trees

log = logging.getLogger(__name__)

_F = TypeVar("_F", bound=Callable[..., Any])

_MODES = ("auto", "native", "generic", "tc", "userspace")
_LOADERS = ("prebuilt", "bcc")
_VERBOSITY = "ndxdp.verbosity"  # in click's context: the command line has -v, -q or --debug


def _set_verbosity(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if not value:
        return
    context.meta[_VERBOSITY] = True
    logger = logging.getLogger("ndxdp")
    if parameter.name == "debug":
        logger.setLevel(logging.DEBUG)
    elif logger.level != logging.DEBUG:
        logger.setLevel(logging.INFO if parameter.name == "verbose" else logging.ERROR)


def to_journal() -> bool:
    """systemd has connected stderr to the journal, and says so (systemd.exec(5))."""
    named = os.environ.get("JOURNAL_STREAM")
    try:
        stream = os.fstat(2)
    except OSError:  # it is closed
        return False
    return named == f"{stream.st_dev}:{stream.st_ino}"


def begin_log() -> None:
    """Log to stderr: warnings and worse, until somebody says otherwise."""
    logging.basicConfig(stream=sys.stderr)
    _set_format(_text_format())


def _text_format() -> logging.Formatter:
    return _TextLines("%(message)s" if to_journal() else "ndxdp: %(message)s")


def _set_format(form: logging.Formatter) -> None:
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Journal(form) if to_journal() else form)


def set_log(level: str, form: str) -> None:
    """Log as a configuration says; the options -v, -q and --debug take precedence."""
    context = click.get_current_context(silent=True)
    if context is None or _VERBOSITY not in context.meta:
        logging.getLogger("ndxdp").setLevel(level.upper())
    _set_format(_JsonLines() if form == "json" else _text_format())


class _TextLines(logging.Formatter):
    """A line for each record: what is in it may come from a container, or from the network.

    The verifier's log and tracebacks, which only --debug shows, have further lines, indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno > logging.DEBUG and not record.exc_info:
            return printable(text)
        return "\n  ".join(map(printable, text.split("\n")))


class _Journal(logging.Formatter):
    """Each line with its priority in front, as sd-daemon(3) has it; the journal takes it off."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        steps = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
        priority = next((number for level, number in steps if record.levelno >= level), 7)
        lines = self._inner.format(record).splitlines()
        return "\n".join(f"<{priority}>{line}" for line in lines)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(line)


def verbosity(command: _F) -> _F:
    for flags, text in (
        (("--debug",), "Say everything, the kernel verifier's log included."),
        (("-q", "--quiet"), "Say errors only."),
        (("-v", "--verbose"), "Say what is done."),
    ):
        command = click.option(
            *flags,
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set_verbosity,
            help=text,
        )(command)
    return command


via_option = click.option(
    "--via",
    multiple=True,
    metavar="PATTERN",
    help="Of routes, those by these interfaces: docker0, br-*.",
)


force_option = click.option(
    "--force", is_flag=True, help="Take rules that answer for other nodes of the link, too."
)


def _rate(name: str, text: str) -> Callable[[_F], _F]:
    """Return an option for a number of answers per second; 0 is no limit."""
    return click.option(name, type=click.FloatRange(0, 1e9), metavar="N", help=text)


def attaching(command: _F) -> _F:
    for option in (
        click.option(
            "--paused",
            is_flag=True,
            help="Begin paused, as a standby, until `ndxdp resume`; what is attached already"
            " stays as it is.",
        ),
        click.option(
            "--max-addresses",
            type=click.IntRange(1, 1 << 24),
            metavar="N",
            help="Room for so many exact addresses (131072).",
        ),
        click.option(
            "--burst",
            type=click.IntRange(1, 1_000_000),
            metavar="N",
            help="Answers at once before --rate counts (100).",
        ),
        _rate(
            "--gateway-rate",
            "Answers per second to each gateway, to which no other limit applies (10000).",
        ),
        _rate(
            "--interface-rate",
            "Answers per second to all MACs together but the gateways'; drop the rest.",
        ),
        _rate(
            "--rate",
            "Answers per second to one MAC that solicits, or is answered; drop the rest.",
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
            default="auto",
            show_default=True,
            help="Where to answer: the best that can be had; XDP in the driver, generic XDP,"
            " tc ingress; or, for run, userspace.",
        ),
        force_option,
        lists("A list of prefixes to answer for, one a line; - for stdin."),
        via_option,
        click.option(
            "--answer",
            type=click.Choice(["always", "local", "routed", "neighbour"]),
            default="always",
            show_default=True,
            help="When to answer: always; only if the kernel delivers packets for the address to"
            " this host; only if it has a route to it; or only if it has it as a live neighbour.",
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


def real_interface(
    context: click.Context, parameter: click.Parameter, value: Any
) -> Any:  # of click, whatever the option holds
    """Take the name of the interface where an alternative one is given: a callback of click.

    A name that ndxdp has pins or files of is meant as it stands, as that of a renamed interface.
    """
    if isinstance(value, tuple):
        return tuple(real_interface(context, parameter, name) for name in value)
    if value is None:
        return None
    real = names.real_name(value)
    if real != value:
        with contextlib.suppress(NdxdpError, OSError):
            if trees().have(value):
                return value
        log.info("%s is another name of %s", value, real)
    return real


def one_interface(command: _F) -> _F:
    return click.option(
        "-i",
        "--interface",
        metavar="IFACE",
        callback=real_interface,
        help="Needed where several are attached.",
    )(command)


def config_file(text: str) -> Callable[[_F], _F]:
    """-c, as `path`, `text` saying what it is."""
    return click.option(
        *("-c", "--config", "path"),
        default="/etc/ndxdp/ndxdp.toml",
        show_default=True,
        metavar="FILE",
        help=text,
    )


def lists(text: str) -> Callable[[_F], _F]:
    """--file, any number of times, `text` saying what for."""
    return click.option(
        "--file", "lists", type=click.File("r"), multiple=True, metavar="FILE", help=text
    )


json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


def options_of(
    mode: str,
    loader: str,
    rate: float | None,
    burst: int | None,
    interface_rate: float | None,
    gateway_rate: float | None,
    max_addresses: int | None,
    paused: bool = False,
) -> Options:
    from ndxdp.kernel.abi import Mode
    from ndxdp.kernel.loader import Loader
    from ndxdp.session.request import Options

    # The kernel's side counts in ns, 64 bits of them.
    if rate and not (burst or 1_000_000) * 1e9 / rate < 1 << 62:  # nan, too
        raise UsageError(f"--rate {rate:g} is no rate", "0 is no limit")
    for option, value in (("interface", interface_rate), ("gateway", gateway_rate)):
        if value and not 1e9 / value < 1 << 62:
            raise UsageError(f"--{option}-rate {value:g} is no rate", "0 is no limit")
    chosen = None if mode == "auto" else Mode[mode.upper()]
    return Options(
        chosen,
        Loader(loader),
        rate,
        burst,
        interface_rate,
        gateway_rate,
        max_addresses,
        paused=paused,
    )


def answering(answer: str, via: Iterable[str], source: str, profile: Profile | None = None) -> Rule:
    """The rule that --answer and --via speak of."""
    chosen, patterns = Answer[answer.upper()], parse_dev(via)
    if patterns and not chosen.asks_routes:
        raise UsageError("--via says where a route leads", "add --answer routed, or neighbour")
    return Rule(chosen, profile or Profile(), source, dev=patterns)


def rules_of(
    answered: Iterable[str],
    excepted: Iterable[str],
    lists: Iterable[IO[str]],
    rule: Rule,
    *,
    force: bool = True,
) -> Rules:
    """Return the rules that a command line names.

    Args:
        force: take rules that are too broad on any interface.
    """
    rules = compile_rules(answered, excepted, rule=rule)
    for stream in lists:
        name = "stdin" if stream.name == "<stdin>" else Path(stream.name).name
        try:
            more = rules_of_lines(stream, name, rule)
        except UnicodeDecodeError:
            raise UsageError(f"{name} is not a text file", "one prefix a line") from None
        for twice in more.restricted_to(rules):
            raise UsageError(f"{name}: {twice} is given twice", "name every prefix once")
        rules |= more
    if not force:
        breadth.refuse_anywhere(rules)
    return rules


def job_of(interface: Interface) -> Job:
    """What the daemon does for an interface of the configuration."""
    from ndxdp.daemon.spec import Job
    from ndxdp.sources.docker import Selector

    def text(label: Label | None) -> str | None:
        return None if label is None else str(label)

    options = options_of(
        interface.mode,
        interface.loader,
        interface.limit.rate,
        interface.limit.burst if interface.limit.rate else None,
        interface.limit.interface,
        interface.limit.gateway if interface.limit.rate or interface.limit.interface else None,
        interface.max_addresses,
        interface.paused,
    )
    return Job(
        interface.name,
        options,
        interface.rules,
        origin=CONFIG_ORIGIN,
        keep=interface.mode != "userspace",
        detach=interface.on_stop == "detach",
        patient=True,
        selectors=tuple(
            Selector(
                one.network,
                text(one.network_label),
                text(one.container_label),
                one.within,
                text(one.except_label),
                one.rule.profile,
            )
            for one in interface.docker
        ),
        heartbeat_timeout=interface.heartbeat_timeout,
        announce=interface.announce,
        gateway=interface.gateway,
        addresses=interface.addresses,
        resolve=interface.resolve,
        forced=interface.forced,
    )


def trees() -> Trees:
    from ndxdp.store.directories import FileTree, PinTree, Trees

    named = click.get_current_context().find_root().params
    return Trees(PinTree(Path(named["bpffs"])), FileTree(Path(named["run_directory"])))


def one_of(interface: str | None) -> tuple[Tree, str]:
    """The interface that is named, or the only one that there is something of."""
    both = trees()
    if interface is None:
        attached = both.interfaces()
        if not attached:
            raise NotAttached("ndxdp is attached to no interface", "ndxdp attach IFACE")
        if len(attached) > 1:
            raise UsageError(f"several are attached: {', '.join(attached)}", "name one with -i")
        interface = attached[0]
    return both.of(interface), interface


def echo(text: str, *, err: bool = False) -> None:
    """Print a line, in which others' names and labels may stand."""
    click.echo(printable(text), err=err)


def print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2))
