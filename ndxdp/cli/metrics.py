"""`ndxdp exporter` and `ndxdp metrics`: Prometheus metrics, served or printed."""

from __future__ import annotations

import signal

import click

from ndxdp.cli.options import verbosity
from ndxdp.cli.output import echo
from ndxdp.cli.values import trees


@click.command()
@click.option(
    "--listen",
    default="[::1]:9877",
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Listen at this address; [::]:9877 is every address of the host.",
)
@click.option("--ipv6only", is_flag=True, help="Exclude IPv4 if the address is [::].")
@verbosity
def exporter(listen: str, ipv6only: bool) -> None:
    """Serve metrics and a status page.

    Listen until interrupted, for Prometheus and browsers. Meant for interfaces without a daemon:
    `run -c` serves metrics if the file has [metrics]. The exporter needs no privilege except to
    read the pins.
    """
    from dataclasses import replace

    from ndxdp.config.values import parse_listen
    from ndxdp.observe.exporter import Exporter

    ending = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    serving = Exporter(trees())
    serving.listen(replace(parse_listen(listen), ipv6only=ipv6only))
    echo(f"ready: {serving}")
    signal.sigwait(ending)
    serving.close()


@click.command()
@verbosity
def metrics() -> None:
    """Print the metrics once.

    Meant for the textfile collector of Prometheus' node_exporter.
    """
    from ndxdp.observe.metrics import Exposition

    both = trees()
    both.interfaces()  # raises if the directory of pins cannot be read; the exposition would not
    click.echo(Exposition(both, process=False).text(), nl=False)
