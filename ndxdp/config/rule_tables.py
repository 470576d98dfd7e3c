"""Tables that become rules: [[interface.prefix]] and [[interface.docker]]."""

from __future__ import annotations

from pathlib import Path

from ndxdp.config.text_file import lines_of, read_text
from ndxdp.config.toml_table import Table
from ndxdp.config.values import parse_label, parse_network
from ndxdp.errors import UsageError
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.rules import breadth
from ndxdp.rules.address import parse_mac
from ndxdp.rules.interface_name import parse_dev
from ndxdp.rules.prefix import Prefix, parse_target
from ndxdp.rules.rule import CONFIG_ORIGIN, UNCOUNTED, Rule, parse_source
from ndxdp.rules.rule_lists import compile_rules, rules_of_lines
from ndxdp.rules.ruleset import Rules
from ndxdp.sources.selector import Selector

_ANSWERS = ("always", "local", "routed", "neighbour", "never")
_PROFILE_KEYS = ("source", "router", "override", "dad", "lladdr")
_SELECTOR_KEYS = ("network", "network_label", "container_label", "within")


# ---- [[interface.prefix]] -----------------------------------------------------------------------


def read_rules(interface: Table, directory: Path) -> tuple[Rules, frozenset[Prefix]]:
    """Read all [[interface.prefix]].

    Args:
        interface: The table of the interface.
        directory: The directory of the configuration file, which paths of lists are relative to.

    Returns:
        The rules, and the prefixes of the rules with `force`.
    """
    forced: set[Prefix] = set()
    parts: list[tuple[Table, str, Rules]] = []
    for table in interface.tables("prefix"):
        key, part = _rules_of_table(table, directory)
        if table.boolean("force", False):
            forced.update(part.wider)
        else:
            refuse_broad(table, key, part)
        parts.append((table, key, part))
    rules = Rules.union(part for _, _, part in parts)
    if len(rules.addresses) + len(rules.wider) < sum(len(part) for _, _, part in parts):
        _refuse_duplicates(parts)
    return rules, frozenset(forced)


def _rules_of_table(table: Table, directory: Path) -> tuple[str, Rules]:
    """Return the rules of one [[interface.prefix]], and the key that has them."""
    rule = read_rule(table, CONFIG_ORIGIN, "")
    _require_one(table, ("prefix", "file"), 'prefix = "2001:db8::/64"')
    prefix = table.parsed("prefix", lambda text: compile_rules([text], rule=rule))
    listed = table.parsed("file", lambda text: _rules_of_file(directory, text, rule))
    return ("prefix", prefix or Rules()) if "prefix" in table else ("file", listed or Rules())


def read_rule(table: Table, origin: str, label: str) -> Rule:
    """Return the rule that a table describes by all its keys but the prefix and `force`.

    Args:
        table: The table.
        origin: The origin of the rule.
        label: The name that the rule is counted under, unless the table says `count = false`.
    """
    answer = Answer[table.choice("answer", _ANSWERS, "always").upper()]
    label = label if table.boolean("count", True) else UNCOUNTED
    dev = _output_devices(table, answer)
    rule = Rule(answer, _profile(table), origin, label, dev=dev)
    if answer is Answer.NEVER:
        for key in _PROFILE_KEYS:
            if key in table:
                table.complain(
                    'this key has no effect with answer = "never"', "remove either key", key
                )
        rule = Rule(answer, origin=origin, label=label)
    return rule


def _output_devices(table: Table, answer: Answer) -> tuple[str, ...]:
    """Return the patterns of `dev`, or of its alias `via`."""
    found = {
        key: [text for _, (text,) in table.parsed_all(key, lambda text: parse_dev([text]))]
        for key in ("dev", "via")
    }
    key = "via" if "via" in table else "dev"
    if "dev" in table and "via" in table:
        table.complain("dev and via are the same key", "keep dev, and remove via", "via")
    elif key in table and not answer.asks_routes:
        table.complain(
            f'this key selects routes, but answer = "{answer.name.lower()}" does not ask for one',
            'write answer = "routed" or answer = "neighbour", or remove this key',
            key,
        )
    try:
        return parse_dev(found[key])
    except UsageError as error:
        table.complain(error.message, error.hint, key)
        return ()


def _rules_of_file(directory: Path, name: str, rule: Rule) -> Rules:
    """Return a rule for each prefix in a list."""
    path = directory / name
    return rules_of_lines(lines_of(read_text(path)), path.name, rule)


def refuse_broad(table: Table, key: str, rules: Rules) -> None:
    """Complain about rules that are too broad on any interface."""
    found = sorted(breadth.anywhere(rules), key=lambda broad: broad.prefix)
    if found:
        others = f"; {len(found) - 1} more are too broad" if len(found) > 1 else ""
        table.complain(f"{found[0].sentence()}{others}", found[0].hint(in_file=True), key)


def _refuse_duplicates(parts: list[tuple[Table, str, Rules]]) -> None:
    """Complain about prefixes that several [[interface.prefix]] have.

    Args:
        parts: The rules of each table, with the table and the key that has them.
    """
    lines: dict[Prefix, int] = {}  # the line where each prefix stands first
    for table, key, part in parts:
        line = table.line(key)
        twice = [prefix for prefix in part if prefix in lines]
        lines.update((prefix, line) for prefix in part if prefix not in lines)
        if twice:
            first = min(twice)
            others = f", and {len(twice) - 1} more are" if len(twice) > 1 else ""
            table.complain(
                f"{first} is given twice{others}",
                f"line {lines[first]} has it first: name every prefix once",
                key,
            )


# ---- [[interface.docker]] -----------------------------------------------------------------------


def read_selectors(interface: Table) -> tuple[Selector, ...]:
    """Read all [[interface.docker]]; leave out a table without exactly one valid selector."""
    found: list[Selector] = []
    places: dict[tuple[str, str], Table] = {}
    for table in interface.tables("docker"):
        selector = _selector(table)
        if selector is None:
            continue
        found.append(selector)
        for key in _SELECTOR_KEYS:
            value = getattr(selector, key)
            if value is None:
                continue
            first = places.setdefault((key, str(value)), table)
            if first is not table:
                hint = f"line {first.line(key)} has it first"
                table.complain(f"{value} is given twice", hint, key)
    return tuple(found)


def _selector(table: Table) -> Selector | None:
    """Return the selector of a table; None if the table has none, several, or a wrong one."""
    network = table.parsed("network", parse_network)
    network_label = table.parsed("network_label", parse_label)
    container_label = table.parsed("container_label", parse_label)
    within = table.parsed("within", parse_target)
    _require_one(table, _SELECTOR_KEYS, 'network = "name"')
    except_label = table.parsed("except_label", parse_label)
    label = network_label or container_label
    if except_label and label and except_label in (label, label.partition("=")[0]):
        table.complain(
            f"'{except_label}' excludes all that have '{label}'",
            "name another label, or none",
            "except_label",
        )
    profile = _profile(table)
    if sum(value is not None for value in (network, network_label, container_label, within)) != 1:
        return None
    count = table.boolean("count", True)
    return Selector(network, network_label, container_label, within, except_label, profile, count)


# ---- both ---------------------------------------------------------------------------------------


def _profile(table: Table) -> Profile:
    """Read the keys that describe the answers."""
    default = Profile()
    return Profile(
        table.parsed("source", parse_source) or default.source,
        table.boolean("router", default.router),
        table.boolean("override", default.override),
        table.choice("dad", ("defend", "ignore"), "defend") == "defend",
        table.parsed("lladdr", parse_mac),
    )


def _require_one(table: Table, keys: tuple[str, ...], example: str) -> None:
    """Complain if a table has none of these keys, or several."""
    given = [key for key in keys if key in table]
    if not given:
        table.complain(f"one of {', '.join(keys)} is missing", f"write it as in {example}")
    for key in given[1:]:
        table.complain(
            f"this key cannot be combined with {given[0]}",
            f"write exactly one of {', '.join(keys)}",
            key,
        )
