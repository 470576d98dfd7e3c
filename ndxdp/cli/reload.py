"""`ndxdp reload`: make the daemon read its configuration again, and wait for the outcome."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ndxdp.cli.options import config_file, trees, verbosity
from ndxdp.errors import NdxdpError

if TYPE_CHECKING:
    from ndxdp.runtime.report import Daemon

log = logging.getLogger(__name__)

_STEP = 0.05  # seconds between two looks at the daemon's report


@click.command()
@config_file("The configuration file of the daemon.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1, max=86400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the outcome.",
)
@verbosity
def reload(path: str, timeout: float) -> None:
    """Make the daemon of `run -c FILE` read FILE again; exit code 0: the rules are in force.

    If the file is wrong, or an interface cannot do what it says, everything stays as it was: the
    exit code is 1, and the reason is printed.
    """
    daemon = _daemon_of(path)
    os.kill(daemon.pid, signal.SIGHUP)
    # An attempt that had begun before may have read the file as it was before.
    number = daemon.reload["begun"] + 1
    deadline = time.monotonic() + timeout
    while daemon.reload["number"] < number:
        if time.monotonic() > deadline:
            raise NdxdpError(
                f"the daemon (process {daemon.pid}) has not reloaded within {timeout:g} s",
                "see its log: journalctl -u ndxdp",
            )
        time.sleep(_STEP)
        daemon = _daemon_of(path)
    if not daemon.reload["ok"]:
        raise NdxdpError(f"not reloaded: {daemon.reload['error']}", "see: ndxdp status")
    if daemon.exporter and daemon.exporter["problem"]:
        log.warning("reloaded, but metrics are not served: %s", daemon.exporter["problem"])
    for each in daemon.interfaces:
        if each["problem"]:
            log.warning("reloaded, but %s: %s", each["interface"], each["problem"])


def _daemon_of(path: str) -> Daemon:
    """Return the report of the daemon with this configuration file, in this network namespace."""
    from ndxdp.runtime import report
    from ndxdp.store.instance import netns

    for daemon in report.daemons(trees().files.root, netns()):
        if daemon.config and Path(daemon.config) == Path(path).absolute():
            return daemon
    raise NdxdpError(
        f"no daemon runs here with {path}",
        "is it running? see systemctl status ndxdp; run this as root; -c names another file",
    )
