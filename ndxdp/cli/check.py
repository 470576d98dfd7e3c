"""`ndxdp check`: read a configuration file and summarize it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from ndxdp.cli.options import json_option, verbosity
from ndxdp.cli.output import echo, print_json
from ndxdp.errors import UsageError

if TYPE_CHECKING:
    from ndxdp.daemon.preflight import Present
    from ndxdp.daemon.share_preflight import PresentShare

log = logging.getLogger("ndxdp")

_FILE = "/etc/ndxdp/ndxdp.toml"


@click.command()
@click.argument("file", metavar="[FILE]", required=False)
@click.option("-c", "--config", "other", metavar="FILE", hidden=True, help="Alias of FILE.")
@json_option
@verbosity
def check(file: str | None, other: str | None, as_json: bool) -> None:
    """Check a configuration file, and summarize it.

    Print a line for each interface and share, or all errors with their lines; change nothing. FILE
    is /etc/ndxdp/ndxdp.toml by default. `ndxdp reload` makes a running daemon apply the file.
    """
    if None not in (file, other) and file != other:
        raise UsageError(f"two files are named: {file} and {other}", "check them one by one")
    report(next(each for each in (file, other, _FILE) if each is not None), as_json=as_json)


def report(path: str, *, as_json: bool = False) -> None:
    """Print a line for each interface and share of a file; log what `run` cannot do on this host.

    Raises:
        UsageError: The file is wrong; with `as_json`, the errors are printed before.
    """
    from ndxdp.config import reader
    from ndxdp.config.model import share_summary, summary
    from ndxdp.daemon import etcd_preflight, preflight
    from ndxdp.daemon.share_preflight import present_shares

    try:
        config = reader.load(path)
    except UsageError as error:
        if as_json:
            errors = [(error.message, error.hint), *((message, "") for message in error.also)]
            print_json(_data(path, errors=errors))
        raise
    every = list(preflight.present(config.with_shared()))
    refused = list(
        preflight.refused([one for table in every for one in table.interfaces], config.shares)
    )
    tables = every[: len(config.interfaces)]
    broad = [warning for table in tables for warning in table.warnings()]
    shares = present_shares(config.shares)
    of_etcd = list(etcd_preflight.problems(config.etcd)) if config.etcd else []
    # A problem of one interface on this host is a warning: a service starts for the others.
    warnings = [*((sentence, "") for sentence in refused), *broad]
    warnings += of_etcd
    warnings += [warning for share in shares for warning in share.warnings]
    for sentence, hint in warnings:
        log.warning(sentence)
        if hint:
            log.warning("  hint: %s", hint)
    summaries = {
        table.name: [*summary(table.table, preflight.unanswered(table.table)), *table.words()]
        for table in tables
    }
    if as_json:
        interfaces = [_interface_data(each, summaries[each.name]) for each in tables]
        shared = [_share_data(each) for each in shares]
        print_json(_data(path, warnings=warnings, interfaces=interfaces, shares=shared))
        return
    echo(f"{path}: good{', but `run` cannot do all of it here' if refused or of_etcd else ''}")
    for name, words in summaries.items():
        echo(f"{name}  {'; '.join(words)}")
    if config.etcd:
        echo(f"etcd  {etcd_preflight.words(config.etcd)}")
    for share in shares:
        words = [*share_summary(share.share), *share.words()]
        echo(f"{share.share.upstream}  {'; '.join(words)}")


def _data(
    path: str,
    *,
    errors: Iterable[tuple[str, str]] = (),
    warnings: Iterable[tuple[str, str]] = (),
    interfaces: Iterable[dict[str, Any]] = (),
    shares: Iterable[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Return the result for --json; errors and warnings are sentences with their hints."""

    def listed(sentences: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
        return [{"message": message, "hint": hint} for message, hint in sentences]

    found = listed(errors)
    return {
        "file": path,
        "good": not found,
        "errors": found,
        "warnings": listed(warnings),
        "interfaces": list(interfaces),
        "shares": list(shares),
    }


def _interface_data(present: Present, words: list[str]) -> dict[str, Any]:
    """Return an interface of the file for --json."""
    interface = present.table
    return {
        "interface": interface.name,
        "mode": interface.mode,
        "loader": interface.loader,
        "rules": {
            "addresses": len(interface.rules.addresses),
            "prefixes": len(interface.rules.wider),
        },
        "docker": list(map(str, interface.docker)),
        "etcd": list(interface.segments),
        "summary": words,
        "matches": present.names if present.is_pattern else None,
    }


def _share_data(present: PresentShare) -> dict[str, Any]:
    """Return a share of the file for --json."""
    from ndxdp.config.model import share_summary

    share = present.share
    return {
        "upstream": share.upstream,
        "downstream": list(share.downstream),
        "prefixes": list(map(str, share.prefixes)),
        "router_advertisements": "relay" if share.relay else "off",
        "max_hosts": share.max_hosts,
        "max_hosts_per_mac": share.max_hosts_per_mac,
        "expire": share.expire,
        "summary": [*share_summary(share), *present.words()],
        "here": present.names,
    }
