"""The interface that a command is about: `ndxdp COMMAND IFACE …`, and the older option -i.

No name of an interface has a colon or a slash (dev_valid_name() in the kernel), and every IPv6
address and prefix has one. So where an interface may precede addresses, each word is clearly one
of them.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import click

from ndxdp.cli.values import trees
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.netlink import names

log = logging.getLogger(__name__)

_F = TypeVar("_F", bound=Callable[..., Any])

_OPTION = "ndxdp.interfaces"  # key in click's context: the names that -i has


class Named(NamedTuple):
    """The words of a command line that may begin with an interface.

    Attributes:
        interface: The interface; None if none is named.
        words: The other words: prefixes, or a target.
    """

    interface: str | None
    words: tuple[str, ...]


# ---- parameters of commands ----------------------------------------------------------------------


def interface_argument(*, required: bool = False) -> Callable[[_F], _F]:
    """Return the argument IFACE, whose value is `interface`."""

    def one(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        found = _only([*_by_option(context), *(() if value is None else (value,))])
        if found is None and required:
            raise click.MissingParameter(ctx=context, param=parameter)
        return found

    metavar = "IFACE" if required else "[IFACE]"
    return _with_option(click.argument("interface", metavar=metavar, required=False, callback=one))


def interfaces_argument(command: _F) -> _F:
    """Give a command the argument [IFACE]..., whose value is `interfaces`."""

    def several(
        context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
    ) -> tuple[str, ...]:
        for word in value:
            if _is_address(word):
                traces = context.info_name in ("trace", "top")
                hint = (
                    f"to select targets: ndxdp trace --target {word}" if traces else "see: ip link"
                )
                raise UsageError(f"'{word}' is no interface name", hint)
        return tuple(map(real_name, (*_by_option(context), *value)))

    argument = click.argument("interfaces", nargs=-1, metavar="[IFACE]...", callback=several)
    return _with_option(argument)(command)


def interface_before(metavar: str) -> Callable[[_F], _F]:
    """Return the argument [IFACE] and the words that follow it, whose value is `named`.

    Args:
        metavar: The other words, for the usage line, as in `[PREFIX]...`.
    """

    def split(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> Named:
        interfaces, words = _by_option(context), value
        if words and may_be_interface(words[0]):
            interfaces, words = [*interfaces, words[0]], words[1:]
        for word in words:
            if may_be_interface(word) and exists(word):
                raise UsageError(
                    f"the interface '{word}' is named behind another word",
                    f"name one interface, and name it first: {context.command_path} {word}"
                    f" {' '.join(each for each in words if each != word)}".rstrip(),
                )
        return Named(_only(interfaces), words)

    argument = click.argument("named", nargs=-1, metavar=f"[IFACE] {metavar}", callback=split)
    return _with_option(argument)


def _with_option(argument: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """Return an argument together with the option -i, which `--help` does not show."""

    def note(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
        context.meta[_OPTION] = value

    option = click.option(
        "-i",
        "--interface",
        "by_option",
        multiple=True,
        hidden=True,
        expose_value=False,
        is_eager=True,  # the argument's callback needs it
        callback=note,
        metavar="IFACE",
        help="The interface, as the argument IFACE names it.",
    )
    return lambda command: argument(option(command))


# ---- names ---------------------------------------------------------------------------------------


def may_be_interface(word: str) -> bool:
    """Return True unless a word is an address, a prefix, a path or empty.

    A word such as 192.0.2.1 counts as an address unless there is an interface of that name.
    """
    if not word or _is_address(word):
        return False
    try:
        socket.inet_pton(socket.AF_INET, word)
    except (OSError, ValueError):
        return True
    return exists(word)


def real_name(name: str) -> str:
    """Return the real name of the interface with an alternative name; other names unchanged.

    A name that has pins or files of ndxdp stays as it is, since it may be the former name of a
    renamed interface.
    """
    real = names.real_name(name)
    if real != name:
        with contextlib.suppress(NdxdpError, OSError):
            if trees().have(name):
                return name
        log.info("%s is an alternative name of %s", name, real)
    return real


def _is_address(word: str) -> bool:
    return ":" in word or "/" in word


def exists(name: str) -> bool:
    """Return True if there is such an interface, or ndxdp has pins or files of one."""
    if names.index_of(name):
        return True
    with contextlib.suppress(NdxdpError, OSError):
        return name in trees().interfaces()
    return False


def _by_option(context: click.Context) -> list[str]:
    return list(context.meta.get(_OPTION, ()))


def _only(words: list[str]) -> str | None:
    """Return the one interface that some words name; None if there are no words."""
    found = list(dict.fromkeys(map(real_name, words)))
    if len(found) > 1:
        raise UsageError(f"two interfaces are named: {found[0]} and {found[1]}", "name one of them")
    return found[0] if found else None
