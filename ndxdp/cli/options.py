"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ndxdp.cli.output import set_verbosity
from ndxdp.cli.ranges import Number, WholeNumber
from ndxdp.rules.capacity import ADDRESSES_MAX

_F = TypeVar("_F", bound=Callable[..., Any])

MODES = ("auto", "native", "generic", "tc", "userspace")
LOADERS = ("prebuilt", "bcc")


# ---- every command -------------------------------------------------------------------------------


def verbosity(command: _F) -> _F:
    """Give a command -v, -q and --debug."""
    for flags, text in (
        (("--debug",), "Log everything, including the kernel verifier's log."),
        (("-q", "--quiet"), "Log errors only."),
        (("-v", "--verbose"), "Log what the command does, as well as warnings and errors."),
    ):
        command = click.option(
            *flags,
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=set_verbosity,
            help=text,
        )(command)
    return command


dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print what would change, as a diff; change nothing."
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def config_file(text: str) -> Callable[[_F], _F]:
    """Return the option -c, whose value is `path`; `text` is its help."""
    return click.option(
        *("-c", "--config", "path"),
        default="/etc/ndxdp/ndxdp.toml",
        show_default=True,
        metavar="FILE",
        help=text,
    )


# ---- rules ---------------------------------------------------------------------------------------


_ANSWER_HELP = (
    "Answer always, or only if the kernel delivers packets for the address to this host (local),"
    " has a route to it (routed), or has it as a live neighbour, too (neighbour)."
)


def list_files(text: str) -> Callable[[_F], _F]:
    """Return the option --file, which may be repeated; `text` is its help."""
    return click.option(
        "--file", "lists", type=click.File("r"), multiple=True, metavar="FILE", help=text
    )


def output_device(command: _F) -> _F:
    """Give a command --dev, and its alias --via."""
    for option in (
        click.option("--via", multiple=True, metavar="PATTERN", help="Alias of --dev."),
        click.option(
            "--dev",
            multiple=True,
            metavar="PATTERN",
            help="Accept only routes that leave by a matching interface, such as docker0 or br-*;"
            " may be repeated. Default: any interface.",
        ),
    ):
        command = option(command)
    return command


def answering(command: _F) -> _F:
    """Give a command the options that say when and how rules answer."""
    for option in (
        click.option(
            "--lladdr", metavar="MAC", help="Advertise this MAC. Default: the interface's."
        ),
        click.option(
            "--dad",
            type=click.Choice(["defend", "ignore"]),
            default="defend",
            show_default=True,
            help="Answer Duplicate Address Detection for the prefix (defend), or not (ignore).",
        ),
        click.option(
            "--override/--no-override",
            default=False,
            show_default=True,
            help="Set or clear the O flag of the answers.",
        ),
        click.option(
            "--router/--no-router",
            default=True,
            show_default=True,
            help="Set or clear the R flag of the answers.",
        ),
        click.option(
            "--na-source",
            default="target",
            show_default=True,
            metavar="SOURCE",
            help="Source address of the answers: target, link-local, or an address.",
        ),
        output_device,
        _answer(f"{_ANSWER_HELP} With never, make a hole in a wider prefix.", "never"),
    ):
        command = option(command)
    return command


def _answer(text: str, *more: str) -> Callable[[_F], _F]:
    """Return the option --answer; `text` is its help."""
    return click.option(
        "--answer",
        type=click.Choice(["always", "local", "routed", "neighbour", *more]),
        default="always",
        show_default=True,
        help=text,
    )


force_option = click.option(
    "--force", is_flag=True, help="Accept rules that also answer for other nodes of the link."
)


# ---- attach and run ------------------------------------------------------------------------------


def attaching(command: _F) -> _F:
    """Give a command the options of `attach` and `run`: rules, mode, loader and limits."""
    for option in (
        click.option(
            "--paused",
            is_flag=True,
            help="Start paused, as a standby, until `ndxdp resume`; no effect if ndxdp is attached"
            " already.",
        ),
        click.option(
            "--max-addresses",
            type=WholeNumber(1, ADDRESSES_MAX),
            metavar="N",
            help="Room for N exact addresses. Default: 131072 for a new table, else unchanged.",
        ),
        click.option(
            "--burst",
            type=WholeNumber(1, 1_000_000),
            metavar="N",
            help="Answers that --rate permits at once. Default: 100.",
        ),
        _rate("--gateway-rate", "each gateway, to which no other limit applies. Default: 10000."),
        _rate(
            "--interface-rate",
            "all MACs together, except the gateways'; drop the rest. Default: no limit.",
        ),
        _rate(
            "--rate",
            "one MAC that solicits or is answered; drop the rest. Default: no limit.",
        ),
        click.option(
            "--loader",
            type=click.Choice(LOADERS),
            default="prebuilt",
            show_default=True,
            help="Load the compiled program, or compile it on this host with bcc.",
        ),
        click.option(
            "--mode",
            type=click.Choice(MODES),
            default="auto",
            show_default=True,
            help="Answer in the best mode that is available (auto), by XDP in the driver, by"
            " generic XDP, at tc ingress, or, with run only, in userspace.",
        ),
        force_option,
        list_files("Answer for each prefix in this file, one per line; - for stdin."),
        output_device,
        _answer(_ANSWER_HELP),
        click.option(
            "--except",
            "excepted",
            multiple=True,
            metavar="PREFIX",
            help="Never answer for this prefix; may be repeated.",
        ),
        click.option(
            "-n",
            "--prefix",
            "answered",
            multiple=True,
            metavar="PREFIX",
            help="Answer for this prefix or address; may be repeated.",
        ),
    ):
        command = option(command)
    return command


def _rate(name: str, text: str) -> Callable[[_F], _F]:
    """Return an option for a limit in answers per second; 0 is no limit."""
    return click.option(
        name,
        type=Number(0, 1e9),
        metavar="N",
        help=f"Send at most N answers per second to {text}",
    )
