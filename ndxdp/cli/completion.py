"""Completion for bash, zsh and fish, by click: the values that each parameter may have.

A shell's script runs `ndxdp` with _NDXDP_COMPLETE, and only then this module is imported. Values
are looked up as far as this user may read them, and no error is printed. The metavar of a parameter
decides which values it has.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from ndxdp.cli.interface import Named
from ndxdp.cli.values import trees_of
from ndxdp.errors import NdxdpError

if TYPE_CHECKING:
    from ndxdp.inventory.keyspace import Keyspace
    from ndxdp.inventory.listing import Listed
    from ndxdp.rules.prefix import Prefix
    from ndxdp.rules.rule import Rule

_T = TypeVar("_T")

VARIABLE = "_NDXDP_COMPLETE"
_RULES_MAX = 10_000  # more are not offered: nobody reads such a list, and reading takes time
_ENGINE_TIMEOUT = 0.5  # seconds for a container engine, or etcd, to answer

_UNATTACHED = ("attach", "doctor", "init", "run")
"""Commands for interfaces to which ndxdp need not be attached."""

Values = Iterable[str | CompletionItem[str]]
_Completer = Callable[[click.Context, str], Values]


def prepare(command: click.Command) -> None:
    """Give the parameters of a command, and of the commands in it, their values.

    For a request of a shell, stderr is closed to messages, which would spoil the user's line.
    """
    if os.environ.get(VARIABLE, "").endswith("_complete"):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
    for parameter in command.params:
        completer = COMPLETERS.get(metavar_of(parameter))
        if completer is not None:
            setattr(parameter, "shell_complete", _safe(completer))  # noqa: B010  a method, for mypy
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            prepare(inner)


def metavar_of(parameter: click.Parameter) -> str:
    """Return the metavar of a parameter without brackets and dots: `IFACE`, `IFACE PREFIX`."""
    return (parameter.metavar or "").replace("[", "").replace("]", "").replace("...", "")


def _safe(completer: _Completer) -> Callable[[click.Context, str], list[CompletionItem[str]]]:
    """Return a completer for click, which offers nothing after an error."""

    def complete(context: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        found: dict[str, CompletionItem[str]] = {}
        with contextlib.suppress(Exception):
            for value in completer(context, incomplete):
                item = CompletionItem(value) if isinstance(value, str) else value
                if item.type != "plain" or item.value.startswith(incomplete):
                    found.setdefault(item.value, item)
        return list(found.values())

    return complete


# ---- values --------------------------------------------------------------------------------------


def _files(context: click.Context, incomplete: str) -> Values:
    return [CompletionItem(incomplete, type="file")]


def _directories(context: click.Context, incomplete: str) -> Values:
    return [CompletionItem(incomplete, type="dir")]


def _host_interfaces(context: click.Context, incomplete: str) -> Values:
    return _links()


def _interfaces(context: click.Context, incomplete: str) -> Values:
    """Return the attached interfaces, or all of the host where that is meant."""
    given = context.params.get("interfaces") or ()
    if context.command.name in _UNATTACHED or _is_about_hosts(context):
        return [name for name in _links() if name not in given]
    return [name for name in _attached(context) if name not in given]


def _is_about_hosts(context: click.Context) -> bool:
    """Return True for the commands of `ndxdp hosts`."""
    return context.parent is not None and context.parent.command.name == "hosts"


def _attached(context: click.Context) -> list[str]:
    """Return the attached interfaces; all of the host if this user may not read which."""
    try:
        return trees_of(context).interfaces()
    except NdxdpError:
        return _links()


def _links() -> list[str]:
    """Return the interfaces of the host, except for the loopback, which nobody solicits."""
    return sorted(name for _, name in socket.if_nameindex() if name != "lo")


def _named(context: click.Context, incomplete: str) -> Values:
    """Yield the attached interfaces for the first word, then what the command takes behind it."""
    named = context.params.get("named") or Named(None, ())
    if named.interface is None and not named.words:
        yield from _attached(context)
    match context.command.name:
        case "del":
            origin = context.params.get("origin")
            rules = _rules(context, lambda rule: rule.origin == origin)
        case "replace":
            rules = _rules(context, lambda rule: not rule.owned)
        case "explain":
            if named.words:
                return
            rules = ((prefix, rule) for prefix, rule in _rules(context) if prefix.length == 128)
        case _:
            return
    for prefix, _ in rules:
        if str(prefix) not in named.words:
            yield str(prefix)


def _rules(
    context: click.Context, wanted: Callable[[Rule], bool] = lambda rule: True
) -> Iterator[tuple[Prefix, Rule]]:
    """Yield the rules of the interfaces that are named, or of the only attached one."""
    from ndxdp.store.instance import open_instance

    trees, named = trees_of(context), context.params.get("named")
    names = list(context.params.get("interfaces") or ())
    for one in (context.params.get("interface"), named and named.interface):
        names += [one] if one else []
    attached = trees.interfaces()
    if not names and (len(attached) == 1 or "interfaces" in context.params):
        names = attached
    for name in names:
        with open_instance(trees.of(name), name, readonly=True) as instance:
            count = instance.maps.rule_count()
            if count.addresses + count.prefixes <= _RULES_MAX:
                yield from instance.maps.in_order(wanted)


def _targets(context: click.Context, incomplete: str) -> Values:
    """Yield the prefixes of all rules for `trace --target`; other commands take new prefixes."""
    if context.command.name == "trace":
        yield from (str(prefix) for prefix, _ in _rules(context))


def _origins(context: click.Context, incomplete: str) -> Values:
    from ndxdp.rules.rule import MANUAL_ORIGIN

    yield MANUAL_ORIGIN
    yield from (rule.origin for _, rule in _rules(context))


def _labels(context: click.Context, incomplete: str) -> Values:
    """Yield the labels of rules that may be paused."""
    from ndxdp.rules.rule import HOST_ORIGIN, PAUSE_ORIGIN

    yield from (
        rule.label
        for _, rule in _rules(context)
        if rule.label and rule.origin not in (HOST_ORIGIN, PAUSE_ORIGIN)
    )


def _learned(context: click.Context, incomplete: str) -> Values:
    """Yield the interfaces for the first word, then the addresses of learned hosts."""
    from ndxdp.netlink import host_routes
    from ndxdp.rules.address import address_text

    named = context.params.get("named") or Named(None, ())
    if named.interface is None and not named.words:
        yield from _links()
    for route in sorted(host_routes.read()):
        text, link = address_text(route.address), socket.if_indextoname(route.ifindex)
        if text not in named.words and named.interface in (None, link):
            yield text


def _reasons(context: click.Context, incomplete: str) -> Values:
    from ndxdp.ndp.reason import Reason

    return [reason.label for reason in list(Reason)[1:]]


def _networks(context: click.Context, incomplete: str) -> Values:
    """Return the names of the container engine's networks."""
    import asyncio
    import json

    from ndxdp.sources.http import get

    async def ask() -> Any:
        body = bytearray()
        engine = context.params["docker_socket"]
        async with (
            asyncio.timeout(_ENGINE_TIMEOUT),
            get(engine, "/networks", timeout=None, silence=None) as response,
        ):
            while piece := await response.read():
                body += piece
        return json.loads(body)

    return sorted(network["Name"] for network in asyncio.run(ask()))


def _keys(context: click.Context, incomplete: str) -> Values:
    """Return the keys of rules and shared addresses in etcd."""
    return [each.key for each in _listing(context)]


def _shared_names(context: click.Context, incomplete: str) -> Values:
    """Return the shared addresses, as SEGMENT/NAME."""
    return [each.key.partition("/")[2] for each in _listing(context, "shared")]


def _listing(context: click.Context, kind: str | None = None) -> list[Listed]:
    from ndxdp.inventory.listing import read_listing

    return _asked(context, lambda keys: read_listing(keys, kind))


def _segments(context: click.Context, incomplete: str) -> Values:
    """Return the segments that have shared addresses or members."""
    given = context.params.get("segments") or ()
    view = _asked(context, lambda keys: keys.view())
    return [each.segment for each in view.segments if each.segment not in given]


def _hosts(context: click.Context, incomplete: str) -> Values:
    """Return the hosts that are members of a segment, or drained; for `undrain`, the latter."""
    view = _asked(context, lambda keys: keys.view())
    return sorted({*view.drained, *(view.hosts() if context.command.name != "undrain" else ())})


def _asked(context: click.Context, work: Callable[[Keyspace], Coroutine[None, None, _T]]) -> _T:
    """Return the result of requests to etcd, which has half a second."""
    import asyncio

    from ndxdp.cli.fleet_options import Connection, asked

    async def soon(keys: Keyspace) -> _T:
        async with asyncio.timeout(_ENGINE_TIMEOUT):
            return await work(keys)

    given = {name: context.params.get(name) for name in Connection._fields}
    return asked(Connection(**given | {"endpoints": given["endpoints"] or ()}), soon)


def _sources(context: click.Context, incomplete: str) -> Values:
    return ["target", "link-local"]


def _commands(context: click.Context, incomplete: str) -> Values:
    """Return the commands in the group that the words before name."""
    command: click.Command | None = context.find_root().command
    for word in context.params.get("words") or ():
        command = command.commands.get(word) if isinstance(command, click.Group) else None
    return sorted(command.commands) if isinstance(command, click.Group) else []


COMPLETERS: dict[str, _Completer] = {
    "IFACE": _interfaces,
    "IFACE PREFIX": _named,
    "IFACE TARGET": _named,
    "IFACE ADDRESS": _learned,
    "PREFIX": _targets,
    "NAME": _origins,
    "LABEL": _labels,
    "REASON": _reasons,
    "NETWORK": _networks,
    "PATTERN": _host_interfaces,
    "UPSTREAM": _host_interfaces,
    "DOWNSTREAM": _host_interfaces,
    "SOURCE": _sources,
    "KEY": _keys,
    "SEGMENT": _segments,
    "SEGMENT/NAME": _shared_names,
    "HOST": _hosts,
    "COMMAND": _commands,
    "FILE": _files,
    "PATH": _files,
    "DIR": _directories,
}
"""The values of a parameter, by its metavar."""

FREE = (
    *("ADDR|MAC", "ADDRESS", "ADDRESS:PORT", "ARGS", "KEYS", "MAC", "N", "S", "SECONDS"),
    *("URL", "USER"),
)
"""Metavars of parameters whose values nobody can know."""


# ---- shells --------------------------------------------------------------------------------------


@add_completion_class
class _Bash(BashComplete):
    """Completion of words with colons, at which bash splits the addresses."""

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' line=$COMP_LINE index word before='' type value response
    local -a words=()

    # Join what bash has split: a word that no blank precedes continues the word before.
    for ((index = 0; index <= COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if ((index)) && [[ $line == [![:blank:]]* ]]; then
            words[${#words[@]}-1]+=$word
        else
            words+=("$word")
        fi
        while [[ $line == [[:blank:]]* ]]; do
            line=${line:1}
        done
        line=${line#"$word"}
    done

    # bash replaces only what follows the last colon.
    word=${words[${#words[@]}-1]}
    [[ $word == --*=* ]] && word=${word#*=}
    [[ $COMP_WORDBREAKS == *:* && $word == *:* ]] && before=${word%%"${word##*:}"}

    response=$(COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                # A name may contain what the shell would run, such as $(id).
                [[ $value == *[![:alnum:]:/._=+-]* ]] && printf -v value %%q "$value"
                COMPREPLY+=("${value#"$before"}")
                ;;
        esac
    done <<< "$response"
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""
