"""The `ndxdp` command: the group of all commands, and its exit codes.

Exit code 0: the command succeeded. 1: it failed. 2: its arguments or a file are wrong. 130: it was
interrupted. Every foreseeable error is one sentence and a hint on stderr, and has changed nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

import click

from ndxdp import __version__
from ndxdp.cli import (
    attach,
    check,
    colour,
    convert,
    doctor,
    examples,
    explain,
    fleet,
    help,
    hosts,
    init,
    metrics,
    prefix,
    reload,
    run,
    service,
    share,
    status,
    top,
    trace,
    usage,
)
from ndxdp.cli.group import TopGroup
from ndxdp.cli.options import verbosity
from ndxdp.cli.output import echo, is_journal, start_log
from ndxdp.errors import NdxdpError, from_os


def main() -> None:
    """Run the command; turn an error into a sentence and an exit code."""
    _open_standard_files()
    # SIGTERM unwinds the stack, as SIGINT does, so that a change half done is undone.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if "_NDXDP_COMPLETE" in os.environ:
        from ndxdp.cli import completion

        completion.prepare(cli)
    try:
        code = cli(prog_name="ndxdp", standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.UsageError as error:
        code = _fail(usage.in_our_form(error), error)
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
    # The command is complete: Ctrl-C while the interpreter ends causes no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


def _open_standard_files() -> None:
    """Open /dev/null in place of standard files that are closed.

    Otherwise a map or a socket gets the number of stderr, and libraries write their messages to it;
    and Python has None in place of the file.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is fd
        if getattr(sys, name) is None:
            file = open(fd, "w" if fd else "r", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, file)


def _fail(error: NdxdpError, cause: BaseException | None = None) -> int:
    """Print an error, its hint and its further sentences; return its exit code."""
    priority = "<3>" if is_journal() else ""  # LOG_ERR, sd-daemon(3)
    echo(f"{priority}ndxdp: {error.message}", err=True)
    if error.hint:
        echo(f"{priority}  hint: {error.hint}", err=True)
    for sentence in error.also:
        echo(f"{priority}  also: {sentence}", err=True)
    logging.getLogger(__name__).debug("cause: %r", cause or error.__cause__)
    return error.exit_code


@click.group(
    cls=TopGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, package_name="ndxdp")
@click.option(
    "--bpffs",
    default="/sys/fs/bpf",
    show_default=True,
    envvar="NDXDP_BPFFS",
    metavar="DIR",
    help="The BPF file system for the programs and maps.",
)
@click.option(
    "--run-directory",
    default="/run/ndxdp",
    show_default=True,
    envvar="NDXDP_RUN_DIRECTORY",
    metavar="DIR",
    help="The directory for the files of userspace mode and of daemons.",
)
@click.option(
    "--color",
    "--colour",
    type=click.Choice(colour.CHOICES),
    default="auto",
    show_default=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, parameter, value: colour.choose(value),
    help="Print colours: on a terminal, and not with NO_COLOR (auto), always, or never.",
)
@verbosity
def cli(bpffs: str, run_directory: str) -> None:
    """Answer IPv6 Neighbor Solicitations for addresses behind this host.

    Where the upstream router treats the whole prefix as on-link, it solicits each address of your
    containers, virtual machines and tunnels. A program in the kernel answers for them. `ndxdp help
    COMMAND` describes a command, and has examples.
    """
    start_log()


for _command in (
    init.init,
    attach.attach,
    attach.detach,
    run.run,
    share.share,
    attach.pause,
    attach.resume,
    check.check,
    service.install_service,
    convert.convert,
    status.status,
    metrics.exporter,
    metrics.metrics,
    prefix.prefix,
    hosts.hosts,
    fleet.fleet,
    reload.reload,
    trace.trace,
    top.top,
    doctor.doctor,
    explain.explain,
    help.help_command,
):
    cli.add_command(_command)
examples.add_to(cli, "ndxdp")
