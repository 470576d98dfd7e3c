"""The configuration file: TOML in, dataclasses of config/model.py out, or one sentence.

Nothing is read but the file and the lists that it names, and nothing is known of the kernel.
"""

from __future__ import annotations

import re
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ndxdp.config.model import (
    ANNOUNCEMENTS,
    DEADLINE,
    Addresses,
    Announce,
    Config,
    Containers,
    Gateway,
    Interface,
    Label,
    Limit,
    Metrics,
    Resolve,
)
from ndxdp.config.toml_table import Document, Table
from ndxdp.errors import UsageError
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.printable import printable
from ndxdp.rules import breadth
from ndxdp.rules.address import parse_mac, parse_unicast
from ndxdp.rules.capacity import MAX_ADDRESSES, MAX_RULE_CLASSES, Capacity
from ndxdp.rules.interface_name import check_interface, parse_dev
from ndxdp.rules.prefix import AddressPattern, Prefix, parse_pattern, parse_target
from ndxdp.rules.rule import CONFIG_ORIGIN, DOCKER_ORIGIN, OWNED_LABELS, Rule, parse_source
from ndxdp.rules.rule_lists import compile_rules, rules_of_lines
from ndxdp.rules.ruleset import Rules

LOG_LEVELS = ("error", "warning", "info", "debug")
LOG_FORMATS = ("text", "json")
MODES = ("auto", "native", "generic", "tc", "userspace")
LOADERS = ("prebuilt", "bcc")
ON_STOP = ("keep", "detach")

_ANSWERS = ("always", "local", "routed", "neighbour", "never")
_PROFILE_KEYS = ("source", "router", "override", "dad", "lladdr")
_SELECTORS = ("network", "network_label", "container_label", "within")

_PORT_MAX = 65535
_UNIX_PATH_MAX = 107  # bytes, unix(7)
_DAY = 86400.0


def load(path: str | Path) -> Config:
    """The configuration of a file; UsageError names it, and where it can the line and the key."""
    return parse(_read(Path(path), str(path)), str(path))


def parse(text: str, name: str) -> Config:
    """The configuration that a text holds.

    name: the file's, for messages; lists are looked for in its directory. UsageError for the first
    thing that is wrong, with the others in its `also`.
    """
    document = Document(text, name)
    config = _config(document.root, Path(name).parent)
    document.finish()
    return config


def _read(path: Path, name: str) -> str:
    """The text of a regular file: what a reload reads must come to an end."""
    name = printable(name)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{name} is not a regular file", "name a file of text")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"there is no file {name}", "is its name spelled as it should be?"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"{name} could not be read ({why})", "see: ls -l, namei -l") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{name}:{line}: this is not UTF-8 text", "save it as UTF-8") from None


# ---- tables, top down ---------------------------------------------------------------------------


def _config(root: Table, directory: Path) -> Config:
    log_level = root.choice("log_level", LOG_LEVELS, "info")
    log_format = root.choice("log_format", LOG_FORMATS, "text")
    metrics = root.table("metrics")
    listen = replace(
        metrics.parsed("listen", parse_listen) or Metrics(),
        ipv6only=metrics.boolean("ipv6only", False),
    )
    socket_path = root.table("docker").parsed("socket", parse_socket)
    interfaces: list[Interface] = []
    places: dict[str, Table] = {}
    for table in root.tables("interface"):
        interface = _interface(table, directory)
        interfaces.append(interface)
        there = places.setdefault(interface.name, table) if interface.name else table
        if there is not table:
            table.complain(
                f"{interface.name} is configured twice",
                f"line {there.line('name')} has it first: put both into one table",
                "name",
            )
    if not interfaces and "interface" not in root:
        root.complain("no interface is configured", "write [[interface]], and its name below")
    return Config(
        log_level,
        log_format,
        listen if metrics.given else None,
        socket_path or Config().docker_socket,
        tuple(interfaces),
    )


def _interface(table: Table, directory: Path) -> Interface:
    table.require("name", 'name = "eth0"')
    name = table.parsed("name", _parse_interface)
    mode = table.choice("mode", MODES, "auto")
    loader = table.choice("loader", LOADERS, "prebuilt")
    max_addresses = table.integer("max_addresses", 1, 1 << 24)
    on_stop = table.choice("on_stop", ON_STOP, "keep")
    heartbeat = table.number("heartbeat_timeout", 1, _DAY, zero=True)
    paused = table.boolean("paused", False)
    if mode == "userspace":
        other = "remove this key, or take another mode"
        if loader == "bcc":
            table.complain("userspace mode loads no program", other, "loader")
        if "on_stop" in table and on_stop == "keep":
            table.complain(
                "in userspace mode nothing answers once the process stops", other, "on_stop"
            )
    rules, forced = _rules(table, directory)
    docker = _docker(table)
    # One group for each container selector, and one for each kind of hole.
    groups = MAX_RULE_CLASSES - len(docker) - len(OWNED_LABELS)
    lack = Capacity(max_addresses or MAX_ADDRESSES, groups=groups).lack(rules, Rules())
    if lack:
        error = lack.error(in_file=True)
        table.complain(error.message, error.hint)
    return Interface(
        name or "",
        mode,
        loader,
        max_addresses,
        on_stop,
        heartbeat or 0.0,
        rules,
        docker,
        _announce(table.table("announce")),
        _gateway(table.table("gateway")),
        _addresses(table.table("addresses")),
        _limit(table.table("limit")),
        _resolve(table.table("resolve")),
        forced,
        paused,
    )


def _rules(interface: Table, directory: Path) -> tuple[Rules, frozenset[Prefix]]:
    """Return the rules of all [[interface.prefix]], and the prefixes of those with `force`."""
    forced: set[Prefix] = set()
    parts: list[tuple[Table, str, Rules]] = []
    for table in interface.tables("prefix"):
        key, part = _rules_of_table(table, directory)
        if table.boolean("force", False):
            forced.update(part.wider)
        else:
            _refuse_broad(table, key, part)
        parts.append((table, key, part))
    rules = Rules.union(part for _, _, part in parts)
    if len(rules.addresses) + len(rules.wider) < sum(len(part) for _, _, part in parts):
        _complain_of_twice(parts)
    return rules, frozenset(forced)


def _complain_of_twice(parts: list[tuple[Table, str, Rules]]) -> None:
    """Complain of prefixes that several [[interface.prefix]] have, each with its table and key."""
    lines: dict[Prefix, int] = {}  # where each stands first
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


def _refuse_broad(table: Table, key: str, rules: Rules) -> None:
    """Complain of rules that are too broad on any interface."""
    found = sorted(breadth.anywhere(rules), key=lambda broad: broad.prefix)
    if found:
        others = f"; {len(found) - 1} more are too broad" if len(found) > 1 else ""
        table.complain(f"{found[0].sentence()}{others}", found[0].hint(in_file=True), key)


def _rules_of_table(table: Table, directory: Path) -> tuple[str, Rules]:
    """The rules of one [[interface.prefix]], and the key that holds them."""
    answer = Answer[table.choice("answer", _ANSWERS, "always").upper()]
    rule = Rule(answer, _profile(table), CONFIG_ORIGIN, dev=_via(table, answer))
    if answer is Answer.NEVER:
        for key in _PROFILE_KEYS:
            if key in table:
                table.complain(
                    "this says how to answer, and answer says never", "remove one of them", key
                )
        rule = Rule(answer, origin=CONFIG_ORIGIN)
    _exactly_one(table, ("prefix", "file"), 'prefix = "2001:db8::/64"')
    prefix = table.parsed("prefix", lambda text: compile_rules([text], rule=rule))
    listed = table.parsed("file", lambda text: _rules_of_file(directory, text, rule))
    return ("prefix", prefix or Rules()) if "prefix" in table else ("file", listed or Rules())


def _via(table: Table, answer: Answer) -> tuple[str, ...]:
    patterns = [text for _, (text,) in table.parsed_all("via", lambda text: parse_dev([text]))]
    if "via" in table and not answer.asks_routes:
        table.complain(
            "interfaces limit where a route leads, and this rule asks for none",
            'write answer = "routed" or answer = "neighbour", or remove this key',
            "via",
        )
    try:
        return parse_dev(patterns)
    except UsageError as error:
        table.complain(error.message, error.hint, "via")
        return ()


def _rules_of_file(directory: Path, text: str, rule: Rule) -> Rules:
    path = directory / text
    return rules_of_lines(_lines(_read(path, str(path))), path.name, rule)


def _lines(text: str) -> Iterator[str]:
    """One after the other: a list of a million would take 80 MB beside the text."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _profile(table: Table) -> Profile:
    default = Profile()
    return Profile(
        table.parsed("source", parse_source) or default.source,
        table.boolean("router", default.router),
        table.boolean("override", default.override),
        table.choice("dad", ("defend", "ignore"), "defend") == "defend",
        table.parsed("lladdr", parse_mac),
    )


def _docker(interface: Table) -> tuple[Containers, ...]:
    """All [[interface.docker]]."""
    found: list[Containers] = []
    places: dict[tuple[str, str], Table] = {}
    for table in interface.tables("docker"):
        containers = _containers(table)
        found.append(containers)
        for key in _SELECTORS:
            value = getattr(containers, key)
            if value is None:
                continue
            there = places.setdefault((key, str(value)), table)
            if there is not table:
                hint = f"line {there.line(key)} has it first"
                table.complain(f"{value} is given twice", hint, key)
    return tuple(found)


def _containers(table: Table) -> Containers:
    network = table.parsed("network", _parse_network)
    network_label = table.parsed("network_label", _parse_label)
    container_label = table.parsed("container_label", _parse_label)
    within = table.parsed("within", parse_target)
    _exactly_one(table, _SELECTORS, 'network = "name"')
    except_label = table.parsed("except_label", _parse_label)
    same = network_label or container_label
    if except_label is not None and same is not None and except_label in (same, Label(same.key)):
        table.complain(
            f"'{except_label}' excepts all that have '{same}'",
            "name another label, or none",
            "except_label",
        )
    chosen = network or network_label or container_label or within
    rule = Rule(
        profile=_profile(table),
        origin=DOCKER_ORIGIN,
        label="" if chosen is None else str(chosen),
        dynamic=True,
    )
    return Containers(rule, network, network_label, container_label, within, except_label)


def _announce(table: Table) -> Announce:
    all_three = table.given and not any(key in table for key in ANNOUNCEMENTS)
    # One that is there, but is no boolean, counts as true: it has its complaint already.
    gateway, probe, advertise = (
        table.boolean(key, all_three or key in table) for key in ANNOUNCEMENTS
    )
    if table.given and not (gateway or probe or advertise):
        table.complain(
            "of what could be announced nothing is",
            "set solicit_gateway, probe or advertise to true, or remove the table",
        )
    default = Announce()
    interval = table.number("interval", 1, _DAY, zero=True)
    rate = table.number("rate", 1, 1_000_000)
    return Announce(gateway, probe, advertise, interval or 0.0, rate or default.rate)


def _gateway(table: Table) -> Gateway:
    return Gateway(
        table.boolean("keep", table.given),
        table.parsed("source", parse_unicast),
        table.number("interval", 1, 3600),
    )


def _addresses(table: Table) -> Addresses:
    preferred = _patterns(table, "preferred", table.parsed_some("preferred", _parse_preferred))
    table.require("deprecate", 'deprecate = ["2001:db8::1"]')
    deprecate = _patterns(table, "deprecate", table.parsed_all("deprecate", parse_pattern))
    lengths = {pattern.length for pattern in preferred}
    for pattern, number in deprecate.items():
        around = (pattern.cut_to(length) for length in lengths)
        covering = next((each for each in around if each and each in preferred), None)
        if covering is None:
            continue
        if covering == pattern:
            hint = "a prefix around it may be: it is excepted from that"
        else:
            hint = f"preferred has {covering}, and what is preferred is never deprecated"
        message = f"{pattern} cannot be both preferred and deprecated"
        table.complain(message, hint, "deprecate", number)
    return Addresses(tuple(preferred), tuple(deprecate))


def _patterns(
    table: Table, key: str, found: list[tuple[int, AddressPattern]]
) -> dict[AddressPattern, int]:
    """Return each pattern of an array, and its place there; complain of those given twice."""
    patterns: dict[AddressPattern, int] = {}
    for number, pattern in found:
        if pattern in patterns:
            first = f"line {table.line(key, patterns[pattern])} has it first"
            table.complain(f"{pattern} is given twice", first, key, number)
        patterns.setdefault(pattern, number)
    return patterns


def _parse_preferred(text: str) -> AddressPattern:
    """Read a pattern; an address alone must be one that a host can send from."""
    if "/" not in text:
        return AddressPattern(parse_unicast(text), 128)
    return parse_pattern(text)


def _limit(table: Table) -> Limit:
    default = Limit()
    rate = table.number("rate", 1e-3, 1e9, zero=True)
    burst = table.integer("burst", 1, 1_000_000)
    if burst and (rate == 0 or "rate" not in table):
        table.complain("a burst without a rate limits nothing", "give a rate, too", "burst")
    together = table.number("interface_rate", 1e-3, 1e9, zero=True)
    gateway = table.number("gateway_rate", 1e-3, 1e9, zero=True)
    if gateway is not None and not rate and not together:
        table.complain(
            "a share for the gateways without a limit is no share",
            "give rate or interface_rate, too",
            "gateway_rate",
        )
    return Limit(
        rate or default.rate,
        burst or default.burst,
        together or default.interface,
        default.gateway if gateway is None else gateway,
    )


def _resolve(table: Table) -> Resolve:
    default = Resolve()
    return Resolve(
        table.number("deadline", *DEADLINE) or default.deadline,
        table.number("rate", 1, 1_000_000) or default.rate,
        table.integer("burst", 1, 1_000_000) or default.burst,
        table.integer("pending", 1, 65536) or default.pending,
    )


def _exactly_one(table: Table, keys: tuple[str, ...], example: str) -> None:
    given = [key for key in keys if key in table]
    if not given:
        table.complain(f"one of {', '.join(keys)} is missing", f"write it as in {example}")
    for key in given[1:]:
        table.complain(
            f"one table cannot have {given[0]} as well",
            f"it takes one of {', '.join(keys)}",
            key,
        )


# ---- words --------------------------------------------------------------------------------------


def _parse_interface(text: str) -> str:
    check_interface(text)
    return text


def parse_listen(text: str) -> Metrics:
    """`[::1]:9877`, `127.0.0.1:9877` or `localhost:9877`; UsageError for anything else."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):([0-9]{1,5})", text, re.ASCII)
    if match is None or not 1 <= int(match[3]) <= _PORT_MAX:
        raise UsageError(
            f"'{text}' is not an address and a port", "write it as in [::1]:9877 or 127.0.0.1:9877"
        )
    host = match[1] or match[2]
    if match[1]:
        good = _is_address(socket.AF_INET6, host.partition("%")[0])
    elif re.fullmatch(r"[0-9.]+", host):
        good = _is_address(socket.AF_INET, host)
    else:
        good = re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})", host) is not None
    if not good:
        raise UsageError(
            f"'{text}' names no host to listen on", "[::]:9877 is every address of this host"
        )
    return Metrics(host, int(match[3]))


def _is_address(family: socket.AddressFamily, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):
        return False
    return True


def parse_socket(text: str) -> str:
    """Return the path of a unix socket, written alone or as in DOCKER_HOST; else UsageError."""
    path = text.removeprefix("unix://")
    if not path.startswith("/") or "\0" in path or not _fits(path, _UNIX_PATH_MAX):
        raise UsageError(
            f"'{text}' is no path of a unix socket", "write it as in /var/run/docker.sock"
        )
    return path


def _parse_network(text: str) -> str:
    if not text.strip() or not text.isprintable():  # the engine takes all others
        raise UsageError(f"'{text}' is no name of a Docker network", "see: docker network ls")
    return text


def _parse_label(text: str) -> Label:
    key, equals, value = text.partition("=")
    bad_key = not key.strip() or key != key.strip() or not key.isprintable()
    if bad_key or "\0" in value:
        raise UsageError(f"'{text}' is no label", "write it as in key or key=value")
    return Label(key, value if equals else None)


def _fits(text: str, size: int) -> bool:
    return len(text.encode(errors="replace")) <= size
