"""`ndxdp reload`: making the daemon read its configuration again."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ndxdp.cli.options import config_file, verbosity
from ndxdp.cli.ranges import Number
from ndxdp.cli.values import trees
from ndxdp.errors import NdxdpError

if TYPE_CHECKING:
    from ndxdp.runtime.report import Daemon

log = logging.getLogger(__name__)

_INTERVAL = 0.05  # seconds between two reads of the daemon's report


@click.command()
@config_file("The configuration file of the daemon.")
@click.option(
    "--timeout",
    type=Number(min=0.1, max=86400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait this long for the result.",
)
@verbosity
def reload(path: str, timeout: float) -> None:
    """Make the daemon read its configuration file again.

    Wait for the result. Exit code 0: the rules are in force. Exit code 1: the file is wrong, or an
    interface cannot apply it; the daemon has changed nothing, and the command prints the reason.
    """
    daemon = _daemon_of(path)
    os.kill(daemon.pid, signal.SIGHUP)
    # A reload that was already in progress may have read the former content of the file.
    number = daemon.reload["begun"] + 1
    deadline = time.monotonic() + timeout
    while daemon.reload["number"] < number:
        if time.monotonic() > deadline:
            raise NdxdpError(
                f"the daemon (process {daemon.pid}) has not reloaded within {timeout:g} s",
                "see its log: journalctl -u ndxdp",
            )
        time.sleep(_INTERVAL)
        daemon = _daemon_of(path)
    if not daemon.reload["ok"]:
        raise NdxdpError(f"cannot reload: {daemon.reload['error']}", "see: ndxdp status")
    if daemon.exporter and daemon.exporter["problem"]:
        log.warning("reloaded, but cannot serve metrics: %s", daemon.exporter["problem"])
    for interface in daemon.interfaces:
        if interface["problem"]:
            log.warning("reloaded, but %s: %s", interface["interface"], interface["problem"])


def _daemon_of(path: str) -> Daemon:
    """Return the report of the daemon with this configuration file, in this network namespace."""
    from ndxdp.netlink.netns import netns
    from ndxdp.runtime import report

    for daemon in report.daemons(trees().files.root, netns()):
        if daemon.config and Path(daemon.config) == Path(path).absolute():
            return daemon
    raise NdxdpError(
        f"no daemon runs here with {path}",
        "see systemctl status ndxdp; run this as root; -c names another file",
    )
