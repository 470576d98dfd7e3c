"""Values that commands read from their options: rules, limits, the interface, its directories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from ndxdp import progress
from ndxdp.errors import NotAttached, UsageError
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.rules import breadth
from ndxdp.rules.interface_name import parse_dev
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import CONFIG_ORIGIN, Rule
from ndxdp.rules.rule_lists import compile_rules, rules_of_lines
from ndxdp.rules.ruleset import Rules

if TYPE_CHECKING:
    from ndxdp.config.model import Interface
    from ndxdp.daemon.spec import InterfaceSpec
    from ndxdp.session.request import AttachOptions
    from ndxdp.store.directories import Tree, Trees

_LINES = 4096  # lines between two reports of progress


def options_of(
    mode: str,
    loader: str,
    rate: float | None,
    burst: int | None,
    interface_rate: float | None,
    gateway_rate: float | None,
    max_addresses: int | None,
    paused: bool = False,
) -> AttachOptions:
    """Return the options of an attach; raise UsageError for a rate that ns cannot express."""
    from ndxdp.kernel.abi import Mode
    from ndxdp.kernel.loader import Loader
    from ndxdp.session.request import AttachOptions

    # The BPF program counts ns in 64 bits. The comparisons are also false for nan.
    if rate and not (burst or 1_000_000) * 1e9 / rate < 1 << 62:
        raise UsageError(f"--rate {rate:g} is not a rate", "0 is no limit")
    for option, value in (("interface", interface_rate), ("gateway", gateway_rate)):
        if value and not 1e9 / value < 1 << 62:
            raise UsageError(f"--{option}-rate {value:g} is not a rate", "0 is no limit")
    chosen = None if mode == "auto" else Mode[mode.upper()]
    return AttachOptions(
        chosen,
        Loader(loader),
        rate,
        burst,
        interface_rate,
        gateway_rate,
        max_addresses,
        paused=paused,
    )


def rule_of(
    answer: str,
    dev: tuple[str, ...],
    via: tuple[str, ...],
    origin: str,
    profile: Profile | None = None,
) -> Rule:
    """Return the rule that --answer, --dev and its alias --via describe."""
    if dev and via:
        raise UsageError("--dev and --via are the same option", "use --dev for all patterns")
    chosen, patterns = Answer[answer.upper()], parse_dev(dev or via)
    if patterns and not chosen.asks_routes:
        option = "--dev" if dev else "--via"
        raise UsageError(
            f"{option} selects routes, and --answer {answer} does not ask for a route",
            "add --answer routed, or --answer neighbour",
        )
    return Rule(chosen, profile or Profile(), origin, dev=patterns)


def rules_of(
    answered: Iterable[str],
    excepted: Iterable[str],
    lists: Iterable[IO[str]],
    rule: Rule,
    *,
    force: bool = True,
) -> Rules:
    """Return the rules that a command line names.

    Args:
        answered: Prefixes to answer for.
        excepted: Prefixes never to answer for.
        lists: Open files with one prefix per line.
        rule: The rule of each prefix in `answered` and `lists`.
        force: Accept rules that are too broad on any interface.
    """
    parts = [("", compile_rules(answered, excepted, rule=rule))]
    for stream in lists:
        name = "stdin" if stream.name == "<stdin>" else Path(stream.name).name
        try:
            with progress.step(f"lines of {name} read"):
                parts.append((name, rules_of_lines(_counted(stream), name, rule)))
        except UnicodeDecodeError:
            raise UsageError(f"{name} is not a text file", "write one prefix per line") from None
    rules = Rules.union(part for _, part in parts)
    if len(rules.addresses) + len(rules.wider) < sum(len(part) for _, part in parts):
        _refuse_duplicates(parts)
    if not force:
        breadth.refuse_anywhere(rules)
    return rules


def _counted(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines, and report the progress."""
    for number, line in enumerate(lines, 1):
        if number % _LINES == 0:
            progress.advance(_LINES)
        yield line


def _refuse_duplicates(parts: Iterable[tuple[str, Rules]]) -> None:
    """Raise UsageError for a prefix of a list that an earlier part has, too.

    Args:
        parts: The rules of the arguments and of each list, with the name of the list.
    """
    seen: set[Prefix] = set()
    for name, part in parts:
        twice = next((prefix for prefix in part if prefix in seen), None)
        if twice is not None:
            raise UsageError(f"{name}: {twice} is given twice", "name every prefix once")
        seen.update(part)


def spec_of(interface: Interface, *, shared: bool = False) -> InterfaceSpec:
    """Return the daemon's specification for an interface of the configuration.

    Args:
        interface: The interface.
        shared: A share names it.
    """
    from ndxdp.daemon.spec import InterfaceSpec

    options = options_of(
        interface.mode,
        interface.loader,
        interface.limit.rate,
        interface.limit.burst if interface.limit.rate else None,
        interface.limit.interface,
        interface.limit.gateway if interface.limit.rate or interface.limit.interface else None,
        interface.max_addresses,
        interface.paused,
    )
    return InterfaceSpec(
        interface.name,
        options,
        interface.rules,
        origin=CONFIG_ORIGIN,
        keep=interface.mode != "userspace",
        detach=interface.on_stop == "detach",
        patient=True,
        selectors=interface.docker,
        join=interface.join,
        heartbeat_timeout=interface.heartbeat_timeout,
        announce=interface.announce,
        gateway=interface.gateway,
        addresses=interface.addresses,
        resolve=interface.resolve,
        forced=interface.forced,
        shared=shared,
        segments=interface.segments,
    )


def trees() -> Trees:
    """Return the directories that --bpffs and --run-directory name."""
    return trees_of(click.get_current_context())


def trees_of(context: click.Context) -> Trees:
    """Return the directories that --bpffs and --run-directory name in a context of click."""
    from ndxdp.store.directories import FileTree, PinTree, Trees

    named = context.find_root().params
    return Trees(PinTree(Path(named["bpffs"])), FileTree(Path(named["run_directory"])))


def one_of(interface: str | None) -> tuple[Tree, str]:
    """Return the interface that is named, or the only attached one, and the tree that has it."""
    both = trees()
    if interface is None:
        attached = both.interfaces()
        if not attached:
            raise NotAttached("ndxdp is attached to no interface", "ndxdp attach IFACE")
        if len(attached) > 1:
            raise UsageError(
                f"ndxdp is attached to several interfaces: {', '.join(attached)}",
                f"name one: {click.get_current_context().command_path} {attached[0]} …",
            )
        interface = attached[0]
    return both.of(interface), interface
