"""What the commands' arguments have in common: options, and what is made of their words."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from ndxdp import policy
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.policy import Rule, Rules

if TYPE_CHECKING:
    from ndxdp.config import Interface, Label
    from ndxdp.kernel.pins import Tree, Trees
    from ndxdp.plan import Options
    from ndxdp.uplink import Job

_F = TypeVar("_F", bound=Callable[..., Any])

_MODES = ("auto", "native", "generic", "tc", "userspace")
_LOADERS = ("prebuilt", "bcc")


def _set_verbosity(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if not value:
        return
    logger = logging.getLogger("ndxdp")
    if parameter.name == "debug":
        logger.setLevel(logging.DEBUG)
    elif logger.level != logging.DEBUG:
        logger.setLevel(logging.INFO if parameter.name == "verbose" else logging.ERROR)


def set_log(level: str, form: str) -> None:
    """As a configuration says; -v, -q and --debug, which were given at the terminal, say more."""
    logger = logging.getLogger("ndxdp")
    if logger.level == logging.NOTSET:
        logger.setLevel(level.upper())
    if form == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_JsonLines())


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


def attaching(command: _F) -> _F:
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
            metavar="N",
            help="Answers at once before --rate counts (100).",
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
            default="auto",
            show_default=True,
            help="Where to answer: the best that can be had; XDP in the driver, generic XDP,"
            " tc ingress; or, for run, userspace.",
        ),
        lists("A list of prefixes to answer for, one a line; - for stdin."),
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


def one_interface(command: _F) -> _F:
    return click.option(
        "-i", "--interface", metavar="IFACE", help="Needed where several are attached."
    )(command)


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
    max_addresses: int | None,
) -> Options:
    from ndxdp.kernel.abi import Mode
    from ndxdp.kernel.loader import Loader
    from ndxdp.plan import Options

    # The kernel's side counts in ns, 64 bits of them.
    if rate and not (burst or 1_000_000) * 1e9 / rate < 1 << 62:  # nan, too
        raise UsageError(f"--rate {rate:g} is no rate", "0 is no limit")
    chosen = None if mode == "auto" else Mode[mode.upper()]
    return Options(chosen, Loader(loader), rate, burst, max_addresses)


def rules_of(
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


def job_of(interface: Interface) -> Job:
    """What the daemon does for an interface of the configuration."""
    from ndxdp.config import CONFIG_SOURCE
    from ndxdp.sources.docker import Selector
    from ndxdp.uplink import Job

    def text(label: Label | None) -> str | None:
        return None if label is None else str(label)

    options = options_of(
        interface.mode,
        interface.loader,
        interface.limit.rate,
        interface.limit.burst if interface.limit.rate else None,
        interface.max_addresses,
    )
    return Job(
        interface.name,
        options,
        interface.rules,
        source=CONFIG_SOURCE,
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
    )


def trees() -> Trees:
    from ndxdp.kernel.pins import FileTree, PinTree, Trees

    named = click.get_current_context().find_root().params
    return Trees(PinTree(Path(named["bpffs"])), FileTree(Path(named["run_directory"])))


def one_of(interface: str | None) -> tuple[Tree, str]:
    """The interface that is named, or the only one that there is something of."""
    both = trees()
    if interface is None:
        attached = both.interfaces()
        if not attached:
            raise NdxdpError("ndxdp is attached to no interface", "ndxdp attach IFACE")
        if len(attached) > 1:
            raise UsageError(f"several are attached: {', '.join(attached)}", "name one with -i")
        interface = attached[0]
    return both.of(interface), interface


def print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2))
