"""`ndxdp exporter` and `ndxdp metrics`: Prometheus metrics, served or printed."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

import click

from ndxdp.cli.options import verbosity
from ndxdp.cli.output import echo
from ndxdp.cli.values import trees
from ndxdp.kernel.abi import FIRST_RULE_CLASSES

if TYPE_CHECKING:
    from ndxdp.daemon.sd_notify import Notifier
    from ndxdp.store.directories import Trees

log = logging.getLogger(__name__)

_ENDING = {signal.SIGINT, signal.SIGTERM}
_RETRY = 1.0  # seconds between two attempts to read anything

_all_classes = click.option(
    "--all-classes",
    is_flag=True,
    help=f"Give each rule class series of its own, not only the first {FIRST_RULE_CLASSES}.",
)


@click.command()
@click.option(
    "--listen",
    default="[::1]:9877",
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Listen at this address; [::]:9877 is every address of the host.",
)
@click.option("--ipv6only", is_flag=True, help="Exclude IPv4 if the address is [::].")
@_all_classes
@verbosity
def exporter(listen: str, ipv6only: bool, all_classes: bool) -> None:
    """Serve metrics for Prometheus, and a status page.

    Listen until interrupted, for Prometheus and browsers. Meant for interfaces without a daemon:
    `run -c` serves metrics if the file has [metrics]. The exporter needs no privilege except to
    read the pins; without the right to read any, it ends with exit code 1.
    """
    from contextlib import closing
    from dataclasses import replace

    from ndxdp.config.values import parse_listen
    from ndxdp.daemon.sd_notify import Notifier
    from ndxdp.observe.exporter import Exporter

    where = replace(parse_listen(listen), ipv6only=ipv6only, all_classes=all_classes)
    notifier, both = Notifier(), trees()
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    is_ready = _is_readable(both)
    with closing(Exporter(both)) as serving:
        serving.listen(where)
        while not is_ready:
            if signal.sigtimedwait(_ENDING, _RETRY):
                return
            is_ready = _is_readable(both, notifier)
        echo(f"ready: {serving}")
        notifier.ready(f"serves {serving}")
        signal.sigwait(_ENDING)
        notifier.stopping()


def _is_readable(both: Trees, notifier: Notifier | None = None) -> bool:
    """Return True if there is something to serve; otherwise log why not, at the first attempt.

    Args:
        both: The directories of pins and files.
        notifier: None at the first attempt.

    Raises:
        NdxdpError: This process has no right to read what is there.
    """
    from ndxdp.observe import readiness

    error = readiness.problem(both)
    if error is None:
        return True
    if readiness.is_lasting(error, both):
        raise error
    if notifier is None:
        log.warning("not ready: %s", error.message)
    else:
        notifier.status(f"not ready: {error.message}")
    return False


@click.command()
@_all_classes
@verbosity
def metrics(all_classes: bool) -> None:
    """Print the metrics for Prometheus once.

    Meant for the textfile collector of Prometheus' node_exporter.
    """
    from ndxdp.observe.metrics import Exposition

    both = trees()
    both.interfaces()  # raises if the directory of pins cannot be read; the exposition would not
    exposition = Exposition(both, process=False)
    exposition.all_classes = all_classes
    click.echo(exposition.text(), nl=False)
