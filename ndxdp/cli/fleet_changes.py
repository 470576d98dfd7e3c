"""`ndxdp fleet put`, `apply` and `delete`: changes of rules and shared addresses in etcd."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from ndxdp.cli.fleet_options import Connection, asked, connected
from ndxdp.cli.options import answering, dry_run_option, force_option, verbosity
from ndxdp.cli.output import echo
from ndxdp.cli.values import rule_of
from ndxdp.errors import UsageError

if TYPE_CHECKING:
    from ndxdp.inventory.changes import Change
    from ndxdp.inventory.rule_key import RuleKey

_F = TypeVar("_F", bound=Callable[..., Any])

_OPTIONS = {
    "hosts": "hosts",
    "failback": "failback",
    "answer": "answer",
    "dev": "dev",
    "via": "dev",
    "na_source": "source",
    "router": "router",
    "override": "override",
    "dad": "dad",
    "lladdr": "lladdr",
    "no_count": "count",
    "force": "force",
}
"""The key of a value that each option makes, in the order of the keys."""


def _describing(command: _F) -> _F:
    """Give a command the options that say what a value has, except for its prefix."""
    for option in (
        force_option,
        click.option("--no-count", is_flag=True, help="Count the rule with others, not by itself."),
        answering,
        click.option(
            "--failback",
            is_flag=True,
            help="Give a shared address back to the first choice when that is alive again.",
        ),
        click.option(
            "--host",
            "hosts",
            multiple=True,
            metavar="HOST",
            help="Let this host answer for a shared address; may be repeated, the first choice"
            " first. Default: any member of the segment.",
        ),
    ):
        command = option(command)
    return command


@click.command("put")
@click.argument("name", metavar="KEY")
@click.argument("prefix", metavar="PREFIX")
@_describing
@dry_run_option
@connected
@verbosity
def fleet_put(name: str, prefix: str, dry_run: bool, etcd: Connection, **options: Any) -> None:
    """Write the key of a rule or of a shared address.

    KEY is hosts/HOST/SEGMENT/NAME for a rule that one host answers by, or shared/SEGMENT/NAME for
    an address that exactly one member of the segment answers for. The key is created, or its value
    replaced; the same value again changes nothing. A value that the daemons would refuse is
    refused, and so is a prefix that another key of the segment has.
    """
    from ndxdp.inventory import changes
    from ndxdp.inventory.rule_key import parse_rule_key

    settings = etcd.settings()
    parsed = parse_rule_key(name, settings.root)
    value = _value_of(parsed, prefix, options)
    wanted = {parsed: json.dumps(value).encode()}
    changes.examined(wanted)
    done = asked(settings, lambda keys: changes.put(keys, wanted, dry_run=dry_run))
    _show(done, dry_run=dry_run)


def _value_of(key: RuleKey, prefix: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the value that the command line describes: an option that is absent makes no key."""
    from ndxdp.rules import breadth
    from ndxdp.rules.prefix import parse_target
    from ndxdp.rules.rule import SHARED_ORIGIN
    from ndxdp.rules.ruleset import Rules

    if key.host:
        for option, name in (("--host", "hosts"), ("--failback", "failback")):
            if options[name]:
                raise UsageError(
                    f"{option} is for shared addresses, and {key} is the key of one host",
                    "write the key of one: shared/SEGMENT/NAME",
                )
    rule = rule_of(options["answer"], options["dev"], options["via"], SHARED_ORIGIN)
    parsed = parse_target(prefix)
    if not options["force"]:
        breadth.refuse_anywhere(Rules.of({parsed: rule}))
    value: dict[str, Any] = {"prefix": str(parsed)}
    source_of = click.get_current_context().get_parameter_source
    given = options | {"no_count": False}
    for option, name in _OPTIONS.items():
        if source_of(option) is not ParameterSource.DEFAULT:
            each = given[option]
            value[name] = list(each) if isinstance(each, tuple) else each
    return value


@click.command("apply")
@click.argument("file", type=click.File("r"), metavar="FILE")
@dry_run_option
@connected
@verbosity
def fleet_apply(file: IO[str], dry_run: bool, etcd: Connection) -> None:
    """Write all keys of a file.

    FILE is a JSON object with the keys and their values, as `ndxdp fleet list` shows them: {"KEY":
    {"prefix": PREFIX}}. - is stdin. All values are examined before the first one is written; 60
    keys are written at once, all or none. Other keys in etcd stay as they are.
    """
    from ndxdp.inventory import changes

    settings = etcd.settings()
    wanted = _read(file, settings.root)
    changes.examined(wanted)
    done = asked(settings, lambda keys: changes.put(keys, wanted, dry_run=dry_run))
    _show(done, dry_run=dry_run)


def _read(file: IO[str], root: str) -> dict[RuleKey, bytes]:
    """Return the keys of a file, and their values."""
    from ndxdp.config.json_table import JsonDocument
    from ndxdp.inventory.rule_key import parse_rule_key

    name = "stdin" if file.name == "<stdin>" else file.name
    try:
        text = file.read()
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not a text file", "write JSON") from None
    example = 'write {"shared/vlan7/web": {"prefix": "2001:db8::20"}}'
    try:
        found = JsonDocument(text, name).data
    except UsageError as error:
        raise UsageError(error.message, example) from None
    if not found:
        raise UsageError(f"{name} has no key", example)
    wanted: dict[RuleKey, bytes] = {}
    for key, value in found.items():
        parsed = parse_rule_key(key, root)
        if parsed in wanted:
            raise UsageError(f"{name} has {parsed} twice", "name each key once")
        if not isinstance(value, dict):
            raise UsageError(f"{parsed}: its value is not a JSON object", example)
        wanted[parsed] = json.dumps(value).encode()
    return wanted


@click.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="KEY...")
@click.option("--missing-ok", is_flag=True, help="Exit with 0 even if there is no such key.")
@dry_run_option
@connected
@verbosity
def fleet_delete(names: tuple[str, ...], missing_ok: bool, dry_run: bool, etcd: Connection) -> None:
    """Delete keys: either all that are named or none.

    KEY is the key of a rule or of a shared address, as in `ndxdp fleet put`. Nobody answers for the
    addresses any more, unless another rule covers them. More than 60 keys are deleted in several
    steps.
    """
    from ndxdp.inventory import changes
    from ndxdp.inventory.rule_key import parse_rule_key

    settings = etcd.settings()
    parsed = [parse_rule_key(key, settings.root) for key in names]
    done = asked(
        settings,
        lambda space: changes.delete(space, parsed, missing_ok=missing_ok, dry_run=dry_run),
    )
    _show(done, dry_run=dry_run)


def _show(done: Iterable[Change], *, dry_run: bool) -> None:
    """With --dry-run, print the changes as a diff."""
    if not dry_run:
        return
    nothing = True
    for change in done:
        for sign, value in (("-", change.before), ("+", change.after)):
            if value is not None:
                nothing = False
                echo(f"{sign} {change.key}  {value.decode(errors='replace')}")
    if nothing:
        echo("nothing would change")
